#!/usr/bin/env python
"""Several references for one prompt, with weights.

    python examples/several_references.py [OUTPUT.png]

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
    prompt = "a red circle on a white background"
    references = [draw_scene(Scene("square", "blue", "black")), draw_scene(Scene("triangle", "green", "gray"))]
else:
    pipe = ZImageVLPipeline.from_pretrained(MODEL, dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    prompt, references = "a lighthouse at dusk", ["photo.jpg", "painting.jpg"]
    size, steps = 1024, 9
    knobs = {"vl_alpha": 0.3}  # all else is the default

images = []
for weights in ([1, 0], [0.7, 0.3], [0.3, 0.7], [0, 1]):
    output = pipe(
        prompt,
        reference_image=[references],  # a list in the list of prompts: these two act together
        reference_weights=weights,
        **knobs,
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(0),
    )
    images += output.images
    print(f"weights {weights}: {[round(r.weight, 2) for r in output.conditioning[0].references]}")
path = sys.argv[1] if len(sys.argv) > 1 else "several_references.png"
make_image_grid(images, rows=1, cols=len(images)).save(path)
print(path)
