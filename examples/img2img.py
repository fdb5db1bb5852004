#!/usr/bin/env python
"""Image-to-image: a start picture is painted over, a reference says towards what.

    python examples/img2img.py [OUTPUT.png]

For the real weights set MODEL to "Tongyi-MAI/Z-Image-Turbo".
"""

from __future__ import annotations

import sys

import torch
from diffusers import ZImageImg2ImgPipeline
from diffusers.utils import make_image_grid

from zimage_vl import ZImageVLPipeline, load_init_image, load_toy_pipeline
from zimage_vl.toy import SIZE, STEPS, Scene, draw_scene


MODEL = "toy"

if MODEL == "toy":
    pipe, size, steps = load_toy_pipeline(), SIZE, STEPS
    knobs = {"vl_alpha": 1.0, "vl_hidden_layer": -2, "vl_normalization": "token_rms"}
    strength = 0.6
    prompt = "a green triangle on a white background"
    start = draw_scene(Scene("triangle", "green", "white"))
    reference = draw_scene(Scene("triangle", "purple", "white"))
else:
    pipe = ZImageVLPipeline.from_pretrained(MODEL, dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    # What the guide's author says "sort of worked" for style: the same picture as start and reference, nearly all of
    # the start gone.
    prompt, start, reference = "a lighthouse at dusk", "photo.jpg", "photo.jpg"
    size, steps, strength = 1024, 9, 0.85
    knobs = {"vl_alpha": 0.4}

ready = pipe.encode_prompt_with_reference(prompt, reference, **knobs, do_classifier_free_guidance=False)
img2img = pipe.to_pipe(ZImageImg2ImgPipeline)  # the same modules under the same offload
start = load_init_image(start, size, size)
image = img2img(
    prompt_embeds=ready.prompt_embeds,
    image=start,
    strength=strength,
    num_inference_steps=steps,
    guidance_scale=0.0,
    generator=torch.Generator().manual_seed(0),
).images[0]
# zimage_vl.paint_from_image(pipe, prompt, start, strength, reference_image=reference, ...) is all of this in one call.
path = sys.argv[1] if len(sys.argv) > 1 else "img2img.png"
make_image_grid([start, image], rows=1, cols=2).save(path)
print(path)
