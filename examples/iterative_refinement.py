#!/usr/bin/env python
"""Iterative refinement: what is painted becomes the next reference.

    python examples/iterative_refinement.py [OUTPUT.png]

For the real weights set MODEL to "Tongyi-MAI/Z-Image-Turbo".
"""

from __future__ import annotations

import sys

import torch
from diffusers.utils import make_image_grid

from zimage_vl import ZImageVLPipeline, load_toy_pipeline, refine_iteratively
from zimage_vl.toy import SIZE, STEPS, Scene, draw_scene


MODEL = "toy"

if MODEL == "toy":
    pipe, size, steps = load_toy_pipeline(), SIZE, STEPS
    knobs = {"vl_alpha": 0.45, "vl_hidden_layer": -2, "vl_normalization": "token_rms"}
    prompt, reference = "a red circle on a white background", draw_scene(Scene("square", "blue", "black"))
else:
    pipe = ZImageVLPipeline.from_pretrained(MODEL, dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    prompt, reference = "a lighthouse at dusk", "photo.jpg"
    size, steps = 1024, 9
    knobs = {"vl_alpha": 0.3}  # all else is the default

rounds = refine_iteratively(
    pipe,
    prompt,
    reference,
    4,
    on_round=lambda number, output: print(f"round {number}: influence {output.conditioning[0].influence:.3f}"),
    **knobs,
    height=size,
    width=size,
    num_inference_steps=steps,
    guidance_scale=0.0,
    generator=torch.Generator().manual_seed(0),
)
images = [output.images[0] for output in rounds]
path = sys.argv[1] if len(sys.argv) > 1 else "iterative_refinement.png"
make_image_grid(images, rows=1, cols=len(images)).save(path)
print(path)
