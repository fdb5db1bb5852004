#!/usr/bin/env python
"""Inpainting: only what a mask shows is painted, towards a reference.

    python examples/inpaint.py [OUTPUT.png]

It needs diffusers with ZImageInpaintPipeline, newer than 0.36.

For the real weights set MODEL to "Tongyi-MAI/Z-Image-Turbo".
"""

from __future__ import annotations

import sys

import diffusers
import torch
from diffusers.utils import make_image_grid
from PIL import Image

from zimage_vl import ZImageVLPipeline, load_init_image, load_toy_pipeline
from zimage_vl.toy import SIZE, STEPS, Scene, draw_scene


MODEL = "toy"

if MODEL == "toy":
    pipe, size, steps = load_toy_pipeline(), SIZE, STEPS
    knobs = {"vl_alpha": 0.5, "vl_hidden_layer": -2, "vl_normalization": "token_rms"}
    prompt, box = "a purple triangle on a white background", (8, 8, 56, 56)
    start, reference = draw_scene(Scene("circle", "red", "white")), draw_scene(Scene("triangle", "purple", "white"))
else:
    pipe = ZImageVLPipeline.from_pretrained(MODEL, dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    prompt, box = "a lighthouse at dusk", (256, 128, 768, 896)
    start, reference = "sketch.jpg", "photo.jpg"
    size, steps = 1024, 9
    knobs = {"vl_alpha": 0.3}  # all else is the default

if not hasattr(diffusers, "ZImageInpaintPipeline"):
    sys.exit(f"diffusers {diffusers.__version__} has no ZImageInpaintPipeline: install a newer one.")

ready = pipe.encode_prompt_with_reference(prompt, reference, **knobs, do_classifier_free_guidance=False)
start = load_init_image(start, size, size)
mask = Image.new("L", start.size, 0)
mask.paste(255, box)  # white is painted
inpaint = pipe.to_pipe(diffusers.ZImageInpaintPipeline)  # the same modules under the same offload
image = inpaint(
    prompt_embeds=ready.prompt_embeds,
    image=start,
    mask_image=mask,
    strength=1.0,
    height=size,
    width=size,
    num_inference_steps=steps,
    guidance_scale=0.0,
    generator=torch.Generator().manual_seed(0),
).images[0]
path = sys.argv[1] if len(sys.argv) > 1 else "inpaint.png"
make_image_grid([start, mask.convert("RGB"), image], rows=1, cols=3).save(path)
print(path)
