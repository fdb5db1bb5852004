"""Loading Qwen3-VL from a folder, without torchvision; and one clear sentence where there is nothing to load."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from command_line import environment
from tiny_models import tiny_image_processor, tiny_vl_encoder
from zimage_vl.vl_loading import load_vl_parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vl")
    tiny_vl_encoder().save_pretrained(path)
    tiny_image_processor().save_pretrained(path)
    return path


def test_the_saved_weights_come_back_whole(folder: Path) -> None:
    encoder, processor = load_vl_parts(folder)
    assert isinstance(encoder, Qwen3VLForConditionalGeneration)
    assert not encoder.training
    before, after = tiny_vl_encoder().state_dict(), encoder.state_dict()
    assert set(before) == set(after)
    assert all(before[name].equal(after[name]) for name in before)
    assert (processor.patch_size, processor.merge_size) == (8, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_the_one_asked_for(folder: Path, dtype: torch.dtype) -> None:
    assert load_vl_parts(str(folder), dtype=dtype)[0].dtype == dtype


def test_without_a_dtype_the_checkpoints_is_kept(tmp_path: Path) -> None:
    tiny_vl_encoder().to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_image_processor().save_pretrained(tmp_path)
    assert load_vl_parts(tmp_path)[0].dtype == torch.bfloat16


def test_one_line_says_what_was_loaded_from_where_and_how_large(folder: Path) -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("zimage_vl.vl_loading")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        load_vl_parts(folder)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert len(lines) == 1
    assert all(part in lines[0] for part in (str(folder), "torch.float32", "GB", "revision default"))


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


def test_no_torchvision_is_needed(folder: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['torchvision'] = None  # as if it were not installed\n"
        "import PIL.Image\n"
        "from zimage_vl.vl_loading import load_vl_parts\n"
        "_, processor = load_vl_parts(sys.argv[1])\n"
        "print(tuple(processor(images=[PIL.Image.new('RGB', (32, 48))], return_tensors='pt')['image_grid_thw'][0]))"
    )
    done = run_python(program, str(folder))
    assert done.returncode == 0, done.stderr
    assert "6" in done.stdout
    assert "4" in done.stdout


def test_nothing_to_load_is_one_clear_sentence(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from zimage_vl.vl_loading import load_vl_parts\n"
        "try:\n"
        "    load_vl_parts(sys.argv[1])\n"
        "except OSError as error:\n"
        "    print(error)"
    )
    for model_id in ("nobody/no-such-qwen3-vl", str(tmp_path / "nowhere")):
        done = run_python(program, model_id)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"The VL encoder '{model_id}' could not be loaded: ")
        assert "pass the path of a local folder as `vl_model_id`" in done.stdout
        assert len(done.stdout.splitlines()) == 1


def test_an_empty_folder_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"The VL encoder .* could not be loaded"):
        load_vl_parts(tmp_path)
