"""`zimage-vl evidence`: a small run through the real command, and what is refused before a model loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cli_calls import call
from zimage_vl.toy import Scene, draw_scene
from zimage_vl.workflows import evidence


def test_a_page_with_its_sheet_pictures_and_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("alpha 0.3", "alpha 1.0", "blend 0.3 from the same picture")
    made = evidence.make_settings
    monkeypatch.setattr(evidence, "make_settings", lambda layers: {name: made(layers)[name] for name in wanted})
    (tmp_path / "photos").mkdir()
    draw_scene(Scene("circle", "red", "white")).save(tmp_path / "photos" / "a.png")
    page = tmp_path / "page.md"
    options = ["--steps", 2, "--device", "cpu", "--seed", 5, "--output", page]
    prompts = ["--prompts", "a blue square", "--prompts", "a cross"]
    done = call(capsys, "evidence", "--model", "toy", "--pictures", tmp_path / "photos", *prompts, *options)
    assert (done.code, done.out.strip()) == (0, str(page)), done.err
    text = page.read_text()
    assert "2 prompts, 1 picture; model toy, " in text
    assert "dtype float32, seed 5, width 64, height 64, num inference steps 2" in text
    for said in ("knows only coloured shapes", "Painting at 64x64", "-6 is -2 here, of 8"):
        assert said in done.err
    assert "-6 is -2 here" in text
    assert "| alpha 1.0 | 1.00 | " in text
    files = {path.name for path in (tmp_path / "page").iterdir()}
    assert {"sheet.png", "measurements.json", "prompt-1-picture-0-alpha-0.3.png"} <= files
    content: dict[str, Any] = json.loads((tmp_path / "page" / "measurements.json").read_text())
    assert set(content["outcomes"]) == {evidence.ANOTHER, *wanted}
    assert len(content["outcomes"]["alpha 0.3"]["kept"]["colours"]) == 2
    assert content["outcomes"]["alpha 0.3"]["settings"]["vl_alpha"] == 0.3
    with Image.open(tmp_path / "page" / "sheet.png") as sheet:
        assert json.loads(sheet.info["parameters"])["seed"] == 5
    run = ["evidence", "--pictures", tmp_path / "photos", *prompts, *options]
    call(capsys, *run).refused("page.md' exists already: name another file, or add --overwrite")
    page.unlink()
    call(capsys, *run).refused(f"--output: {tmp_path / 'page'}, for the pictures, exists already")
    again = call(capsys, *run, "--overwrite")
    assert again.code == 0, again.err
    assert page.read_text().splitlines()[4:] == text.splitlines()[4:]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "", "--pictures", "x.png", "--prompts", "a"], "neither a folder that exists"),
        (["--model", "./gone", "--pictures", "x.png", "--prompts", "a"], "neither a folder that exists"),
        (["--pictures", "gone.png", "--prompts", "a"], "'gone.png' does not exist"),
        (["--pictures", "x.png", "--prompts", " "], "--prompts has an empty text"),
        (["--pictures", "x.png", "--prompts", "a", "--size", "65x64"], "multiples of 16"),
        (["--pictures", "x.png", "--prompts", "a", "--output", "a.txt"], "a.txt' must end in .md"),
        (["--pictures", "x.png", "--prompts", "a", "--output", "no/a.md"], "does not exist"),
        (["--pictures", "x.png", "--prompts", "a"], "x.png"),
        (["--pictures", "https://a.b/c.png", "--prompts", "a", "--no-urls"], "is an address"),
        (["--model", "toy", "--vl-model", "a/b", "--pictures", "x.png", "--prompts", "a"], "--vl-model does nothing"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    options: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").write_bytes(b"")
    done = call(capsys, "evidence", *options)
    assert (done.code, done.out) == (2, "")
    assert reason in done.err
    assert len(done.err.splitlines()) == 2  # which model, and why not


@pytest.mark.parametrize("missing", ["--pictures", "--prompts"])
def test_pictures_and_prompts_are_needed(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"--pictures": "x.png", "--prompts": "a"}
    del given[missing]
    done = call(capsys, "evidence", *(text for option in given.items() for text in option))
    assert done.code == 2
    assert f"Missing option '{missing}'" in done.err
