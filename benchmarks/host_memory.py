#!/usr/bin/env python
"""Measure the host memory of the ordinary call and of the low-memory way: python benchmarks/host_memory.py

Models of the real classes with random weights, some 100 MB each, are written to a temporary folder; each way of
painting runs in a process of its own, whose peak of resident memory the system tells. What counts are the ratios: the
libraries take the same in each, and are measured by a process that only imports them.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


_WIDTH, _BLOCKS = 512, 18


def _text_config(vocab_size: int, blocks: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": _WIDTH,
        "intermediate_size": 4 * _WIDTH,
        "num_hidden_layers": blocks,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 32,
    }


def save_models(folder: Path, blocks: int = _BLOCKS) -> dict[str, float]:
    """A pipeline with random weights, and the megabytes of each of its models."""
    from diffusers import ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    from zimage_vl import ZImageVLPipeline, load_toy_pipeline

    toy: Any = load_toy_pipeline()
    vl, text = toy.vl_encoder.config, _text_config(toy.text_encoder.config.vocab_size, blocks)
    rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    encoder = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config={**text, "rope_theta": 10000.0, "rope_scaling": rope},
            vision_config={**vl.vision_config.to_dict(), "out_hidden_size": _WIDTH},
            **{name: getattr(vl, name) for name in ("image_token_id", "video_token_id")},
            **{name: getattr(vl, name) for name in ("vision_start_token_id", "vision_end_token_id")},
        )
    )
    transformer = ZImageTransformer2DModel.from_config(
        {**toy.transformer.config, "dim": 768, "n_layers": 10, "n_heads": 12, "n_kv_heads": 12, "cap_feat_dim": _WIDTH}
        | {"axes_dims": [16, 24, 24]}
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):  # diffusers fills them with nothing
        torch.nn.init.normal_(token, std=0.02)
    parts = {**toy.components, "vl_encoder": encoder, "transformer": transformer}
    parts["text_encoder"] = Qwen3Model(Qwen3Config(**text))
    ZImageVLPipeline(**parts, vl_model_id=None).save_pretrained(folder)
    models = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    return {name: sum(p.numel() * p.element_size() for p in m.parameters()) / 2**20 for name, m in models.items()}


def _settings() -> dict[str, Any]:
    from PIL import Image

    picture = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    generator = torch.Generator().manual_seed(0)
    size = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 0.0}
    return {"reference_image": picture, "vl_hidden_layer": -6, "generator": generator, "output_type": "np", **size}


def import_only(_: str) -> Any:
    """What the libraries take."""
    import zimage_vl.workflows.low_memory

    return zimage_vl.workflows.low_memory and None


def paint_ordinarily(folder: str) -> Any:
    """All models loaded, then painted."""
    from zimage_vl import ZImageVLPipeline

    return ZImageVLPipeline.from_pretrained(folder, torch_dtype=torch.float32)("a red circle", **_settings()).images


def paint_with_low_memory(folder: str) -> Any:
    """One model at a time."""
    from zimage_vl import generate_low_memory

    output: Any = generate_low_memory(folder, "a red circle", torch_dtype=torch.float32, **_settings())
    return output.images


WAYS: dict[str, Callable[[str], Any]] = {
    "imports alone": import_only,
    "ordinary": paint_ordinarily,
    "low memory": paint_with_low_memory,
}


def run_way(name: str, folder: str) -> None:
    """In its own process: paint, and print the peak and a digest of the picture."""
    import hashlib

    images = WAYS[name](folder)
    digest = None if images is None else hashlib.sha256(images.tobytes()).hexdigest()
    print(json.dumps({"peak": read_peak(), "picture": digest}))


def read_peak() -> float:
    """Megabytes of resident memory that this process had at most."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss would begin with that of the process which started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure_way(name: str, folder: str) -> dict[str, Any]:
    """What `run_way` prints."""
    command = [sys.executable, __file__, "--way", name, "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        run_way(options.way, options.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        sizes = save_models(Path(folder))
        measured = {name: measure_way(name, folder) for name in WAYS}
    print(", ".join(f"{name} {size:.0f} MB" for name, size in sizes.items()))
    base = measured["imports alone"]["peak"]
    print("| way | peak of resident memory | above the imports | of the ordinary |\n|---|---|---|---|")
    for name, result in measured.items():
        above = result["peak"] - base
        share = above / (measured["ordinary"]["peak"] - base)
        print(f"| {name} | {result['peak']:.0f} MB | {above:.0f} MB | {share:.2f} |")
    equal = measured["ordinary"]["picture"] == measured["low memory"]["picture"]
    print(f"The pictures are {'equal bit for bit' if equal else 'DIFFERENT'}.")


if __name__ == "__main__":
    main()
