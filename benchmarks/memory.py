#!/usr/bin/env python
"""Print how large the real models are, counted from their shapes without any weights: python benchmarks/memory.py

Z-Image's transformer, Qwen3-4B, Qwen3-VL-4B and the VAE are built on torch's meta device. Activations come on top.
"""

from __future__ import annotations

from performance.random_models import count_parameters, empty_models


NAMES = {"transformer": "Z-Image", "text_encoder": "Qwen3-4B", "vl_encoder": "Qwen3-VL-4B"}


def main() -> None:
    models = empty_models()
    sizes = {
        f"{name} ({NAMES[name]})" if name in NAMES else name: count_parameters(model) for name, model in models.items()
    }
    largest = max(sizes.values())
    print("| model | parameters | in bfloat16 |\n|---|---|---|")
    for name, count in sizes.items():
        print(f"| {name} | {count / 1e9:.2f} B | {2 * count / 1e9:.1f} GB |")
    print(f"| all resident | {sum(sizes.values()) / 1e9:.2f} B | {2 * sum(sizes.values()) / 1e9:.1f} GB |")
    print(f"| model offload: the largest alone | {largest / 1e9:.2f} B | {2 * largest / 1e9:.1f} GB |")


if __name__ == "__main__":
    main()
