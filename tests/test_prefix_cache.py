"""A text read over the kept keys and values of its picture: what one pass over both gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from test_patch_grid import noise
from tiny_models import tiny_image_processor, tiny_tokenizer, tiny_vl_encoder
from zimage_vl.embeddings import ReferenceEmbeds
from zimage_vl.encoding import encode_reference
from zimage_vl.prefix_cache import PrefixCache, prefix_length
from zimage_vl.regions import Region


TOKENIZER, PROCESSOR, IMAGE = tiny_tokenizer(), tiny_image_processor(), noise((64, 48))
FIRST, SECOND = "a red circle", "blue, and on a black wall of bricks"
MASK = Image.new("L", (64, 48), 255)
MASK.paste(0, (0, 0, 16, 48))
ALL_LAYERS = (0, 1, 2, 3, -3, -2, -1)


class Reader:
    """An encoder with a cache, and counts of what ran."""

    def __init__(self, attention: str = "sdpa", **kwargs: Any) -> None:
        self.encoder = tiny_vl_encoder(attn_implementation=attention, tokenizer=TOKENIZER)
        self.cache = PrefixCache(**kwargs)
        self.looked, self.lengths = 0, []
        self.encoder.model.visual.register_forward_pre_hook(self._look)
        self.encoder.model.language_model.register_forward_pre_hook(self._measure, with_kwargs=True)

    def _look(self, *_: Any) -> None:
        self.looked += 1

    def _measure(self, _: Any, __: Any, kwargs: dict[str, Any]) -> None:
        self.lengths.append(kwargs["inputs_embeds"].shape[1])

    def whole(self, text: str = SECOND, layers: Any = (-2,), image: Any = IMAGE, **kwargs: Any) -> ReferenceEmbeds:
        return encode_reference(self.encoder, PROCESSOR, TOKENIZER, image, text, layers, **kwargs)

    def read(self, text: str = SECOND, layers: Any = (-2,), image: Any = IMAGE, **kwargs: Any) -> ReferenceEmbeds:
        return self.whole(text, layers, image, prefix_cache=self.cache, **kwargs)


def assert_equal(one: ReferenceEmbeds, other: ReferenceEmbeds) -> None:
    assert one.layers == other.layers
    for layer in one.layers:
        assert torch.equal(one.hidden_states[layer], other.hidden_states[layer]), layer
    assert torch.equal(one.regions, other.regions)
    assert one.provenance == other.provenance


def largest_difference(one: ReferenceEmbeds, other: ReferenceEmbeds) -> float:
    """Relative to the largest value of the layer."""
    pairs = [(one.hidden_states[layer], other.hidden_states[layer]) for layer in one.layers]
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in pairs)


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("layers", [*((layer,) for layer in ALL_LAYERS), ALL_LAYERS], ids=str)
def test_eager_attention_gives_the_same_bits(layers: tuple[int, ...], mask: Any) -> None:
    reader = Reader("eager")
    assert_equal(reader.read(FIRST, layers, mask=mask), reader.whole(FIRST, layers, mask=mask))
    assert_equal(reader.read(SECOND, layers, mask=mask), reader.whole(SECOND, layers, mask=mask))
    assert_equal(reader.read(FIRST, layers, mask=mask), reader.whole(FIRST, layers, mask=mask))


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fused_attention_gives_the_same_up_to_rounding(dtype: torch.dtype, mask: Any) -> None:
    reader = Reader()
    reader.encoder.to(dtype)
    assert_equal(reader.read(FIRST, ALL_LAYERS, mask=mask), reader.whole(FIRST, ALL_LAYERS, mask=mask))
    again, expected = reader.read(layers=ALL_LAYERS, mask=mask), reader.whole(layers=ALL_LAYERS, mask=mask)
    assert reader.looked == 3
    assert again.hidden_states[-2].dtype == dtype
    assert largest_difference(again, expected) < (1e-6 if dtype == torch.float32 else 2e-2)


def tokens_up_to_the_picture(embeds: ReferenceEmbeds) -> int:
    return int((embeds.regions == Region.MARKER).nonzero()[-1]) + 1


def test_only_what_follows_the_picture_runs() -> None:
    reader = Reader()
    texts = (FIRST, SECOND, "")  # last no words, only the template's own
    every = [reader.read(text) for text in texts]
    assert reader.looked == 1
    before = tokens_up_to_the_picture(every[0])
    assert reader.lengths == [every[0].num_tokens, *(embeds.num_tokens - before for embeds in every[1:])]
    assert every[1].provenance == reader.whole(SECOND).provenance


def test_a_picture_after_its_text_is_read_in_one_pass() -> None:
    reader = Reader()
    for _ in range(2):
        assert_equal(reader.read(text_position="before"), reader.whole(text_position="before"))
    assert reader.looked == 4
    assert len(reader.cache.store) == 0


def test_another_picture_mask_size_or_state_is_another_prefix() -> None:
    reader = Reader("eager")
    reader.read()
    for change in ({"image": noise((64, 48), 1)}, {"mask": MASK}, {"max_pixels": 512}, {"image": noise((48, 64))}):
        looked = reader.looked
        assert_equal(reader.read(FIRST, **change), reader.whole(FIRST, **change))
        assert reader.looked == looked + 2, change
    with torch.no_grad():
        reader.encoder.model.language_model.layers[0].mlp.up_proj.weight.mul_(2)
    assert_equal(reader.read(), reader.whole())


def test_a_deeper_layer_is_read_anew_and_the_shallower_one_is_kept() -> None:
    reader = Reader("eager")
    reader.read(FIRST, (-5,))
    reader.read(FIRST, (-2,))
    assert reader.looked == 2
    for layers in ((-5,), (-2,), (-2, -5)):
        assert_equal(reader.read(SECOND, layers), reader.whole(SECOND, layers))
    assert reader.looked == 2 + 3
    reader.read(SECOND, (-3,))  # its states were never asked for
    assert reader.looked == 2 + 3 + 1
    reader.read(FIRST, (-2, -3, -5))
    assert reader.looked == 2 + 3 + 1


def test_memory_is_bounded_and_what_the_formula_says() -> None:
    reader = Reader()
    embeds = reader.read(layers=(-2, -5))
    config = reader.encoder.config.text_config
    tokens = tokens_up_to_the_picture(embeds)
    states = 2 * tokens * embeds.width * 4
    keys_and_values = 2 * 5 * config.num_key_value_heads * config.head_dim * tokens * 4  # 5 blocks run for layer -2
    assert reader.cache.store.num_bytes == states + keys_and_values
    reader.cache.store.resize(100, 2 * reader.cache.store.num_bytes)
    for seed in range(1, 4):
        reader.read(image=noise((64, 48), seed), layers=(-2, -5))
    assert len(reader.cache.store) == 2


def test_nothing_of_the_model_changes_also_when_it_fails() -> None:
    reader = Reader()
    model = reader.encoder.model
    stale = model.rope_deltas = torch.tensor([[7]])
    expected = Reader().whole()

    def state() -> Any:
        modules = [(name, id(module), len(module._forward_pre_hooks)) for name, module in model.named_modules()]
        return modules, id(model.rope_deltas), dict(vars(model.config.text_config)).keys()

    before = state()
    reader.read(FIRST)
    reader.read()
    assert state() == before

    def fail(*_: Any) -> Any:
        raise KeyboardInterrupt

    for layer, text in ((0, "new"), (3, "newer")):
        handle = model.language_model.layers[layer].register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            reader.read(text)
        handle.remove()
    assert state() == before
    assert model.rope_deltas is stale
    assert_equal(reader.whole(), expected)
    assert largest_difference(reader.read("newest"), Reader().whole("newest")) < 1e-6


def test_what_is_kept_is_nobody_elses() -> None:
    reader = Reader("eager")
    embeds = reader.read(FIRST, (-2, 0))
    for states in embeds.hidden_states.values():
        states.zero_()
    for _ in range(2):
        again = reader.read(SECOND, (-2, 0))
        assert_equal(again, reader.whole(SECOND, (-2, 0)))
        for states in again.hidden_states.values():
            states.zero_()


def test_under_offload_it_lies_on_the_cpu() -> None:
    from accelerate import cpu_offload_with_hook

    reader = Reader("eager")
    cpu_offload_with_hook(reader.encoder, execution_device="cpu")
    assert_equal(reader.read(FIRST), Reader("eager").whole(FIRST))
    assert_equal(reader.read(SECOND), Reader("eager").whole(SECOND))
    kept = next(iter(reader.cache.store._entries.values()))[0]
    assert {x.device.type for *pair, _ in kept.keys_and_values for x in pair} == {"cpu"}


def test_quantised_weights() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    reader = Reader("eager")
    torchao.quantize_(reader.encoder.model.language_model, torchao.Int8WeightOnlyConfig())
    reader.read(FIRST)
    again, expected = reader.read(), reader.whole()
    assert reader.looked == 2
    assert largest_difference(again, expected) < 1e-5


def test_an_encoder_without_its_last_blocks(tmp_path: Any) -> None:
    from zimage_vl.vl_loading import load_vl_parts

    reader = Reader("eager")
    reader.encoder.save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    expected = reader.whole(SECOND, (-3, -5))
    reader.encoder = load_vl_parts(tmp_path, layers=(-3, -5))[0]
    reader.encoder.set_attn_implementation("eager")
    reader.read(FIRST, (-3, -5))
    assert_equal(reader.read(SECOND, (-3, -5)), expected)


def test_the_prefix_ends_with_the_picture() -> None:
    assert prefix_length(torch.tensor([1, 8, 7, 7, 9, 2]), 9) == 5
    assert prefix_length(torch.tensor([1, 2]), 9) == 0
