#!/usr/bin/env python
"""A batch: several prompts, each with its own reference.

    python examples/batch.py [OUTPUT.png]

For the real weights set MODEL to "Tongyi-MAI/Z-Image-Turbo".
"""

from __future__ import annotations

import sys

import torch
from diffusers.utils import make_image_grid

from zimage_vl import ZImageVLPipeline, load_toy_pipeline
from zimage_vl.toy import SIZE, STEPS, Scene, draw_scene


MODEL = "toy"

if MODEL == "toy":
    pipe, size, steps = load_toy_pipeline(), SIZE, STEPS
    knobs = {"vl_alpha": 0.7, "vl_hidden_layer": -2, "vl_normalization": "token_rms"}
    prompts = ["a red circle on a white background", "a green cross on a gray background"]
    references = [draw_scene(Scene("square", "blue", "black")), draw_scene(Scene("triangle", "purple", "white"))]
else:
    pipe = ZImageVLPipeline.from_pretrained(MODEL, dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    prompts, references = ["a lighthouse at dusk", "a harbour at noon"], ["photo.jpg", "painting.jpg"]
    size, steps = 1024, 9
    knobs = {"vl_alpha": 0.3}  # all else is the default

output = pipe(
    prompts,
    reference_image=references,  # one per prompt; a single picture would serve all
    **knobs,
    height=size,
    width=size,
    num_inference_steps=steps,
    guidance_scale=0.0,
    generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],  # each can be had again alone
)
for prompt, report in zip(prompts, output.conditioning, strict=True):
    print(f"{prompt}: influence of the reference {report.influence:.3f}")
path = sys.argv[1] if len(sys.argv) > 1 else "batch.png"
make_image_grid(output.images, rows=1, cols=len(output.images)).save(path)
print(path)
