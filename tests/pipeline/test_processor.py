"""A full `Qwen3VLProcessor` in place of the image processor.

It cannot be built without torchvision, which is not here: an instance of the real class gets its parts by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import Qwen3VLProcessor

from pipeline_samples import PROMPT, make_picture, paint_with
from tiny_models import tiny_image_processor, tiny_pipeline, tiny_tokenizer
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline


PICTURE = make_picture(0)
same = np.testing.assert_array_equal


def full_processor() -> Any:
    processor = Qwen3VLProcessor.__new__(Qwen3VLProcessor)
    processor.image_processor = tiny_image_processor()
    processor.tokenizer = tiny_tokenizer()
    processor.video_processor = None
    # Qwen3-VL's own template writes lists of content, with the picture's tokens in them; ours is not built with it.
    processor.chat_template = "{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}"
    return processor


@pytest.fixture
def pipe() -> ZImageVLPipeline:
    return tiny_pipeline(vl_processor=full_processor())


def test_it_gives_the_bits_of_its_image_processor(pipe: ZImageVLPipeline) -> None:
    alone = tiny_pipeline()
    same(paint_with(pipe, PICTURE), paint_with(alone, PICTURE))
    one, other = (p.encode_reference(PICTURE, PROMPT, layers=(-2, -4)) for p in (pipe, alone))
    for layer in (-2, -4):
        same(one.hidden_states[layer], other.hidden_states[layer])


def test_its_tokenizer_is_not_asked(pipe: ZImageVLPipeline) -> None:
    pipe.vl_processor.tokenizer = None
    same(paint_with(pipe, PICTURE), paint_with(tiny_pipeline(), PICTURE))


def test_its_image_processor_is_saved_and_needs_no_torchvision(pipe: ZImageVLPipeline, tmp_path: Path) -> None:
    processor, config = pipe.vl_processor, dict(pipe.config)
    pipe.save_pretrained(tmp_path)
    assert pipe.vl_processor is processor
    assert {name: pipe.config[name] for name in config} == config  # diffusers adds its version
    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert index["vl_processor"] == ["transformers", type(processor.image_processor).__name__]
    loaded = ZImageVLPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    same(paint_with(loaded, PICTURE), paint_with(tiny_pipeline(), PICTURE))


def test_a_save_that_fails_leaves_it_in_place(pipe: ZImageVLPipeline, tmp_path: Path) -> None:
    processor = pipe.vl_processor
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r".*"):
        pipe.save_pretrained(tmp_path / "file" / "folder")
    assert pipe.vl_processor is processor
    assert pipe.config.vl_processor[1] == "Qwen3VLProcessor"


def test_one_of_other_patches_is_refused() -> None:
    processor = full_processor()
    processor.image_processor = tiny_image_processor(patch_size=16)
    with pytest.raises(ValueError, match="does not belong to `vl_encoder`: expected patch_size 8, got 16"):
        paint_with(tiny_pipeline(vl_processor=processor), PICTURE)
