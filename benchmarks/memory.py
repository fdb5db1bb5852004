#!/usr/bin/env python
"""Print how large the real models are, counted from their shapes without any weights: python benchmarks/memory.py

Z-Image's transformer, Qwen3-4B, Qwen3-VL-4B and the VAE are built on torch's meta device. Activations come on top.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model, Qwen3VLConfig, Qwen3VLForConditionalGeneration


TEXT = {
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "out_hidden_size": 2560,
    "deepstack_visual_indexes": [5, 11, 17],
}


def build() -> dict[str, torch.nn.Module]:
    with torch.device("meta"):
        blocks = (128, 256, 512, 512)
        return {
            "transformer (Z-Image)": ZImageTransformer2DModel(),
            "text_encoder (Qwen3-4B)": Qwen3Model(Qwen3Config(**TEXT)),
            "vl_encoder (Qwen3-VL-4B)": Qwen3VLForConditionalGeneration(
                Qwen3VLConfig(text_config=TEXT, vision_config=VISION, tie_word_embeddings=True)
            ),
            "vae": AutoencoderKL(
                block_out_channels=blocks,
                down_block_types=("DownEncoderBlock2D",) * len(blocks),
                up_block_types=("UpDecoderBlock2D",) * len(blocks),
                layers_per_block=2,
                latent_channels=16,
            ),
        }


def main() -> None:
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in build().items()}
    largest = max(sizes.values())
    print("| model | parameters | in bfloat16 |\n|---|---|---|")
    for name, count in sizes.items():
        print(f"| {name} | {count / 1e9:.2f} B | {2 * count / 1e9:.1f} GB |")
    print(f"| all resident | {sum(sizes.values()) / 1e9:.2f} B | {2 * sum(sizes.values()) / 1e9:.1f} GB |")
    print(f"| model offload: the largest alone | {largest / 1e9:.2f} B | {2 * largest / 1e9:.1f} GB |")


if __name__ == "__main__":
    main()
