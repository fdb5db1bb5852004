"""Errors that are told apart without importing the libraries that raise them."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Check that memory ran out: Python's error, torch's own on accelerators, or the plain one of its CPU allocator.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        True
        >>> is_out_of_memory(RuntimeError("another reason"))
        False
    """
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or on_cpu
