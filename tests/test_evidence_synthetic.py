"""All synthetic experiments together."""

from __future__ import annotations

import pytest

from zimage_vl.evidence import synthetic_alpha
from zimage_vl.evidence.synthetic import synthetic_experiments


def test_all_tables_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    # A few ways and rows: the rest is tested where it is made.
    monkeypatch.setattr(synthetic_alpha, "WAYS", synthetic_alpha.WAYS[2:5])
    monkeypatch.setattr(synthetic_alpha, "PUBLISHED", synthetic_alpha.PUBLISHED[1:2])
    tables = synthetic_experiments(sides=(256,), prompt_lengths=(11,))
    assert len({table.title for table in tables}) == len(tables) == 9
    for table in tables:
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows), table.title
        assert "real weights" in table.note
    assert tables[1].columns == ("scaling", "256 px (90 tokens)")
    assert tables[2].columns == ("scaling", "11 text tokens")
