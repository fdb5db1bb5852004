from __future__ import annotations

import numpy as np
import pytest
import torch

from zimage_vl.blend.checks import check_alpha, check_choice, check_embeddings, check_flag, check_number


def test_what_is_no_number_is_refused_by_name() -> None:
    assert check_number("knob", np.float32(0.5), "a fraction", lambda x: 0 <= x <= 1) == 0.5
    for value in (True, "0.5", None, [0.5], 1j):
        with pytest.raises(TypeError, match=r"`knob` must be a fraction, got"):
            check_number("knob", value, "a fraction", lambda x: True)
    for value in (float("nan"), -0.1, 1.1, float("inf")):
        with pytest.raises(ValueError, match=rf"`knob` must be a fraction, got {value!r}"):
            check_number("knob", value, "a fraction", lambda x: 0 <= x <= 1)
    for value in (1, "yes", None):
        with pytest.raises(TypeError, match=f"`knob` must be True or False, got {value!r}"):
            check_flag("knob", value)


@pytest.mark.parametrize("value", ["bad", 3, None, ["a"]])
def test_an_unknown_choice_is_refused_with_the_choices(value: object) -> None:
    with pytest.raises(ValueError, match=r"`mode` must be one of \['a', 'b'\], got"):
        check_choice("mode", value, ["a", "b"])


def test_alpha_comes_in_many_forms() -> None:
    forms = [[0.0, 0.5], (0, 0.5), torch.tensor([0.0, 0.5]), np.array([0.0, 0.5])]
    assert [check_alpha("alpha", form) for form in forms] == [(0.0, 0.5)] * 4
    assert check_alpha("alpha", torch.tensor(0.5)) == check_alpha("alpha", 0.5) == 0.5


@pytest.mark.parametrize(
    ("alpha", "error"),
    [
        ("0.5", TypeError),
        (True, TypeError),
        ([0.5, True], TypeError),
        ([0.5, "1"], TypeError),
        (torch.tensor([True]), TypeError),
        ([], ValueError),
        ([0.5, float("nan")], ValueError),
        ([0.5, 1.5], ValueError),
        (torch.tensor([-1.0]), ValueError),
    ],
)
def test_a_bad_alpha_is_refused_by_name(alpha: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="`alpha"):
        check_alpha("alpha", alpha)


@pytest.mark.parametrize(
    ("embeddings", "error", "message"),
    [
        ([[1.0]], TypeError, "list"),
        (torch.ones(2, 2, dtype=torch.int64), TypeError, "int64"),
        (torch.ones(2), ValueError, r"\(2,\)"),
        (torch.ones(1, 2, 3), ValueError, r"\(1, 2, 3\)"),
        (torch.ones(0, 3), ValueError, "at least one token"),
        (torch.tensor([[float("nan")]]), ValueError, "NaN or inf"),
        (torch.tensor([[float("inf")]]), ValueError, "NaN or inf"),
    ],
)
def test_what_are_no_embeddings_is_refused_by_name(embeddings: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"`stage`.*{message}"):
        check_embeddings("stage", embeddings)


def test_another_width_is_refused_with_a_hint_at_the_model() -> None:
    with pytest.raises(ValueError, match=r"2560 wide.*got 2048.*Qwen3-VL-2B is 2048 wide.*Qwen3-VL-4B"):
        check_embeddings("vl_embeds", torch.ones(1, 2048), 2560)
