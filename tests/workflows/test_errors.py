"""Errors that are told apart without their libraries."""

from __future__ import annotations

import pytest
import torch

from zimage_vl.workflows.errors import is_out_of_memory


def test_memory_that_ran_out_is_told_on_every_device() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    for error in (caught.value, MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory")):
        assert is_out_of_memory(error)
    for error in (RuntimeError("shapes do not fit"), ValueError("DefaultCPUAllocator: "), OSError()):
        assert not is_out_of_memory(error)
