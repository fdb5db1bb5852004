"""`zimage-vl extract`: one file a reference, once, whatever happens to the others."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli_calls import Call, call
from command_line import run
from zimage_vl.cli.extract import ExtractSettings, _append_line, is_extracted
from zimage_vl.reference.embeds import ReferenceEmbeds
from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline


TEXT = "a red circle"


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with refs/a.png, refs/b.png, and refs/broken.png which is none."""
    monkeypatch.chdir(tmp_path)
    Path("refs").mkdir()
    for seed, name in enumerate(("a", "b")):
        draw_scene(Scene("circle", "red", "white"), seed=seed).save(f"refs/{name}.png")
    Path("refs/broken.png").write_text("<html></html>")
    return tmp_path


def extract(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Call, Any]:
    done = call(capsys, "extract", "-o", "out", "--text", TEXT, "--format", "json", *arguments)
    return done, json.loads(done.out) if done.out else None


def manifest() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out/manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def no_model(*_: object) -> Any:
    raise AssertionError("a model was loaded")


def test_extracting_first_is_one_call_bit_for_bit(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, printed = extract(capsys, "refs/a.png", "--layers", "-2,-6")
    assert done.code == 0, done.err
    embeds = ReferenceEmbeds.load(Path("out") / printed["references"][0]["file"])
    assert embeds.layers == (-2, -6)
    assert (embeds.provenance.text, embeds.provenance.model_id) == (TEXT, "toy")
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    call_of = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 0.0, "output_type": "np"}
    for knobs in ({}, {"vl_hidden_layer": {-2: 1, -6: 2}, "vl_alpha": 0.8, "vl_normalization": "token_rms"}):
        noises = [torch.Generator().manual_seed(0) for _ in range(2)]
        stages = pipe(TEXT, reference_embeds=embeds, generator=noises[0], **call_of, **knobs)
        once = pipe(TEXT, reference_image="refs/a.png", generator=noises[1], **call_of, **knobs)
        assert np.array_equal(stages.images, once.images)
        assert stages.conditioning[0].influence == once.conditioning[0].influence
    plain = pipe(TEXT, generator=torch.Generator().manual_seed(0), **call_of)
    assert not np.array_equal(stages.images, plain.images)


