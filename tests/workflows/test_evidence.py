"""The two axes: their measures, what a run over pictures gives, the page and the sheet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tally import load_toy_once
from zimage_vl.toy import Scene, draw_scene
from zimage_vl.workflows import evidence
from zimage_vl.workflows.evidence import Features, Outcome, Studio


CALL = {"width": 64, "height": 64, "num_inference_steps": 1, "guidance_scale": 0.0}
RED, BLUE = draw_scene(Scene("circle", "red", "white"), 1), draw_scene(Scene("cross", "blue", "black"), 2)


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio(load_toy_once(), ["a blue square"], 1, CALL)


def describe(picture: Image.Image, content: tuple[float, ...] = (1.0, 0.0)) -> Features:
    return Features(evidence.describe_colours(picture), evidence.describe_structure(picture), np.array(content))


# ---- Measures ----


def test_a_picture_is_like_itself_in_everything() -> None:
    assert describe(RED).compare(describe(RED)) == pytest.approx(dict.fromkeys(evidence.MEASURES, 1.0))


def test_black_and_white_are_as_far_apart_as_colours_get() -> None:
    black, white = Image.new("RGB", (8, 8)), Image.new("RGB", (16, 4), "white")
    assert describe(black).compare(describe(white))["colours"] == pytest.approx(0, abs=0.01)
    assert describe(black).compare(describe(black.resize((5, 9))))["colours"] == pytest.approx(1)


def test_colours_do_not_know_where_they_are_and_structure_does_not_know_colours() -> None:
    turned = RED.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    assert describe(RED).compare(describe(turned))["colours"] == pytest.approx(1)
    faint = RED.point(lambda value: 90 + value // 4)
    assert describe(RED).compare(describe(faint))["structure"] > 0.95
    assert describe(RED).compare(describe(BLUE))["structure"] < 0.6
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert abs(describe(RED).compare(describe(noise))["structure"]) < 0.2


def test_lab_is_that_of_the_standard() -> None:
    lab = evidence.convert_to_lab(Image.new("RGB", (1, 1), (255, 0, 0)))
    assert lab[0, 0].round(1).tolist() == [53.2, 80.1, 67.2]


def test_cosines_of_nothing_are_defined() -> None:
    zero, one = np.zeros(2), np.array([1.0, 0.0])
    assert (evidence.get_cosine(zero, zero), evidence.get_cosine(zero, one)) == (1.0, 0.0)


def test_what_the_encoder_sees_is_less_in_grey(studio: Studio) -> None:
    grey = studio.read(Image.new("RGB", (64, 64), (128, 128, 128)))
    assert np.allclose(grey.content, 0)
    assert np.linalg.norm(studio.read(RED).content) > 0


# ---- Settings and the run ----


def test_settings_keep_the_guides_depth_in_any_model() -> None:
    deep, toy = evidence.make_settings(36), evidence.make_settings(8)
    assert list(deep) == list(toy)
    assert set(evidence.SHOWN) <= set(deep)
    assert [deep[name]["vl_hidden_layer"] for name in ("alpha 0.3", "layer -2, 0.5", "layer -16, 0.5")] == [
        -6,
        -2,
        -16,
    ]
    assert [toy[name]["vl_hidden_layer"] for name in ("alpha 0.3", "layer -2, 0.5", "layer -16, 0.5")] == [-2, -2, -4]


def test_the_prompt_alone_is_kept_and_a_copy_of_the_reference_follows(studio: Studio, monkeypatch: Any) -> None:
    """Settings that paint the one or the other have (1, 0) and (0, 1), whatever the measures."""
    pictures = {"alone": BLUE, "copy": RED}

    class Output:
        conditioning = None

        def __init__(self, image: Image.Image) -> None:
            self.images = [image]

    def paint(self: Studio, prompt: int, picture: Any = None, shift: int = 0, **knobs: Any) -> Output:
        if knobs.get("what") == "bad":
            raise ValueError("out of range")
        return Output(pictures[knobs.get("what", "alone")])

    monkeypatch.setattr(Studio, "paint", paint)
    seen: list[str] = []
    settings = {name: {"what": name} for name in ("alone", "copy", "bad")}
    outcomes = evidence.measure_pictures(studio, [RED], settings, lambda name, *_: seen.append(name))
    assert seen == [evidence.ALONE, evidence.ANOTHER, "alone", "copy"]
    for measure in evidence.MEASURES:
        assert (outcomes["alone"].kept[measure], outcomes["alone"].followed[measure]) == ([pytest.approx(1)], [0])
        assert (outcomes["copy"].kept[measure], outcomes["copy"].followed[measure]) == ([0], [pytest.approx(1)])
    assert outcomes["bad"].refused == "ValueError: out of range"


def test_every_setting_is_one_that_the_pipeline_takes(studio: Studio) -> None:
    outcomes = evidence.measure_pictures(studio, [RED], evidence.make_settings(8), lambda *_: None)
    refused = {name: outcome.refused for name, outcome in outcomes.items() if outcome.refused}
    assert set(refused) == {name for name, knobs in evidence.make_settings(8).items() if "strength" in knobs}
    assert all("of 1 steps is all of them" in why for why in refused.values())
    assert outcomes["every token at its size, 0.3"].doses == [pytest.approx(0.3, abs=0.001)]
    assert outcomes[evidence.ANOTHER].doses == []


# ---- Page and sheet ----


def test_the_page_has_both_axes_of_every_setting() -> None:
    measured = {name: [0.5, 0.7] for name in evidence.MEASURES}
    outcomes = {"alpha 0.3": Outcome(measured, measured, [0.62, 0.64]), "bad": Outcome(refused="too deep")}
    page = evidence.write_page(outcomes, "# Head", "page/sheet.png")
    assert page.startswith("# Head\n\n![Prompt alone, and more and more reference](page/sheet.png)")
    assert "| alpha 0.3 | 0.63 | 0.60 ± 0.10 | 0.60 ± 0.10 | 0.60 / 0.60 | 0.60 / 0.60 | 0.60 / 0.60 |" in page
    assert "| bad | not painted: too deep |" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {8}


def test_the_sheet_shows_every_picture_at_its_place() -> None:
    sheet = evidence.make_sheet([[RED, BLUE], [BLUE, RED]], ["a", "b"], ["reference", "alpha 0.3"], cell=128)
    small = RED.resize((128, 128), Image.Resampling.LANCZOS)
    places = [(260, 60), (398, 198)]
    for x, y in places:
        assert sheet.crop((x, y, x + 128, y + 128)).tobytes() == small.tobytes()
