from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch

from zimage_vl.blend.condition import VLConditioning as FromConditioning
from zimage_vl.blend.knobs import VLConditioning


NAN = float("nan")


def test_the_defaults_are_the_documented_ones() -> None:
    assert dataclasses.asdict(VLConditioning()) == {
        "vl_alpha": 0.3,
        "vl_hidden_layer": -6,
        "vl_text_position": "after",
        "vl_token_selection": "all",
        "vl_normalization": "global",
        "vl_target_std": None,
        "vl_outlier_masking": "none",
        "vl_outlier_threshold": 10.0,
        "vl_exclude_sinks": False,
        "vl_alignment": "anchored",
        "vl_blend_mode": "linear",
        "vl_start": 0.0,
        "vl_end": 1.0,
        "vl_max_pixels": 1024 * 1024,
        "reference_weights": None,
        "has_neutral_image": False,
    }
    assert FromConditioning is VLConditioning


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("vl_alpha", 1.1),
        ("vl_alpha", NAN),
        ("vl_alpha", [0.5, 2]),
        ("vl_alpha", []),
        ("vl_alpha", {"default": -0.5}),
        ("vl_hidden_layer", {}),
        ("vl_hidden_layer", {-6: 0}),
        ("vl_hidden_layer", {-6: -1, -8: 2}),
        ("vl_hidden_layer", {-6: NAN}),
        ("vl_text_position", "beside"),
        ("vl_token_selection", "images"),
        ("vl_normalization", "per-dim"),
        ("vl_target_std", 0),
        ("vl_target_std", NAN),
        ("vl_target_std", float("inf")),
        ("vl_outlier_masking", "clip"),
        ("vl_outlier_threshold", 1),
        ("vl_outlier_threshold", NAN),
        ("vl_alignment", "anchor"),
        ("vl_blend_mode", "lerp"),
        ("vl_blend_mode", None),
        ("vl_start", -0.1),
        ("vl_start", 1.0),
        ("vl_start", NAN),
        ("vl_end", 1.1),
        ("vl_end", 0.0),
        ("vl_max_pixels", 0),
        ("reference_weights", []),
        ("reference_weights", [0, 0]),
        ("reference_weights", [1, -1]),
        ("reference_weights", [NAN]),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(knob: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"`{knob}"):
        VLConditioning(**{knob: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("vl_alpha", "0.3"),
        ("vl_alpha", True),
        ("vl_alpha", None),
        ("vl_hidden_layer", True),
        ("vl_hidden_layer", -6.0),
        ("vl_hidden_layer", "-6"),
        ("vl_hidden_layer", {"-6": 1}),
        ("vl_hidden_layer", {-6: "1"}),
        ("vl_hidden_layer", {True: 1}),
        ("vl_target_std", "70"),
        ("vl_target_std", True),
        ("vl_outlier_threshold", "10"),
        ("vl_exclude_sinks", 1),
        ("vl_exclude_sinks", "yes"),
        ("vl_start", "0"),
        ("vl_end", True),
        ("vl_max_pixels", 1e6),
        ("vl_max_pixels", True),
        ("reference_weights", 1),
        ("reference_weights", "11"),
        ("reference_weights", [1, "1"]),
        ("reference_weights", [True]),
        ("has_neutral_image", None),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(knob: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"`{knob}"):
        VLConditioning(**{knob: value})  # pyright: ignore[reportArgumentType]


def test_a_refused_choice_comes_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"one of \['linear', 'slerp', 'adain', 'adain_per_dim', 'style_delta'\]"):
        VLConditioning(vl_blend_mode="add")  # pyright: ignore[reportArgumentType]


STYLE: dict[str, Any] = {"vl_blend_mode": "style_delta", "vl_normalization": "none", "has_neutral_image": True}


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"vl_outlier_masking": "zero", "vl_token_selection": "text"}, "`vl_outlier_masking` 'zero'.*'text'"),
        ({"vl_blend_mode": "adain_per_dim", "vl_alignment": "pool"}, "'adain_per_dim' needs no alignment.*'pool'"),
        ({"vl_alignment": "concat", "vl_blend_mode": "slerp"}, "'concat' needs `vl_blend_mode` 'linear', got 'slerp'"),
        ({"vl_alignment": "concat", "vl_alpha": {"default": 0.5}}, "'concat' needs one number as `vl_alpha`"),
        ({"vl_alignment": "concat", "vl_alpha": [0.5, 0.5]}, "'concat' needs one number as `vl_alpha`"),
        ({**STYLE, "has_neutral_image": False}, "needs a `neutral_image`"),
        ({**STYLE, "vl_normalization": "global"}, "needs `vl_normalization` 'none', got 'global'"),
        ({"has_neutral_image": True}, "`neutral_image` is for `vl_blend_mode` 'style_delta' alone.*'linear'"),
        ({"vl_start": 0.6, "vl_end": 0.4}, "`vl_start` must be below `vl_end`, got 0.6 and 0.4"),
    ],
)
def test_knobs_that_do_not_go_together_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VLConditioning(**knobs)


