#!/usr/bin/env python
"""Recipes: ready settings of the knobs, by name.

    python examples/recipes.py [OUTPUT.png]

For the real weights set MODEL to "Tongyi-MAI/Z-Image-Turbo".
"""

from __future__ import annotations

import sys

import torch
from diffusers.utils import make_image_grid

from zimage_vl import ZImageVLPipeline, load_toy_pipeline, recipes
from zimage_vl.toy import SIZE, STEPS, Scene, draw_scene


MODEL = "toy"

if MODEL == "toy":
    pipe, size, steps = load_toy_pipeline(), SIZE, STEPS
    prompt, reference = "a striped circle", draw_scene(Scene("square", "blue", "black"))
else:
    pipe = ZImageVLPipeline.from_pretrained(MODEL, dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    prompt, reference = "a lighthouse at dusk", "photo.jpg"
    size, steps = 1024, 9

images = []
for name in ("IMAGE_VARIATION", "CALIBRATED", "COLOURS"):
    recipe = getattr(recipes, name)  # a dict of keyword arguments; {**recipe, "vl_alpha": 0.7} changes one
    output = pipe(
        prompt,
        reference_image=reference,
        **recipe,
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(0),
    )
    images += output.images
    print(f"{name}: influence of the reference {output.conditioning[0].influence:.3f}")
path = sys.argv[1] if len(sys.argv) > 1 else "recipes.png"
make_image_grid(images, rows=1, cols=len(images)).save(path)
print(path)
