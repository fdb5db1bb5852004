"""The benchmarks run at their smallest sizes, and what they are made of is right."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tiny_models import tiny_image_processor, tiny_tokenizer, tiny_vl_encoder
from zimage_vl.reference.readers import find_reader_source, read_reference


BENCHMARKS = str(Path(__file__).parent.parent.parent / "benchmarks")
sys.path.insert(0, BENCHMARKS)

import bench  # noqa: E402
import gpu  # noqa: E402
import host_memory  # noqa: E402
import true_size  # noqa: E402
from performance import arithmetic, extraction, host, machine, page, random_models, timing  # noqa: E402
from performance.accelerator import Accelerator  # noqa: E402
from performance.real_shapes import TEXT, TRANSFORMER, VISION, VL_TEXT  # noqa: E402


CPU = Accelerator("cpu")


# ---- Clocks ----


def test_a_ratio_compares_neighbours_in_time() -> None:
    times = {"a": [1.0, 10.0, 2.0, 4.0, 3.0], "b": [2.0, 30.0, 2.0, 16.0, 15.0]}
    found = timing.ratio(times, "b", "a")  # 2, 3, 1, 4, 5
    assert (found.median, found.lower, found.upper, found.count) == (3.0, 2.0, 4.0, 5)
    assert found.holds(2.0)
    assert not found.holds(1.9)


# ---- Arithmetic ----


def assert_counts(work: Any, run: Callable[[], Any]) -> None:
    """Rotary angles are products too, of one column each: under a percent."""
    with FlopCounterMode(display=False) as counter:
        run()
    expected = arithmetic.count_operations(work)
    assert expected <= counter.get_total_flops() <= 1.01 * expected


def test_the_arithmetic_is_what_torch_counts() -> None:
    tokenizer, processor = tiny_tokenizer(), tiny_image_processor()
    encoder = tiny_vl_encoder(attn_implementation="eager", tokenizer=tokenizer)
    source = find_reader_source("qwen3-vl", None, encoder.config, processor)
    pipe = SimpleNamespace(vl_encoder=encoder, vl_processor=processor, tokenizer=tokenizer, find_reader=lambda: source)
    picture = random_models.make_picture(64)
    prepared = extraction.prepare_obvious(pipe, picture, "a red circle")
    patches, tokens = prepared["pixel_values"].shape[0], prepared["input_ids"].shape[1]
    assert patches == 64
    work = arithmetic.obvious_work(encoder.config, patches, tokens)
    assert_counts(work, lambda: extraction.obvious_states(encoder, prepared, -2))
    work = arithmetic.extraction_work(encoder.config, patches, tokens, -2)
    reading = extraction.make_reading(pipe, picture, "a red circle", -2)
    assert_counts(work, lambda: read_reference(encoder, processor, reading))


def test_the_limit_at_the_real_shape() -> None:
    assert arithmetic.limit(random_models.vl_config(), 32**2, 16**2 + 34) == pytest.approx(0.84, abs=0.01)


# ---- Models ----


def test_the_real_shapes_have_their_numbers_of_parameters() -> None:
    models = random_models.empty_models()
    counts = {name: round(random_models.count_parameters(model) / 1e9, 3) for name, model in models.items()}
    assert counts == {"transformer": 6.155, "text_encoder": 4.022, "vl_encoder": 4.438, "vae": 0.084}
    assert all(parameter.is_meta for model in models.values() for parameter in model.parameters())


# ---- The page ----


def test_the_machine_is_named_without_its_name_or_a_path() -> None:
    import platform

    text = machine.describe_machine("Some GPU")
    assert platform.node() not in text
    assert "/" not in text.replace("GNU/Linux", "")
    assert all(word in text for word in ("Some GPU", "processor", "GiB", "torch", "diffusers", "transformers"))


# ---- Whole runs ----


def test_the_quick_run_measures_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "page.md"
    bench.main(["--quick", "--output", str(target)])
    sections = {name: page.read_section(target, name) for name in ("machine", *bench.QUICK_LETTERS)}
    assert all(sections.values())
    printed = capsys.readouterr().out
    assert all(str(text) in printed for text in sections.values())
    for letter in ("a", "d"):
        assert "| **no** |" not in [row[-10:] for row in str(sections[letter]).splitlines() if "same bits" in row]
    assert "| yes |" in str(sections["b"])  # same bits


def test_what_a_script_prints_is_part_of_the_page_unless_it_fails(tmp_path: Path) -> None:
    script = tmp_path / "sizes.py"
    script.write_text("print('sizes\\n| way | peak |\\n|---|---|\\n| one | 1 MB |\\nend')")
    text = host.measure_host_memory(script).render()
    assert "benchmarks/sizes.py" in text
    assert "sizes\n\n| way | peak |\n|---|---|\n| one | 1 MB |\n\nend" in text
    script.write_text("raise SystemExit('no memory')")
    with pytest.raises(RuntimeError, match="no memory"):
        host.measure_host_memory(script)


def test_a_folder_of_the_true_form_is_painted_with_the_small_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(true_size, "SHARD", "8MB")
    true_size.save_folder(tmp_path, 16, tell=lambda _: None)
    assert len(list((tmp_path / "qwen3-vl").glob("*.safetensors"))) > 1
    for way in ("encoding alone, small reader", "low memory, small reader"):
        true_size.paint(way, str(tmp_path))
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["seconds"] > 0
        assert result["peak"] > 0.1


@pytest.mark.slow
def test_a_way_of_painting_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    sizes = host_memory.save_models(tmp_path, blocks=6)
    measured = host_memory.measure_way("low memory", str(tmp_path))
    assert measured["peak"] > max(sizes.values())
    assert len(measured["picture"]) == 64


@pytest.mark.slow
def test_the_gpu_script_runs_on_a_cpu_and_says_that_the_column_is_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "page.md"
    for shape, depth in ((TRANSFORMER, "n_layers"), (TEXT, "num_hidden_layers"), (VL_TEXT, "num_hidden_layers")):
        monkeypatch.setitem(shape, depth, 6)  # a fifth or so of their depth
    monkeypatch.setitem(VISION, "depth", 4)
    monkeypatch.setitem(VISION, "deepstack_visual_indexes", [0, 1, 2])
    small = ["--scale", "32", "--pixels", "64", "--sizes", "64", "--steps", "1", "--rounds", "1"]
    gpu.main(["--device", "cpu", *small, "--output", str(target)])
    assert "NO GPU" in capsys.readouterr().out
    assert "**The GPU column is open**" in str(page.read_section(target, "gpu"))
    assert all(page.read_section(target, name) for name in page.GPU_PARTS)
    assert "| <= 1.02 | open |" in str(page.read_section(target, "gpu-offloaded"))
    readers = str(page.read_section(target, "gpu-readers"))
    sizes = [float(row.split(" | ")[3].split()[0]) for row in readers.splitlines() if row.endswith("open | open |")]
    assert len(sizes) == 2
    assert sizes[0] > sizes[1], "the small reader adds less"


def test_figures_of_another_machine_are_neither_overwritten_nor_mixed(tmp_path: Path, monkeypatch: Any) -> None:
    target = tmp_path / "page.md"
    page.write_sections(target, {"gpu": "- accelerator: one", "gpu-calls": "figures", "machine": "- another"})
    before = target.read_bytes()
    monkeypatch.setattr(gpu.Run, "calls", lambda _: ["nothing"])
    gpu.main(["--device", "cpu", "--scale", "32", "--only", "calls", "--output", str(target)])
    with pytest.raises(SystemExit, match="another machine"):
        bench.main(["--only", "f", "--quick", "--output", str(target)])
    assert target.read_bytes() == before
    gpu.start_section(target, "- accelerator: two", ["- accelerator: two"])
    assert [page.read_section(target, name) for name in ("gpu-calls", "machine")] == [None, "- another"]
    page.write_sections(target, {"gpu-calls": "new"})
    gpu.start_section(target, "- accelerator: two, again", ["- accelerator: two"])
    assert page.read_section(target, "gpu-calls") == "new"


def test_no_gpu_is_an_error_where_one_is_asked_for() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RuntimeError, match="--device cpu"):
        Accelerator("cuda")
