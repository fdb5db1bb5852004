"""The options of `generate` say their ranges, choices and defaults, and say the same as the pipeline's knobs."""

from __future__ import annotations

import re
from dataclasses import fields
from enum import Enum
from typing import get_args, get_type_hints

import pytest

from zimage_vl.blend.knobs import Alignment, BlendMode, Normalization, TextPosition, VLConditioning
from zimage_vl.blend.normalize import OutlierMasking
from zimage_vl.blend.regions import TokenSelection
from zimage_vl.cli.generate import generate


HINTS = get_type_hints(generate, include_extras=True)
OPTIONS = {name: get_args(hint)[1] for name, hint in HINTS.items() if get_args(hint) and name != "return"}
KNOBS = {field.name: field.default for field in fields(VLConditioning) if field.name.startswith("vl_")}


def choices(name: str) -> list[str]:
    """The values of an option that is a choice, otherwise none."""
    kind = get_args(HINTS[name])[0]
    enums = [k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, Enum)]
    return [member.value for enum in enums for member in enum]


def test_every_knob_has_an_option() -> None:
    assert set(KNOBS) <= set(OPTIONS)


@pytest.mark.parametrize("name", sorted(KNOBS))
def test_the_help_quotes_the_default_of_the_knob(name: str) -> None:
    quoted = re.search(r"Default: (.+)\.$", OPTIONS[name].help)
    in_words = {"vl_target_std": "the std of the prompt's text embeddings", "vl_exclude_sinks": "include"}
    assert KNOBS["vl_target_std"] is None
    assert KNOBS["vl_exclude_sinks"] is False
    assert quoted is not None
    assert quoted[1] == in_words.get(name, str(KNOBS[name]))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("vl_text_position", TextPosition),
        ("vl_token_selection", TokenSelection),
        ("vl_normalization", Normalization),
        ("vl_outlier_masking", OutlierMasking),
        ("vl_alignment", Alignment),
        ("vl_blend_mode", BlendMode),
    ],
)
def test_the_choices_are_those_of_the_knob(name: str, values: object) -> None:
    assert choices(name) == list(get_args(values))


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_is_documented(name: str) -> None:
    text = OPTIONS[name].help
    assert text
    assert len(text) > 10
    for choice in choices(name):
        assert re.search(rf"\b{choice}\b", text), choice
    required = name in ("prompt", "output")
    shown_by_typer = name in ("num_images", "model", "offload", "output_format")  # their defaults are values
    assert required or shown_by_typer or name == "embeds" or "Default: " in text
