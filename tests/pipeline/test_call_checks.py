"""What diffusers would take for something else, or fail at later, is refused before any model runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tiny_models import tiny_pipeline, tiny_transformer
from zimage_vl import call_checks
from zimage_vl.pipeline.call_checks import check_call_inputs, check_finite_embeds, get_max_text_tokens, warn_about_call


WIDTH = 32
EMBEDS = [torch.zeros(5, WIDTH)]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(with_vl=False)


@pytest.fixture
def warnings_said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is logged, as if nothing had been said before."""
    monkeypatch.setattr(call_checks, "_warned", set())
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("zimage_vl.pipeline.call_checks")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def check(pipe: Any, prompt: Any = "a", prompt_embeds: Any = None, negative: Any = None, **arguments: Any) -> None:
    guided = arguments.pop("guided", False)
    check_call_inputs(
        pipe, prompt, prompt_embeds, negative, guided, arguments.pop("negative_embeds", None), **arguments
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"prompt": ["a", "b"], "negative": ["", ""], "guided": True},
        {"prompt": ["a", "b"], "negative": "unused without guidance"},
        {"prompt": None, "prompt_embeds": EMBEDS},
        {"prompt": None, "prompt_embeds": EMBEDS, "negative_embeds": EMBEDS, "guided": True},
        {"prompt": ["a", "b"], "num_images_per_prompt": 2, "generator": [torch.Generator()] * 4},
        {"height": 32, "width": 32, "sigmas": [1.0], "unknown_to_the_check": 1},
    ],
)
def test_what_is_right_passes(pipe: Any, arguments: dict[str, Any]) -> None:
    check(pipe, **arguments)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"prompt": None}, "either `prompt` .* got neither"),
        ({"prompt_embeds": EMBEDS}, "either `prompt` .* got both"),
        ({"prompt": []}, "`prompt` is an empty list"),
        ({"prompt": ["a", "b"], "negative": ["c"], "guided": True}, "`negative_prompt` has 1 entries for 2"),
        ({"prompt": ["a", "b"], "negative": "c", "guided": True}, "`negative_prompt` has 1 entries for 2"),
        ({"prompt": None, "prompt_embeds": EMBEDS, "guided": True}, "`negative_prompt_embeds` are needed too"),
        (
            {"prompt": None, "prompt_embeds": EMBEDS, "negative_embeds": EMBEDS * 2, "guided": True},
            "`negative_prompt_embeds` has 2 entries for 1",
        ),
        ({"prompt": None, "prompt_embeds": EMBEDS[0]}, "must be a list with a .* got Tensor"),
        ({"prompt": None, "prompt_embeds": []}, "must be a list"),
        (
            {"prompt": None, "prompt_embeds": [torch.zeros(0, WIDTH)]},
            r"\(tokens, 32\) tensors, got one of shape \(0, 32",
        ),
        ({"prompt": None, "prompt_embeds": [torch.zeros(5, 64)]}, r"shape \(5, 64\)"),
        ({"prompt": None, "prompt_embeds": [torch.zeros(1, 5, WIDTH)]}, r"shape \(1, 5, 32\)"),
        ({"prompt": None, "prompt_embeds": [torch.zeros(1505, WIDTH)]}, "at most 1504 text tokens, .* has 1505"),
        ({"prompt": None, "prompt_embeds": [torch.full((5, WIDTH), torch.nan)]}, "`prompt_embeds` contain NaN"),
        ({"height": 0}, "`height` must be at least 1 and divisible by \\d+, got 0"),
        ({"width": -16}, "`width` must be at least 1 and divisible by \\d+, got -16"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be an int of at least 1"),
        ({"sigmas": []}, "`sigmas` must name at least one step"),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` must be an int of at least 1"),
        ({"generator": [torch.Generator()] * 2}, "list of 2, but 1 pictures"),
        ({"max_sequence_length": 0}, "`max_sequence_length` must be an int of at least 1"),
        ({"max_sequence_length": True}, "`max_sequence_length` must be an int of at least 1"),
        ({"prompt": "é " * 2000, "max_sequence_length": 4096}, "at most 1504 text tokens, the prompt has"),
    ],
)
def test_what_cannot_be_is_refused(pipe: Any, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check(pipe, **arguments)


@pytest.mark.parametrize("arguments", [{"prompt": 7}, {"prompt": ["a", None]}, {"negative": 7, "guided": True}])
def test_a_prompt_that_is_no_text_is_refused(pipe: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="prompt` must be a string or a list of strings"):
        check(pipe, **arguments)


def test_the_limit_is_what_the_transformer_can_take() -> None:
    transformer = tiny_transformer()
    assert get_max_text_tokens(transformer) == 1504
    assert get_max_text_tokens(transformer) % 32 == 0
    latents, time = [torch.zeros(4, 1, 4, 4)], torch.tensor([0.5])
    with torch.no_grad():
        transformer(latents, time, [torch.ones(1504, WIDTH)])
        with pytest.raises((IndexError, RuntimeError)):
            transformer(latents, time, [torch.ones(1536 + 1, WIDTH)])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_names_its_stage_and_prompt(value: float) -> None:
    broken = torch.zeros(3, 4)
    broken[1, 2] = value
    with pytest.raises(ValueError, match=r"of the text encoder contain NaN or infinity \(prompt 1, torch.float32\)"):
        check_finite_embeds("the text encoder", [torch.zeros(2, 4), broken])
    check_finite_embeds("the text encoder", [torch.zeros(2, 4)])


def named(pipe: Any, name: str, dtype: torch.dtype = torch.float32) -> Any:
    """What the warnings look at of a pipeline."""
    encoder = SimpleNamespace(dtype=dtype)
    return SimpleNamespace(config=SimpleNamespace(_name_or_path=name), text_encoder=encoder, tokenizer=pipe.tokenizer)


def test_guidance_with_turbo_is_said_once(pipe: Any, warnings_said: list[str]) -> None:
    turbo = named(pipe, "Tongyi-MAI/Z-Image-Turbo")
    warn_about_call(turbo, ["a"], 0.0, 512)
    warn_about_call(named(pipe, "Tongyi-MAI/Z-Image"), ["a"], 5.0, 512)
    assert warnings_said == []
    for _ in range(2):
        warn_about_call(turbo, ["a"], 5.0, 512)
    assert len(warnings_said) == 1
    assert "pass guidance_scale=0.0" in warnings_said[0]


def test_float16_is_said_once(pipe: Any, warnings_said: list[str]) -> None:
    for _ in range(2):
        warn_about_call(named(pipe, "", torch.float16), None, 0.0, 512)
    assert len(warnings_said) == 1
    assert "float16" in warnings_said[0]


def test_what_is_cut_off_is_said_each_time(pipe: Any, warnings_said: list[str]) -> None:
    tokens = len(pipe.tokenize_prompt("a red circle"))
    warn_about_call(pipe, ["a red circle"], 0.0, tokens)
    assert warnings_said == []
    for _ in range(2):
        warn_about_call(pipe, ["a red circle"], 0.0, tokens - 3)
    assert len(warnings_said) == 2
    assert f"has {tokens} tokens with its template, of which the last 3 are cut off" in warnings_said[0]
