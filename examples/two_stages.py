#!/usr/bin/env python
"""Two stages: read a reference once, paint with it anywhere without the VL model.

    python examples/two_stages.py [OUTPUT.png]

For the real weights set MODEL to "Tongyi-MAI/Z-Image-Turbo".
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from zimage_vl import ZImageVLPipeline, load_toy_pipeline
from zimage_vl.toy import SIZE, STEPS, Scene, draw_scene


MODEL = "toy"

if MODEL == "toy":
    pipe, size, steps = load_toy_pipeline(), SIZE, STEPS
    knobs = {"vl_alpha": 0.7, "vl_hidden_layer": -2, "vl_normalization": "token_rms"}
    prompt, reference = "a red circle on a white background", draw_scene(Scene("square", "blue", "black"))
else:
    pipe = ZImageVLPipeline.from_pretrained(MODEL, dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    prompt, reference = "a lighthouse at dusk", "photo.jpg"
    size, steps = 1024, 9
    knobs = {"vl_alpha": 0.3}  # all else is the default

path = sys.argv[1] if len(sys.argv) > 1 else "two_stages.png"

# One: all layers that may be wanted come from one pass. `zimage-vl extract` does the same without loading the rest.
embeds_path = Path(path).with_suffix(".safetensors")
pipe.encode_reference(reference, prompt, layers=(-2, -6)).save(embeds_path)
pipe.unload_vl_encoder()

# Two: in this process or another, as often as wanted.
output = pipe(
    prompt,
    reference_embeds=embeds_path,
    **knobs,
    height=size,
    width=size,
    num_inference_steps=steps,
    guidance_scale=0.0,
    generator=torch.Generator().manual_seed(0),
)
output.images[0].save(path)
print(f"{embeds_path}: {embeds_path.stat().st_size} bytes, VL encoder in memory: {pipe.vl_encoder is not None}")
print(path)
