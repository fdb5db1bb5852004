"""What 8 bits change, on the toy: a table in Markdown. What quantises lies apart, where `make test` puts it:

    PYTHONPATH=.venv/quantised .venv/bin/python benchmarks/quantised.py

    embeds     relative difference of the conditioned text embeddings, ||quantised - full|| / ||full||, mean
    picture    mean absolute difference of the pictures' pixels, as a share of their range
    as judged  share of pictures in which the toy's judge finds the same shape, colour and background as without
    weights    bytes of the changed models' weights over those in float32

Beside them, for the scale, what bfloat16 changes. The toy is a miniature: of the real models this says nothing. No
seconds either: 8 bits on a CPU are no quicker.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ZImageTransformer2DModel
from transformers import Qwen3VLForConditionalGeneration

from zimage_vl import ZImageVLPipeline
from zimage_vl.toy import draw_scene, judge, load_toy_pipeline
from zimage_vl.toy.world import disagreeing_pairs


CALL = {"height": 64, "width": 64, "num_inference_steps": 8, "guidance_scale": 0.0}
KNOBS = {"vl_hidden_layer": -2, "vl_normalization": "token_rms", "vl_alpha": 0.7}


def make_pairs(count: int) -> list[tuple[str, Any]]:
    """Prompts and reference pictures that share neither shape nor colour nor background."""
    return [(prompt.caption(), draw_scene(reference)) for prompt, reference in disagreeing_pairs(count)]


def load_encoder(folder: Path, config: Any, **kwargs: Any) -> Any:
    return Qwen3VLForConditionalGeneration.from_pretrained(
        folder / "vl_encoder", quantization_config=config, dtype=torch.float32, **kwargs
    )


def torchao_encoder(folder: Path) -> dict[str, Any]:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return {"vl_encoder": load_encoder(folder, TorchAoConfig(Int8WeightOnlyConfig()))}


def torchao_transformer(folder: Path) -> dict[str, Any]:
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    transformer = ZImageTransformer2DModel.from_pretrained(
        folder / "transformer", quantization_config=config, torch_dtype=torch.float32
    )
    return {"transformer": transformer}


def bitsandbytes_encoder(folder: Path) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    return {"vl_encoder": load_encoder(folder, BitsAndBytesConfig(load_in_8bit=True), device_map="cpu")}


def bfloat16_encoder(folder: Path) -> dict[str, Any]:
    encoder = Qwen3VLForConditionalGeneration.from_pretrained(folder / "vl_encoder", dtype=torch.bfloat16)
    return {"vl_encoder": encoder}


WAYS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "bfloat16 VL encoder": bfloat16_encoder,
    "torchao int8, VL encoder": torchao_encoder,
    "torchao int8, transformer": torchao_transformer,
    "torchao int8, both": lambda folder: {**torchao_encoder(folder), **torchao_transformer(folder)},
    "bitsandbytes int8, VL encoder": bitsandbytes_encoder,
}


def count_bytes(model: Any) -> int:
    """Bytes of a model's weights; torchao's tensors hold others."""
    total = 0
    for weight in model.parameters():
        inner = [getattr(weight, name) for name in getattr(weight, "tensor_data_names", ())]
        total += sum(part.numel() * part.element_size() for part in inner or [weight])
    return total


def run(pipe: ZImageVLPipeline, pairs: list[tuple[str, Any]]) -> tuple[list[torch.Tensor], list[Any]]:
    """Conditioned embeddings and pictures of all pairs."""
    pipe.set_progress_bar_config(disable=True)
    embeds, pictures = [], []
    for prompt, reference in pairs:
        ready = pipe.encode_prompt_with_reference(prompt, reference, do_classifier_free_guidance=False, **KNOBS)
        generator = torch.Generator().manual_seed(0)
        embeds.append(ready.prompt_embeds[0].float())
        pictures.append(pipe(prompt_embeds=ready.prompt_embeds, generator=generator, **CALL).images[0])
    return embeds, pictures


def see(picture: Any) -> tuple[str, str, str]:
    """What the judge finds in a picture."""
    verdict = judge(picture)
    return verdict.shape, verdict.colour, verdict.background


def make_row(
    name: str, pipe: ZImageVLPipeline, full: ZImageVLPipeline, changed: list[str], pairs: Any, base: Any
) -> str:
    embeds, pictures = run(pipe, pairs)
    error = np.mean([float((a - b).norm() / b.norm()) for a, b in zip(embeds, base[0], strict=True)])
    pixels = np.mean(
        [
            np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean() / 255
            for a, b in zip(pictures, base[1], strict=True)
        ]
    )
    alike = np.mean([see(a) == see(b) for a, b in zip(pictures, base[1], strict=True)])
    weights = sum(count_bytes(getattr(pipe, part)) for part in changed)
    weights /= sum(count_bytes(getattr(full, part)) for part in changed)
    return f"| {name} | {error:.1e} | {pixels:.4f} | {alike:.2f} | {weights:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12, help="prompts with references")
    pairs = make_pairs(parser.parse_args().pairs)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    full = load_toy_pipeline()
    base = run(full, pairs)
    print("| quantised | embeds | picture | as judged | weights |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        full.save_pretrained(folder)
        for name, load in WAYS.items():
            try:
                parts = load(Path(folder))
            except ImportError as error:
                print(f"| {name} | not installed: {error} | | | |")
                continue
            pipe = ZImageVLPipeline(**{**full.components, **parts}, vl_model_id=None)
            print(make_row(name, pipe, full, list(parts), pairs, base), flush=True)


if __name__ == "__main__":
    main()
