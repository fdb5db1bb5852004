#!/usr/bin/env python
"""Print how large the real models are and what fits on which GPU, by their shapes: python benchmarks/memory.py

Z-Image's transformer, Qwen3-4B, Qwen3-VL-4B and the VAE are built on torch's meta device, without any weights. What
the models compute (activations) comes on top.
"""

from __future__ import annotations

from performance.page import table
from performance.random_models import count_parameters, empty_models


NAMES = {
    "transformer": "Z-Image",
    "text_encoder": "Qwen3-4B",
    "vl_encoder": "Qwen3-VL-4B",
    "vl_vision": "its vision tower alone",
}
GPUS = (80, 48, 32, 24, 16, 12, 8)  # GB
# Of a GPU's memory; the rest is for activations and CUDA itself, of which nothing has been measured.
FILLED = 0.8


def count_sizes() -> dict[str, float]:
    """Get the parameters of each model, in billions; the vision tower is part of the VL encoder."""
    models = empty_models()
    models["vl_vision"] = models["vl_encoder"].model.visual
    return {name: count_parameters(model) / 1e9 for name, model in models.items()}


def size_table(sizes: dict[str, float]) -> str:
    shown = {f"{name} ({NAMES[name]})" if name in NAMES else name: count for name, count in sizes.items()}
    whole = [count for name, count in sizes.items() if name != "vl_vision"]
    shown |= {"all resident": sum(whole), "model offload: the largest alone": max(whole)}
    rows = [(name, f"{count:.2f} B", f"{2 * count:.1f} GB") for name, count in shown.items()]
    return table(("model", "parameters", "in bfloat16"), rows)


def gpu_table(sizes: dict[str, float]) -> str:
    """What fits on which GPU, with either reader."""
    head = ("GPU memory", "as it is", '`vl_reader="text_encoder"`')
    readers = ("vl_encoder", "vl_vision")
    return table(head, [(f"{gpu} GB", *(_find_way(sizes, reader, gpu) for reader in readers)) for gpu in GPUS])


def _find_way(sizes: dict[str, float], reader: str, gpu: int) -> str:
    """The first of four ways whose weights, in bfloat16, leave room on a GPU."""
    parts = {name: 2 * sizes[name] for name in ("transformer", "text_encoder", "vae", reader)}  # GB
    eight_bits = {**parts, "transformer": sizes["transformer"]}
    for way, on_gpu, waiting in (
        ("all on the GPU", sum(parts.values()), 0.0),
        ("model offload", max(parts.values()), sum(parts.values())),
        ("transformer in 8 bits, model offload", max(eight_bits.values()), sum(eight_bits.values())),
    ):
        if on_gpu <= FILLED * gpu:
            return f"{way}: {on_gpu:.1f} GB" + (f", {waiting:.1f} GB in main memory" if waiting else "")
    return f"sequential offload, slow: {sum(parts.values()):.1f} GB in main memory"


def main() -> None:
    sizes = count_sizes()
    print(size_table(sizes), gpu_table(sizes), sep="\n\n")


if __name__ == "__main__":
    main()
