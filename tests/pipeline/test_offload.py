"""Offload of every kind: at most one model on the accelerator in every order of use, and no bit changes.

No accelerator is needed. For model offload a table says who is where, in place of the device look-up of accelerate's
hooks. For sequential offload the CPU stands in: the weights are on the meta device all the same, and a module whose
hook did not fire would fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from diffusers import ZImagePipeline
from PIL import Image

from embedding_samples import make_reference
from offload_table import Table, hooks_of, install_table, run_where_resident
from pipeline_samples import (
    KNOBS,
    PROMPT,
    get_models,
    make_parent,
    make_picture,
    paint,
    paint_with,
    quiet,
    same,
    vl_parts,
)
from tiny_models import tiny_pipeline
from zimage_vl.pipeline import offload
from zimage_vl.pipeline.offload import is_sequentially_offloaded
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline


PICTURE = make_picture(0)
READY = make_reference(dims=32, layers=(-2,))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    return install_table(monkeypatch)


@pytest.fixture(scope="module")
def expected() -> Any:
    return paint_with(tiny_pipeline(), PICTURE)


def offloaded(pipe: Any = None) -> Any:
    pipe = pipe or tiny_pipeline()
    pipe.enable_model_cpu_offload(device="cpu")
    return pipe


def with_picture(pipe: Any) -> Any:
    return paint_with(pipe, PICTURE)


def embeddings(pipe: Any) -> Any:
    return pipe.encode_prompt_with_reference(PROMPT, PICTURE, do_classifier_free_guidance=False, **KNOBS).prompt_embeds


USES: dict[str, Callable[[Any], Any]] = {
    "no reference": paint,
    "alpha 0": lambda pipe: paint_with(pipe, PICTURE, vl_alpha=0.0),
    "picture": with_picture,
    "picture anew": lambda pipe: (pipe.clear_reference_cache(), with_picture(pipe)),
    "two pictures": lambda pipe: paint_with(pipe, [[PICTURE, make_picture(1)]], guidance_scale=3.0),
    "a batch": lambda pipe: paint_with(pipe, [PICTURE, make_picture(1)], [PROMPT, "a cross"]),
    "statistics": lambda pipe: paint_with(pipe, PICTURE, vl_normalization="per_dim"),
    "the small reader": lambda pipe: paint_with(pipe, PICTURE, vl_reader="text_encoder"),
    "a description": lambda pipe: paint_with(pipe, PICTURE, vl_describe=True),
    "negative": lambda pipe: paint(pipe, negative_reference_image=PICTURE, guidance_scale=3.0, **KNOBS),
    "ready embeds": lambda pipe: paint(pipe, reference_embeds=READY, **KNOBS),
    "bare encode_prompt": lambda pipe: pipe.encode_prompt(PROMPT),
    "prompt embeds": lambda pipe: paint(pipe, None, prompt_embeds=embeddings(pipe)),
    "encode_reference": lambda pipe: pipe.encode_reference(PICTURE, PROMPT, layers=(-2,)),
    "encode_prompt_with_reference": embeddings,
    "text statistics": lambda pipe: (pipe._statistics.clear(), pipe.text_statistics()),
}


# ---- Model offload ----


@pytest.mark.parametrize("name", USES)
def test_at_most_one_model_is_resident_in_every_use_before_and_after_every_other(table: Table, name: str) -> None:
    pipe = offloaded()
    with run_where_resident(pipe, table):
        for other in list(USES)[list(USES).index(name) :]:  # those before it have met it already
            for use in (name, other):
                USES[use](pipe)
                assert use == "bare encode_prompt" or table.resident == {}
        USES[name](pipe)
    assert table.most == 1


def test_offload_changes_no_bits_and_a_known_picture_brings_no_encoder_in(table: Table, expected: Any) -> None:
    pipe, order = offloaded(), ["Qwen3Model", "Qwen3VLForConditionalGeneration", "ZImageTransformer2DModel"]
    same(with_picture(pipe), expected)
    assert table.visits == [*order, "AutoencoderKL"]
    table.visits.clear()
    same(with_picture(pipe), expected)
    pipe.encode_reference(PICTURE, PROMPT, layers=(-2,))
    assert table.visits == [order[0], order[2], "AutoencoderKL"]
    pipe.encode_reference(PICTURE, "a cross", layers=(-2,))
    assert table.visits[3:] == [order[1]]


def test_the_table_sees_what_the_chain_alone_would_leave(table: Table) -> None:
    # diffusers' own order of offload, with nothing sent away by hand: two models at a time.
    class Plain(ZImagePipeline):
        model_cpu_offload_seq = "text_encoder->vae->transformer"

    paint(offloaded(quiet(Plain(**tiny_pipeline(with_vl=False).z_image_components))))
    assert table.most == 2


def test_vl_parts_loaded_late_and_again_after_unloading(table: Table, vl_folder: str, expected: Any) -> None:
    pipe = offloaded(tiny_pipeline(with_vl=False, vl_model_id=vl_folder))
    paint(pipe)
    same(with_picture(pipe), expected)
    assert hooks_of(pipe) == hooks_of(offloaded())
    for load in (lambda: None, pipe.load_vl_encoder):
        pipe.unload_vl_encoder()
        assert table.resident == {}
        paint(pipe)
        load()
        for _ in range(2):
            same(with_picture(pipe), expected)
        with run_where_resident(pipe, table):
            USES["picture anew"](pipe)
    assert table.most == 1
    assert table.resident == {}


def test_unloading_gives_a_bare_encoder_back(table: Table, expected: Any) -> None:
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
    same(with_picture(pipe), expected)
    assert table.most == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["callback", "text_encoder", "vl_encoder", "transformer", "vae"])
def test_whatever_ends_a_call_frees_the_models(table: Table, error: Any, place: str, expected: Any) -> None:
    pipe = offloaded()
    hooks, config, components = hooks_of(pipe), dict(pipe.config), pipe.components

    def fail(*_: Any) -> Any:
        raise error("stop")

    kwargs = {"callback_on_step_end": fail} if place == "callback" else {}
    handle = None if kwargs else get_models(pipe)[place].register_forward_hook(fail)
    alone = {"vl_encoder": USES["encode_reference"], "text_encoder": USES["text statistics"]}.get(place, with_picture)
    for use in (lambda _: paint_with(pipe, PICTURE, **kwargs), *([alone] if handle else [])):
        with pytest.raises(error, match="stop"):
            use(pipe)
        assert table.resident == {}
    if handle is not None:
        handle.remove()
    assert (hooks_of(pipe), dict(pipe.config)) == (hooks, config)
    assert all(pipe.components[name] is part for name, part in components.items())
    with run_where_resident(pipe, table):
        same(with_picture(pipe), expected)
    assert table.most == 1


# ---- Pipelines that share modules under model offload ----


def test_two_pipelines_over_the_same_modules_in_turn(table: Table, expected: Any) -> None:
    first = offloaded()
    second = offloaded(quiet(ZImageVLPipeline(**first.components, vl_model_id=None)))
    for pipe in (first, second, first, first, second):
        with run_where_resident(pipe, table):
            same(with_picture(pipe), expected)
        for name in ("no reference", "encode_reference", "bare encode_prompt", "text statistics"):
            USES[name](pipe)
    assert table.most == 1


def test_a_plain_pipeline_over_the_same_modules_in_turn(table: Table, expected: Any) -> None:
    ours, text = offloaded(), paint(make_parent(tiny_pipeline()))
    plain = quiet(ours.to_pipe(ZImagePipeline))
    for _ in range(3):
        same(paint(plain), text)
        with run_where_resident(ours, table):
            same(with_picture(ours), expected)
        ready = embeddings(ours)
        ours.encode_reference(PICTURE, layers=(-2,))
        same(paint(plain), text)
        same(paint(plain, None, prompt_embeds=ready), expected)
    assert table.most == 1
    assert table.resident == {}
    bare = make_parent(ours)  # without offload of its own it runs under our hooks, and leaves the VAE
    for _ in range(3):
        same(with_picture(ours), expected)
        same(paint(bare), text)
    assert table.most == 1
    assert list(table.resident.values()) == [ours.vae]
    ours.encode_prompt(PROMPT)  # sends away first what another pipeline left
    assert table.most == 1


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("make", ["from_pipe", "components"])
def test_ours_from_an_offloaded_pipeline_is_offloaded(
    table: Table, vl_folder: str, make: str, lazy: bool, expected: Any
) -> None:
    plain = offloaded(make_parent(tiny_pipeline(with_vl=False)))
    parts = {"vl_model_id": vl_folder} if lazy else vl_parts()
    ours = ZImageVLPipeline.from_pipe(plain, **parts) if make == "from_pipe" else None
    ours = quiet(ours or ZImageVLPipeline(**plain.components, **parts))
    same(with_picture(ours), expected)
    with run_where_resident(ours, table):
        USES["picture anew"](ours)
    assert hooks_of(ours)["vl_encoder"] is hooks_of(ours)["text_encoder"] is not type(None)
    assert table.most == 1
    assert table.resident == {}


def test_without_offload_nothing_is_hooked(table: Table) -> None:
    pipe = tiny_pipeline()
    for use in USES.values():
        use(pipe)
    assert set(hooks_of(pipe).values()) == {type(None)}
    assert table.visits == []


# ---- Sequential ----

MASK = Image.new("L", (48, 32), 255)
MASK.paste(0, (0, 0, 16, 32))
WAYS: dict[str, dict[str, Any]] = {
    "early exit": {},
    "several layers": {"vl_hidden_layer": {-2: 1.0, -4: 1.0}},
    "all layers": {"vl_hidden_layer": -1},
    "mask": {"reference_mask": MASK},
    "statistics": {"vl_normalization": "per_dim"},
    "no VL": {"vl_alpha": 0.0},
    "guidance": {"guidance_scale": 3.0},
}


@pytest.fixture
def cpu_as_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    real = accelerate.cpu_offload

    def cpu_offload(model: Any, execution_device: Any = None, **kwargs: Any) -> Any:
        # diffusers adds a number to the device, and "cpu:0" is to torch another device than "cpu".
        return real(model, torch.device(torch.device(execution_device).type), **kwargs)

    for module in (accelerate, offload):
        monkeypatch.setattr(module, "cpu_offload", cpu_offload)


@pytest.fixture(scope="module")
def all_expected() -> dict[str, Any]:
    pipe = tiny_pipeline()
    return {name: paint_with(pipe, PICTURE, **kwargs) for name, kwargs in WAYS.items()}


def places(pipe: Any) -> set[str]:
    """Where the weights of the pipeline's models are."""
    models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return {weight.device.type for model in models for weight in model.parameters()}


