"""The instrument: its table of settings, what it counts, its file, and that the page says what was measured."""

from __future__ import annotations

import doctest
import importlib.util
import sys
from itertools import combinations
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import torch

from zimage_vl import Region, load_toy_pipeline
from zimage_vl.blend.registry import KNOBS


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.evidence import __main__ as command  # noqa: E402
from benchmarks.evidence import measurements as files  # noqa: E402
from benchmarks.evidence import pairs, plots, real_language_model, tables  # noqa: E402
from benchmarks.evidence.measurements import Measurements, find_wrong_numbers  # noqa: E402
from benchmarks.evidence.settings import PLOTTED, TITLES, make_rows  # noqa: E402


HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
SEEN = {"open": "Prs P-r =rr", "naming": "PRR PPS PP="}


@pytest.fixture(scope="module")
def bench() -> pairs.Pairs:
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pairs.Pairs(pipe, 3, 1)


def made_measurements() -> Measurements:
    """Every row measured on three pairs, all with the same result."""
    run = files.describe_run(3, 1, ["shape", "colour", "background"])
    made = Measurements(run, ["python -m benchmarks.evidence --pairs 3"])
    for row in make_rows():
        for kind, seen in SEEN.items():
            result = {"seen": seen, "form": [0.9, 0.01], "effective_alpha": 0.62, "influence": 0.25}
            made.rows[f"{row['group']}/{row['name']}/{kind}"] = {**result, "row": command.get_settings(row)}
    return made


# ---- Settings and prompts ----


def test_rows_have_names_of_their_own_and_knobs_that_there_are() -> None:
    rows = make_rows()
    names = [f"{row['group']}/{row['name']}" for row in rows]
    assert len(set(names)) == len(names)
    assert {row["group"] for row in rows} == set(TITLES)
    assert set(PLOTTED) <= set(TITLES)
    assert not {name for row in rows for name in row} - set(KNOBS) - pairs.NO_KNOBS
    assert not any("/" in row["name"] or " - " in row["name"] for row in rows), "these part the names of numbers"


