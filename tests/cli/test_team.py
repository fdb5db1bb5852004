"""The processes of a sweep: alone it is all of them. Two are tried with a whole sweep, in test_sweep.py."""

from __future__ import annotations

import pytest

from zimage_vl.cli._team import Team


def test_processes_cannot_share_one_named_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--device cuda:1 is one for all processes"):
        Team.join("cuda:1")
