"""The public names: complete, lazy, and the same for the type checker as at run time."""

from __future__ import annotations

import ast
import types
from pathlib import Path

import pytest

import zimage_vl


def names_for_the_type_checker() -> dict[str, str]:
    """`{name: module}` of what the package imports under TYPE_CHECKING."""
    tree = ast.parse(Path(zimage_vl.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or alias.name for node in imports for alias in node.names}


@pytest.mark.parametrize("name", zimage_vl.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(zimage_vl, name)
    home = names_for_the_type_checker().get(name)
    if isinstance(value, str):
        assert name == "__version__"
    elif isinstance(value, types.ModuleType):
        assert value.__name__ == f"zimage_vl.{home}"
    else:
        assert value.__name__ == name
        assert value.__module__.startswith(f"zimage_vl.{home}")
        assert getattr(zimage_vl, name) is value


def test_the_names_are_those_of_the_type_checker_once_and_in_order_and_no_other() -> None:
    assert sorted({*names_for_the_type_checker(), "__version__"}) == zimage_vl.__all__
    assert set(zimage_vl.__all__) <= set(dir(zimage_vl))
    with pytest.raises(AttributeError, match="no attribute 'ZImagePipeline'"):
        zimage_vl.ZImagePipeline  # noqa: B018
