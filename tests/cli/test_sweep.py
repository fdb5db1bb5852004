"""`zimage-vl sweep` and `merge`, on the toy: as `generate` paints, resumable, the same in any number of processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_calls import Call, call, read_png
from command_line import START, TWO_PROCESSES, environment, run
from sweep_samples import PROMPT, draw_references
from tally import load_toy_once
from zimage_vl.toy import Scene, draw_scene


GIVEN = ("-p", PROMPT, "-r", "a.png", "--steps", 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with references; the toy is loaded once."""
    monkeypatch.chdir(tmp_path)
    draw_references()
    monkeypatch.setattr("zimage_vl.load_toy_pipeline", load_toy_once)
    return tmp_path


def sweep(capsys: Any, *options: object, output: str = "out") -> Call:
    return call(capsys, "sweep", *GIVEN, "-o", output, *options)


def rows_of(output: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(output, "manifest.jsonl").read_text().splitlines()]


def pictures_of(output: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(output, "pictures").iterdir()}


def test_a_picture_and_its_record_are_those_of_generate(capsys: Any, folder: Path) -> None:
    done = sweep(capsys, "--alpha", "0,0.5", "--layer", "-2,-6", "--seed", "1..2", "--recipe", "calibrated")
    assert done.code == 0, done.err
    assert done.out.split() == ["out/sheet.png", "out/index.html"]
    assert "8 done" in done.err
    rows = rows_of()
    assert [row["job"] for row in rows] == list(range(8))
    (row,) = (
        r for r in rows if r["knobs"]["vl_alpha"] == 0.5 and r["knobs"]["vl_hidden_layer"] == -2 and r["seed"] == 2
    )
    options = ("--alpha", 0.5, "--layer", -2, "--seed", 2, "--recipe", "calibrated", "-o", "one.png")
    assert call(capsys, "generate", *GIVEN, *options).code == 0
    (expected, said), (pixels, recorded) = read_png(Path("one.png")), read_png(Path("out", row["file"]))
    np.testing.assert_array_equal(pixels, expected)
    assert list(recorded.items()) == list(said.items())
    assert {name: row[name] for name in recorded} == recorded


def test_plan_files_and_options_mean_the_same(capsys: Any, folder: Path) -> None:
    Path("plan.toml").write_text(
        f'prompt = "{PROMPT}"\nreference = ["a.png", "b.png"]\nalpha = [0.3, 0.9]\nsteps = 1\n'
    )
    made = call(capsys, "sweep", "--plan", "plan.toml", "--alpha", "0.3", "-o", "out", "--format", "json")
    assert made.code == 0, made.err
    told = json.loads(made.out)
    assert (told["counts"], told["errors"], told["page"]) == ({"done": 2}, {}, "out/index.html")
    again = json.loads(sweep(capsys, "-r", "b.png", "--alpha", "0.3,0.9", "--format", "json").out)
    assert again["counts"] == {"done": 2, "kept": 2}
    assert sorted({row["references"][0]["name"] for row in rows_of()}) == ["a.png", "b.png"]


def test_a_reference_that_cannot_be_read_is_a_row_and_exit_code_3(capsys: Any, folder: Path) -> None:
    done = sweep(capsys, "-r", "none.png", "--seed", "0,1")
    assert done.code == 3
    assert "Failed 2 times: --reference 'none.png' does not exist." in done.err
    assert [row["status"] for row in rows_of()] == ["done", "done", "failed", "failed"]
    draw_scene(Scene("circle", "red", "white")).save("none.png")
    mended = sweep(capsys, "-r", "none.png", "--seed", "0,1")
    assert (mended.code, "2 done, 2 kept" in mended.err) == (0, True)


