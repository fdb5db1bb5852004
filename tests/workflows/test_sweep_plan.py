"""The plan of a sweep: every combination once, in an order that reads a reference as seldom as can be."""

from __future__ import annotations

from typing import Any

import pytest

from zimage_vl.blend.registry import KNOBS
from zimage_vl.cli._axes import axis_option
from zimage_vl.recipes import RECIPES
from zimage_vl.workflows.sweep_plan import AXES, SOURCES, SweepPlan, merge_knobs


PAINTING: dict[str, Any] = {"size": [(64, 64)], "steps": [2], "guidance": [0.0], "seed": [0]}


def plan(**axes: Any) -> SweepPlan:
    return SweepPlan({"prompt": ["a", "b"], **PAINTING, **axes})


def test_every_combination_comes_once_and_the_reference_changes_last() -> None:
    made = plan(seed=[0, 1, 1], vl_alpha=[0.0, 0.5], reference_image=["x.png", ["x.png", "y.png"]], vl_text=[None, ""])
    jobs = [made[number] for number in range(len(made))]
    assert len(jobs) == len({repr(job) for job in jobs}) == 2 * 2 * 2 * 2 * 2
    assert [job["seed"] for job in jobs[:4]] == [0, 1, 0, 1]
    assert [job["reference_image"] for job in jobs] == ["x.png"] * 16 + [["x.png", "y.png"]] * 16
    for number in (-1, 32):
        with pytest.raises(IndexError, match="jobs 0 to 31"):
            made[number]


def test_all_knobs_are_axes_and_files_have_the_names_of_the_command_line() -> None:
    assert set(AXES) == {*KNOBS, "prompt", "negative_prompt", "recipe", *PAINTING}
    assert {name: axis_option(name) for name in SOURCES} == SOURCES


def test_it_knows_what_all_jobs_ask_of_a_reading() -> None:
    made = plan(reference_image=["x"], vl_hidden_layer=[-2, {-4: 1, -2: 2}], vl_reader=["qwen3-vl", "text_encoder"])
    assert made.layers == {"qwen3-vl": (-2, -4), "text_encoder": (-2, -4)}
    assert not made.muted
    assert plan(reference_image=["x"], vl_blend_mode=["linear", "style_delta"]).muted
    assert not plan(reference_image=["x"], vl_blend_mode=["style_delta"], neutral_image=["y"]).muted
    assert plan(reference_image=["x"], recipe=["guide"]).layers["qwen3-vl"] == (-6,)


def test_a_job_s_own_knobs_take_precedence_over_its_recipe_s() -> None:
    job = {"recipe": "style-transfer", "vl_alpha": 0.1, "vl_text": None, "prompt": "a"}
    assert merge_knobs(job) == {**RECIPES["style-transfer"], "vl_alpha": 0.1}


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ({"seed": []}, "needs at least one value of `seed`"),
        ({"prompt": []}, "needs at least one value of `prompt`"),
        ({"vl_alpha": [0.5]}, "`vl_alpha` does nothing without `reference_image`"),
        ({"recipe": ["guide"]}, "`recipe` does nothing without"),
        ({"reference_mask": ["m"]}, "`reference_mask` does nothing without"),
        ({"reference_image": ["x"], "reference_embeds": ["y"]}, "exclude each other"),
        ({"reference_image": ["x"], "vl_alpha": [0.5, 1.5]}, "`vl_alpha` must be"),
        ({"reference_image": ["x"], "vl_treatment": ["sepia"]}, "`vl_treatment` must be"),
        ({"reference_image": ["x"], "vl_describe": [True], "vl_text": ["a"]}, "leave out `vl_text`"),
        (
            {"reference_image": ["x"], "vl_token_selection": ["all", "text"], "vl_outlier_masking": ["none", "zero"]},
            "would do nothing",
        ),
        (
            {"reference_image": ["x"], "vl_alpha": list(range(3000)), "vl_max_pixels": list(range(1, 51))},
            "50 of `vl_max_pixels` x 3000 of `vl_alpha` are 150000 combinations, at most 100000 are tried",
        ),
        (
            {
                "seed": range(10**5),
                "prompt": list(map(str, range(10**5))),
                "steps": range(1, 10**5),
                "guidance": range(10**5),
            },
            "more than .* jobs",
        ),
        ({"negative_prompt": ["c"], "guidance": [4.0, 0.0]}, "`negative_prompt` does nothing without guidance"),
    ],
)
def test_what_a_call_would_refuse_is_refused_before_any_job(axes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        plan(**axes)


def test_any_number_of_texts_prompts_and_seeds_is_a_plan() -> None:
    texts = [str(number) for number in range(100_001)]
    assert len(plan(reference_image=["x"], vl_text=texts, prompt=texts, seed=[0, 1])) == 2 * 100_001**2


def test_an_unknown_axis_is_named() -> None:
    with pytest.raises(TypeError, match="no axis 'alpha'"):
        plan(alpha=[1.0])
