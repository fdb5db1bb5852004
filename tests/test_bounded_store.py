"""A store bounded in entries and bytes."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest

from zimage_vl.bounded_store import BoundedStore, StoreKey, check_bound


class Owner:
    """Something that can be held weakly."""


def key(name: str, *owners: Owner) -> StoreKey:
    return StoreKey(tuple(weakref.ref(owner) for owner in owners), (name,))


def test_what_was_used_least_recently_goes_first() -> None:
    store: BoundedStore[str] = BoundedStore(3, 100)
    for name in "abc":
        store.put(key(name), name.upper(), 1)
    assert store.get(key("a")) == "A"
    store.put(key("b"), "again", 1)
    store.put(key("d"), "D", 1)
    assert [store.get(key(name)) for name in "abcd"] == ["A", "again", None, "D"]


def test_bytes_are_bounded_too() -> None:
    store: BoundedStore[str] = BoundedStore(10, 10)
    store.put(key("a"), "a", 6)
    store.put(key("b"), "b", 4)
    assert (len(store), store.num_bytes) == (2, 10)
    store.put(key("c"), "c", 5)
    assert (store.get(key("a")), store.num_bytes) == (None, 9)
    store.put(key("whale"), "whale", 11)
    assert (len(store), store.get(key("whale"))) == (2, None)
    store.put(key("c"), "now too large", 11)  # nor is the old one kept, which it was to replace
    assert store.get(key("c")) is None


def test_new_bounds_hold_at_once() -> None:
    store: BoundedStore[str] = BoundedStore(4, 100)
    for name in "abcd":
        store.put(key(name), name, 10)
    store.resize(2, 100)
    assert [store.get(key(name)) for name in "abcd"] == [None, None, "c", "d"]
    store.resize(2, 10)
    assert len(store) == 1
    store.resize(0, 10)
    assert len(store) == 0
    store.put(key("a"), "a", 1)
    assert store.get(key("a")) is None


def test_values_are_freed_when_they_go() -> None:
    store: BoundedStore[Owner] = BoundedStore(4, 100)
    value = Owner()
    gone = weakref.ref(value)
    store.put(key("a"), value, 1)
    del value
    assert gone() is not None
    store.clear()
    assert gone() is None


def test_an_entry_lives_no_longer_than_its_owners() -> None:
    store: BoundedStore[str] = BoundedStore(4, 100)
    first, second = Owner(), Owner()
    store.put(key("a", first), "of the first", 1)
    store.put(key("a", second), "of the second", 1)
    assert store.get(key("a", first)) == "of the first"
    del first
    gc.collect()
    store.put(key("b", second), "b", 1)
    assert (len(store), store.get(key("a", second))) == (2, "of the second")


def test_several_threads() -> None:
    store: BoundedStore[int] = BoundedStore(8, 100)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for number in range(300):
                store.put(key(str((number * seed) % 20)), number, 1)
                store.get(key(str(number % 20)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (3, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store) == 8


def test_a_copy_is_empty_and_has_the_same_bounds() -> None:
    store: BoundedStore[str] = BoundedStore(3, 50)
    store.put(key("a"), "a", 1)
    for other in (copy.copy(store), copy.deepcopy(store)):
        assert (len(other), other.max_entries, other.max_bytes) == (0, 3, 50)
    assert len(store) == 1


@pytest.mark.parametrize("value", [True, 1.0, "8", None])
def test_bounds_are_whole_numbers(value: object) -> None:
    with pytest.raises(TypeError, match="`entries` must be a whole number"):
        check_bound("entries", value)


def test_bounds_are_not_negative() -> None:
    with pytest.raises(ValueError, match="at least 0, got -1"):
        check_bound("entries", -1)
    assert check_bound("entries", 0) == 0