def test_a_dry_run_counts_and_writes_nothing(capsys: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zimage_vl.load_toy_pipeline", lambda: pytest.fail("a model was loaded"))
    planned = sweep(capsys, "-p", "a blue square", "-r", "b.png", "--layer", "-2,-6", "--alpha", "0,0.3", "--dry-run")
    assert planned.code == 0
    assert planned.out.startswith("pictures  16 planned\nto read   4 references with their texts, 2 prompts\n")
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png"]
    done = sweep(capsys, "-r", "none.png", "--dry-run", "--format", "json")
    assert json.loads(done.out)["counts"] == {"failed": 1, "planned": 1}
    assert (done.code, done.err.splitlines()[-1]) == (3, "Failed: --reference 'none.png' does not exist.")


def test_the_plans_of_the_page_on_scale_are_plans(capsys: Any, folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    for name in ("photo.jpg", "painting.jpg"):
        draw_scene(Scene("cross", "cyan", "black")).save(name)
    Path("plan.yaml").write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    (typed,) = re.findall("^    zimage-vl (sweep -p .*)$", page, re.MULTILINE)
    for words, count in ((["sweep", "--plan", "plan.yaml", "-o", "out"], 144), (shlex.split(typed), 24)):
        told = json.loads(call(capsys, *words, "--dry-run", "--format", "json").out)
        assert told["counts"] == {"planned": count}


def test_shards_merge_to_the_whole(capsys: Any, folder: Path) -> None:
    axes = ("-r", "b.png", "--alpha", "0.3,0.7", "--seed", "0")
    sweep(capsys, *axes, output="whole")
    for index in range(3):
        done = sweep(capsys, *axes, "--num-shards", 3, "--shard-index", index, output=f"part{index}")
        assert done.code == 0, done.err
    merged = call(capsys, "merge", "part0", "part1", "part2", "-o", "all", "--format", "json")
    assert json.loads(merged.out)["counts"] == {"done": 4}
    assert pictures_of("all") == pictures_of("whole")
    for name in ("sheet.png", "index.html"):
        assert Path("all", name).read_bytes() == Path("whole", name).read_bytes()
    call(capsys, "merge", "part0", "nowhere", "-o", "new").refused("nowhere: is no folder of a sweep")


def test_ctrl_c_and_a_full_disk_leave_a_folder_to_go_on_with(
    capsys: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at(number: int, error: BaseException) -> Any:
        calls = iter(range(100))

        def fsync(_: int) -> None:
            if next(calls) == number:
                raise error

        return fsync

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", stop_at(2, KeyboardInterrupt()))
        stopped = sweep(capsys, "--seed", "0..3")
    assert (stopped.code, stopped.out) == (130, "")
    assert "the same command goes on from here" in stopped.err
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", stop_at(1, OSError(28, "No space left on device")))
        sweep(capsys, "--seed", "0..3").refused("out/pictures/", "No space left on device")
    kept = len(rows_of())
    assert 0 < kept < 4
    assert f"{4 - kept} done, {kept} kept" in sweep(capsys, "--seed", "0..3").err
    assert len(rows_of()) == 4
    assert not list(Path("out").rglob("*.tmp"))


def test_a_killed_run_is_gone_on_with(capsys: Any, folder: Path) -> None:
    options = map(str, (*GIVEN, "--seed", "0..39", "-o", "out"))
    process = subprocess.Popen([*START, "sweep", *options], env=environment(), stderr=subprocess.DEVNULL)
    manifest, deadline = Path("out", "manifest.jsonl"), time.monotonic() + 120
    while not (manifest.exists() and manifest.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with open(manifest, "ab") as file:
        file.write(b'{"job": 39, "key"')  # as if it had been writing
    done = sweep(capsys, "--seed", "0..3", "--format", "json")
    counts = json.loads(done.out)["counts"]
    assert (done.code, sum(counts.values())) == (0, 4), done.err
    assert counts["kept"] >= 1
    assert all(read_png(Path("out", row["file"]))[1]["seed"] == row["seed"] for row in rows_of())


def test_two_processes_paint_what_one_paints(capsys: Any, folder: Path) -> None:
    options = [*GIVEN, "-r", "none.png", "-r", "b.png", "--alpha", "0.3,0.7", "--device", "cpu"]
    done = run("sweep", *options, "-o", "two", start=TWO_PROCESSES)
    assert done.stdout.split() == ["two/sheet.png", "two/index.html"], done.stderr
    assert "4 done, 2 failed" in done.stderr
    assert done.returncode == 1  # of torchrun, one of whose processes ended with 3
    one = call(capsys, "sweep", *options, "-o", "one")
    assert one.code == 3
    assert pictures_of("two") == pictures_of("one")
    measured = ("seconds", "time")
    plain = [
        [{name: x for name, x in row.items() if name not in measured} for row in rows_of(n)] for n in ("one", "two")
    ]
    assert plain[0] == plain[1]
    for name in ("sheet.png", "index.html"):
        assert Path("two", name).read_bytes() == Path("one", name).read_bytes()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("-r a.png", "A sweep needs a prompt"),
        ("-p x --alpha 0.3", "--alpha does nothing without --reference"),
        ("-p x -r a.png --alpha 0.3,2", "--alpha must be"),
        ("-p x -r a.png --tokens al", "--tokens: 'al' is not one of"),
        ("-p x -r a.png --tokens text --outlier-masking none,zero", "would do nothing"),
        ("-p x --steps 0", "--steps: '0' is below 1"),
        ("-p x --seed -1", "--seed: '-1' is below 0"),
        ("-p x --guidance -1", "--guidance: '-1' is no finite number of at least 0"),
        ("-p x --offload model --device cpu", "--offload model needs an accelerator"),
        ("-p x --shard-index 1", "--shard-index counts from 0 and must be below --num-shards 1"),
        ("-p x --plan nowhere.yaml", "nowhere.yaml: No such file"),
        ("-p x --plan plan.yaml", "--plan 'plan.yaml' has no axis 'alpa'; did you mean alpha?"),
        ("-p x -r a.png --plan bad.yaml", "--plan 'bad.yaml', alpha: True is none of its values: 0..1"),
        ("-p x -o a.png", "--output 'a.png' is a file"),
        ("-p x -o no/where", "the folder 'no' does not exist"),
        ("-p x -o taken", "is the manifest of something else than a sweep"),
        ("-p x --model ./nowhere", "--model './nowhere' is neither a folder"),
        ("-p x -r a.png --layer -99", "--layer -99 is out of range"),
    ],
)
def test_what_can_be_known_before_is_refused(options: str, reason: str, capsys: Any, folder: Path) -> None:
    Path("plan.yaml").write_text("alpa: 1")
    Path("bad.yaml").write_text("alpha: yes")
    Path("taken").mkdir()
    Path("taken", "manifest.jsonl").write_text('{"source": "a.png"}\n')
    words = options.split()
    call(capsys, "sweep", *words, *([] if "-o" in words else ["-o", "out"])).refused(reason)
    assert not list(folder.glob("out/pictures/*"))
    assert [path.name for path in Path("taken").iterdir()] == ["manifest.jsonl"]


def test_damaged_pictures_and_thumbnails_are_made_anew(capsys: Any, folder: Path) -> None:
    sweep(capsys, "--seed", "0,1")
    before = pictures_of("out")
    (thumbnail,) = Path("out", "references").iterdir()
    small = thumbnail.read_bytes()
    first, _ = (Path("out", row["file"]) for row in rows_of())
    for broken in (first, thumbnail):
        broken.write_bytes(broken.read_bytes()[:-50])
    assert "1 kept, 1 planned" in sweep(capsys, "--seed", "0,1", "--dry-run").out
    assert "1 done, 1 kept" in sweep(capsys, "--seed", "0,1").err
    assert (pictures_of("out"), thumbnail.read_bytes(), len(rows_of())) == (before, small, 2)


def test_manifests_edited_by_hand_are_refused_by_the_job(capsys: Any, folder: Path) -> None:
    sweep(capsys)
    row = rows_of()[0]
    for more in ({"steps": 0}, {"seconds": float("inf")}, {"seconds": "x"}):
        Path("out", "manifest.jsonl").write_text(json.dumps(row | more) + "\n")
        sweep(capsys, "--dry-run").refused("the line of job 0", "is damaged: delete it")
    for text in ("[" * 200_000 + "\n", "x"):
        Path("out", "manifest.jsonl").write_text(text)
        call(capsys, "merge", "out", "-o", "new").refused("is the manifest of something else")
        assert not Path("new").exists()


def test_inputs_and_files_of_others_are_kept(capsys: Any, folder: Path) -> None:
    Path("in1").mkdir()
    Path("a.png").rename("in1/sheet.png")
    for more in ((), ("--dry-run",)):
        call(capsys, "sweep", "-p", "x", "-r", "in1", "-o", "in1", *more).refused("in1/sheet.png is not of a sweep")
    assert call(capsys, "sweep", "-p", "x", "-r", "b.png", "--steps", 1, "-o", "out").code == 0
    call(capsys, "sweep", "-p", "x", "-r", "out", "-o", "out").refused("'out/sheet.png' is an input")
    call(capsys, "merge", "out", "-o", "in1").refused("in1/sheet.png is not of a sweep")
    assert [path.name for path in Path("in1").iterdir()] == ["sheet.png"]


def test_a_merge_that_fails_or_is_stopped_takes_nothing_of_the_users_and_can_be_run_again(
    capsys: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep(capsys, "--seed", "0,1", "--alpha", "0.3", output="part").code == 0
    shutil.copytree("part", "broken")
    next(Path("broken", "pictures").iterdir()).unlink()
    Path("mine", "notes", "2026").mkdir(parents=True)
    Path("mine", "photos").symlink_to("/unmounted/photos")
    before = sorted(Path("mine").rglob("*"))
    call(capsys, "merge", "part", "broken", "-o", "mine").refused("broken/pictures/", "no file")
    assert sorted(Path("mine").rglob("*")) == before

    def link_and_stop(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("os.link", link_and_stop)
        assert call(capsys, "merge", "part", "-o", "mine").code == 130
    assert call(capsys, "merge", "part", "-o", "mine").code == 0
    assert pictures_of("mine") == pictures_of("part")
    row = json.loads(Path("broken", "manifest.jsonl").read_text().splitlines()[0])
    Path("broken", "manifest.jsonl").write_text(json.dumps({**row, "references": None}) + "\n")
    call(capsys, "merge", "broken", "-o", "new").refused("broken/manifest.jsonl", "is damaged")


def test_a_share_without_jobs_can_be_run_again(capsys: Any, folder: Path) -> None:
    for _ in range(2):
        done = sweep(capsys, "--alpha", "0.3", "--num-shards", "3", "--shard-index", "0")
        assert (done.code, done.err.splitlines()[-1]) == (0, "nothing to do")


def test_a_large_file_of_another_kind_is_judged_by_its_first_bytes(
    capsys: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("big.safetensors", "wb") as file:
        file.truncate(2**33)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda _: pytest.fail("all of it was read"))
    done = call(capsys, "sweep", "-p", "x", "--embeds", "big.safetensors", "--dry-run", "-o", "out")
    assert (done.code, "holds no reference embeddings" in done.err) == (3, True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_pipes_and_devices_are_refused_and_not_waited_for(capsys: Any, folder: Path) -> None:
    for name in ("plan.yaml", "embeds.safetensors", "taken/manifest.jsonl"):
        Path(name).parent.mkdir(exist_ok=True)
        os.mkfifo(name)
    Path("zero.yaml").symlink_to("/dev/zero")
    for plan in ("plan.yaml", "zero.yaml"):
        call(capsys, "sweep", "-p", "x", "--plan", plan, "-o", "out").refused(plan, "no regular file")
    call(capsys, "sweep", "-p", "x", "-o", "taken").refused("taken/manifest.jsonl is no regular file")
    call(capsys, "merge", "taken", "-o", "out").refused("taken/manifest.jsonl", "no regular file")
    embeds = ("sweep", "-p", "x", "--embeds", "embeds.safetensors", "-o", "out")
    assert call(capsys, *embeds, "--dry-run").out.startswith("pictures  1 failed")
    assert "is no regular file" in call(capsys, *embeds).err


def test_folders_of_two_kinds_stay_apart(capsys: Any, folder: Path) -> None:
    sweep(capsys)
    assert call(capsys, "extract", "a.png", "-o", "ex", "--layers=-2").code == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    call(capsys, "extract", "b.png", "-o", "out", "--layers=-2").refused("Name another folder")
    for words in (("ex", "-o", "out"), ("ex", "out", "-o", "new"), ("out", "-o", "ex"), ("ex", "out", "-o", "ex")):
        call(capsys, "merge", *words).refused("manifest")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (file,) = Path("ex").glob("*.safetensors")
    for lost, source in ((file, "ex"), (next(Path("out", "pictures").iterdir()), "out")):
        lost.unlink()
        call(capsys, "merge", source, "-o", "new").refused(f"{lost}: is named by the manifest")
        assert not Path("new").exists()
    Path("linked").mkdir()
    Path("mine").mkdir()
    Path("linked", "manifest.jsonl").symlink_to(Path("out", "manifest.jsonl").resolve())
    call(capsys, "extract", "a.png", "-o", "linked").refused("no regular file")
    call(capsys, "merge", "ex", "-o", "linked").refused("no regular file")
    for name, text in (("manifest.jsonl", ""), ("index.html", "mine"), ("sheet.png", "mine")):
        Path("mine", name).write_text(text)
    call(capsys, "sweep", "-p", "x", "-o", "mine").refused("is not of a sweep")
    Path("mine", "manifest.jsonl").write_text('{"source": "a web page", "caption": "mine"}\n')
    call(capsys, "extract", "a.png", "-o", "mine").refused("a line that is none of `zimage-vl extract`")
    Path("links.png").symlink_to(Path("out", "sheet.png"))
    call(capsys, "sweep", "-p", "x", "-r", "links.png", "-o", "out").refused("links.png", "would replace it")
