"""The pipeline reads no reference twice, and nothing but the time shows it."""

from __future__ import annotations

import copy
import gc
import importlib.util
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline_samples import KNOBS, OTHER_PROMPT, PROMPT, make_picture, paint_with, record_runs
from tiny_models import tiny_image_processor, tiny_pipeline, tiny_tokenizer, tiny_vl_encoder
from zimage_vl.embeddings import ReferenceEmbeds


PICTURE, OTHER = make_picture(0), make_picture(1)
MASK = Image.new("L", (48, 32), 255)
MASK.paste(0, (0, 0, 16, 32))
same = np.testing.assert_array_equal


def count_reads(pipe: Any, use: Any) -> int:
    """Forwards of the VL encoder in what is done."""
    with record_runs(pipe) as runs:
        use()
    return runs.count("vl_encoder")


def reads_of(pipe: Any, image: Any = PICTURE, text: str = PROMPT, layers: Any = (-2,), **kwargs: Any) -> int:
    return count_reads(pipe, lambda: pipe.encode_reference(image, text, layers, **kwargs))


def assert_equal(one: ReferenceEmbeds, other: ReferenceEmbeds) -> None:
    assert one.layers == other.layers
    assert all(torch.equal(one.hidden_states[layer], other.hidden_states[layer]) for layer in one.layers)
    assert torch.equal(one.regions, other.regions)
    assert one.regions.dtype == other.regions.dtype
    assert one.provenance == other.provenance


# ---- Hits ----


def test_a_repeated_call_reads_nothing_and_paints_the_same() -> None:
    pipe, fresh = tiny_pipeline(), tiny_pipeline()
    fresh.set_reference_cache_size(0)
    first = paint_with(pipe, PICTURE)
    assert count_reads(pipe, lambda: same(paint_with(pipe, PICTURE), first)) == 0
    copy = Image.fromarray(np.asarray(PICTURE))  # other object, same pixels
    assert count_reads(pipe, lambda: same(paint_with(pipe, copy), first)) == 0
    assert count_reads(fresh, lambda: same(paint_with(fresh, PICTURE), first)) == 1
    assert count_reads(fresh, lambda: same(paint_with(fresh, PICTURE), first)) == 1


@pytest.mark.parametrize("mask", [None, MASK])
def test_a_known_reference_equals_a_new_one(mask: Any) -> None:
    pipe, fresh = tiny_pipeline(), tiny_pipeline()
    fresh.set_reference_cache_size(0)
    for layers in ((-2, -6, 1), (-6,), (5, 1), (-6, 1), (1, -1), (-2, -1)):
        for _ in range(2):
            ours = pipe.encode_reference(PICTURE, PROMPT, layers, mask=mask)
            assert_equal(ours, fresh.encode_reference(PICTURE, PROMPT, layers, mask=mask))


def test_layers_that_were_read_are_known_alone() -> None:
    pipe = tiny_pipeline()
    assert reads_of(pipe, layers=(-2, -5)) == 1
    assert [reads_of(pipe, layers=layers) for layers in ((-5,), (-2,), (5,), (-5, 5))] == [0, 0, 0, 0]
    assert reads_of(pipe, layers=(-3,)) == 1
    assert reads_of(pipe, layers=(-2, -3, -5)) == 0


def test_a_picture_for_several_prompts_with_one_text_is_read_once() -> None:
    pipe = tiny_pipeline()
    prompts = [PROMPT, OTHER_PROMPT, "a cross"]
    assert count_reads(pipe, lambda: paint_with(pipe, PICTURE, prompts, vl_text="a circle")) == 1
    assert count_reads(pipe, lambda: paint_with(pipe, PICTURE, prompts)) == 3  # each its own text
    assert count_reads(pipe, lambda: paint_with(pipe, [[PICTURE, PICTURE]], vl_text="")) == 1


def test_knobs_that_act_later_read_nothing_new() -> None:
    pipe = tiny_pipeline()
    paint_with(pipe, PICTURE)
    for knobs in ({"vl_alpha": 0.2}, {"vl_blend_mode": "slerp"}, {"vl_alignment": "pool"}, {"vl_start": 0.5}):
        assert count_reads(pipe, lambda knobs=knobs: paint_with(pipe, PICTURE, **knobs)) == 0
    assert count_reads(pipe, lambda: pipe.encode_prompt_with_reference(PROMPT, PICTURE, **KNOBS)) == 0


# ---- Misses ----


def test_every_part_of_the_question_counts() -> None:
    pipe = tiny_pipeline()
    assert reads_of(pipe) == 1
    for change in (
        {"image": OTHER},
        {"text": OTHER_PROMPT},
        {"layers": (-3,)},
        {"text_position": "before"},
        {"max_pixels": 512},
        {"mask": MASK},
        {"mask": Image.new("L", (48, 32), 255)},
        {"max_sequence_length": 7},
    ):
        assert reads_of(pipe, **change) == 1, change
    assert reads_of(pipe) == 0  # the eighth since


