"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import zimage_vl
from modular_samples import HAS_MODULAR


MODULES = sorted(
    info.name for info in pkgutil.walk_packages(zimage_vl.__path__, "zimage_vl.") if not info.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    if name.endswith(".modular") and not HAS_MODULAR:
        pytest.skip("this diffusers has no modular Z-Image")
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
