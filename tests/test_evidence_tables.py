"""Tables as markdown."""

from __future__ import annotations

from zimage_vl.evidence.tables import Table


def test_a_table_is_markdown_with_its_note() -> None:
    table = Table("Sizes", ("a", "b"), (("1", "x|y"),), "Computed.")
    assert table.to_markdown() == "### Sizes\n\n| a | b |\n|---|---|\n| 1 | x\\|y |\n\nComputed."
