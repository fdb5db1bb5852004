"""What is kept of references: copies on the CPU that nobody else can reach."""

from __future__ import annotations

import gc
import weakref

import torch
from PIL import Image

from embedding_samples import make_reference
from tiny_models import tiny_image_processor, tiny_tokenizer, tiny_vl_encoder
from zimage_vl.bounded_store import StoreKey
from zimage_vl.embeddings import ReferenceEmbeds
from zimage_vl.reference_cache import ReferenceCache, reference_key


WANTED = {-2: 5, 3: 3}
KEY = StoreKey((), ("a",))


def make_embeds(seed: int = 0) -> ReferenceEmbeds:
    return make_reference(dims=8, layers=tuple(WANTED), seed=seed)


def assert_equal(one: ReferenceEmbeds | None, other: ReferenceEmbeds) -> None:
    assert one is not None
    assert all(torch.equal(one.hidden_states[layer], other.hidden_states[layer]) for layer in one.layers)
    assert torch.equal(one.regions, other.regions)
    assert one.provenance == other.provenance


def test_what_was_kept_comes_back() -> None:
    cache, embeds = ReferenceCache(), make_embeds()
    assert cache.find(KEY, WANTED) is None
    cache.keep(KEY, embeds, WANTED)
    found = cache.find(KEY, WANTED)
    assert_equal(found, embeds)
    assert found is not None
    assert found.layers == embeds.layers
    assert cache.find(StoreKey((), ("b",)), WANTED) is None


def test_layers_are_found_by_their_numbers() -> None:
    cache, embeds = ReferenceCache(), make_embeds()
    cache.keep(KEY, embeds, WANTED)
    found = cache.find(KEY, {5: 5})
    assert found is not None
    assert found.layers == (5,)
    assert torch.equal(found.hidden_states[5], embeds.hidden_states[-2])
    assert cache.find(KEY, {5: 5, 4: 4}) is None


def test_layers_of_several_passes_add_up() -> None:
    cache, embeds = ReferenceCache(), make_embeds()
    for layer, number in WANTED.items():
        alone = ReferenceEmbeds({layer: embeds.hidden_states[layer]}, embeds.regions, embeds.provenance)
        cache.keep(KEY, alone, {layer: number})
    assert_equal(cache.find(KEY, WANTED), embeds)
    assert len(cache.store) == 1


def test_nobody_can_write_into_what_is_kept() -> None:
    cache, embeds, untouched = ReferenceCache(), make_embeds(), make_embeds()
    cache.keep(KEY, embeds, WANTED)
    for _ in range(2):
        for states in embeds.hidden_states.values():
            states.zero_()
        embeds.regions.zero_()
        dict.update(embeds.provenance.versions, torch="0")  # pyright: ignore[reportArgumentType]
        found = cache.find(KEY, WANTED)
        assert_equal(found, untouched)
        assert found is not None
        embeds = found


def test_the_size_is_that_of_the_states() -> None:
    cache, embeds = ReferenceCache(), make_embeds()
    cache.keep(KEY, embeds, WANTED)
    assert cache.store.num_bytes == embeds.num_tokens * (2 * 8 * 4 + 1)


def test_cleared_memory_is_free() -> None:
    cache = ReferenceCache()
    cache.keep(KEY, make_embeds(), WANTED)
    kept = weakref.ref(next(iter(cache.store.get(KEY).states.values()))[0])
    assert kept() is not None
    cache.store.clear()
    gc.collect()
    assert kept() is None
    assert cache.find(KEY, WANTED) is None


def test_a_bound_of_0_turns_it_off() -> None:
    assert ReferenceCache().is_on
    for cache in (ReferenceCache(0), ReferenceCache(8, 0)):
        assert not cache.is_on
        cache.keep(KEY, make_embeds(), WANTED)
        assert cache.find(KEY, WANTED) is None


def test_a_key_tells_all_that_matters_apart() -> None:
    reader = tiny_vl_encoder(), tiny_image_processor(), tiny_tokenizer()
    twin = tiny_vl_encoder()
    black, white, one = (Image.new("RGB", (8, 4), c) for c in ("black", "white", "black"))
    turned = Image.new("RGB", (4, 8), "black")  # the same bytes
    masks = Image.new("L", (8, 4), 255), Image.new("L", (8, 4), 0)
    first = reference_key(*reader, black, None, "text")
    assert reference_key(*reader, one, None, "text") == first
    others = [
        reference_key(*reader, white, None, "text"),
        reference_key(*reader, turned, None, "text"),
        *(reference_key(*reader, black, mask, "text") for mask in masks),
        reference_key(*reader, black, None, "texts"),
        reference_key(twin, *reader[1:], black, None, "text"),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_devices_and_dtypes_come_back() -> None:
    states = torch.zeros(2, 4, dtype=torch.bfloat16)
    cache = ReferenceCache()
    cache.keep(KEY, ReferenceEmbeds({0: states}, torch.zeros(2, dtype=torch.int8)), {0: 0})
    found = cache.find(KEY, {0: 0})
    assert found is not None
    assert found.hidden_states[0].dtype == torch.bfloat16
    assert found.hidden_states[0].device == states.device
