"""The bench paints what the pipeline's own call paints."""

from __future__ import annotations

import pytest
import torch

from zimage_vl.evidence.bench import EvidenceBench, draw_second_scenes
from zimage_vl.evidence.quality import get_stray_share
from zimage_vl.evidence.settings import row
from zimage_vl.iteration import refine_iteratively
from zimage_vl.toy import judge, load_toy_pipeline
from zimage_vl.toy.measuring import ATTRIBUTES, PairBench
from zimage_vl.toy.world import ALL_SCENES, disagreeing_pairs


BASE = {"vl_hidden_layer": -2, "vl_normalization": "token_rms"}


@pytest.fixture(scope="module")
def bench() -> EvidenceBench:
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return EvidenceBench(pipe, 3, 1)


def test_it_agrees_with_the_bench_of_the_toy(bench: EvidenceBench) -> None:
    outcome = bench.measure(row("a", vl_alpha=0.7, **BASE))[0]
    other = PairBench(bench.pipe, 3, 1).measure(vl_alpha=0.7, **BASE)
    for name in ATTRIBUTES:
        assert outcome.share(name, "p") == pytest.approx(other.prompt[name])
        assert outcome.share(name, "r") == pytest.approx(other.reference[name])
    assert outcome.effective_alpha == pytest.approx(0.7, abs=1e-4)


def test_a_picture_is_that_of_the_plain_call(bench: EvidenceBench) -> None:
    setting = row("a", vl_alpha={"default": 1.0, "{ps}": 0.0}, text="a {rc} {rs}", mask="middle", **BASE)
    outcome = bench.measure(setting)[0]
    prompt, reference = bench.pairs[1]
    image = bench.pipe(
        bench.prompts[1],
        reference_image=bench._draw(1, "scene"),
        reference_mask=_middle(),
        vl_text=f"a {reference.colour} {reference.shape}",
        vl_alpha={"default": 1.0, prompt.shape: 0.0},
        height=64,
        width=64,
        num_inference_steps=8,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(2),
        **BASE,
    ).images[0]
    assert outcome.stray[1] == pytest.approx(1000 * get_stray_share(image), abs=2)
    assert (outcome.shape[1] == "p") == (judge(image).shape == prompt.shape)
    assert outcome.iou[1] == pytest.approx(100 * judge(image).iou, abs=1)


def _middle():
    from PIL import Image

    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    return mask


def test_rounds_are_those_of_the_iterative_refinement(bench: EvidenceBench) -> None:
    rounds = bench.measure(row("a", vl_alpha=0.6, rounds=2, **BASE))
    outputs = refine_iteratively(
        bench.pipe,
        bench.prompts,
        [bench._draw(n, "scene") for n in range(3)],
        2,
        vl_alpha=0.6,
        height=64,
        width=64,
        num_inference_steps=8,
        guidance_scale=0.0,
        generator=[torch.Generator().manual_seed(1 + n) for n in range(3)],
        **BASE,
    )
    for outcome, output in zip(rounds, outputs, strict=True):
        expected = [round(100 * judge(image).iou) for image in output.images]
        assert outcome.iou == pytest.approx(expected, abs=1)


def test_a_second_reference_with_no_weight_changes_nothing(bench: EvidenceBench) -> None:
    alone = bench.measure(row("a", vl_alpha=1.0, **BASE))[0]
    both = bench.measure(row("a", vl_alpha=1.0, second=(1.0, 0.0), **BASE))[0]
    second = bench.measure(row("a", vl_alpha=1.0, second=(0.0, 1.0), **BASE))[0]
    assert both.colour == alone.colour
    assert second.share("background", "s") > second.share("background", "r")


def test_second_scenes_share_nothing_with_their_pair() -> None:
    pairs = disagreeing_pairs(40, 2)
    for pair, second in zip(pairs, draw_second_scenes(pairs, 2), strict=True):
        assert all(second.disagrees_with(scene) for scene in pair)
        assert second in ALL_SCENES


def test_grey_does_not_count_where_the_reference_is_gray(bench: EvidenceBench) -> None:
    many = EvidenceBench(bench.pipe, 12, 5)
    gray = [reference.background == "gray" for _, reference in many.pairs]
    assert any(gray)
    outcome = many.measure(row("a", vl_alpha=1.0, reference="grey", **BASE))[0]
    assert [letter == "x" for letter in outcome.background] == gray
    assert "x" not in outcome.shape + outcome.colour
