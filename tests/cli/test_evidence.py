"""`zimage-vl evidence`: tiny runs through the real command."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from evidence_samples import made_measurements

from cli_calls import call
from zimage_vl.cli.evidence import PAIRS, SEED
from zimage_vl.evidence import plots
from zimage_vl.evidence.outcomes import Measurements, get_standard_error
from zimage_vl.evidence.running import describe_run
from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline


pytestmark = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of one experiment of six settings, two pairs each."""
    from zimage_vl.cli.app import app

    page = tmp_path_factory.mktemp("run") / "page.md"
    # The tables that need no pictures are there already: they have their own tests.
    (page.parent / "page").mkdir()
    begun = Measurements(describe_run(2, 1), tables=made_measurements().tables)
    begun.save(page.parent / "page" / "measurements.json")
    with pytest.raises(SystemExit) as stop:
        app(["evidence", "--only", "steps", "--pairs", "2", "--output", str(page)], prog_name="zimage-vl")
    assert not stop.value.code
    return page


def test_a_run_writes_the_page_its_plot_and_its_measurements(run: Path) -> None:
    assert {path.name for path in (run.parent / "page").iterdir()} == {"measurements.json", "steps.png"}
    text = run.read_text()
    assert "`zimage-vl evidence --pairs 2 --seed 1`" in text
    assert "(page/steps.png)" in text
    assert "Not measured yet: `zimage-vl evidence --only alpha`." in text
    assert "from 0.75 to 1 of the steps" in text
    assert "### Effective against nominal alpha" in text
    made = Measurements.load(run.parent / "page" / "measurements.json")
    assert len(made.outcomes) == 6
    assert all(len(outcome.shape) == 2 for rounds in made.outcomes.values() for outcome in rounds)
    assert made.provenance["pairs"] == 2
    assert made.remarks["threads"] >= 1
    outcome = next(iter(made.outcomes.values()))[0]
    values = [letter == "p" for letter in outcome.colour]
    share = sum(values) / 2
    assert outcome.error("colour", "p") == get_standard_error(share, 2) == (share * (1 - share) / 2) ** 0.5


def test_an_interrupted_run_goes_on_where_it_stopped(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = run.parent / "page" / "measurements.json"
    whole, page = kept.read_bytes(), run.read_bytes()
    content = json.loads(whole)
    lost = list(content["outcomes"])[3]
    del content["outcomes"][lost]
    other = next(iter(content["outcomes"]))
    content["outcomes"][other][0]["iou"] = [1, 2]  # to see that it is not measured again
    kept.write_text(json.dumps(content))
    done = call(capsys, "evidence", "--only", "steps", "--pairs", 2, "--output", run)
    assert (done.code, done.out.strip()) == (0, str(run))
    assert "1 settings of 2 pairs are to be measured" in done.err
    again = Measurements.load(kept)
    assert again.outcomes[other][0].iou == [1, 2]
    kept.write_bytes(whole)
    assert again.outcomes[lost] == Measurements.load(kept).outcomes[lost]
    done = call(capsys, "evidence", "--only", "steps", "--pairs", 2, "--output", run)
    assert "--fresh measures it again" in done.err
    assert run.read_bytes() == page
    assert kept.read_bytes() == whole


def test_the_page_can_be_written_again_without_measuring(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = run.read_bytes()
    run.unlink()
    done = call(capsys, "evidence", "--render-only", "--output", run)
    assert (done.code, done.out.strip()) == (0, str(run))
    assert run.read_bytes() == page


def test_measurements_of_other_pairs_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "evidence", "--pairs", 3, "--output", run)
    assert done.code == 2
    assert "pairs 2 there, 3 here" in done.err
    assert "--fresh" in done.err


@pytest.mark.slow
def test_a_model_is_measured_on_pictures_of_the_users_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_toy_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    draw_scene(Scene("circle", "red", "white")).save(tmp_path / "photos" / "a.png")
    page = tmp_path / "page.md"
    options = ["--prompts", "a blue square on a black background", "--size", "64x64", "--steps", 1, "--device", "cpu"]
    options += ["--dtype", "float32", "--seed", 5, "--output", page]
    done = call(capsys, "evidence", "--model", tmp_path / "model", "--pictures", tmp_path / "photos", *options)
    assert (done.code, done.out.strip()) == (0, str(page)), done.err
    text = page.read_text()
    assert f"zimage-vl evidence --model {tmp_path / 'model'} --seed 5 --pictures {tmp_path / 'photos'}" in text
    assert "| alpha 0.3 | recommended default | 1 |" in text
    assert "### Controls" in text
    painted = {path.name for path in (tmp_path / "page").iterdir()}
    assert "prompt-0-prompt-alone.png" in painted
    assert len(painted) > 30


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--only", "alhpa"], "--only alhpa: there are the experiments alpha"),
        (["--output", "a.txt"], "--output must end in .md"),
        (["--output", "gone/a.md"], "does not exist"),
        (["--fresh", "--render-only"], "pass one of them"),
        (["--prompts", "a"], "--prompts is for --model"),
        (["--model", "a/b", "--only", "alpha"], "--only is for the toy"),
        (["--model", "./gone"], "neither a folder that exists"),
        (["--model", "a/b"], "needs --pictures PATH and --prompts TEXT"),
        (["--model", "a/b", "--pictures", "gone.png", "--prompts", "a"], "'gone.png' does not exist"),
        (["--model", "a/b", "--pictures", "x.png", "--prompts", "a", "--size", "65x64"], "multiples of 16"),
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
    (tmp_path / "docs").mkdir()
    (tmp_path / "x.png").write_bytes(b"")
    done = call(capsys, "evidence", *options)
    assert (done.code, done.out) == (2, "")
    assert reason in done.err
    assert len(done.err.splitlines()) == 1


def test_rendering_what_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "evidence", "--render-only", "--output", tmp_path / "a.md")
    assert done.code == 2
    assert "measurements.json" in done.err


def test_a_missing_matplotlib_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    done = call(capsys, "evidence", "--output", tmp_path / "a.md")
    assert done.code == 2
    assert "pip install 'zimage-vl[evidence]'" in done.err


def test_the_help_tells_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    told = " ".join(call(capsys, "evidence", "--help").out.split())
    assert f"Default: {PAIRS}" in told
    assert SEED == 1
