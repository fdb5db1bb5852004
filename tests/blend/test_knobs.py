from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch

from zimage_vl.blend.knobs import VLAlpha, VLConditioning, resolve_alpha, split_per_prompt
from zimage_vl.blend.regions import PromptToken, Region


NAN = float("nan")
STYLE: dict[str, Any] = {"vl_blend_mode": "style_delta", "has_neutral_image": True}
OUT_OF_RANGE: dict[str, list[Any]] = {
    "vl_reader": ["qwen"],
    "vl_alpha": [-1, 1.1, NAN, [0.5, 2], [], {}, {" ": 0.5}, {"default": -0.5}, {"car": NAN}],
    "vl_hidden_layer": [{}, [], [-6, -6], {-6: 0}, {-6: -1, -8: 2}, {-6: NAN}, {-6: float("inf")}],
    "vl_text_position": ["beside"],
    "vl_token_selection": ["images"],
    "vl_normalization": ["per-dim"],
    "vl_target_std": [0, NAN, float("inf")],
    "vl_outlier_masking": ["clip"],
    "vl_outlier_threshold": [1, NAN],
    "vl_alignment": ["anchor", None],
    "vl_concat_tokens": [0],
    "vl_blend_mode": ["lerp", None],
    "vl_start": [-0.1, 1.0, NAN],
    "vl_end": [1.1, 0.0],
    "vl_max_pixels": [0],
    "reference_weights": [[], [0, 0], [1, -1], [NAN], [float("inf")]],
}
WRONG_TYPE: dict[str, list[Any]] = {
    "vl_alpha": ["0.3", True, None, {1: 0.5}, {"car": "1"}],
    "vl_hidden_layer": [True, -6.0, "-6", [-6, "-8"], {"-6": 1}, {-6: "1"}, {True: 1}],
    "vl_target_std": ["70", True],
    "vl_outlier_threshold": ["10", None],
    "vl_exclude_sinks": [1, "yes"],
    "vl_concat_tokens": [2.0],
    "vl_start": ["0"],
    "vl_end": [True],
    "vl_max_pixels": [1e6, True],
    "reference_weights": [1, "11", [1, "1"], [True]],
    "has_neutral_image": [None],
}


