#!/usr/bin/env python
"""In a script that has a ZImagePipeline: from_pipe, and nothing is loaded twice.

    python examples/existing_script.py [OUTPUT.png]

For the real weights set MODEL to "Tongyi-MAI/Z-Image-Turbo".
"""

from __future__ import annotations

import sys

import torch
from diffusers import ZImagePipeline
from diffusers.utils import make_image_grid

from zimage_vl import ZImageVLPipeline, load_toy_pipeline
from zimage_vl.toy import SIZE, STEPS, Scene, draw_scene


MODEL = "toy"

if MODEL == "toy":
    toy, size, steps = load_toy_pipeline(), SIZE, STEPS
    knobs = {"vl_alpha": 0.7, "vl_hidden_layer": -2, "vl_normalization": "token_rms"}
    pipe = ZImagePipeline(**toy.z_image_components)
    vl_parts = {"vl_encoder": toy.vl_encoder, "vl_processor": toy.vl_processor}
    prompt, reference = "a red circle on a white background", draw_scene(Scene("square", "blue", "black"))
else:
    pipe, vl_parts = ZImagePipeline.from_pretrained(MODEL, dtype=torch.bfloat16), {}
    pipe.enable_model_cpu_offload()
    prompt, reference = "a lighthouse at dusk", "photo.jpg"
    size, steps = 1024, 9
    knobs = {"vl_alpha": 0.3}  # all else is the default

call = {"height": size, "width": size, "num_inference_steps": steps, "guidance_scale": 0.0}

# The script as it was.
before = pipe(prompt, **call, generator=torch.Generator().manual_seed(0)).images[0]

# A line more, and a reference. dtypes and offload stay as they are; Qwen3-VL is loaded when a picture is read.
vl = ZImageVLPipeline.from_pipe(pipe, **vl_parts)
after = vl(
    prompt,
    reference_image=reference,
    **knobs,
    **call,
    generator=torch.Generator().manual_seed(0),
).images[0]
assert vl.transformer is pipe.transformer
path = sys.argv[1] if len(sys.argv) > 1 else "existing_script.png"
make_image_grid([before, after], rows=1, cols=2).save(path)
print(path)
