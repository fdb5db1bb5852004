"""Loading Qwen3-VL from a folder, without torchvision; and one clear sentence where there is nothing to load."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from test_vl_forward import make_inputs
from transformers import Qwen3VLForConditionalGeneration

from command_line import environment
from tiny_models import tiny_image_processor, tiny_vl_encoder
from zimage_vl.reference.loading import load_vl_parts
from zimage_vl.reference.readers import resolve_vl_layers, vl_hidden_states


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
    logger = logging.getLogger("zimage_vl.reference.loading")
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
        "from zimage_vl.reference.loading import load_vl_parts\n"
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
        "from zimage_vl.reference.loading import load_vl_parts\n"
        "for model_id in sys.argv[1:]:\n"
        "    try:\n"
        "        load_vl_parts(model_id)\n"
        "    except OSError as error:\n"
        "        print(error)"
    )
    model_ids = ("nobody/no-such-qwen3-vl", str(tmp_path / "nowhere"))
    done = run_python(program, *model_ids)
    assert done.returncode == 0, done.stderr
    for model_id, line in zip(model_ids, done.stdout.splitlines(), strict=True):
        assert line.startswith(f"The VL encoder '{model_id}' could not be loaded: ")
        assert "pass the path of a local folder as `vl_model_id`" in line


def test_an_empty_folder_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"The VL encoder .* could not be loaded"):
        load_vl_parts(tmp_path)


# ---- Only the blocks that the layers need ----


@pytest.mark.parametrize(("layers", "blocks"), [((-6,), 1), ((-2,), 5), ((3, 1), 3), ((0,), 1), ((2, -3), 4)])
def test_what_was_loaded_says_what_the_whole_model_does(folder: Path, layers: tuple[int, ...], blocks: int) -> None:
    encoder, _ = load_vl_parts(folder, layers=layers)
    assert len(encoder.model.language_model.layers) == blocks
    numbers = resolve_vl_layers(encoder, layers)
    assert numbers == resolve_vl_layers(tiny_vl_encoder(), layers)  # of 6 blocks, not of those that are left
    part, whole = (vl_hidden_states(e, make_inputs(), list(numbers.values())) for e in (encoder, tiny_vl_encoder()))
    assert all(torch.equal(part[number], whole[number]) for number in numbers.values())


def test_all_blocks_are_loaded_for_the_last_layer(folder: Path) -> None:
    encoder, _ = load_vl_parts(folder, layers=(-1, -6))
    assert len(encoder.model.language_model.layers) == 6
    assert "full_num_hidden_layers" not in encoder.config.text_config.to_dict()


def test_the_blocks_left_out_are_not_read(folder: Path, tmp_path: Path) -> None:
    # A checkpoint from which they are gone gives the same.
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    first = {name: weight for name, weight in weights.items() if ".layers.4." not in name and ".layers.5." not in name}
    assert len(first) < len(weights)
    for file in folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    safetensors.torch.save_file(first, tmp_path / "model.safetensors", {"format": "pt"})
    part, same = (load_vl_parts(path, layers=(-3,))[0].state_dict() for path in (tmp_path, folder))
    assert set(part) == set(same)
    assert all(torch.equal(part[name], same[name]) for name in part)


def test_a_layer_whose_blocks_were_left_out_is_refused(folder: Path) -> None:
    encoder, _ = load_vl_parts(folder, layers=(-3,))
    assert resolve_vl_layers(encoder, (-3, 4, 0)) == {-3: 4, 4: 4, 0: 0}
    for layer in (-2, 5, -1, 6):
        with pytest.raises(ValueError, match=rf"Layer {layer} .*first 4 .*load_vl_encoder\(layers=\({layer},\)\)"):
            resolve_vl_layers(encoder, (-3, layer))
    with pytest.raises(ValueError, match="out of range: a language model of 6"):
        resolve_vl_layers(encoder, (-8,))


def test_a_layer_out_of_range_is_refused_before_weights_are_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())  # and nothing else
    with pytest.raises(ValueError, match=r"Layer -8 is out of range"):
        load_vl_parts(tmp_path, layers=(-8,))
    with pytest.raises(TypeError, match="sequence of integers"):
        load_vl_parts(tmp_path, layers=-6)  # pyright: ignore[reportArgumentType]


def test_a_model_saved_without_its_last_blocks_still_knows_its_depth(folder: Path, tmp_path: Path) -> None:
    encoder, processor = load_vl_parts(folder, layers=(-2,))
    encoder.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = load_vl_parts(tmp_path, layers=(-3,))
    assert resolve_vl_layers(again, (-3,)) == {-3: 4}
    with pytest.raises(ValueError, match="holds the first 5 only"):
        load_vl_parts(tmp_path, layers=(-1,))


def test_another_kind_of_model_is_refused_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ValueError, match="'qwen3'"):
        load_vl_parts(tmp_path, layers=(-6,))


@pytest.mark.parametrize("layers", [None, (-3,)])
def test_nothing_is_reported_of_blocks_left_out(folder: Path, layers: tuple[int, ...] | None) -> None:
    program = (
        "import sys\n"
        "from zimage_vl.reference.loading import load_vl_parts\n"
        "load_vl_parts(sys.argv[1], layers=eval(sys.argv[2]))"
    )
    done = run_python(program, str(folder), repr(layers))
    assert done.returncode == 0, done.stderr
    assert "Loaded the VL encoder" in done.stderr
    assert "UNEXPECTED" not in done.stderr.upper()
    assert "layers.5" not in done.stderr