@pytest.mark.parametrize(
    ("knob", "value", "error"),
    [(knob, value, ValueError) for knob, values in OUT_OF_RANGE.items() for value in values]
    + [(knob, value, TypeError) for knob, values in WRONG_TYPE.items() for value in values],
)
def test_a_bad_value_is_refused_by_name(knob: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"`{knob}"):
        VLConditioning(**{knob: value})


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        # A wrong form is answered with the right one,
        ({"vl_blend_mode": "add"}, r"one of \['linear', 'slerp', 'adain', 'adain_per_dim', 'style_delta'\]"),
        ({"vl_alpha": {"car": 1.5}}, r"`vl_alpha\['car'\]` must be a number from 0 to 1, got 1.5"),
        ({"vl_alpha": None}, r"\{'default': 0.3, 'red car': 0.6\}"),
        ({"vl_hidden_layer": "-6"}, r"\[-6, -8\], or \{layer: weight\} such as \{-6: 3, -8: 1\}"),
        ({"reference_weights": 2}, r"one per reference, such as \[2, 1\]"),
        # and knobs that do not go together are named.
        ({"vl_outlier_masking": "zero", "vl_token_selection": "text"}, "`vl_outlier_masking` 'zero'.*'text'"),
        ({"vl_blend_mode": "adain_per_dim", "vl_alignment": "pool"}, "'adain_per_dim' needs no alignment.*'pool'"),
        ({"vl_concat_tokens": 4}, "`vl_concat_tokens` is for `vl_alignment` 'concat' alone, got 'interpolate'"),
        ({"vl_alignment": "concat", "vl_blend_mode": "slerp"}, "'concat' needs `vl_blend_mode` 'linear'.*got 'slerp'"),
        ({"vl_alignment": "concat", "vl_alpha": {"default": 0.5}}, "one number as `vl_alpha`.*got 'linear' and {'def"),
        ({"vl_alignment": "concat", "vl_alpha": [0.5, 0.5]}, r"one number as `vl_alpha`.*got 'linear' and \(0.5"),
        (
            {**STYLE, "vl_normalization": "per_dim"},
            "'style_delta' scales by itself: omit `vl_normalization`.*'per_dim'",
        ),
        ({"has_neutral_image": True}, "`neutral_image` is for `vl_blend_mode` 'style_delta' alone.*'linear'"),
        ({"vl_start": 0.6, "vl_end": 0.4}, "`vl_start` must be below `vl_end`, got 0.6 and 0.4"),
    ],
)
def test_what_is_wrong_is_said_in_the_users_words(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        VLConditioning(**knobs)


def test_style_delta_scales_by_itself() -> None:
    assert VLConditioning(**STYLE).vl_normalization == "none"
    assert VLConditioning(**STYLE, vl_normalization="none") == VLConditioning(**STYLE)


def test_layer_weights_sum_to_one_in_the_order_given() -> None:
    knobs = VLConditioning(vl_hidden_layer={-8: 1, -2: 3})
    assert (knobs.layers, knobs.layer_weights) == ((-8, -2), {-8: 0.25, -2: 0.75})
    assert (VLConditioning().layers, VLConditioning().layer_weights) == ((-6,), {-6: 1.0})
    assert VLConditioning(vl_hidden_layer=[-6, -8]).layer_weights == {-6: 0.5, -8: 0.5}
    assert VLConditioning(vl_hidden_layer={-6: 1e308, -8: 1e308}).layer_weights == {-6: 0.5, -8: 0.5}


@pytest.mark.parametrize(
    ("knobs", "names"),
    [
        ({}, []),
        ({"vl_target_std": 70.0, "vl_normalization": "hybrid"}, []),
        ({"vl_target_std": 70.0, "vl_normalization": "per_dim"}, ["vl_target_std"]),
        ({"vl_target_std": 70.0, "vl_normalization": "token_rms"}, ["vl_target_std"]),
        ({"vl_target_std": 70.0, **STYLE}, ["vl_target_std"]),
        ({"vl_outlier_threshold": 5.0}, ["vl_outlier_threshold"]),
        ({"vl_outlier_threshold": 5.0, "vl_outlier_masking": "clamp"}, []),
        ({"vl_outlier_masking": "clamp", "vl_normalization": "per_dim"}, ["vl_outlier_masking"]),
        ({"vl_outlier_masking": "zero", "vl_normalization": "per_dim"}, []),
        ({"vl_alignment": "concat", "vl_concat_tokens": 4, "vl_alpha": 0.5}, ["vl_alpha"]),
        ({"vl_alignment": "concat", "vl_concat_tokens": 4}, []),
    ],
)
def test_a_knob_that_does_nothing_is_named_in_a_sentence(knobs: dict[str, Any], names: list[str]) -> None:
    sentences = VLConditioning(**knobs).unused
    assert [sentence.split("`")[1] for sentence in sentences] == names
    assert all("nothing" in sentence and sentence.endswith(".") for sentence in sentences)


def test_inert_is_zero_at_all_places() -> None:
    for alpha in (0, 0.0, [0, 0.0], torch.zeros(3), {"default": 0, "car": 0}):
        assert VLConditioning(vl_alpha=alpha).is_inert
    for alpha in (1e-6, [0, 0.1], torch.tensor([0.0, 1.0]), {"default": 0, "car": 0.5}):
        assert not VLConditioning(vl_alpha=alpha).is_inert


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
    with pytest.raises(ValueError, match=r"`num_inference_steps`.*got 0"):
        knobs.window(0)


def test_the_callers_lists_are_copied() -> None:
    places, layers, weights, values = {"default": 0.5}, {-6: 1.0}, [1.0, 3.0], torch.tensor([0.5])
    knobs = VLConditioning(vl_alpha=places, vl_hidden_layer=layers, reference_weights=weights)
    by_token = VLConditioning(vl_alpha=values)
    places["default"], layers[-6], weights[0], values[0] = 0.0, 9.0, 0.0, 0.0
    assert (knobs.vl_alpha, knobs.vl_hidden_layer, knobs.reference_weights) == ({"default": 0.5}, {-6: 1.0}, (1, 3))
    assert by_token.vl_alpha == (0.5,)
    resolve(places := {"car": 1, "default": 0})
    assert places == {"car": 1, "default": 0}


def test_knobs_are_values() -> None:
    numpys = {"vl_hidden_layer": np.int64(-8), "vl_max_pixels": np.int32(4096), "vl_exclude_sinks": np.bool_(True)}
    assert repr(VLConditioning(**numpys)) == repr(VLConditioning(**{k: v.item() for k, v in numpys.items()}))
    assert VLConditioning(vl_start=0.5).window(np.int64(2)) == [False, True]
    knobs = VLConditioning(vl_alpha=torch.tensor([0.5]), vl_hidden_layer={-6: 1})
    assert knobs == copy.deepcopy(knobs) == pickle.loads(pickle.dumps(knobs)) == dataclasses.replace(knobs)
    with pytest.raises(dataclasses.FrozenInstanceError):
        knobs.vl_alpha = 1  # pyright: ignore[reportAttributeAccessIssue]


# -- alpha by prompt and by place


@pytest.mark.parametrize(
    ("alpha", "batch", "expected"),
    [
        (0.3, 2, [0.3, 0.3]),
        ([0.3, 0.7], 2, [0.3, 0.7]),  # a number per prompt, as the user means
        ((0.3, 0.7), 2, [0.3, 0.7]),
        ([0.3, 0.7], 1, [[0.3, 0.7]]),  # one per token of the only prompt
        ([0.3], 1, [[0.3]]),
        ([0.3, 0.5, 0.7], 2, [[0.3, 0.5, 0.7]] * 2),
        ([[0.25, 0.75], 0.5], 2, [[0.25, 0.75], 0.5]),
        ([{"car": 1}, {"suffix": 0}], 2, [{"car": 1}, {"suffix": 0}]),
        ([[0.25, 0.75]], 1, [[0.25, 0.75]]),
        ({"car": 1}, 2, [{"car": 1}] * 2),
        (torch.tensor([0.25, 0.75]), 2, [0.25, 0.75]),
        (torch.tensor([[0.25, 0.75]] * 3), 3, [[0.25, 0.75]] * 3),
        ([torch.tensor([0.25, 0.75]), torch.tensor([0.5])], 2, [[0.25, 0.75], [0.5]]),
        ("0.3", 2, ["0.3", "0.3"]),  # refused when it is checked
    ],
)
def test_alpha_is_split_as_the_user_means_it(alpha: object, batch: int, expected: list[object]) -> None:
    assert split_per_prompt(alpha, batch) == expected
    with pytest.raises(ValueError, match=r"list of 2, one per prompt, but there are 3 prompts.*'default': 0.3"):
        split_per_prompt([[0.3], {"car": 1}], 3)


PROMPT = "a red car and a Red redwood"


def make_tokens(prompt: str = PROMPT, cut: int | None = None) -> list[PromptToken]:
    """Two tokens of template on each side; words with their leading space, as Qwen's tokenizer splits."""
    spans = [(m.start(), m.end()) for m in re.finditer(r"\s?\w+", prompt)][:cut]
    parts = [("<s>", Region.PREFIX, -1, -1), ("user", Region.PREFIX, -1, -1)]
    parts += [(prompt[start:end], Region.WORDS, start, end) for start, end in spans]
    parts += [("</s>", Region.SUFFIX, -1, -1), ("assistant", Region.SUFFIX, -1, -1)]
    return [PromptToken(i, text, region, start, end) for i, (text, region, start, end) in enumerate(parts)]


def resolve(vl_alpha: VLAlpha, prompt: str | None = PROMPT, cut: int | None = None) -> list[float]:
    alphas = resolve_alpha(vl_alpha, make_tokens(PROMPT if prompt is None else prompt, cut), prompt)
    assert alphas.dtype == torch.float32
    return alphas.tolist()


EACH = [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 0.5, 0]


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0.5, [0.5] * 11),
        (EACH, EACH),
        (torch.tensor(EACH), EACH),
        ({"prefix": 0.5}, [0.5] * 2 + [0] * 9),
        ({"prompt": 0.5}, [0, 0] + [0.5] * 7 + [0, 0]),
        ({"suffix": 0.5}, [0] * 9 + [0.5] * 2),
        ({"default": 0.5}, [0.5] * 11),
        # A phrase goes before "prompt", that before "default", in whatever order; it may lower, too.
        (
            {"default": 0.125, "prompt": 0.25, "car": 1, "suffix": 0.5},
            [0.125] * 2 + [0.25] * 2 + [1] + [0.25] * 4 + [0.5] * 2,
        ),
        ({"car": 0, "prompt": 1}, [0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0]),
        # Every occurrence counts, in longer words too; case matters; a token that shares a character counts.
        ({"red": 1}, [0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]),
        ({"d car a": 1}, [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]),
        ({"red car": 0.5, "car and": 0.5}, [0, 0, 0, 0.5, 0.5, 0.5, 0, 0, 0, 0, 0]),
    ],
)
def test_alpha_by_place(alpha: VLAlpha, expected: list[float]) -> None:
    assert resolve(alpha) == expected


