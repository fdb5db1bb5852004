#!/usr/bin/env python
"""Same picture, two ways: one picture is where painting begins and what it is steered to; the prompt says what.

    python examples/same_picture.py [OUTPUT.png]

For the real weights set MODEL to "Tongyi-MAI/Z-Image-Turbo".
"""

from __future__ import annotations

import sys

import torch
from diffusers.utils import make_image_grid

from zimage_vl import ZImageVLPipeline, load_init_image, load_toy_pipeline, paint_like
from zimage_vl.toy import SIZE, STEPS, Scene, draw_scene


MODEL = "toy"

if MODEL == "toy":
    pipe, size, steps = load_toy_pipeline(), SIZE, STEPS
    knobs = {"vl_alpha": 0.6, "vl_hidden_layer": -2, "vl_normalization": "token_rms"}
    prompt = "a green cross on a white background"
    picture = draw_scene(Scene("circle", "purple", "black"))
else:
    pipe = ZImageVLPipeline.from_pretrained(MODEL, dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    prompt, picture, size, steps, knobs = "a lighthouse at dusk", "photo.jpg", 1024, 9, {}

# The picture's circle becomes the prompt's cross, in the picture's colours.
image = paint_like(
    pipe,
    prompt,
    picture,
    height=size,
    width=size,
    num_inference_steps=steps,
    guidance_scale=0.0,
    generator=torch.Generator().manual_seed(2),
    **knobs,
).images[0]
path = sys.argv[1] if len(sys.argv) > 1 else "same_picture.png"
make_image_grid([load_init_image(picture, size, size), image], rows=1, cols=2).save(path)
print(path)
