"""Qwen3-VL as a reader: the states the library gives, bit for bit, hidden patches without a trace, and the model as it
was."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import Qwen3ForCausalLM

from command_line import environment
from tiny_models import (
    IS_OLD_TRANSFORMERS,
    noise,
    tiny_image_processor,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_vl_encoder,
    white_box,
)
from zimage_vl.blend.regions import Region
from zimage_vl.reference.embeds import ReferenceEmbeds
from zimage_vl.reference.readers import (
    VLPlace,
    bring_to_device,
    check_vl_config,
    check_vl_encoder,
    encode_reference,
    execution_device,
    find_reader_source,
    fingerprint_text_encoder,
    fingerprint_vl_encoder,
    group_offload_settings,
    load_vl_config,
    load_vl_encoder_parts,
    read_reference,
)
from zimage_vl.reference.reading import Reading, build_reading
from zimage_vl.reference.turn import read_text_turn


TEXT, SIZE, NUM_LAYERS, DEEPSTACK_LAYERS = "a red circle", (64, 48), 6, (1, 2)
EVERY_LAYER = range(NUM_LAYERS + 1)
LEFT_HALF = white_box(SIZE, (0, 0, 32, 48))
TOKENIZER, PROCESSOR = tiny_tokenizer(), tiny_image_processor()
CONFIG = tiny_vl_encoder(tokenizer=TOKENIZER).config


@pytest.fixture
def model() -> Any:
    return tiny_vl_encoder(tokenizer=TOKENIZER)


def reading_of(image: Image.Image | None = None, layers: Any = (4,), text: str = TEXT, **kwargs: Any) -> Reading:
    turn = read_text_turn(TOKENIZER, text)
    names = {name: kwargs.pop(name, None) for name in ("model_id", "revision")}
    source = find_reader_source("qwen3-vl", None, CONFIG, PROCESSOR, **names)
    return build_reading(source, TOKENIZER, image or noise(SIZE), turn, layers, **kwargs)


def read(model: Any, layers: Any = (4,), image: Image.Image | None = None, **kwargs: Any) -> ReferenceEmbeds:
    return read_reference(model, PROCESSOR, reading_of(image, layers, **kwargs))


def assert_equal_states(first: ReferenceEmbeds, second: ReferenceEmbeds) -> None:
    assert first.layers == second.layers
    assert torch.equal(first.regions, second.regions)
    assert all(torch.equal(first.hidden_states[layer], second.hidden_states[layer]) for layer in first.layers)


def patches_of(reading: Reading) -> tuple[torch.Tensor, torch.Tensor]:
    features = PROCESSOR(images=[reading.picture], do_resize=False, return_tensors="pt")
    return features["pixel_values"], features["image_grid_thw"]


@torch.no_grad()
def library_states(model: Any, reading: Reading) -> tuple[torch.Tensor, ...]:
    """The whole pass, as a user of transformers calls it."""
    ids, (pixel_values, grid) = reading.ids[None], patches_of(reading)
    extra = {} if IS_OLD_TRANSFORMERS else {"mm_token_type_ids": (ids == model.config.image_token_id).int()}
    output = model.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixel_values,
        image_grid_thw=grid,
        output_hidden_states=True,
        use_cache=False,
        **extra,
    )
    return tuple(states[0] for states in output.hidden_states)


# ---- The states ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("position", ["after", "before"])
def test_every_layer_is_the_librarys_bit_for_bit(attention: str, dtype: torch.dtype, position: Any) -> None:
    model = tiny_vl_encoder(attn_implementation=attention, tokenizer=TOKENIZER).to(dtype)
    # Our passes come first: none of them may spoil the library's capture of hidden states.
    alone = {k: read(model, (k,), text_position=position).hidden_states[k] for k in EVERY_LAYER}
    expected = library_states(model, reading_of(text_position=position))
    assert len(expected) == NUM_LAYERS + 1
    for layer, states in alone.items():
        assert states.dtype == dtype
        if layer not in DEEPSTACK_LAYERS or IS_OLD_TRANSFORMERS:
            assert torch.equal(states, expected[layer]), layer


def test_deepstack_layers_are_what_the_next_block_reads(model: Any) -> None:
    # In this the versions of transformers differ; ours are alike in all of them.
    seen: dict[int, torch.Tensor] = {}
    for layer in DEEPSTACK_LAYERS:
        block = model.model.language_model.layers[layer]
        block.register_forward_pre_hook(lambda _, args, layer=layer: seen.__setitem__(layer, args[0][0].clone()))
    library_states(model, reading_of())
    ours = read(model, DEEPSTACK_LAYERS)
    assert all(torch.equal(ours.hidden_states[layer], seen[layer]) for layer in DEEPSTACK_LAYERS)


@pytest.mark.parametrize("layers", [[5, 3], list(EVERY_LAYER), [6, 0], [2, -5], [-1, -2, 4]])
def test_several_layers_from_one_pass(model: Any, layers: list[int]) -> None:
    together = read(model, layers)
    assert together.layers == tuple(layers)
    for layer in layers:
        assert torch.equal(together.hidden_states[layer], read(model, [layer]).hidden_states[layer])


@pytest.mark.parametrize("layer", [0, 3, 5, 6])
def test_what_lies_behind_the_layer_never_runs(model: Any, layer: int) -> None:
    ran: list[str] = []
    text = model.model.language_model
    for index, block in enumerate(text.layers):
        block.register_forward_hook(lambda *_, index=index: ran.append(str(index)))
    text.norm.register_forward_hook(lambda *_: ran.append("norm"))
    model.lm_head.register_forward_hook(lambda *_: ran.append("lm_head"))
    read(model, [layer])
    assert ran == [str(index) for index in range(layer)] + ["norm"] * (layer == NUM_LAYERS)


def test_states_that_are_not_finite_are_named(model: Any) -> None:
    with torch.no_grad():
        model.model.language_model.layers[3].mlp.down_proj.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="Qwen3-VL hidden states of layer -2 contain NaN or infinity"):
        read(model, (-2,))
    read(model, (3,))


def test_encode_reference_is_made_of_the_steps(model: Any, tmp_path: Path) -> None:
    given: dict[str, Any] = {"text_position": "before", "mask": LEFT_HALF, "max_pixels": 48 * 48, "model_id": "a/b"}
    embeds = encode_reference(model, PROCESSOR, TOKENIZER, noise(SIZE), TEXT, (-2, 3), revision="x", **given)
    reading = reading_of(layers=(-2, 3), revision="x", **given)
    assert_equal_states(embeds, read_reference(model, PROCESSOR, reading))
    expected = replace(reading.provenance, dtype="float32", vl_fingerprint=fingerprint_vl_encoder(model))
    assert embeds.provenance == expected
    embeds.save(tmp_path / "a")
    assert_equal_states(ReferenceEmbeds.load(tmp_path / "a"), embeds)
    cut = encode_reference(model, PROCESSOR, TOKENIZER, noise(SIZE), "a long text " * 9, (-2,), max_sequence_length=7)
    assert cut.num_tokens == 7 + 12 + 2
    with pytest.raises(TypeError, match="got Qwen3Model"):
        encode_reference(tiny_text_encoder(), PROCESSOR, TOKENIZER, noise(SIZE), TEXT)  # type: ignore[arg-type]


def differ(first: ReferenceEmbeds, second: ReferenceEmbeds) -> bool:
    """By more than rounding, which depends on the length of the whole sequence and on the processor."""
    parts = [e.hidden_states[4][e.regions == Region.IMAGE] for e in (first, second)]
    return not torch.allclose(*parts, rtol=1e-4, atol=1e-5)


def full_positions(reading: Reading) -> torch.Tensor:
    (rows, columns), is_image = reading.grid, (reading.regions == Region.IMAGE).tolist()
    first = is_image.index(True)
    text = torch.arange(first).expand(3, -1)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    image = torch.stack([torch.zeros_like(row), row, column]).flatten(1) + first
    rest = torch.arange(len(is_image) - first - rows * columns).expand(3, -1) + first + max(rows, columns)
    return torch.cat([text, image, rest], dim=1)[:, None]


# ---- Masks ----


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("size", "position"), [((64, 48), "after"), ((61, 50), "before"), ((150, 100), "after")])
def test_hidden_pixels_change_nothing(attention: str, position: Any, size: tuple[int, int]) -> None:
    model = tiny_vl_encoder(attn_implementation=attention, tokenizer=TOKENIZER)
    mask = white_box((97, 89), (20, 0, 97, 60))
    hidden = np.array(mask.resize(size, Image.Resampling.BOX)) < 128
    first, second = np.array(noise(size, 0)), np.array(noise(size, 1))
    second[~hidden] = first[~hidden]
    given: dict[str, Any] = {"layers": (-1, -2, 4, 0), "text_position": position}
    ours, theirs = (read(model, image=Image.fromarray(pixels), mask=mask, **given) for pixels in (first, second))
    assert_equal_states(ours, theirs)
    # Without the mask these pixels do count.
    assert differ(*(read(model, image=Image.fromarray(p), **given) for p in (first, second)))


def test_hidden_tokens_are_dropped(model: Any) -> None:
    embeds, whole = read(model, mask=LEFT_HALF), read(model)
    left = [region for region in whole.regions.tolist() if region != Region.IMAGE]
    assert sorted(embeds.regions.tolist()) == sorted([*left, *[Region.IMAGE] * 6])
    assert_equal_states(whole, read(model, mask=Image.new("L", (5, 9), 255)))


def test_masked_pass_is_the_pass_without_the_hidden_tokens(model: Any) -> None:
    # Recomputed another way: the tower on the kept patches alone, their tokens put into a sequence without the others.
    kept = torch.tensor([True] * 8 + [False] * 4)  # whole rows, but the positions are still those of the full grid
    reading = replace(reading_of(layers=(5,)), visible=kept)
    ours = read_reference(model, PROCESSOR, reading).hidden_states[5]
    is_image = reading.ids == model.config.image_token_id
    stays = torch.ones_like(is_image)
    stays[is_image] = kept
    with torch.no_grad():
        features, deepstack = tower_on_kept_patches(model.model.visual, reading, kept)
        ids = reading.ids[stays][None]
        embeddings = model.model.get_input_embeddings()(ids)
        embeddings[0, is_image[stays]] = features
        hooked: list[torch.Tensor] = []
        handle = model.model.language_model.layers[5].register_forward_pre_hook(lambda _, args: hooked.append(args[0]))
        model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=full_positions(reading)[:, :, stays],
            attention_mask=torch.ones_like(ids),
            visual_pos_masks=is_image[stays][None],
            deepstack_visual_embeds=deepstack,
            use_cache=False,
        )
        handle.remove()
    torch.testing.assert_close(ours, hooked[0][0], rtol=1e-4, atol=1e-5)


def tower_on_kept_patches(visual: Any, reading: Reading, kept: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
    """The tower, block by block, on the kept patches with the position embeddings they have in the whole picture."""
    caught: dict[str, Any] = {}

    def keep_first(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.update(kwargs, states=args[0])

    handle = visual.blocks[0].register_forward_pre_hook(keep_first, with_kwargs=True)
    pixel_values, grid = patches_of(reading)
    visual(pixel_values, grid_thw=grid)
    handle.remove()
    patches = kept.repeat_interleave(4)
    states, deepstack = caught["states"][patches], []
    positions = tuple(part[patches] for part in caught["position_embeddings"])
    bounds = torch.tensor([0, int(patches.sum())], dtype=torch.int32)
    for index, block in enumerate(visual.blocks):
        states = block(states, cu_seqlens=bounds, position_embeddings=positions)
        if index in visual.deepstack_visual_indexes:
            deepstack.append(visual.deepstack_merger_list[len(deepstack)](states))
    return visual.merger(states), deepstack


# ---- The model is as before ----


def snapshot(model: Any) -> Any:
    modules = [(name, id(module), module.training) for name, module in model.named_modules()]
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    values = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    return modules, hooks, values, model.model.rope_deltas


def assert_as_before(model: Any, before: Any) -> None:
    modules, hooks, values, rope_deltas = snapshot(model)
    assert (modules, hooks) == before[:2]
    assert all(torch.equal(value, before[2][name]) for name, value in values.items())
    assert rope_deltas is before[3]


@pytest.mark.parametrize("training", [False, True])
def test_model_is_as_before(model: Any, training: bool) -> None:
    model.train(training)
    before = snapshot(model)
    embeds = read(model, [4, 1], mask=LEFT_HALF, muted=True)
    assert_as_before(model, before)
    assert not any(tensor.requires_grad for tensor in embeds.hidden_states.values())
    assert not torch.equal(embeds.muted_states[4], embeds.hidden_states[4])


def fail(*_: Any) -> None:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("where", ["blocks.1.attn.proj", "layers.3.mlp"])
def test_model_is_as_before_after_a_failure(model: Any, where: str) -> None:
    tower = model.model.visual if where.startswith("blocks") else model.model.language_model
    handle = tower.get_submodule(where).register_forward_pre_hook(fail)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        read(model, [5, 2], mask=LEFT_HALF)
    assert_as_before(model, before)
    handle.remove()
    assert torch.equal(read(model, [6]).hidden_states[6], library_states(model, reading_of())[6])


def test_two_threads_get_their_own(model: Any) -> None:
    jobs = [
        (noise(SIZE, seed), [seed, 6 - seed] if seed != 3 else [3], LEFT_HALF if seed % 2 else None)
        for seed in range(6)
    ]

    def run(job: Any) -> ReferenceEmbeds:
        torch.set_num_threads(1)  # bits depend on it
        return read(model, job[1], job[0], mask=job[2])

    with ThreadPoolExecutor(1) as alone, ThreadPoolExecutor(3) as together:
        expected = list(alone.map(run, jobs))
        for index, embeds in enumerate(together.map(run, jobs * 4)):
            assert_equal_states(embeds, expected[index % 6])


# ---- Devices and hooks ----


def test_hook_of_the_outer_model_is_fired(model: Any) -> None:
    from accelerate import cpu_offload_with_hook

    calls: list[Any] = []
    _, user_hook = cpu_offload_with_hook(model, torch.device("cpu"))
    fire = user_hook.hook.pre_forward
    user_hook.hook.pre_forward = lambda module, *args, **kwargs: calls.append(module) or fire(module, *args, **kwargs)
    read(model)
    assert calls == [model]


@pytest.mark.skipif(IS_OLD_TRANSFORMERS, reason="Qwen3-VL itself fails under sequential offload in transformers 4")
def test_sequential_offload(model: Any) -> None:
    from accelerate import cpu_offload

    expected = read(model, [5, 3], mask=LEFT_HALF)
    cpu_offload(model, torch.device("cpu"))
    assert next(model.parameters()).device.type == "meta"
    assert execution_device(model) == torch.device("cpu")
    got = read(model, [5, 3], mask=LEFT_HALF)
    assert_equal_states(got, expected)
    assert got.provenance == expected.provenance  # the fingerprint too
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


def test_the_position_table_is_brought_only_where_it_is_away(model: Any) -> None:
    from accelerate import cpu_offload

    table = model.model.visual.pos_embed
    weights = table.weight.clone()
    bring_to_device(model)
    assert not hasattr(table, "_hf_hook")
    cpu_offload(model.model.visual, torch.device("cpu"))
    assert table.weight.device.type == "meta"
    bring_to_device(model)
    bring_to_device(model)
    assert torch.equal(table.weight, weights)
    with torch.no_grad():
        assert torch.equal(table(torch.tensor([3])), weights[3:4])
    assert table.weight.device.type == "meta"


def test_group_offload_is_found_wherever_its_hooks_sit() -> None:
    from diffusers.hooks import apply_group_offloading

    assert group_offload_settings(None) is None
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    assert group_offload_settings(model) is None
    devices = {"onload_device": torch.device("cuda"), "offload_device": torch.device("cpu")}
    try:  # nothing runs, so nothing is brought there
        apply_group_offloading(model, offload_type="leaf_level", **devices)
    except AttributeError:
        pytest.skip("diffusers 0.36 looks the accelerator up at once")
    found = group_offload_settings(model)
    assert (found.onload_device.type, found.offload_device.type) == ("cuda", "cpu")
    assert execution_device(model).type == "cuda"


# ---- Checks ----


def test_vl_encoder_is_checked_from_its_config(model: Any) -> None:
    check_vl_encoder(model, 32)
    check_vl_config(model.config)
    for check in (lambda: check_vl_encoder(model, 2560), lambda: check_vl_config(model.config, 2560)):
        with pytest.raises(ValueError, match=r"as the text encoder, 2560, got 32\. Qwen3-VL-2B is 2048 wide, 4B 2560"):
            check()
    with pytest.raises(TypeError, match="got a model of type 'qwen3'"):
        check_vl_config(tiny_text_encoder().config, 32)
    for other in (tiny_text_encoder(), model.model, None, "Qwen/Qwen3-VL-4B-Instruct", nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=f"the whole model, got {type(other).__name__}"):
            check_vl_encoder(other, 32)


def test_a_source_fits_the_text_encoder() -> None:
    text_config, vision = tiny_text_encoder().config, CONFIG.vision_config
    for config in (CONFIG, vision):  # the whole model's, or its tower's alone
        source = find_reader_source("text_encoder", text_config, config, PROCESSOR, Path("a") / "b", "main")
        assert source == ("text_encoder", PROCESSOR, text_config.num_hidden_layers, None, "a/b", "main")
    own = find_reader_source("qwen3-vl", text_config, CONFIG, PROCESSOR)
    assert own == ("qwen3-vl", PROCESSOR, NUM_LAYERS, CONFIG.image_token_id, None, None)
    for reader in ("qwen3-vl", "text_encoder"):
        with pytest.raises(ValueError, match="as the text encoder, 64, got 32"):
            find_reader_source(reader, tiny_text_encoder(64).config, CONFIG, PROCESSOR)


def test_a_processor_that_makes_another_grid_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=r"made a grid of \[\[1, 6, 8\]\].*expected \[\[1, 4, 8\]\]"):
        read_reference(model, PROCESSOR, replace(reading_of(), grid=(2, 4)))


# ---- Loading ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vl")
    tiny_vl_encoder().to(torch.bfloat16).save_pretrained(path)
    tiny_image_processor().save_pretrained(path)
    return path


def test_the_saved_weights_come_back_whole_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("zimage_vl.reference.readers")
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(logger, "handlers", [handler])
    encoder, processor = load_vl_encoder_parts(VLPlace(folder))
    (line,) = lines
    assert all(part in line for part in (str(folder), "torch.bfloat16", "GB", "revision default"))
    assert not encoder.training
    before, after = tiny_vl_encoder().to(torch.bfloat16).state_dict(), encoder.state_dict()
    assert set(before) == set(after)
    assert all(before[name].equal(after[name]) for name in before)
    assert (processor.patch_size, processor.merge_size) == (8, 2)


def test_weights_that_are_cut_short_are_one_clear_sentence(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(OSError, match=r"^The VL encoder .* could not be loaded: .*$") as caught:
        load_vl_encoder_parts(VLPlace(tmp_path))
    assert "\n" not in str(caught.value)


def test_config_and_processor_come_alone_from_subfolders_too_and_are_used(folder: Path, tmp_path: Path) -> None:
    for name, files in (("vl_encoder", "*config.json"), ("vl_processor", "preprocessor*")):
        (tmp_path / name).mkdir()
        for file in folder.glob(files):
            (tmp_path / name / file.name).write_bytes(file.read_bytes())  # and no weights
    config, processor = load_vl_config(VLPlace(tmp_path, None, "vl_encoder", "vl_processor"))
    assert config.image_token_id == CONFIG.image_token_id
    assert processor.patch_size == 8
    encoder, _ = load_vl_encoder_parts(VLPlace(folder), torch.float32)
    assert encoder.dtype == torch.float32
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(TypeError, match="'qwen3'"):
        load_vl_encoder_parts(VLPlace(tmp_path))


PROGRAM = """
import sys
sys.modules['torchvision'] = None  # as if it were not installed
import PIL.Image
from zimage_vl.reference.readers import VLPlace, load_vl_config, load_vl_encoder_parts
_, processor = load_vl_encoder_parts(VLPlace(sys.argv[1]))
print(processor(images=[PIL.Image.new('RGB', (32, 48))], return_tensors='pt')['image_grid_thw'].tolist())
for model_id in sys.argv[2:]:
    for load in (load_vl_config, load_vl_encoder_parts):
        try:
            load(VLPlace(model_id))
        except OSError as error:
            print(error)