def test_every_part_of_the_reader_counts() -> None:
    pipe = tiny_pipeline()
    assert reads_of(pipe) == 1
    for part in ({"vl_encoder": tiny_vl_encoder()}, {"vl_processor": tiny_image_processor()}):
        pipe.register_modules(**part)
        assert (reads_of(pipe), reads_of(pipe)) == (1, 0), part
    pipe.register_modules(tokenizer=tiny_tokenizer())
    assert (reads_of(pipe), reads_of(pipe)) == (1, 0)
    with torch.no_grad():
        pipe.vl_encoder.model.visual.merger.norm.bias.add_(1)
    assert (reads_of(pipe), reads_of(pipe)) == (1, 0)
    pipe.vl_encoder.to(torch.bfloat16)
    assert (reads_of(pipe), reads_of(pipe)) == (1, 0)
    assert pipe.encode_reference(PICTURE, PROMPT, (-2,)).hidden_states[-2].dtype == torch.bfloat16


def test_inputs_are_checked_also_where_the_answer_is_known() -> None:
    pipe = tiny_pipeline()
    pipe.encode_reference(PICTURE, PROMPT, (-2,))
    for error, change in (
        (ValueError, {"text": "<|image_pad|>"}),
        (ValueError, {"text_position": "beside"}),
        (ValueError, {"layers": (-8,)}),
        (TypeError, {"layers": -2}),
        (ValueError, {"max_pixels": 0}),
        (ValueError, {"mask": Image.new("L", (48, 32), 0)}),
    ):
        with pytest.raises(error):
            reads_of(pipe, **change)


def test_a_failed_reading_is_not_kept() -> None:
    pipe = tiny_pipeline()
    weight = pipe.vl_encoder.model.language_model.embed_tokens.weight
    with torch.no_grad():
        saved = weight.clone()
        weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        pipe.encode_reference(PICTURE, PROMPT, (-2,))
    with torch.no_grad():
        weight.copy_(saved)
    assert bool(pipe.encode_reference(PICTURE, PROMPT, (-2,)).hidden_states[-2].isfinite().all())


# ---- Size ----


def test_what_was_used_least_recently_goes_first() -> None:
    pipe = tiny_pipeline()
    pipe.set_reference_cache_size(2)
    assert [reads_of(pipe, text=text) for text in "abacba"] == [1, 1, 0, 1, 1, 1]


def test_eight_by_default() -> None:
    pipe = tiny_pipeline()
    assert sum(reads_of(pipe, text=text) for text in "abcdefgh") == 8
    assert sum(reads_of(pipe, text=text) for text in "abcdefgh") == 0
    reads_of(pipe, text="i")
    assert reads_of(pipe, text="a") == 1


def test_0_keeps_nothing_and_frees() -> None:
    pipe = tiny_pipeline()
    reads_of(pipe)
    assert pipe._reference_cache.store.num_bytes > 0
    pipe.set_reference_cache_size(0)
    assert len(pipe._reference_cache.store) == 0
    assert (reads_of(pipe), reads_of(pipe)) == (1, 1)
    pipe.set_reference_cache_size(1)
    assert (reads_of(pipe), reads_of(pipe)) == (1, 0)
    pipe.set_reference_cache_size(8, max_bytes=100)
    assert (reads_of(pipe), reads_of(pipe)) == (1, 1)


@pytest.mark.parametrize(("sizes", "error"), [((-1,), ValueError), ((1.5,), TypeError), ((8, -1), ValueError)])
def test_bad_sizes_are_refused(sizes: Any, error: Any) -> None:
    pipe = tiny_pipeline()
    reads_of(pipe)
    with pytest.raises(error):
        pipe.set_reference_cache_size(*sizes)
    assert reads_of(pipe) == 0


def test_cleared_memory_is_free() -> None:
    pipe = tiny_pipeline()
    pipe.enable_prefix_cache()
    reads_of(pipe)
    kept = [weakref.ref(value) for store in stores_of(pipe) for value, _ in store._entries.values()]
    assert [value() is None for value in kept] == [False, False]
    pipe.clear_reference_cache()
    gc.collect()
    assert [value() is None for value in kept] == [True, True]
    assert reads_of(pipe) == 1


def stores_of(pipe: Any) -> list[Any]:
    return [pipe._reference_cache.store, pipe._prefix_cache.store]


def test_an_unloaded_encoder_leaves_nothing() -> None:
    pipe = tiny_pipeline()
    pipe.enable_prefix_cache()
    reads_of(pipe)
    pipe.unload_vl_encoder()
    assert [len(store) for store in stores_of(pipe)] == [0, 0]
    with pytest.raises(ValueError, match="no VL encoder"):
        pipe.encode_reference(PICTURE, PROMPT, (-2,))


