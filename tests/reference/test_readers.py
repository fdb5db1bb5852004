"""One pass of the inner model: the states the library gives, bit for bit, and the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from test_patch_grid import noise
from torch import nn

from tiny_models import IS_OLD_TRANSFORMERS, tiny_image_processor, tiny_text_encoder, tiny_tokenizer, tiny_vl_encoder
from zimage_vl.reference.readers import (
    VLInputs,
    check_vl_encoder,
    early_exit,
    execution_device,
    resolve_layers,
    vl_hidden_states,
)
from zimage_vl.reference.turn import reference_turn


NUM_LAYERS = 6
DEEPSTACK_LAYERS = (1, 2)


@pytest.fixture
def model() -> Any:
    return tiny_vl_encoder(num_hidden_layers=NUM_LAYERS)


def make_inputs(image: Image.Image | None = None, visible: torch.Tensor | None = None) -> VLInputs:
    features = tiny_image_processor()(images=[image or noise((64, 48))], do_resize=False, return_tensors="pt")
    num_tokens = int(features["image_grid_thw"].prod()) // 4
    ids, _ = reference_turn(tiny_tokenizer(), "a red circle", num_tokens)
    return VLInputs(ids, features["pixel_values"], features["image_grid_thw"], visible)


@torch.no_grad()
def library_states(model: Any, inputs: VLInputs) -> tuple[torch.Tensor, ...]:
    """The whole pass, as a user of transformers calls it."""
    ids = inputs.input_ids[None]
    extra = {} if IS_OLD_TRANSFORMERS else {"mm_token_type_ids": (ids == model.config.image_token_id).int()}
    output = model.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=inputs.pixel_values,
        image_grid_thw=inputs.image_grid_thw,
        output_hidden_states=True,
        use_cache=False,
        **extra,
    )
    return tuple(states[0] for states in output.hidden_states)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_layer_is_the_librarys_bit_for_bit(attention: str, dtype: torch.dtype):
    model = tiny_vl_encoder(num_hidden_layers=NUM_LAYERS, attn_implementation=attention).to(dtype)
    inputs = make_inputs()
    # Our passes come first: none of them may spoil the library's capture of hidden states.
    alone = {layer: vl_hidden_states(model, inputs, [layer])[layer] for layer in range(NUM_LAYERS + 1)}
    expected = library_states(model, inputs)
    assert len(expected) == NUM_LAYERS + 1
    for layer, states in alone.items():
        assert states.dtype == dtype
        if layer not in DEEPSTACK_LAYERS or IS_OLD_TRANSFORMERS:
            assert torch.equal(states, expected[layer]), layer


def test_deepstack_layers_are_what_the_next_block_reads(model: Any):
    # In this the versions of transformers differ; ours are alike in all of them.
    inputs, read = make_inputs(), {}
    for layer in DEEPSTACK_LAYERS:
        block = model.model.language_model.layers[layer]
        block.register_forward_pre_hook(lambda _, args, layer=layer: read.__setitem__(layer, args[0][0].clone()))
    library_states(model, inputs)
    ours = vl_hidden_states(model, inputs, DEEPSTACK_LAYERS)
    for layer in DEEPSTACK_LAYERS:
        assert torch.equal(ours[layer], read[layer])


@pytest.mark.parametrize("layers", [[5, 3], [0, 1, 2, 3, 4, 5, 6], [6, 0], [2, 2]])
def test_several_layers_from_one_pass(model: Any, layers: list[int]):
    inputs = make_inputs()
    together = vl_hidden_states(model, inputs, layers)
    for layer in layers:
        assert torch.equal(together[layer], vl_hidden_states(model, inputs, [layer])[layer])


@pytest.mark.parametrize("layer", [0, 3, 5, 6])
def test_what_lies_behind_the_layer_never_runs(model: Any, layer: int):
    ran: list[str] = []
    text = model.model.language_model
    for index, block in enumerate(text.layers):
        block.register_forward_hook(lambda *_, index=index: ran.append(str(index)))
    text.norm.register_forward_hook(lambda *_: ran.append("norm"))
    model.lm_head.register_forward_hook(lambda *_: ran.append("lm_head"))
    vl_hidden_states(model, make_inputs(), [layer])
    assert ran == [str(index) for index in range(layer)] + ["norm"] * (layer == NUM_LAYERS)


def snapshot(model: Any) -> Any:
    modules = [(name, id(module), module.training) for name, module in model.named_modules()]
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    values = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    return modules, hooks, values, model.model.rope_deltas


def assert_as_before(model: Any, before: Any) -> None:
    modules, hooks, values, rope_deltas = snapshot(model)
    assert modules == before[0]
    assert hooks == before[1]
    assert all(torch.equal(value, before[2][name]) for name, value in values.items())
    assert rope_deltas is before[3]


@pytest.mark.parametrize("training", [False, True])
def test_model_is_as_before(model: Any, training: bool):
    model.train(training)
    before = snapshot(model)
    states = vl_hidden_states(model, make_inputs(visible=torch.arange(12) < 5), [4, 1])
    assert_as_before(model, before)
    assert not any(tensor.requires_grad for tensor in states.values())


@pytest.mark.parametrize("where", ["blocks.1.attn.proj", "layers.3.mlp"])
def test_model_is_as_before_after_a_failure(model: Any, where: str):
    class Failure(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("out of memory")

    tower = model.model.visual if where.startswith("blocks") else model.model.language_model
    parent, _, name = where.rpartition(".")
    original = tower.get_submodule(where)
    setattr(tower.get_submodule(parent), name, Failure())
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        vl_hidden_states(model, make_inputs(visible=torch.arange(12) < 5), [5, 2])
    assert_as_before(model, before)
    setattr(tower.get_submodule(parent), name, original)
    assert torch.equal(vl_hidden_states(model, make_inputs(), [6])[6], library_states(model, make_inputs())[6])


def test_early_exit_is_undone_after_an_exception(model: Any):
    text = model.model.language_model
    layers, norm = text.layers, text.norm
    seen: list[int] = []

    def interrupted() -> None:
        with early_exit(text, 2):
            seen.append(len(text.layers))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == [2]
    assert text.layers is layers
    assert text.norm is norm


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("visible", [[True] * 5 + [False] * 7, [False] * 6 + [True] * 6, [True, False] * 6])
def test_hidden_patches_change_nothing(attention: str, visible: list[bool]):
    model = tiny_vl_encoder(num_hidden_layers=NUM_LAYERS, attn_implementation=attention)
    kept = torch.tensor(visible)
    inputs, other = make_inputs(noise((64, 48), 0), kept), make_inputs(noise((64, 48), 1), kept)
    patches = kept.repeat_interleave(4)[:, None]
    mixed = VLInputs(
        inputs.input_ids, torch.where(patches, inputs.pixel_values, other.pixel_values), inputs.image_grid_thw, kept
    )
    hidden = torch.zeros_like(inputs.input_ids, dtype=torch.bool)
    hidden[inputs.input_ids == model.config.image_token_id] = ~kept
    layers = range(NUM_LAYERS + 1)
    ours, theirs = vl_hidden_states(model, inputs, layers), vl_hidden_states(model, mixed, layers)
    for layer in layers:
        assert torch.equal(ours[layer][~hidden], theirs[layer][~hidden])
        assert not torch.equal(ours[layer][hidden], theirs[layer][hidden])
    # And what is kept counts.
    seen = VLInputs(
        inputs.input_ids, torch.where(patches, other.pixel_values, inputs.pixel_values), inputs.image_grid_thw, kept
    )
    assert not torch.equal(ours[4][~hidden], vl_hidden_states(model, seen, [4])[4][~hidden])


def test_masked_pass_is_the_pass_without_the_hidden_tokens(model: Any):
    # Recomputed another way: the tower on the kept patches alone, their tokens put into a sequence without the others.
    inputs = make_inputs()
    kept = torch.tensor([True] * 8 + [False] * 4)  # whole rows, but the positions are still those of the full grid
    ours = vl_hidden_states(model, VLInputs(inputs.input_ids, inputs.pixel_values, inputs.image_grid_thw, kept), [5])[
        5
    ]
    is_image = inputs.input_ids == model.config.image_token_id
    stays = torch.ones_like(is_image)
    stays[is_image] = kept
    with torch.no_grad():
        features, deepstack = tower_on_kept_patches(model.model.visual, inputs, kept)
        positions = full_positions(model, inputs)[:, :, stays]
        ids = inputs.input_ids[stays][None]
        embeddings = model.model.get_input_embeddings()(ids)
        embeddings[0, is_image[stays]] = features
        hooked: list[torch.Tensor] = []
        handle = model.model.language_model.layers[5].register_forward_pre_hook(lambda _, args: hooked.append(args[0]))
        model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask=torch.ones_like(ids),
            visual_pos_masks=is_image[stays][None],
            deepstack_visual_embeds=deepstack,
            use_cache=False,
        )
        handle.remove()
    torch.testing.assert_close(ours[stays], hooked[0][0], rtol=1e-4, atol=1e-5)


def full_positions(model: Any, inputs: VLInputs) -> torch.Tensor:
    """M-RoPE positions written out: text counts on, the image's tokens share one time and count rows and columns."""
    _, rows, columns = (inputs.image_grid_thw[0] // torch.tensor([1, 2, 2])).tolist()
    is_image = (inputs.input_ids == model.config.image_token_id).tolist()
    first = is_image.index(True)
    text = torch.arange(first).expand(3, -1)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    image = torch.stack([torch.zeros_like(row), row, column]).flatten(1) + first
    rest = torch.arange(len(is_image) - first - rows * columns).expand(3, -1) + first + max(rows, columns)
    return torch.cat([text, image, rest], dim=1)[:, None]


def tower_on_kept_patches(
    visual: Any, inputs: VLInputs, kept: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The tower, block by block, on the kept patches with the position embeddings they have in the whole picture."""
    caught: dict[str, Any] = {}

    def keep_first(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.update(kwargs, states=args[0])

    handle = visual.blocks[0].register_forward_pre_hook(keep_first, with_kwargs=True)
    visual(inputs.pixel_values, grid_thw=inputs.image_grid_thw)
    handle.remove()
    patches = kept.repeat_interleave(4)
    states = caught["states"][patches]
    positions = tuple(part[patches] for part in caught["position_embeddings"])
    bounds = torch.tensor([0, int(patches.sum())], dtype=torch.int32)
    deepstack: list[torch.Tensor] = []
    for index, block in enumerate(visual.blocks):
        states = block(states, cu_seqlens=bounds, position_embeddings=positions)
        if index in visual.deepstack_visual_indexes:
            deepstack.append(visual.deepstack_merger_list[len(deepstack)](states))
    return visual.merger(states), deepstack


def test_two_threads_get_their_own(model: Any):
    from concurrent.futures import ThreadPoolExecutor

    jobs = []
    for seed in range(6):
        visible = (torch.arange(12) % 3 != 0) if seed % 2 else None
        jobs.append((make_inputs(noise((64, 48), seed), visible), [seed, 6 - seed]))

    def run(job: Any) -> dict[int, torch.Tensor]:
        torch.set_num_threads(1)  # bits depend on it
        return vl_hidden_states(model, *job)

    with ThreadPoolExecutor(1) as alone, ThreadPoolExecutor(3) as together:
        expected = list(alone.map(run, jobs))
        got = list(together.map(run, jobs * 4))
    for index, states in enumerate(got):
        assert all(torch.equal(states[layer], expected[index % 6][layer]) for layer in states)


def test_hook_of_the_outer_model_is_fired(model: Any):
    from accelerate import cpu_offload_with_hook

    calls: list[Any] = []
    _, user_hook = cpu_offload_with_hook(model, torch.device("cpu"))
    fire = user_hook.hook.pre_forward
    user_hook.hook.pre_forward = lambda module, *args, **kwargs: calls.append(module) or fire(module, *args, **kwargs)
    vl_hidden_states(model, make_inputs(), [4])
    assert calls == [model]


@pytest.mark.skipif(IS_OLD_TRANSFORMERS, reason="Qwen3-VL itself fails under sequential offload in transformers 4")
def test_sequential_offload(model: Any):
    from accelerate import cpu_offload

    inputs = make_inputs(visible=torch.arange(12) < 5)
    expected = vl_hidden_states(model, inputs, [5, 3])
    cpu_offload(model, torch.device("cpu"))
    assert next(model.parameters()).device.type == "meta"
    assert execution_device(model) == torch.device("cpu")
    got = vl_hidden_states(model, inputs, [5, 3])
    assert all(torch.equal(got[layer], expected[layer]) for layer in expected)
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    assert torch.equal(vl_hidden_states(model, inputs, [6])[6], vl_hidden_states(model, inputs, [6, 2])[6])


def test_layers_are_resolved():
    assert resolve_layers([-1, -7, 0, 6, -6], 6) == {-1: 6, -7: 0, 0: 0, 6: 6, -6: 1}
    for layer in (7, -8, 100):
        with pytest.raises(ValueError, match=rf"Layer {layer} is out of range.*-7 \.\. 6"):
            resolve_layers([layer], 6)
    with pytest.raises(ValueError, match="at least one layer"):
        resolve_layers([], 6)
    for layers in (-6, "12", [1.5], [True], None):
        with pytest.raises(TypeError, match="integers"):
            resolve_layers(layers, 6)  # type: ignore[arg-type]


def test_vl_encoder_is_checked_from_its_config(model: Any):
    check_vl_encoder(model, 32)
    check_vl_encoder(model)
    with pytest.raises(ValueError, match=r"expected hidden size 2560 \(that of Qwen3-VL-4B\), got 32\."):
        check_vl_encoder(model, 2560)
    with pytest.raises(TypeError, match="got Qwen3Model of model type 'qwen3'"):
        check_vl_encoder(tiny_text_encoder(), 32)
    with pytest.raises(TypeError, match=r"got Qwen3VLModel .* only a part"):
        check_vl_encoder(model.model, 32)
    for other in (None, "Qwen/Qwen3-VL-4B-Instruct", nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=f"got {type(other).__name__}"):
            check_vl_encoder(other, 32)
