"""A sweep's sheets as pictures, and what a dry run says of the cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from zimage_vl.cli._views import describe_dry_run, draw_sheet, dry_run_lines, write_views
from zimage_vl.workflows.gallery import Sheet
from zimage_vl.workflows.manifest import Manifest, prepare_folder
from zimage_vl.workflows.sweep import count_operations


RED, GREEN = (200, 10, 10), (10, 200, 10)
JOB: dict[str, Any] = {"width": 1024, "height": 1024, "steps": 9, "guidance": 0.0, "negative_prompt": None}


def colours(picture: Image.Image) -> set[Any]:
    return {colour for _, colour in picture.getcolors(1 << 24)}


def test_a_sheet_shows_its_pictures_and_blanks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, colour, side in (("red.png", RED, 64), ("green.png", GREEN, 600)):
        Image.new("RGB", (side, side), colour).save(tmp_path / name)
    sheet = Sheet("title", "foot", [""], ["alpha 0", "alpha 1"], [("a", None, [["red.png", None]])])
    small = draw_sheet(tmp_path, sheet)
    assert RED in colours(small)
    (tmp_path / "broken.png").write_bytes((tmp_path / "red.png").read_bytes()[:-40])
    broken = Sheet("title", "foot", [""], ["alpha 0", "alpha 1"], [("a", None, [["red.png", "broken.png"]])])
    assert draw_sheet(tmp_path, broken) == small
    assert capsys.readouterr().err.count("broken.png") == 1
    with_reference = draw_sheet(tmp_path, Sheet("", "", [""], ["one"], [("a", "red.png", [["green.png"]])]))
    assert {RED, GREEN} <= colours(with_reference)
    assert with_reference.height > small.height  # large pictures have larger cells


def test_sheets_of_a_time_when_there_were_more_go(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "out")
    for name in ("sheet.png", "sheet-2.png", "sheet-music.png"):
        (tmp_path / "out" / name).touch()
    assert write_views(tmp_path / "out")["sheets"] == []
    assert sorted(path.name for path in (tmp_path / "out").glob("*.*")) == ["sheet-music.png"]


def test_time_is_measured_where_the_folder_has_pictures_and_by_rule_elsewhere(tmp_path: Path) -> None:
    jobs = [{**JOB, "status": "planned", "prompt": "a", "readings": [n]} for n in "xxy"] + [{**JOB, "status": "kept"}]
    model = tmp_path / "model"
    (model / "vl_encoder").mkdir(parents=True)
    (model / "vl_encoder" / "model.safetensors").write_bytes(bytes(1000))

    def describe() -> dict[str, Any]:
        return describe_dry_run(jobs, tmp_path / "out", str(model), None, "cuda")

    found = describe()
    assert (found["counts"], found["readings"], found["prompts"]) == ({"planned": 3, "kept": 1}, 2, 1)
    assert found["weights_bytes"] == 1000
    assert found["seconds"] == pytest.approx(3 * count_operations(1024, 1024, 9) / 2e14, abs=0.1)
    assert "by rule" in found["rule"]
    prepare_folder(tmp_path / "out")
    row = {
        "job": 0,
        "key": "a",
        "status": "done",
        "file": "pictures/a.png",
        "seconds": 2.0,
        "device": "cuda",
        **JOB,
        "width": 512,
        "height": 512,
    }
    Manifest(tmp_path / "out").append(row)
    ratio = count_operations(1024, 1024, 9) / count_operations(512, 512, 9)
    assert describe()["seconds"] == pytest.approx(3 * 2.0 * ratio, abs=0.1)
    assert "measured on the 1 pictures" in dry_run_lines(describe())[-1]
    unknown = describe_dry_run(jobs, tmp_path / "new", "someone/no-such-model", None, "cpu")
    assert "29.4 GB" in dry_run_lines(unknown)[2]
    assert " days (" in dry_run_lines({**unknown, "seconds": 1e6})[-1]
