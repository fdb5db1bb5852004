"""Model offload: at most one model on the accelerator, in every order of use.

No accelerator is needed: a table says who is where, in place of the device look-up of accelerate's hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offload_table import Table, hooks_of, install_table, run_where_resident
from pipeline_samples import KNOBS, PROMPT, get_models, make_picture, paint, paint_with
from tiny_models import tiny_pipeline


PICTURE = make_picture(0)
same = np.testing.assert_array_equal


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    return install_table(monkeypatch)


def offloaded(**kwargs: Any) -> Any:
    pipe = tiny_pipeline(**kwargs)
    pipe.enable_model_cpu_offload(device="cpu")
    return pipe


def with_picture(pipe: Any) -> Any:
    return paint_with(pipe, PICTURE)


def with_embeds(pipe: Any) -> Any:
    from embedding_samples import make_reference

    return paint(pipe, reference_embeds=make_reference(dims=32, layers=(-2,)), **KNOBS, vl_alignment="pool")


def with_prompt_embeds(pipe: Any) -> Any:
    return paint(pipe, None, prompt_embeds=pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)[0])


USES: dict[str, Callable[[Any], Any]] = {
    "no reference": paint,
    "alpha 0": lambda pipe: paint_with(pipe, PICTURE, vl_alpha=0.0),
    "picture": with_picture,
    "two pictures": lambda pipe: paint_with(pipe, [[PICTURE, make_picture(1)]], guidance_scale=3.0),
    "a batch": lambda pipe: paint_with(pipe, [PICTURE, make_picture(1)], [PROMPT, "a cross"]),
    "statistics": lambda pipe: paint_with(pipe, PICTURE, vl_normalization="per_dim"),
    "ready embeds": with_embeds,
    "bare encode_prompt": lambda pipe: pipe.encode_prompt(PROMPT),
    "prompt embeds": with_prompt_embeds,
    "encode_reference": lambda pipe: pipe.encode_reference(PICTURE, PROMPT, layers=(-2,)),
    "encode_prompt_with_reference": lambda pipe: pipe.encode_prompt_with_reference(PROMPT, PICTURE, **KNOBS),
    "text statistics": lambda pipe: pipe.text_statistics(),
}


@pytest.mark.parametrize("name", USES)
def test_at_most_one_model_is_resident(table: Table, name: str) -> None:
    pipe = offloaded()
    with run_where_resident(pipe, table):
        USES[name](pipe)
    assert table.most == 1
    assert name == "bare encode_prompt" or table.resident == {}


@pytest.mark.parametrize("name", USES)
def test_every_use_before_and_after_every_other(table: Table, name: str) -> None:
    pipe = offloaded()
    with run_where_resident(pipe, table):
        for other in list(USES)[list(USES).index(name) :]:  # those before it have met it already
            USES[name](pipe)
            USES[other](pipe)
        USES[name](pipe)
    assert table.most == 1


def test_offload_changes_no_bits_and_the_picture_is_read_by_the_vl_encoder(table: Table) -> None:
    same(with_picture(offloaded()), with_picture(tiny_pipeline()))
    assert table.visits[:2] == ["Qwen3Model", "Qwen3VLForConditionalGeneration"]
    assert table.visits[2:] == ["ZImageTransformer2DModel", "AutoencoderKL"]


def test_the_table_sees_what_the_chain_alone_would_leave(table: Table) -> None:
    # diffusers' own order of offload, with nothing sent away by hand: two models at a time.
    from diffusers import ZImagePipeline

    class Plain(ZImagePipeline):
        model_cpu_offload_seq = "text_encoder->vae->transformer"

    plain = Plain(**tiny_pipeline(with_vl=False).z_image_components)
    plain.set_progress_bar_config(disable=True)
    plain.enable_model_cpu_offload(device="cpu")
    paint(plain)
    assert table.most == 2


# ---- What is kept of references ----


def sweep(pipe: Any) -> list[Any]:
    """Known and new references in turn, with whatever else may come between."""
    pictures = [paint_with(pipe, PICTURE, prompt) for prompt in (PROMPT, "a cross", PROMPT)]
    pipe.encode_prompt(PROMPT)
    pipe.encode_reference(PICTURE, PROMPT, layers=(-2,))
    pictures += [paint_with(pipe, [PICTURE, PICTURE], [PROMPT, "a ring"]), paint(pipe)]
    pipe.encode_prompt_with_reference("a cross", PICTURE, **KNOBS)
    return [*pictures, paint_with(pipe, PICTURE, vl_alpha=0.3)]


@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize("entries", [0, 1, 8])
def test_one_model_at_a_time_with_every_size_of_the_caches(table: Table, entries: int, prefixes: bool) -> None:
    pipe, plain = offloaded(), tiny_pipeline()
    pipe.set_reference_cache_size(entries)
    plain.set_reference_cache_size(0)
    if prefixes:
        pipe.enable_prefix_cache()
    with run_where_resident(pipe, table):
        ours = sweep(pipe)
    assert table.most == 1
    assert table.resident == {}
    for one, other in zip(ours, sweep(plain), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 if prefixes else 0.0)


def test_a_known_reference_does_not_bring_its_encoder_in(table: Table) -> None:
    pipe = offloaded()
    expected = with_picture(pipe)
    table.visits.clear()
    same(with_picture(pipe), expected)
    assert "Qwen3VLForConditionalGeneration" not in table.visits
    table.visits.clear()
    pipe.encode_reference(PICTURE, PROMPT, layers=(-2,))
    assert table.visits == []
    pipe.encode_reference(PICTURE, "a cross", layers=(-2,))
    assert table.visits == ["Qwen3VLForConditionalGeneration"]


def test_a_run_over_a_kept_prefix_that_ends_early_frees_the_models(table: Table) -> None:
    pipe = offloaded()
    pipe.enable_prefix_cache()
    with_picture(pipe)

    def fail(*_: Any) -> Any:
        raise KeyboardInterrupt

    handle = pipe.vl_encoder.model.language_model.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        paint_with(pipe, PICTURE, "a cross")
    handle.remove()
    assert table.resident == {}
    paint_with(pipe, PICTURE, "a cross")
    assert table.most == 1


# ---- VL parts that come and go ----


@pytest.fixture(scope="module")
def vl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vl")
    pipe = tiny_pipeline()
    pipe.vl_encoder.save_pretrained(folder)
    pipe.vl_processor.save_pretrained(folder)
    return folder


def test_vl_parts_loaded_late_and_again_after_unloading(table: Table, vl_folder: Path) -> None:
    pipe, expected = offloaded(with_vl=False, vl_model_id=str(vl_folder)), with_picture(tiny_pipeline())
    paint(pipe)
    same(with_picture(pipe), expected)
    assert hooks_of(pipe) == hooks_of(offloaded())
    with run_where_resident(pipe, table):
        same(with_picture(pipe), expected)
    pipe.unload_vl_encoder()
    assert pipe.vl_encoder is None
    assert table.resident == {}
    paint(pipe)
    same(with_picture(pipe), expected)
    pipe.load_vl_encoder()
    with run_where_resident(pipe, table):
        same(with_picture(pipe), expected)
    assert table.most == 1
    assert table.resident == {}


def test_unloading_gives_a_bare_encoder_back(table: Table) -> None:
    pipe = offloaded()
    encoder, processor = pipe.vl_encoder, pipe.vl_processor
    with_picture(pipe)
    pipe.unload_vl_encoder()
    assert not hasattr(encoder, "_hf_hook")
    assert pipe.vl_processor is None
    with pytest.raises(ValueError, match="no VL encoder"):
        with_picture(pipe)
    pipe.register_modules(vl_encoder=encoder, vl_processor=processor)
    pipe.maybe_free_model_hooks()
    same(with_picture(pipe), with_picture(tiny_pipeline()))
    assert table.most == 1


# ---- Ends before the end ----


class Stop(Exception):
    """What a caller's own code may raise."""


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["callback", "text_encoder", "vl_encoder", "transformer", "vae"])
def test_whatever_ends_a_call_frees_the_models(table: Table, error: Any, place: str) -> None:
    pipe, expected = offloaded(), with_picture(tiny_pipeline())
    hooks, config, components = hooks_of(pipe), dict(pipe.config), pipe.components

    def fail(*_: Any) -> Any:
        raise error

    kwargs = {"callback_on_step_end": fail} if place == "callback" else {}
    handle = None if kwargs else get_models(pipe)[place].register_forward_hook(fail)
    with pytest.raises(error):
        paint_with(pipe, PICTURE, **kwargs)
    if handle is not None:
        handle.remove()
    assert table.resident == {}
    assert hooks_of(pipe) == hooks
    assert dict(pipe.config) == config
    assert all(pipe.components[name] is part for name, part in components.items())
    with run_where_resident(pipe, table):
        same(with_picture(pipe), expected)
    assert table.most == 1