def test_knobs_that_go_together_are_not() -> None:
    VLConditioning(**STYLE)
    VLConditioning(vl_blend_mode="adain_per_dim", vl_normalization="per_dim", vl_outlier_masking="clamp")
    VLConditioning(vl_alignment="concat", vl_alpha=1)


def test_layer_weights_sum_to_one_in_the_order_given() -> None:
    knobs = VLConditioning(vl_hidden_layer={-8: 1, -2: 3})
    assert (knobs.layers, knobs.layer_weights) == ((-8, -2), {-8: 0.25, -2: 0.75})
    assert (VLConditioning().layers, VLConditioning().layer_weights) == ((-6,), {-6: 1.0})


@pytest.mark.parametrize(
    ("alpha", "inert"),
    [
        (0, True),
        (0.0, True),
        (1e-6, False),
        ([0, 0.0], True),
        ([0, 0.1], False),
        (torch.zeros(3), True),
        (torch.tensor([0.0, 1.0]), False),
        ({"default": 0, "car": 0}, True),
        ({"default": 0, "car": 0.5}, False),
    ],
)
def test_inert_is_zero_at_all_places(alpha: Any, inert: bool) -> None:
    assert VLConditioning(vl_alpha=alpha).is_inert is inert


@pytest.mark.parametrize(
    ("knobs", "needed"),
    [
        ({}, False),
        ({"vl_normalization": "token_rms"}, False),
        ({"vl_normalization": "per_dim"}, True),
        ({"vl_normalization": "hybrid"}, True),
        ({"vl_outlier_masking": "clamp"}, True),
    ],
)
def test_who_needs_statistics_of_the_text_encoder(knobs: dict[str, Any], needed: bool) -> None:
    assert VLConditioning(**knobs).needs_text_statistics is needed


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 50])
@pytest.mark.parametrize(("start", "end"), [(0, 1), (0.0, 0.5), (0.3, 1.0), (0.25, 0.9), (0.1, 0.3)])
def test_the_window_is_controlnets(start: float, end: float, steps: int) -> None:
    keep = [1.0 - float(i / steps < start or (i + 1) / steps > end) for i in range(steps)]
    knobs = VLConditioning(vl_start=start, vl_end=end)
    if any(keep):
        assert knobs.window(steps) == [bool(x) for x in keep]
    else:
        with pytest.raises(ValueError, match=f"none of {steps} steps"):
            knobs.window(steps)


def test_a_window_wants_steps() -> None:
    with pytest.raises(ValueError, match=r"`num_inference_steps`.*got 0"):
        VLConditioning().window(0)
    with pytest.raises(TypeError, match="`num_inference_steps`"):
        VLConditioning().window(2.0)  # pyright: ignore[reportArgumentType]


def test_the_callers_lists_are_copied() -> None:
    places, layers, weights, values = {"default": 0.5}, {-6: 1.0}, [1.0, 3.0], torch.tensor([0.5])
    knobs = VLConditioning(vl_alpha=places, vl_hidden_layer=layers, reference_weights=weights)
    by_token = VLConditioning(vl_alpha=values)
    places["default"], layers[-6], weights[0], values[0] = 0.0, 9.0, 0.0, 0.0
    assert (knobs.vl_alpha, knobs.vl_hidden_layer, knobs.reference_weights) == ({"default": 0.5}, {-6: 1.0}, (1, 3))
    assert by_token.vl_alpha == (0.5,)


def test_knobs_are_values() -> None:
    knobs = VLConditioning(vl_alpha=torch.tensor([0.5]), vl_hidden_layer={-6: 1})
    assert knobs == copy.deepcopy(knobs) == pickle.loads(pickle.dumps(knobs)) == dataclasses.replace(knobs)
    with pytest.raises(dataclasses.FrozenInstanceError):
        knobs.vl_alpha = 1  # pyright: ignore[reportAttributeAccessIssue]
