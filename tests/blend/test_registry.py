from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from zimage_vl.blend.knobs import DEFAULT_LAYERS, VLConditioning
from zimage_vl.blend.registry import CONDITIONING_NAMES, KNOBS
from zimage_vl.reference.pictures import TREATMENTS


def test_the_fields_of_a_conditioning_and_their_defaults_are_those_of_the_registry() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(VLConditioning)}
    assert {name: fields.pop(name) for name in CONDITIONING_NAMES} == {n: KNOBS[n].default for n in CONDITIONING_NAMES}
    assert fields == {"reference_weights": None, "has_neutral_image": False}
    assert (KNOBS["vl_alpha"].default, KNOBS["vl_alignment"].default, KNOBS["vl_target_std"].default) == (
        *(0.3, "interpolate", None),
    )
    assert KNOBS["vl_treatment"].choices == TREATMENTS


@pytest.mark.parametrize(("reader", "layer"), [("qwen3-vl", -6), ("text_encoder", -2)])
def test_the_layer_follows_the_reader(reader: Any, layer: int) -> None:
    assert VLConditioning(vl_reader=reader).layers == (layer,)
    assert VLConditioning(vl_reader=reader, vl_hidden_layer=-4).layers == (-4,)
    assert DEFAULT_LAYERS[reader] == layer


@pytest.mark.parametrize("name", KNOBS)
def test_each_knob_says_what_it_takes_and_does_in_one_line(name: str) -> None:
    knob = KNOBS[name]
    assert knob.name == name
    assert knob.values
    assert knob.help
    assert "\n" not in knob.values + knob.help
    if knob.choices:
        assert knob.default in knob.choices
    if name in CONDITIONING_NAMES:
        settings: list[dict[str, Any]] = [{name: choice} for choice in knob.choices]
        assert all(VLConditioning(**setting) for setting in settings)