def test_one_bad_reference_does_not_end_the_run(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, printed = extract(capsys, "refs", "gone.png", "refs/a.png")
    assert done.code == 3
    assert printed["counts"] == {"written": 2, "failed": 2}
    assert [record["source"] for record in printed["references"]] == [
        *(str(Path("refs") / name) for name in ("a.png", "b.png", "broken.png")),
        "gone.png",
    ]
    assert "HTML page" in printed["references"][2]["error"]
    assert "Failed: gone.png: 'gone.png' does not exist." in done.err
    assert "2 failed, 2 written" in done.err
    lines = manifest()
    assert [{k: v for k, v in line.items() if k not in ("time", "settings")} for line in lines] == (
        printed["references"]
    )
    assert {line["settings"]["text"] for line in lines} == {TEXT}
    files = {record["file"] for record in printed["references"] if record["file"]}
    assert {path.name for path in Path("out").iterdir()} == {*files, "manifest.jsonl"}
    assert len(files) == 2


def test_what_is_done_is_kept_without_loading_a_model(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = extract(capsys, "refs/a.png", "refs/b.png")
    stamps = {path.name: path.stat().st_mtime_ns for path in Path("out").glob("*.safetensors")}
    monkeypatch.setattr("zimage_vl.cli.extract.load_reference_reader", no_model)
    Path("copy.png").write_bytes(Path("refs/a.png").read_bytes())
    done, second = extract(capsys, "refs/a.png", "refs/b.png", "copy.png")
    assert done.code == 0
    assert second["counts"] == {"kept": 3}
    files = [record["file"] for record in first["references"]]
    assert [record["file"] for record in second["references"]] == [*files, files[0]]  # by content, not by name
    assert stamps == {path.name: path.stat().st_mtime_ns for path in Path("out").glob("*.safetensors")}
    assert len(manifest()) == 5


def test_a_damaged_file_is_made_again_and_other_settings_are_another_file(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, first = extract(capsys, "refs/a.png", "--layers", "-2")
    path = Path("out") / first["references"][0]["file"]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    _, again = extract(capsys, "refs/a.png", "--layers", "-2")
    assert again["counts"] == {"written": 1}
    assert path.read_bytes() == whole
    _, other = extract(capsys, "refs/a.png", "--layers", "-2,-4")
    assert other["counts"] == {"written": 1}
    assert other["references"][0]["file"].split("-")[0] == path.name.split("-")[0]
    assert path.read_bytes() == whole


def test_a_dry_run_says_what_would_be_done(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zimage_vl.cli.extract.load_reference_reader", no_model)
    Path("copy.png").write_bytes(Path("refs/a.png").read_bytes())
    done, printed = extract(capsys, "refs", "copy.png", "--dry-run")
    assert done.code == 3
    assert printed["counts"] == {"planned": 2, "failed": 1, "kept": 1}
    assert not Path("out").exists()


def test_layers_that_there_are_not_end_the_run_at_once(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, _ = extract(capsys, "refs/a.png", "--layers", "-2,-99")
    done.refused("Layer -99 is out of range")
    assert not Path("out").exists()


def test_a_disk_that_is_full_ends_the_run(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ReferenceEmbeds, "save", full)
    done, _ = extract(capsys, "refs/a.png", "refs/b.png")
    done.refused("out/", ".safetensors: No space left on device.")
    assert not Path("out").exists()


@pytest.mark.parametrize("broken", [MemoryError("too large"), ValueError("not\nfinite")])
def test_what_a_picture_alone_breaks_is_its_own(
    broken: Exception, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zimage_vl.cli._parts import ReferenceReader

    read, seen = ReferenceReader.read, []

    def once(self: Any, image: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(image)
        if len(seen) == 1:
            raise broken
        return read(self, image, *arguments, **options)

    monkeypatch.setattr(ReferenceReader, "read", once)
    done, printed = extract(capsys, "refs/a.png", "refs/b.png")
    assert done.code == 3
    assert [record["status"] for record in printed["references"]] == ["failed", "written"]
    assert printed["references"][0]["error"] == " ".join(str(broken).split())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--layers", "-2;-6"], "is no whole number"),
        (["--layers", "-2,-2"], "names a layer twice"),
        (["--layers", ""], "is no whole number"),
        (["--text-position", "befor"], "Did you mean before?"),
        (["--text", "a\udcff"], "--text is no valid UTF-8 text"),
        (["--model", "./nowhere"], "--model './nowhere' is neither a folder"),
        (["--vl-model", "./qwen"], "--vl-model does nothing with --model toy"),
        (["--device", "gpu"], "--device 'gpu' cannot be used here"),
    ],
)
def test_settings_that_cannot_be(
    options: list[str], reason: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, _ = extract(capsys, "refs/a.png", *options)
    done.refused(reason)
    assert not Path("out").exists()


def test_folders_that_cannot_be_written_to(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, reason in (("gone/out", "does not exist. Create it first"), ("refs/a.png", "is a file")):
        call(capsys, "extract", "refs/a.png", "-o", folder).refused(reason)


def test_the_name_tells_apart_whatever_changes_the_content(tmp_path: Path) -> None:
    base = ExtractSettings("toy", None, None, "float32", "", "after", (-2,), 1024)
    changes: list[dict[str, Any]] = [
        {"model": str(tmp_path)},
        {"vl_model": "a/b"},
        {"revision": "main"},
        {"dtype": "bfloat16"},
        {"text": "a"},
        {"text_position": "before"},
        {"layers": (-2, -4)},
        {"max_pixels": 512},
    ]
    names = {ExtractSettings(**{**vars(base), **change}).file_name("ab" * 32) for change in changes}
    assert len(names | {base.file_name("ab" * 32), base.file_name("cd" * 32)}) == len(changes) + 2
    relative = ExtractSettings(**{**vars(base), "model": str(tmp_path / ".." / tmp_path.name)})
    assert relative.file_name("ab" * 32) == ExtractSettings(**{**vars(base), "model": str(tmp_path)}).file_name(
        "ab" * 32
    )
    assert not is_extracted(tmp_path / "gone.safetensors", base)


def test_a_line_that_was_cut_off_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    _append_line(path, {"source": "ä.png"})
    path.write_bytes(path.read_bytes() + b'{"source": "cut')
    _append_line(path, {"source": "next"})
    assert path.read_text(encoding="utf-8").splitlines() == [
        '{"source": "ä.png"}',
        '{"source": "cut',
        '{"source": "next"}',
    ]


def test_names_that_are_no_text_end_nothing(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = ["refs/\udcff.png", "refs/\x1b[2J.png"]
    for name in odd:
        draw_scene(Scene("cross", "red", "white"), seed=len(name)).save(name)
    os.mkfifo("refs/pipe.png")
    done, printed = extract(capsys, *odd, "gone\x1b\udcfe.png", "refs/pipe.png", "refs/a.png")
    assert done.code == 3
    assert [record["status"] for record in printed["references"]] == [*["written"] * 2, *["failed"] * 2, "written"]
    assert r"Failed: gone\x1b\udcfe.png: 'gone\x1b\udcfe.png' does not exist." in done.err
    assert "'refs/pipe.png' is no regular file" in done.err
    assert "\x1b" not in done.out + done.err
    assert [line["source"] for line in manifest()[:2]] == odd
    shown = call(capsys, "extract", "refs", "-o", "out\udcff")
    assert shown.out.splitlines()[0].startswith(r"out\udcff/")


def test_in_a_process_of_its_own(pictures: Path) -> None:
    done = run("extract", "refs/?.png", "-o", "out", "--layers=-2")
    assert done.returncode == 0, done.stderr
    paths = done.stdout.splitlines()
    assert [ReferenceEmbeds.load(path).provenance.text for path in paths] == ["", ""]
    assert "2 written" in done.stderr