def sequential(pipe: Any = None) -> Any:
    pipe = pipe or tiny_pipeline()
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert places(pipe) == {"meta"}
    assert is_sequentially_offloaded(pipe.text_encoder)
    return pipe


@pytest.mark.usefixtures("cpu_as_accelerator")
class TestSequential:
    def test_it_paints_the_same_and_keeps_no_weights(self, all_expected: dict[str, Any]) -> None:
        pipe = sequential()
        for name, kwargs in WAYS.items():
            same(paint_with(pipe, PICTURE, **kwargs), all_expected[name])
            assert places(pipe) == {"meta"}

        def fail(*_: Any) -> Any:
            raise KeyboardInterrupt

        pipe.clear_reference_cache()
        handle = pipe.vl_encoder.model.language_model.layers[1].register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            with_picture(pipe)
        handle.remove()
        plain = quiet(pipe.to_pipe(ZImagePipeline))
        same(paint(plain, None, prompt_embeds=embeddings(pipe)), all_expected["early exit"])

    def test_early_exit_brings_no_block_that_does_not_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pipe, brought = sequential(), set()
        layers = pipe.vl_encoder.model.language_model.layers
        real = accelerate.hooks.AlignDevicesHook.pre_forward

        def note(hook: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
            brought.update(i for i, layer in enumerate(layers) for part in layer.modules() if part is module)
            return real(hook, module, *args, **kwargs)

        monkeypatch.setattr(accelerate.hooks.AlignDevicesHook, "pre_forward", note)
        pipe.encode_reference(PICTURE, PROMPT, layers=(-4, -3))
        assert len(layers) == 6
        assert brought == {0, 1, 2, 3}

    def test_a_vl_encoder_that_comes_later_is_offloaded_alike(self, vl_folder: str, expected: Any) -> None:
        pipe = sequential(tiny_pipeline(with_vl=False, vl_model_id=vl_folder))
        for _ in range(2):
            same(with_picture(pipe), expected)
            assert places(pipe) == {"meta"}
            pipe.unload_vl_encoder()

    @pytest.mark.parametrize("make", ["from_pipe", "components"])
    def test_ours_over_a_sequentially_offloaded_pipeline(self, make: str, expected: Any) -> None:
        plain = make_parent(sequential(tiny_pipeline(with_vl=False)))
        if make == "from_pipe":
            ours = ZImageVLPipeline.from_pipe(plain, **vl_parts())
            assert places(ours) == {"meta"}
        else:
            ours = ZImageVLPipeline(**plain.components, **vl_parts())
        same(with_picture(quiet(ours)), expected)
        assert places(ours) == {"meta"}
        same(paint(quiet(ours.to_pipe(ZImagePipeline))), paint(tiny_pipeline()))


# ---- In groups ----


def in_groups(pipe: Any, level: str) -> Any:
    cpu = torch.device("cpu")
    settings = {"num_blocks_per_group": 1} if level == "block_level" else {}
    try:
        pipe.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=level, **settings)
    except AttributeError:
        pytest.skip("diffusers 0.36 offloads groups only to an accelerator, and has no such method")
    return pipe


@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
def test_group_offload_paints_the_same(level: str, all_expected: dict[str, Any]) -> None:
    pipe = in_groups(tiny_pipeline(), level)
    for name, kwargs in WAYS.items():
        same(paint_with(pipe, PICTURE, **kwargs), all_expected[name])


def test_a_vl_encoder_joins_the_groups(vl_folder: str, expected: Any) -> None:
    lazy = in_groups(tiny_pipeline(with_vl=False, vl_model_id=vl_folder), "block_level")
    over = ZImageVLPipeline(
        **in_groups(make_parent(tiny_pipeline(with_vl=False)), "leaf_level").components, **vl_parts()
    )
    for pipe in (lazy, quiet(over)):
        same(with_picture(pipe), expected)
        assert hasattr(pipe.vl_encoder.model.language_model.layers[0].self_attn.q_proj, "_diffusers_hook")
        USES["picture anew"](pipe)