@pytest.mark.parametrize("use", ["encode_reference", "encode_prompt_with_reference", "text statistics"])
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_whatever_ends_an_encoding_frees_the_models(table: Table, error: Any, use: str) -> None:
    pipe = offloaded()

    def fail(*_: Any) -> Any:
        raise error

    name = "text_encoder" if use == "text statistics" else "vl_encoder"
    handle = get_models(pipe)[name].register_forward_hook(fail)
    with pytest.raises(error):
        USES[use](pipe)
    handle.remove()
    assert table.resident == {}
    USES[use](pipe)
    assert table.most == 1


# ---- Shared modules ----


def test_two_pipelines_that_share_modules_may_be_used_in_turn(table: Table) -> None:
    from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline

    first = offloaded()
    second = ZImageVLPipeline(**first.components, vl_model_id=None)
    second.set_progress_bar_config(disable=True)
    second.enable_model_cpu_offload(device="cpu")
    expected = with_picture(tiny_pipeline())
    for pipe in (first, second, first, first, second):
        with run_where_resident(pipe, table):
            same(with_picture(pipe), expected)
        for name in ("no reference", "encode_reference", "bare encode_prompt", "text statistics"):
            USES[name](pipe)
    assert table.most == 1


def test_the_plain_pipeline_over_the_same_modules(table: Table) -> None:
    from pipeline_samples import make_parent

    pipe = offloaded()
    parent = make_parent(pipe)
    parent.enable_model_cpu_offload(device="cpu")
    expected = with_picture(tiny_pipeline())
    paint(parent)
    same(with_picture(pipe), expected)
    assert table.most == 1


# ---- Without offload ----


def test_without_offload_nothing_is_hooked(table: Table) -> None:
    pipe = tiny_pipeline()
    for use in USES.values():
        use(pipe)
    assert set(hooks_of(pipe).values()) == {type(None)}
    assert table.visits == []
