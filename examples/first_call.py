#!/usr/bin/env python
"""The first call: a prompt and a reference picture, on the toy world. python examples/first_call.py [OUTPUT.png]

For the real weights set MODEL to "Tongyi-MAI/Z-Image-Turbo": the call stays the same, with the sizes and steps below.
"""

from __future__ import annotations

import sys

import torch

from zimage_vl import ZImageVLPipeline, load_toy_pipeline
from zimage_vl.toy import SIZE, STEPS, Scene, draw_scene


MODEL = "toy"

if MODEL == "toy":
    pipe, size, steps = load_toy_pipeline(), SIZE, STEPS
    prompt, reference = "a red circle on a white background", draw_scene(Scene("square", "blue", "black"))
else:
    pipe = ZImageVLPipeline.from_pretrained(MODEL, dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    size, steps = 1024, 9
    prompt, reference = "a lighthouse at dusk", "photo.jpg"

output = pipe(
    prompt,
    reference_image=reference,
    vl_alpha=0.3,
    height=size,
    width=size,
    num_inference_steps=steps,
    guidance_scale=0.0,
    generator=torch.Generator().manual_seed(0),
)
path = sys.argv[1] if len(sys.argv) > 1 else "first_call.png"
output.images[0].save(path)
print(f"influence of the reference: {output.conditioning[0].influence:.3f}")
print(path)
