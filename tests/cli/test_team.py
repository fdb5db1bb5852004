"""The processes of a sweep: alone it is all of them. Two are tried with a whole sweep, in test_sweep.py."""

from __future__ import annotations

from collections import Counter

import pytest

from zimage_vl.cli._team import Team


def test_alone_a_process_does_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    team = Team.join("cpu")
    assert (team.kind, team.device, team.is_main) == ("cpu", "cpu", True)
    assert list(team.share(range(2, 5))) == [2, 3, 4]
    team.wait()
    assert team.add_up(Counter(done=2), Counter(["why"])) == [{"done": 2}, {"why": 1}]
    team.leave()


def test_processes_cannot_share_one_named_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--device cuda:1 is one for all processes"):
        Team.join("cuda:1")
