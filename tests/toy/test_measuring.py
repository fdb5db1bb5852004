"""What a reference does to the toy's pictures: the README's table on a smaller sample, with slack."""

from __future__ import annotations

import pytest

from zimage_vl.toy import load_toy_pipeline
from zimage_vl.toy.measuring import ATTRIBUTES, CHANCE, PairBench, chance_bound, reference_picture
from zimage_vl.toy.world import Scene


SETTINGS = {"vl_hidden_layer": -2, "vl_normalization": "token_rms"}
PAIRS = 40
# Below the full table's targets by about two standard errors of a sample this small.
SLACK = 0.12


@pytest.fixture(scope="module")
def pipe():
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def bench(pipe):
    return PairBench(pipe, PAIRS, seed=3)


def measure(bench, tokens, alpha):
    return bench.measure(vl_token_selection=tokens, vl_alpha=alpha, **SETTINGS)


def test_alpha_0_paints_the_prompt(bench):
    matches = measure(bench, "all", 0.0)
    assert matches.count == PAIRS
    assert matches.prompt["shape"] >= 0.95 - SLACK
    assert min(matches.prompt["colour"], matches.prompt["background"]) >= 0.99 - SLACK
    assert max(matches.reference.values()) <= SLACK


def test_alpha_1_paints_the_reference(bench):
    matches = measure(bench, "all", 1.0)
    assert matches.reference["shape"] >= 0.65 - SLACK
    assert matches.reference["colour"] >= 0.92 - SLACK
    assert matches.reference["background"] >= 0.90 - SLACK


def test_a_small_alpha_keeps_the_prompt_and_a_large_one_does_not(bench):
    small, large = measure(bench, "all", 0.15), measure(bench, "all", 0.7)
    assert min(small.prompt["colour"], small.prompt["background"]) >= 0.95 - SLACK
    assert large.reference["colour"] >= 0.87 - SLACK
    assert large.reference["background"] >= 0.82 - SLACK


def test_text_tokens_act_late(bench):
    assert measure(bench, "text", 0.3).prompt["colour"] >= 0.95 - SLACK
    assert measure(bench, "text", 0.7).reference["colour"] >= 0.87 - SLACK


@pytest.mark.parametrize("kind", ["grey", "noise"])
def test_a_reference_that_shows_nothing_matches_at_chance(pipe, kind):
    control = PairBench(pipe, PAIRS, seed=3, kind=kind)
    matches = control.measure(lambda scene: kind != "grey" or scene.background != "gray", vl_alpha=1.0, **SETTINGS)
    for name in ATTRIBUTES:
        assert matches.reference[name] <= chance_bound(name, matches.count), name


def test_chance_is_one_in_the_values_that_the_prompt_leaves():
    assert CHANCE == {"shape": 1 / 3, "colour": 1 / 5, "background": 1 / 3}
    assert chance_bound("colour", 400) == pytest.approx(0.2 + 3 * (0.2 * 0.8 / 400) ** 0.5)


def test_controls_show_no_scene():
    scene = Scene("circle", "red", "white")
    assert len(reference_picture("grey", scene, 0).getcolors()) == 1
    assert reference_picture("noise", scene, 1).tobytes() != reference_picture("noise", scene, 2).tobytes()
    with pytest.raises(ValueError, match="scene"):
        reference_picture("photo", scene, 0)