# ---- Other callers ----


def test_a_caller_who_writes_into_the_states_harms_nobody() -> None:
    pipe = tiny_pipeline()
    expected = tiny_pipeline().encode_reference(PICTURE, PROMPT, (-2,))
    for _ in range(3):
        embeds = pipe.encode_reference(PICTURE, PROMPT, (-2,))
        assert_equal(embeds, expected)
        embeds.hidden_states[-2].zero_()
        embeds.regions.zero_()


def test_each_pipeline_keeps_its_own() -> None:
    from zimage_vl.pipeline_z_image_vl import ZImageVLPipeline

    pipe = tiny_pipeline()
    reads_of(pipe)
    for other in (ZImageVLPipeline.from_pipe(pipe), ZImageVLPipeline(**pipe.components)):
        assert (reads_of(other), reads_of(other)) == (1, 0)
        other.set_reference_cache_size(0)
    assert reads_of(pipe) == 0


def test_a_copied_pipeline_reads_with_its_own_parts() -> None:
    pipe = tiny_pipeline()
    reads_of(pipe)
    other = copy.deepcopy(pipe)
    assert (reads_of(other), reads_of(other), reads_of(pipe)) == (1, 0, 0)


def test_the_single_file_keeps_references_too() -> None:
    path = Path(__file__).parent.parent / "pipelines" / "zimage_vl" / "pipeline.py"
    spec: Any = importlib.util.spec_from_file_location("single_file_with_caches", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as dataclasses want it
    spec.loader.exec_module(module)
    pipe = module.ZImageVLPipeline(**tiny_pipeline().components, vl_model_id=None)
    assert (reads_of(pipe), reads_of(pipe)) == (1, 0)
    pipe.enable_prefix_cache()
    pipe.encode_reference(PICTURE, PROMPT, (-2,))
    pipe.encode_reference(PICTURE, OTHER_PROMPT, (-2,))
    assert len(pipe._prefix_cache.store) == 1


def test_inference_mode_does_not_stick() -> None:
    pipe = tiny_pipeline()
    with torch.inference_mode():
        pipe.encode_reference(PICTURE, PROMPT, (-2,))
    embeds = pipe.encode_reference(PICTURE, PROMPT, (-2,))
    assert not embeds.hidden_states[-2].is_inference()
    assert reads_of(pipe) == 0


def test_threads_may_encode_at_once() -> None:
    pipe, results = tiny_pipeline(), {}
    texts = ["a", "b", "a", "c", "b"]

    def work(number: int) -> None:
        results[number] = pipe.encode_reference(PICTURE, texts[number], (-2,))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fresh = tiny_pipeline()
    for number, text in enumerate(texts):
        assert_equal(results[number], fresh.encode_reference(PICTURE, text, (-2,)))


# ---- New prompts beside a known picture ----


def test_with_the_prefix_cache_a_new_prompt_costs_its_text_alone() -> None:
    pipe = tiny_pipeline()
    pipe.enable_prefix_cache()
    looked: list[int] = []
    pipe.vl_encoder.model.visual.register_forward_pre_hook(lambda *_: looked.append(1))
    first = paint_with(pipe, PICTURE)
    second = paint_with(pipe, PICTURE, OTHER_PROMPT)
    assert len(looked) == 1
    same(first, paint_with(tiny_pipeline(), PICTURE))
    np.testing.assert_allclose(second, paint_with(tiny_pipeline(), PICTURE, OTHER_PROMPT), atol=1e-4)


def test_bits_do_not_depend_on_the_prefix_cache_once_it_is_off() -> None:
    pipe, expected = tiny_pipeline(), tiny_pipeline().encode_reference(PICTURE, OTHER_PROMPT, (-2,))
    pipe.enable_prefix_cache()
    for text in (PROMPT, OTHER_PROMPT):
        pipe.encode_reference(PICTURE, text, (-2,))
    pipe.disable_prefix_cache()
    assert reads_of(pipe, text=OTHER_PROMPT) == 1  # not what was read over kept keys and values
    assert_equal(pipe.encode_reference(PICTURE, OTHER_PROMPT, (-2,)), expected)


def test_the_prefix_cache_is_off_until_enabled_and_can_be_resized() -> None:
    pipe = tiny_pipeline()
    assert pipe._prefix_cache is None
    pipe.disable_prefix_cache()
    for bad, error in ((0, ValueError), (-1, ValueError), (1e9, TypeError)):
        with pytest.raises(error, match="max_bytes"):
            pipe.enable_prefix_cache(max_bytes=bad)
    pipe.enable_prefix_cache()
    reads_of(pipe)
    store = pipe._prefix_cache.store
    pipe.enable_prefix_cache(max_bytes=store.num_bytes)
    assert len(store) == 1
    pipe.enable_prefix_cache(max_bytes=store.num_bytes - 1)
    assert len(store) == 0