@pytest.mark.parametrize("module", [files, pairs])
def test_the_examples_in_the_docstrings_are_right(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def test_layers_keep_their_depth_and_the_last_stays_the_last() -> None:
    assert [pairs.scale_layer(layer, 36) for layer in (-1, -2, -6, -24)] == [-1, -2, -6, -24]
    assert [pairs.scale_layer(layer, 8) for layer in (-1, -2, -6, -24)] == [-1, -2, -2, -6]


# ---- Pairs ----


def test_scenes_of_a_pair_share_nothing_and_open_prompts_leave_open_what_naming_ones_name(bench: pairs.Pairs) -> None:
    for index, (scenes, other) in enumerate(zip(bench.scenes, bench.others, strict=True)):
        assert all(one.disagrees_with(two) for one, two in combinations([*scenes, other], 2))
        assert list(bench.get_named(index, {}, "naming")) == list(pairs.ATTRIBUTES)
        assert set(bench.get_named(index, {}, "open")) < set(pairs.ATTRIBUTES)
    assert bench.get_prompt(0, {"names": ("colour",)}, "open") == f"a {bench.scenes[0][0].colour} shape"


def test_the_drawings_of_a_pair_are_counted_as_what_they_show(bench: pairs.Pairs, monkeypatch: Any) -> None:
    """A pipeline that copied the reference would keep nothing and follow everything; one that paints the prompt's
    scene is the other way round. What a prompt about the reference names is kept, the rest follows."""
    others = len(pairs.ATTRIBUTES) - 1
    shape: dict[str, Any] = {"names": ("shape",)}
    about: dict[str, Any] = {**shape, "about": "reference"}
    for side, row, kind, expected in (
        (0, {}, "naming", "P" + "P" * others),
        (0, shape, "open", "P" + "p" * others),
        (1, {}, "naming", "R" + "R" * others),
        (1, shape, "open", "R" + "r" * others),
        (1, about, "open", "P" + "r" * others),
    ):
        drawn = [pairs.draw_scene(pair[side], n) for n, pair in enumerate(bench.scenes)]
        monkeypatch.setattr(bench, "paint", lambda row, kind, drawn=drawn: ((image, None) for image in drawn))
        assert bench.measure(row, kind)["seen"] == " ".join([expected] * 3)


def test_a_row_is_painted_and_an_unknown_knob_is_told(bench: pairs.Pairs, monkeypatch: Any) -> None:
    monkeypatch.setitem(pairs.CALL, "num_inference_steps", 1)
    row = {"vl_alpha": {"<shape>": 0.0, "default": 0.5}, "vl_alignment": "interpolate", "text": ("colour",)}
    result = bench.measure(row, "open")
    assert len(result["seen"].split()) == 3
    assert 0 < result["effective_alpha"] < 1
    assert "influence" not in bench.measure({"reference": "none"}, "open")
    with pytest.raises(pairs.NotHereError, match="the pipeline has no vl_nothing"):
        bench.measure({"vl_nothing": 1}, "open")


def test_a_mask_hides_the_right_half(bench: pairs.Pairs) -> None:
    both = bench.draw_reference(0, {"reference": "beside"})
    assert both.size == (2 * pairs.SIZE, pairs.SIZE)
    assert both.crop((0, 0, pairs.SIZE, pairs.SIZE)).tobytes() == bench.draw_reference(0, {}).tobytes()
    assert len(bench.draw_reference(0, {"reference": "two"})) == 2
    assert bench.draw_reference(0, {"size": 256}).size == (256, 256)


# ---- The run and its file ----


class FakeBench:
    """Measures nothing; counts what it was asked for."""

    num_layers = 8

    def __init__(self) -> None:
        self.asked: list[str] = []

    def measure(self, row: dict[str, Any], kind: str) -> dict[str, Any]:
        self.asked.append(f"{row['name']}/{kind}")
        if row["name"] == "bad":
            raise ValueError("no such thing")
        return {"seen": SEEN[kind], "form": [0.9, 0.01]}


def test_a_run_goes_on_where_it_stopped_and_measures_the_same_settings_once(tmp_path: Path) -> None:
    path, fake = tmp_path / "m.json", FakeBench()
    rows = [
        {"group": "dose", "name": "first", "vl_alpha": 0.5},
        {"group": "tokens", "name": "the same", "vl_alpha": 0.5, "vl_token_selection": "all"},
        {"group": "dose", "name": "bad", "vl_alpha": 0.7},
        {"group": "layers", "name": "too deep", "own_layer": -9},
    ]
    command.measure_rows(fake, rows, Measurements({"attributes": []}), path)  # pyright: ignore[reportArgumentType]
    assert fake.asked == ["first/open", "first/naming", "bad/open", "bad/naming"]
    again = Measurements.load(path)
    assert again.rows["tokens/the same/open"] == again.rows["dose/first/open"]
    assert again.rows["dose/bad/open"]["refused"] == "no such thing"
    del again.rows["dose/first/naming"]
    del again.rows["tokens/the same/naming"]
    command.measure_rows(fake, rows, again, path)  # pyright: ignore[reportArgumentType]
    assert fake.asked[4:] == ["first/naming", "bad/open", "bad/naming"]


def test_measurements_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    made = made_measurements()
    made.language_model = {"numbers": {"sink/-2": 16.0}}
    made.save(path)
    assert list(command.open_measurements(path, made.provenance, fresh=False).rows) == list(made.rows)
    other = {**made.provenance, "checkpoint": "another"}
    with pytest.raises(SystemExit, match="another here"):
        command.open_measurements(path, other, fresh=False)
    fresh = command.open_measurements(path, other, fresh=True)
    assert (fresh.rows, fresh.language_model) == ({}, made.language_model), "the language model is not the toy's"


def test_shares_are_counted_over_pairs() -> None:
    made = made_measurements()
    opened, naming = "dose/global 0.3/open", "dose/global 0.3/naming"
    assert made.get_pairs(opened, "kept") == [1.0, 1.0, 0.0]
    assert made.get_pairs(opened, "followed") == [0.5, 0.5, 1.0]
    assert made.get_pairs(opened, "followed", "colour") == [1.0, 0.0, 1.0]
    assert made.get_pairs(opened, "kept", "colour") == [None] * 3
    assert made.get_pairs(opened, "second") == [0.5, 0.0, 0.0]
    changes = [1 - 1 / 3, 1 - 2 / 3, 0 - 2 / 3]
    for name, expected in {
        f"{naming}/kept": 5 / 9,
        f"{naming}/kept/error": stdev([1 / 3, 2 / 3, 2 / 3]) / 3**0.5,
        f"{opened}/followed/colour": 2 / 3,
        f"{opened}/form": 0.9,
        f"{opened}/kept - {naming}/kept": 2 / 3 - 5 / 9,
        f"{opened}/kept - {naming}/kept/error": stdev(changes) / 3**0.5,
    }.items():
        assert made.look_up(name) == pytest.approx(expected), name


def test_numbers_of_a_page_must_be_measured() -> None:
    made = made_measurements()
    right = (
        "Kept .67<!-- dose/global 0.3/open/kept --> at `alpha 0.3`, ![a](b-0.5.png), 63 pairs, v1.2.3.\n```\n0.5\n```"
    )
    assert find_wrong_numbers(right, made) == []
    wrong = "It is .68<!-- dose/global 0.3/open/kept -->, 0.5, and 1.0<!-- dose/no such row/open/kept -->."
    assert [told.partition(":")[0].split(" has")[0] for told in find_wrong_numbers(wrong, made)] == [
        ".68",
        "0.5",
        "1.0",
    ]


# ---- What is written ----


def test_tables_have_every_row_and_say_what_was_refused() -> None:
    made = made_measurements()
    made.rows["dose/none 0.5/open"] = made.rows["dose/none 0.5/naming"] = {"refused": "of the moon"}
    text = tables.write_tables(made, "evidence")
    for row in make_rows():
        if row["name"] != "none 0.5":
            assert f"| {row['name']} | 0.62 | 0.25 | 0.67 ± 0.33 | 0.67 ± 0.17 | " in text
    assert "Not measured: *none 0.5*, because of the moon." in text
    assert "| open: second |" in text


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="no matplotlib")
def test_plots_are_drawn_for_the_groups_that_have_one(tmp_path: Path) -> None:
    made = made_measurements()
    for group in PLOTTED:
        path = plots.draw_group(group, made, tmp_path)
        assert path is not None
        assert path.read_bytes()[:4] == b"\x89PNG"
    assert plots.draw_group("dose", Measurements(made.provenance), tmp_path) is None