def test_occurrences_may_overlap_and_places_need_no_text() -> None:
    assert resolve({"aa aa": 1.0}, "aa aa aa") == [0, 0, 1, 1, 1, 0, 0]
    assert resolve({"prompt": 1.0, "prefix": 0.5}, "") == [0.5, 0.5, 0, 0]
    assert resolve({"suffix": 1.0}, None)[-2:] == [1, 1]


def test_one_character_over_several_tokens_takes_them_all() -> None:
    """A byte-level tokenizer may split a character; both tokens then have its span."""
    tokens = [PromptToken(i, "�", Region.WORDS, 0, 1) for i in range(2)] + [PromptToken(2, "b", Region.WORDS, 1, 2)]
    assert resolve_alpha({"é": 1.0}, tokens, "éb").tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("alpha", "where", "message"),
    [
        ([0.5] * 10, {}, "11 tokens.*got 10"),
        (torch.full((12,), 0.5), {}, "11 tokens.*got 12"),
        ({"default": 1.0, "lorry": 0.0}, {}, "'lorry'.*does not contain"),
        ({"CAR": 0.0}, {}, "'CAR'.*does not contain"),
        ({"redwood": 1.0}, {"cut": 4}, "cut off"),
        ({"red car": 1.0, "car and": 0.5}, {}, r"' car' lies in 'red car' with 1.0 and in 'car and' with 0.5"),
        ({"car": 1.0}, {"prompt": None}, "text is not known"),
    ],
)
def test_an_alpha_that_fits_no_token_is_refused(alpha: VLAlpha, where: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(alpha, **where)
