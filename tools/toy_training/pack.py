"""Stage `pack`: the trained parts as half-precision safetensors, with a manifest, in a folder that
`load_toy_pipeline` reads. Where the transformer is still in training, its averaged weights so far are packed.

The configs are written by hand in the form that transformers 4.57 and 5 both read: what 5 saves does not load in 4.57.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import diffusers
import tokenizers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

from . import denoiser, language, vae, vision
from .loop import Run
from .tokenizer import load as load_tokenizer


LIMIT = 16 * 2**20
LARGEST = 256  # pixels along the side of the largest picture that is read whole
STAGES = ("tokenizer", "vae", "text_encoder", "vl_encoder", "transformer")


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _write_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in state.items()}
    if not all(bool(torch.isfinite(value).all()) for value in halves.values()):
        raise RuntimeError(f"{path} would hold weights that overflow in float16.")
    save_file(halves, path, metadata={"format": "pt"})


def _text_config(run: Run) -> dict[str, Any]:
    tokenizer = load_tokenizer(run)
    return {
        **language.TEXT_CONFIG,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_theta": language.ROPE_THETA,
        "dtype": "float16",
    }


def _pack_text_encoder(run: Run, target: Path) -> None:
    _write_weights(target / "text_encoder" / "model.safetensors", language.load(run).model.state_dict())
    config = {**_text_config(run), "architectures": ["Qwen3Model"], "model_type": "qwen3"}
    _write_json(target / "text_encoder" / "config.json", config)


def _pack_vl_encoder(run: Run, target: Path) -> None:
    state = {k: v for k, v in vision.load(run).state_dict().items() if k != "lm_head.weight"}  # it is tied
    _write_weights(target / "vl_encoder" / "model.safetensors", state)
    token = load_tokenizer(run).convert_tokens_to_ids
    scaling = {"rope_type": "default", "mrope_section": [4, 4, 4], "mrope_interleaved": True}
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": {**_text_config(run), "model_type": "qwen3_vl_text", "rope_scaling": scaling},
        "vision_config": {**vision.VISION_CONFIG, "model_type": "qwen3_vl", "hidden_act": "gelu_pytorch_tanh"},
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "tie_word_embeddings": True,
        "dtype": "float16",
    }
    _write_json(target / "vl_encoder" / "config.json", config)
    bounds = (vision.PATCH * vision.MERGE) ** 2, LARGEST**2
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "patch_size": vision.PATCH,
        "merge_size": vision.MERGE,
        "temporal_patch_size": vision.TEMPORAL,
        # transformers 5 reads `size`, 4.57 the two beside it.
        "size": {"shortest_edge": bounds[0], "longest_edge": bounds[1]},
        "min_pixels": bounds[0],
        "max_pixels": bounds[1],
    }
    _write_json(target / "vl_processor" / "preprocessor_config.json", processor)


def _pack_diffusers_model(target: Path, name: str, model: Any) -> None:
    _write_weights(target / name / "diffusion_pytorch_model.safetensors", model.state_dict())
    config = {k: v for k, v in model.config.items() if k != "_name_or_path"}
    _write_json(target / name / "config.json", {**config, "_class_name": type(model).__name__})


def _record(run: Run, stage: str) -> dict[str, Any]:
    """Get what a stage wrote when it ended, or how far it is."""
    if run.is_done(stage):
        return json.loads(run.path(f"{stage}.json").read_text())
    parts = [path for name in (stage, f"{stage}_more") if (path := run.path(f"{name}.state.pt")).exists()]
    states = [torch.load(path, weights_only=False) for path in parts]
    return {"steps": [state["step"] for state in states], "ended": False, "log": states[-1]["log"][-1]}


def pack(run: Run) -> None:
    target = run.path("packed")
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(run.path("tokenizer"), target / "tokenizer")
    _pack_text_encoder(run, target)
    _pack_vl_encoder(run, target)
    _pack_diffusers_model(target, "vae", vae.load(run))
    _pack_diffusers_model(target, "transformer", denoiser.load(run))
    FlowMatchEulerDiscreteScheduler(shift=denoiser.SHIFT).save_pretrained(target / "scheduler")
    files = sorted(path for path in target.rglob("*") if path.is_file())
    total = sum(path.stat().st_size for path in files)
    if total > LIMIT:
        raise RuntimeError(f"The checkpoint is {total / 2**20:.1f} MiB, more than {LIMIT / 2**20:.0f}.")
    manifest = {
        "seed": run.seed,
        "command": f"python tools/train_toy.py --seed {run.seed}",
        "versions": {
            "python": sys.version.split()[0],
            **{m.__name__: m.__version__ for m in (torch, diffusers, transformers, tokenizers)},
        },
        "stages": {stage: _record(run, stage) for stage in STAGES},
        "bytes": total,
        "sha256": {str(p.relative_to(target)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
    }
    notes = run.path("notes.txt")
    if notes.exists():  # what a person has to add about this run
        manifest["notes"] = notes.read_text().strip()
    _write_json(target / "manifest.json", manifest)
    print(f"[pack] {len(files)} files, {total / 2**20:.2f} MiB in {target}")