"""


def test_no_torchvision_is_needed_and_nothing_to_load_is_one_clear_sentence(folder: Path, tmp_path: Path) -> None:
    model_ids = ("nobody/no-such-qwen3-vl", str(tmp_path / "nowhere"), str(tmp_path))
    command = [sys.executable, "-c", PROGRAM, str(folder), *model_ids]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == "[[1, 6, 4]]"
    assert len(lines) == 2 * len(model_ids)
    for model_id, line in zip(np.repeat(model_ids, 2), lines, strict=True):
        assert line.startswith(f"The VL encoder '{model_id}' could not be loaded: ")
        assert "or the path of a local folder as `vl_model_id`" in line


# ---- Which model it is ----


def changed(model: Any, name: str) -> Any:
    with torch.no_grad():
        model.get_parameter(name)[0] += 0.5
    return model


def test_fingerprints_tell_encoders_apart() -> None:
    norm, head = "layers.2.post_attention_layernorm.weight", tiny_text_encoder()
    models = [tiny_text_encoder(seed=9), tiny_text_encoder(num_hidden_layers=5), tiny_text_encoder(64)]
    fingerprints = {fingerprint_text_encoder(model) for model in (*models, head, changed(tiny_text_encoder(), norm))}
    assert len(fingerprints) == 5
    assert fingerprint_text_encoder(head) == fingerprint_text_encoder(tiny_text_encoder())
    vl_models = [tiny_vl_encoder(seed=1), tiny_vl_encoder(num_hidden_layers=5), tiny_vl_encoder(64), tiny_vl_encoder()]
    for name in ("visual.blocks.1.norm2.bias", "language_model.layers.0.self_attn.q_norm.weight"):
        vl_models.append(changed(tiny_vl_encoder(), f"model.{name}"))
    assert len({fingerprint_vl_encoder(model) for model in vl_models}) == 6
    assert fingerprint_vl_encoder(vl_models[3]) == fingerprint_vl_encoder(tiny_vl_encoder())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fingerprints_do_not_depend_on_how_a_model_is_loaded(dtype: torch.dtype, tmp_path: Path) -> None:
    for make, fingerprint in (
        (tiny_text_encoder, fingerprint_text_encoder),
        (tiny_vl_encoder, fingerprint_vl_encoder),
    ):
        stored = make().to(torch.bfloat16)  # as the real checkpoints are
        norm = next(weight for name, weight in stored.named_parameters() if name.endswith("norm.weight"))
        with torch.no_grad():
            norm[:4] = torch.tensor([1e-7, -3e-6, 2.0**-14, -5e-5], dtype=torch.bfloat16)
        stored.save_pretrained(tmp_path / make.__name__)
        loaded = type(stored).from_pretrained(tmp_path / make.__name__, dtype=dtype)
        assert fingerprint(loaded) == fingerprint(stored)


def test_heads_and_quantisation_leave_fingerprints_alone_and_models_not_in_memory_have_none() -> None:
    bare = tiny_text_encoder()
    whole = Qwen3ForCausalLM(bare.config)
    whole.model.load_state_dict(bare.state_dict())
    assert fingerprint_text_encoder(whole) == fingerprint_text_encoder(bare)
    quantised = tiny_vl_encoder()
    for module in quantised.modules():  # every scheme replaces the linear layers and leaves the norms alone
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.int8), requires_grad=False)
    assert fingerprint_vl_encoder(quantised) == fingerprint_vl_encoder(tiny_vl_encoder())
    assert fingerprint_vl_encoder(quantised.to("meta")) is None
    with pytest.raises(ValueError, match="before enable_sequential_cpu_offload"):
        fingerprint_text_encoder(bare.to("meta"))
