#!/usr/bin/env python
"""ControlNet: a control picture says where things stand, a reference what they look like.

    python examples/controlnet.py [OUTPUT.png]

The toy's ControlNet is random and untrained, its last layers 0 as training would begin: it runs and changes
nothing. It needs diffusers with ZImageControlNetPipeline, newer than 0.36.

For the real weights set MODEL to "Tongyi-MAI/Z-Image-Turbo".
"""

from __future__ import annotations

import sys

import diffusers
import torch
from diffusers.utils import make_image_grid

from zimage_vl import ZImageVLPipeline, load_init_image, load_toy_pipeline
from zimage_vl.toy import SIZE, STEPS, Scene, draw_scene


MODEL = "toy"

if MODEL == "toy":
    pipe, size, steps = load_toy_pipeline(), SIZE, STEPS
    knobs = {"vl_alpha": 0.7, "vl_hidden_layer": -2, "vl_normalization": "token_rms"}
    prompt, control = "a red circle on a white background", draw_scene(Scene("cross", "yellow", "gray"))
    reference = draw_scene(Scene("square", "blue", "black"))
else:
    pipe = ZImageVLPipeline.from_pretrained(MODEL, dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    prompt, control, reference = "a lighthouse at dusk", "edges.png", "photo.jpg"
    size, steps = 1024, 9
    knobs = {"vl_alpha": 0.3}  # all else is the default

if not hasattr(diffusers, "ZImageControlNetPipeline"):
    sys.exit(f"diffusers {diffusers.__version__} has no ZImageControlNetPipeline: install a newer one.")

if MODEL == "toy":
    parts = pipe.transformer.config
    controlnet = diffusers.ZImageControlNetModel(
        control_layers_places=[0, 2],
        control_refiner_layers_places=[0],
        control_in_dim=parts.in_channels,
        dim=parts.dim,
        n_refiner_layers=parts.n_refiner_layers,
        n_heads=parts.n_heads,
        n_kv_heads=parts.n_kv_heads,
    )
    print("The toy's ControlNet is untrained: the control picture has no effect.")
else:
    from huggingface_hub import hf_hub_download

    repository = "alibaba-pai/Z-Image-Turbo-Fun-Controlnet-Union"
    weights = hf_hub_download(repository, "Z-Image-Turbo-Fun-Controlnet-Union.safetensors")
    controlnet = diffusers.ZImageControlNetModel.from_single_file(weights, dtype=torch.bfloat16)

ready = pipe.encode_prompt_with_reference(prompt, reference, **knobs, do_classifier_free_guidance=False)
control = load_init_image(control, size, size)
# The same modules under the same offload; the ControlNet comes to them.
controlled = pipe.to_pipe(diffusers.ZImageControlNetPipeline, controlnet=controlnet)
image = controlled(
    prompt_embeds=ready.prompt_embeds,
    control_image=control,
    controlnet_conditioning_scale=0.75,
    height=size,
    width=size,
    num_inference_steps=steps,
    guidance_scale=0.0,
    generator=torch.Generator().manual_seed(0),
).images[0]
path = sys.argv[1] if len(sys.argv) > 1 else "controlnet.png"
make_image_grid([control, image], rows=1, cols=2).save(path)
print(path)
