"""Whatever a public function is given in place of an argument, it works or is refused by a sentence of ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zimage_vl
from embedding_samples import make_reference, make_states, make_text
from pipeline_samples import PROMPT, SMALL
from tally import count, expect, is_ours, load_toy_once
from tiny_models import tiny_pipeline


ROW = "arguments"
ODD: list[Any] = [
    int, None, 5, True, float("nan"), 10**400, 1j, "x", "\ud800", b"x", [], [[]], {}, {"x": 1}, object(), [None],
    np.zeros((5, 8)), np.array(0.5), np.array(["x"]), torch.ones(5, 8, dtype=torch.long), torch.zeros(0, 8),
    torch.full((5, 8), torch.nan), torch.zeros(5, 8, device="meta"), torch.eye(5, 8).to_sparse(), torch.ones(1, 5, 8),
    torch.zeros(5, 8, dtype=torch.cfloat), torch.ones(5, 8).to(torch.float8_e4m3fn), torch.tensor(0.5),
    Image.new("RGB", (4, 4)), Path("nowhere"),
]  # fmt: skip


@cache
def calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Calls that work, by their names."""
    text, regions = make_text(5, 16)
    like, reference, pipe = make_states(len(text), 16, seed=2), make_reference(5, 9), load_toy_once()
    statistics = zimage_vl.EmbeddingStatistics.from_embeddings(make_states(40, 16))
    knobs = zimage_vl.VLConditioning(vl_hidden_layer=reference.layers[0])
    picture = np.zeros((40, 40, 3), np.uint8)
    blended = {"text_embeds": text, "vl_embeds": like, "alpha": 0.3}
    normalised = {"embeddings": text, "reference": statistics}
    named: dict[str, dict[str, Any]] = {
        **dict.fromkeys(("blend_embeddings", "blend_slerp", "blend_adain", "blend_adain_per_dim"), blended),
        "blend_with_style_delta": {"text_embeds": text, "style_delta": like, "alpha": 0.3},
        "compute_style_delta": {"styled": text, "neutral": like},
        "align_sequence": {"embeddings": text, "length": 3, "mode": "pool"},
        "find_sink_tokens": {"embeddings": text, "factor": 8.0},
        "get_outlier_dimensions": {**normalised, "threshold": 10.0},
        "mask_outlier_dimensions": {**normalised, "threshold": 10.0, "mode": "zero"},
        "match_token_rms": {"embeddings": text, "like": like},
        "normalize_hybrid": {**normalised, "target_std": 1.0},
        "normalize_per_dimension": normalised,
        "per_dimension_correlation": normalised,
        "scale_embeddings": {"embeddings": text, "target_std": 1.0},
        "condition_prompt_embeds": {
            "text_embeds": text, "text_regions": regions, "references": [reference], "conditioning": knobs,
            "alpha": None, "text_statistics": None, "neutral": None, "max_tokens": None,
        },
        "EmbeddingStatistics": {"mean": torch.zeros(8), "std": torch.ones(8), "count": 3, "exclude_sinks": False},
        "ReferenceEmbeds": {
            "hidden_states": reference.hidden_states, "regions": reference.regions,
            "provenance": reference.provenance, "muted_states": {},
        },
        "fingerprint_text_encoder": {"text_encoder": pipe.text_encoder},
        "fingerprint_vl_encoder": {"vl_encoder": pipe.vl_encoder},
        "load_reference_image": {"image": picture},
        "load_init_image": {"image": picture, "width": 32, "height": 32, "multiple": 16},
    }  # fmt: skip
    return {
        **{name: (getattr(zimage_vl, name), good) for name, good in named.items()},
        "from_embeddings": (
            zimage_vl.EmbeddingStatistics.from_embeddings, {"embeddings": text, "exclude_sinks": False}
        ),
        "select": (reference.select, {"selection": "all", "layer": reference.layers[0]}),
        "load": (zimage_vl.ReferenceEmbeds.load, {"path": "nowhere.safetensors"}),
        "save": (reference.save, {"path": "nowhere/file.safetensors"}),
        **painters(picture),
    }  # fmt: skip


def painters(picture: Any) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Calls that paint or read on the tiny pipeline; what of theirs goes to its call as it comes is tried there."""
    pipe, call = tiny_pipeline(), {**SMALL, "num_inference_steps": 1}
    reading = {"text": "", "layers": (-2,), "text_position": "after", "max_pixels": 1024, "mask": None, "muted": False}
    painting = {"prompt": PROMPT, **call, "output_type": "np", "joint_attention_kwargs": None, "return_dict": True}
    steps = {"callback_on_step_end": None, "callback_on_step_end_tensor_inputs": ["latents"]}
    return {
        "call": (pipe, {**painting, **steps}),
        "encode_reference": (
            zimage_vl.encode_reference,
            {
                "vl_encoder": pipe.vl_encoder, "vl_processor": pipe.vl_processor, "tokenizer": pipe.tokenizer,
                "image": Image.fromarray(picture), **reading,
                "max_sequence_length": 9, "revision": None, "treatment": "none",
            },
        ),
        "pipe.encode_reference": (pipe.encode_reference, {"image": picture, **reading, "vl_treatment": "none"}),
        "tokenize_prompt": (pipe.tokenize_prompt, {"prompt": PROMPT, "max_sequence_length": 9}),
        "measure": (partial(zimage_vl.TextStatistics.measure, model_id="tiny"), {"pipe": None}),
        "load_toy_pipeline": (zimage_vl.load_toy_pipeline, {"checkpoint": "nowhere"}),
        "generate_low_memory": (
            partial(zimage_vl.generate_low_memory, "nowhere", PROMPT), {"dtype": torch.float32, "device": "cpu"}
        ),
        "paint_from_image": (
            zimage_vl.paint_from_image, {"pipe": pipe, "prompt": PROMPT, "init_image": picture, **call}
        ),
        "paint_like": (zimage_vl.paint_like, {"pipe": pipe, "prompt": PROMPT, "picture": picture, **call}),
        "refine_iteratively": (
            zimage_vl.refine_iteratively,
            {"pipe": pipe, "prompt": PROMPT, "reference_image": picture, "iterations": 1, "on_round": None, **call},
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(calls()))
def test_an_odd_argument_is_taken_or_refused_by_its_name(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    function, good = calls()[name]
    names = {"image": "((reference|init)_)?image", "layer": "layer", "mask": "(reference_)?mask"}
    for parameter, odd in product(good, ODD):
        if odd is int and "_on_" in f"_{parameter}":  # a class can be called, and is
            continue
        count(ROW)
        case = f"{name}({parameter}={odd!r:.80})"
        try:
            function(**{**good, parameter: odd})
        except (OSError, UnicodeEncodeError) as error:
            expect(ROW, isinstance(odd, (str, Path)), f"{case}: {error!r}")
        except ValueError as error:
            expect(ROW, is_ours(error), f"{case}: {error!r}")
        except Exception as error:
            told = re.search(f"(`|A ){names.get(parameter, parameter)}", str(error))
            expect(ROW, is_ours(error) and told, f"{case}: {error!r}")


def test_what_would_load_or_measure_for_long_is_refused_before() -> None:
    pipe: Any = tiny_pipeline()
    calls = [
        (pipe.load_vl_encoder, {"model_id": 5}),
        (pipe.load_vl_encoder, {"revision": [1]}),
        (pipe.text_statistics, {"exclude_sinks": 5}),
    ]
    for function, wrong in calls:
        count(ROW)
        with pytest.raises(TypeError, match=f"`{next(iter(wrong))}`.* must be"):
            function(**wrong)