def test_the_page_says_what_was_measured_and_the_tables_are_of_the_file() -> None:
    measured = Measurements.load()
    assert find_wrong_numbers(files.PAGE.read_text(encoding="utf-8"), measured) == []
    assert files.TABLES.read_text(encoding="utf-8") == tables.write_tables(measured, files.FILE.parent.name)


# ---- The real language model ----


def test_a_sink_makes_the_dose_depend_on_the_length_and_leaving_it_out_does_not() -> None:
    generator = torch.Generator().manual_seed(0)

    def make_turn(count: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        states = torch.randn(count, 64, generator=generator)
        states[0, 3] = 400.0
        layers = tuple(states for _ in range(8))
        return layers, torch.tensor([Region.PREFIX] * 4 + [Region.WORDS] * (count - 8) + [Region.SUFFIX] * 4)

    text, short, long = make_turn(16), make_turn(16), make_turn(1024)
    sink, other = real_language_model.measure_sinks(text[0])[-2]
    assert sink > 40
    assert other < 2
    kept = [real_language_model.measure_dose(text, reference, False) for reference in (short, long)]
    left_out = [real_language_model.measure_dose(text, reference, True) for reference in (short, long)]
    assert kept[1] > kept[0] + 0.2
    assert left_out[1] == pytest.approx(left_out[0], abs=0.03)
