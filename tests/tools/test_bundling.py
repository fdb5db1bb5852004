"""What the single file keeps of docstrings, and what it says about its own reach."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools"))

from bundling.docstrings import shorten_docstrings
from bundling.reach import compare_with_map, find_reach


PUBLIC = '''
class Public:
    """Get it.

    Example:
        >>> 1
        1

    Raises:
        ValueError: Never.
    """

    def method(self):
        """Call it.

        Args:
            x: Kept.

        Example:
            >>> from zimage_vl import it
        """

    def _helper(self):
        """Help it. More.

        Args:
            x: Gone.
        """
'''


def test_public_docstrings_lose_their_examples_alone() -> None:
    shortened = list(shorten_docstrings(ast.parse(PUBLIC), ["Public"]).values())
    assert shortened == [
        '    """Get it.\n\n    Raises:\n        ValueError: Never.\n    """',
        '        """Call it.\n\n        Args:\n            x: Kept.\n        """',
        '        """Help it."""',
    ]


# What is done, and what is like it and stays inside.
LINES = {
    "Network": "requests.get(url); Model.from_pretrained(name); super().from_pretrained(name)",
    "Disk": "open(path); Image.open(path); path.write_text(text); os.replace(a, b); safetensors.safe_open(p)",
    "State of others": "model.layers = x; self.model.layers = x; self.model.layers[0].norm, y = x, 1; "
    "del model.layers; setattr(model, name, x); hook.pre_forward(model)",
    "": "self.layers = x; layers = model.layers; read_text(x); text.replace(a, b); setattr(self, name, x); "
    "f.__annotations__ = x",
}


@pytest.mark.parametrize(("kind", "line"), [(kind, line) for kind in LINES for line in LINES[kind].split("; ")])
def test_what_reaches_outside_is_found_in_functions_and_methods(kind: str, line: str) -> None:
    text = f"class C:\n  def f(self):\n    {line}\ndef g(self):\n  def h():\n    {line}\n"
    assert find_reach(text) == {name: {"C.f", "g"} if name == kind else set() for name in LINES if name}


def test_the_map_must_name_all_of_them_and_no_other() -> None:
    text = "def f():\n    open(p)\ndef g():\n    requests.get(u)\n"
    assert compare_with_map("Top.\nNetwork: `g`\nDisk:\n  reads `f`\n", text) == []
    assert compare_with_map("Network: `g`, `h`\n", text) == [
        "the map's 'Network' names `h`, which does no such thing",
        "the map's 'Disk' leaves out `f`",
    ]
