"""`zimage-vl extract`: one file a reference, once, whatever happens to the others."""

from __future__ import annotations

import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from cli_calls import Call, call
from forked_scripts import run_forked
from tally import load_toy_once
from zimage_vl.cli._models import Model
from zimage_vl.cli.extract import file_name
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
from zimage_vl.reference.embeds import ReferenceEmbeds
from zimage_vl.toy import Scene, draw_scene
from zimage_vl.workflows.files import claimed


TEXT = "a red circle"


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with refs/a.png, refs/b.png, and refs/broken.png which is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zimage_vl.load_toy_pipeline", load_toy_once)
    Path("refs").mkdir()
    for seed, name in enumerate(("a", "b")):
        draw_scene(Scene("circle", "red", "white"), seed=seed).save(f"refs/{name}.png")
    Path("refs/broken.png").write_text("<html></html>")
    return tmp_path


def extract(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Call, Any]:
    done = call(capsys, "extract", "-o", "out", "--text", TEXT, "--format", "json", *arguments)
    return done, json.loads(done.out) if done.out else None


def manifest(folder: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def no_model(*_: object) -> Any:
    raise AssertionError("a model was loaded")


def test_extracting_first_is_one_call_bit_for_bit(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, printed = extract(capsys, "refs/a.png", "--layers", "-2,-6")
    assert done.code == 0, done.err
    embeds = ReferenceEmbeds.load(Path("out") / printed["references"][0]["file"])
    assert embeds.layers == (-2, -6)
    assert (embeds.provenance.text, embeds.provenance.model_id) == (TEXT, "toy")
    pipe = load_toy_once()
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
    monkeypatch.setattr(Model, "load_reader", no_model)
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
    monkeypatch.setattr(Model, "load_reader", no_model)
    Path("copy.png").write_bytes(Path("refs/a.png").read_bytes())
    done, printed = extract(capsys, "refs", "copy.png", "--dry-run")
    assert done.code == 3
    assert printed["counts"] == {"planned": 2, "failed": 1, "kept": 1}
    assert not Path("out").exists()


def test_layers_that_there_are_not_end_the_run_at_once(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, _ = extract(capsys, "refs/a.png", "--layers", "-2,-99")
    done.refused("--layers -99 is out of range")
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
    read, seen = ZImageVLPipeline.encode_reference, []

    def once(self: Any, image: Any, **options: Any) -> Any:
        seen.append(image)
        if len(seen) == 1:
            raise broken
        return read(self, image, **options)

    monkeypatch.setattr(ZImageVLPipeline, "encode_reference", once)
    done, printed = extract(capsys, "refs/a.png", "refs/b.png")
    assert done.code == 3
    assert [record["status"] for record in printed["references"]] == ["failed", "written"]
    assert printed["references"][0]["error"] == " ".join(str(broken).split())


def test_each_way_to_read_is_that_of_the_call(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reader, treatment, mask, description and the muted reading: two stages paint what one call paints."""
    mask = PIL.Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, 32))
    mask.save("mask.png")
    pipe = load_toy_once()
    small = {"height": 64, "width": 64, "num_inference_steps": 1, "guidance_scale": 0.0, "output_type": "np"}
    ways: list[tuple[list[str], dict[str, Any], dict[str, Any]]] = [
        (["--reader", "text_encoder", "--layers=-2"], {"vl_reader": "text_encoder"}, {"vl_reader": "text_encoder"}),
        (["--treatment", "palette", "--mask", "mask.png"], {"vl_treatment": "palette", "reference_mask": mask}, {}),
        (["--muted"], {"vl_blend_mode": "style_delta"}, {"vl_blend_mode": "style_delta"}),
        (
            ["--text-position", "before", "--max-pixels", "1024"],
            {"vl_text_position": "before", "vl_max_pixels": 1024},
            {},
        ),
        (["--describe", "--text", ""], {"vl_describe": True}, {}),
    ]
    for number, (options, knobs, after) in enumerate(ways):
        path = f"{number}.safetensors"
        done = call(capsys, "extract", "refs/a.png", "-o", path, "--text", TEXT, *options)
        assert (done.code, done.out) == (0, path + "\n"), done.err
        noises = [torch.Generator().manual_seed(0) for _ in range(2)]
        stages = pipe(TEXT, reference_embeds=path, generator=noises[0], **small, **after)
        once = pipe(TEXT, reference_image="refs/a.png", generator=noises[1], **small, **knobs)
        assert np.array_equal(stages.images, once.images), options
    made = ReferenceEmbeds.load("1.safetensors").provenance
    assert (made.treatment, made.mask_sha256 is None) == ("palette", False)
    assert ReferenceEmbeds.load("4.safetensors").provenance.described


def test_one_file_for_one_reference(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "extract", "refs/a.png", "-o", "a.safetensors").code == 0
    whole = Path("a.safetensors").read_bytes()
    assert not Path("manifest.jsonl").exists()
    call(capsys, "extract", "refs/b.png", "-o", "a.safetensors").refused("exists already")
    call(capsys, "extract", "refs/*.png", "-o", "b.safetensors").refused("one file, and there are 3 references")
    assert Path("a.safetensors").read_bytes() == whole
    done = call(capsys, "extract", "refs/broken.png", "-o", "b.safetensors")
    assert (done.code, done.out, Path("b.safetensors").exists()) == (3, "", False)
    Path("mask.safetensors").write_bytes(Path("refs/a.png").read_bytes())
    masked = ("--mask", "mask.safetensors", "-o", "mask.safetensors", "--overwrite")
    call(capsys, "extract", "refs/b.png", *masked).refused("is an input of this command")
    assert call(capsys, "extract", "refs/b.png", "-o", "a.safetensors", "--overwrite").code == 0
    assert Path("a.safetensors").read_bytes() != whole


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--layers", "-2;-6"], "is no whole number"),
        (["--layers", "-2,-2"], "names a layer twice"),
        (["--layers", ""], "is no whole number"),
        (["--text-position", "befor"], "Did you mean before?"),
        (["--text", "a\udcff"], "is no valid UTF-8 text"),
        (["--model", "./nowhere"], "--model './nowhere' is neither a folder"),
        (["--vl-model", "./qwen"], "--vl-model does nothing with --model toy"),
        (["--describe"], "--describe lets the VL encoder write the text beside the picture: leave out --text"),
        (["--mask", "gone.png"], "--mask 'gone.png' does not exist"),
        (["--mask", "refs/a.png"], "must be greyscale"),
        (["--no-urls", "https://example.com/a.png?signed"], "'https://example.com/a.png' is an address"),
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
    base = {"model": "toy", "vl_model": None, "text": "", "layers": (-2,), "muted": False, "mask": None}
    changes: list[dict[str, Any]] = [
        {"model": str(tmp_path)},
        {"vl_model": "a/b"},
        {"text": "a"},
        {"layers": (-2, -4)},
    ]
    changes += [{"muted": True}, {"mask": "0" * 64}]
    names = {file_name("ab" * 32, {**base, **change}) for change in changes}
    assert len(names | {file_name("ab" * 32, base), file_name("cd" * 32, base)}) == len(changes) + 2
    assert file_name("ab" * 32, {**base, "model": str(tmp_path / ".." / tmp_path.name)}) in names


def test_names_that_are_no_text_end_nothing(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = ["refs/\udcff.png", "refs/\x1b[2J.png"]
    for name in odd:
        draw_scene(Scene("cross", "red", "white"), seed=len(name)).save(name)
    os.mkfifo("refs/pipe.png")
    done, printed = extract(capsys, *odd, "gone\x1b\udcfe.png", "refs/pipe.png", 300 * "a", "refs/a.png")
    assert done.code == 3
    assert [record["status"] for record in printed["references"]] == [*["written"] * 2, *["failed"] * 3, "written"]
    assert r"Failed: gone\x1b\udcfe.png: 'gone\x1b\udcfe.png' does not exist." in done.err
    assert "'refs/pipe.png' is no regular file" in done.err
    assert "\x1b" not in done.out + done.err
    assert [line["source"] for line in manifest()[:2]] == odd
    shown = call(capsys, "extract", "refs", "-o", "out\udcff")
    assert shown.out.splitlines()[0].startswith(r"out\udcff/")


def run_two(*arguments: str) -> tuple[int | None, str, str]:
    """As torchrun starts two processes, which test_sweep.py does; how the first ended, and what it said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def start(rank: int) -> tuple[int | None, str, str]:
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        variables = {**variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        script = Path(f"rank{rank}.py")
        script.write_text(
            f"import os, sys\nos.environ.update({ {name: str(value) for name, value in variables.items()} })\n"
            f"from zimage_vl.cli import main\nsys.argv[1:] = {arguments}\nmain()\n"
        )
        return run_forked(script.resolve(), Path(f"rank{rank}").resolve())

    with ThreadPoolExecutor(2) as pool:
        return next(pool.map(start, range(2)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_shards_and_processes_read_what_one_reads(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("refs", "--layers=-2", "--device", "cpu")
    assert call(capsys, "extract", *given, "-o", "out").code == 3  # one is broken
    whole = {path.name: path.read_bytes() for path in Path("out").glob("*.safetensors")}
    lines = manifest()
    for index in range(4):  # one of them has nothing to do
        options = ("--num-shards", 4, "--shard-index", index, "-o", f"part{index}")
        assert call(capsys, "extract", *given, *options).code in (0, 3)
    for _ in range(2):
        merged = call(capsys, "merge", *(f"part{index}" for index in range(4)), "-o", "all", "--format", "json")
        assert json.loads(merged.out)["counts"] == {"written": 2, "failed": 1}
    code, out, err = run_two("extract", *given, "-o", "two")
    assert code == 3, err
    assert "2 written" in err
    assert out.split() == [f"two/{line['file']}" for line in lines if line["file"]]
    for folder in ("all", "two"):
        assert {path.name: path.read_bytes() for path in Path(folder).glob("*.safetensors")} == whole
        found = sorted(manifest(folder), key=lambda line: line["source"])
        assert [{**line, "seconds": 0, "time": ""} for line in found] == [
            {**line, "seconds": 0, "time": ""} for line in lines
        ]
    with claimed(Path("all")):  # as by another run, which is not disturbed
        call(capsys, "merge", "part0", "-o", "all").refused("is being written to by another run")
    call(capsys, "merge", "all", "all", "-o", "again")
    assert len(manifest("again")) == len(lines)
    Path("mine").mkdir()
    Path("mine", next(iter(whole))).write_text("mine")
    call(capsys, "merge", "all", "-o", "mine").refused("is another file than that of all")
    assert [path.read_text() for path in Path("mine").glob("*.safetensors")] == ["mine"]
    call(capsys, "merge", "part3", "refs", "-o", "new").refused("refs: has no manifest.jsonl")
    name, data = next(iter(whole.items()))
    for source, target, code in (("again", "all", 0), ("all", "again", 2), ("all", "all", 2)):
        Path("all", name).unlink()
        Path("all", name).write_bytes(data[:-9])  # damaged: brought by none, mended from another
        assert call(capsys, "merge", source, "-o", target).code == code
        assert Path("again", name).read_bytes() == data
        assert (Path("all", name).read_bytes() == data) == (target == "all" and code == 0)
    call(capsys, "extract", "refs", "-o", "x", "--num-shards", 2, "--shard-index", 2).refused("below --num-shards 2")
    assert not Path("new").exists()
    assert not Path("x").exists()
