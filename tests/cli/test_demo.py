"""`zimage-vl demo`: what it paints, and what it refuses before it paints anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_calls import call, read_png
from tiny_models import tiny_pipeline
from zimage_vl.cli.demo import STRENGTHS, paint_rows
from zimage_vl.toy.loading import CHECKPOINT


needs_checkpoint = pytest.mark.skipif(not (CHECKPOINT / "manifest.json").is_file(), reason="no toy checkpoint yet")


@pytest.fixture(scope="module")
def painted() -> tuple[list[Any], int, Any]:
    """Two rows painted by random weights, how many pictures were counted, and the pipeline."""
    pipe, counted = tiny_pipeline(), []
    rows = paint_rows(pipe, 2, seed=0, size=32, steps=2, on_picture=lambda: counted.append(1))
    return rows, len(counted), pipe


def test_a_row_is_a_pair_with_a_picture_for_each_strength(painted: tuple[list[Any], int, Any]) -> None:
    rows, counted, _ = painted
    assert counted == 2 * len(STRENGTHS)
    assert [len(row.blocks[0]) for row in rows] == [len(STRENGTHS)] * 2
    assert all(len({picture.tobytes() for picture in row.blocks[0]}) == len(STRENGTHS) for row in rows)
    assert list(STRENGTHS.values()) == sorted(STRENGTHS.values())
    open_, last = (row.prompt for row in rows)
    assert " background" not in open_
    assert " background" in last  # it names everything


def test_a_picture_is_that_of_the_plain_call(painted: tuple[list[Any], int, Any]) -> None:
    import torch

    rows, _, pipe = painted
    common = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 0.0}
    for column, arguments in ((3, {"reference_image": rows[1].reference, "vl_alpha": 0.5}), (0, {})):
        noise = torch.Generator().manual_seed(1)
        image = pipe(rows[1].prompt, generator=noise, **common, **arguments).images[0]
        assert image.tobytes() == rows[1].blocks[0][column].tobytes()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--output", "sheet.jpg"), "must end in .png"),
        (("--output", "missing/sheet.png"), "does not exist. Create it first"),
        (("--pairs", "0"), "--pairs"),
        (("--threads", "0"), "--threads"),
        (("--seed", "-1"), "--seed"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    options: tuple[str, str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    call(capsys, "demo", *options).refused(reason)
    assert list(tmp_path.iterdir()) == []


@needs_checkpoint
def test_the_path_is_the_last_thing_printed_and_no_sheet_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(capsys, "demo", "--pairs", 1)
    assert done.code == 0, done.err
    assert done.out == str(Path("outputs") / "demo.png") + "\n"
    first, made = read_png(tmp_path / "outputs" / "demo.png")
    assert made["command"] == "zimage-vl demo --pairs 1 --seed 0"
    assert made["alphas"] == list(STRENGTHS.values())
    assert call(capsys, "demo", "--pairs", 1, "--seed", 1).out == str(Path("outputs") / "demo-2.png") + "\n"
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["demo-2.png", "demo.png"]
    call(capsys, "demo", "--pairs", 1, "-o", "outputs/demo.png").refused("exists already")
    assert np.array_equal(read_png(tmp_path / "outputs" / "demo.png")[0], first)


@needs_checkpoint
def test_a_failed_demo_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "outputs/demo.png")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zimage_vl.cli.demo.paint_rows", full)
    call(capsys, "demo").refused("outputs/demo.png: No space left on device.")
    assert list(tmp_path.iterdir()) == []
