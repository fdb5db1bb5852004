"""A small store bounded in entries and bytes, from which what was used least recently goes first."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Generic, TypeVar


_Kept = TypeVar("_Kept")


@dataclass(frozen=True)
class StoreKey:
    """What an entry is found by.

    Attributes:
        owners: Objects that must still live; when one is gone, so is the entry.
        details: Anything else, hashable.
    """

    owners: tuple[weakref.ref[Any], ...]
    details: tuple[Any, ...]

    @property
    def is_alive(self) -> bool:
        """Whether all owners live."""
        return all(owner() is not None for owner in self.owners)


class BoundedStore(Generic[_Kept]):
    """Entries by key, safe to use from several threads.

    Args:
        max_entries: Bound on their number; 0 keeps nothing.
        max_bytes: Bound on their size, as told when they are put in; a larger one is not kept.

    Example:
        >>> store = BoundedStore(2, 100)
        >>> for letter in "abc":
        ...     store.put(StoreKey((), (letter,)), letter, 1)
        >>> store.get(StoreKey((), ("a",))), store.get(StoreKey((), ("c",))), store.num_bytes
        (None, 'c', 2)
    """

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._entries: OrderedDict[StoreKey, tuple[_Kept, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.max_entries, self.max_bytes = max_entries, max_bytes

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy begins empty: the objects that its entries belong to would be others.
        return type(self), (self.max_entries, self.max_bytes)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes of what is kept."""
        with self._lock:
            return self._sum()

    def _sum(self) -> int:
        return sum(size for _, size in self._entries.values())

    def get(self, key: StoreKey) -> _Kept | None:
        """What is kept under the key, which is then the one used last; None without."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: StoreKey, value: _Kept, num_bytes: int) -> None:
        """Keep a value in place of the key's former one; others go where there is no room."""
        with self._lock:
            self._entries.pop(key, None)
            if num_bytes <= self.max_bytes:
                self._entries[key] = value, num_bytes
            self._shrink()

    def resize(self, max_entries: int, max_bytes: int) -> None:
        """Set new bounds, at once."""
        with self._lock:
            self.max_entries, self.max_bytes = max_entries, max_bytes
            self._shrink()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()

    def _shrink(self) -> None:
        for key in [key for key in self._entries if not key.is_alive]:
            # A key with a dead owner equals nothing but itself, which is what it is looked up by here.
            del self._entries[key]
        while self._entries and (len(self._entries) > self.max_entries or self._sum() > self.max_bytes):
            self._entries.popitem(last=False)


def check_bound(name: str, value: object) -> int:
    """A bound as it was given.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is negative.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be a whole number of at least 0, got {value!r}.")
    if value < 0:
        raise ValueError(f"`{name}` must be at least 0, got {value}.")
    return value
