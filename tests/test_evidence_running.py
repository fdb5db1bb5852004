"""A run: what it chooses, what it measures, how it goes on, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from evidence_samples import PROVENANCE, made_measurements
from zimage_vl.evidence.experiments_more import EXPERIMENTS
from zimage_vl.evidence.running import choose_experiments, describe_run, get_missing, open_measurements


def test_unknown_names_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"--only alhpa: there are the experiments alpha, layers, .*controls"):
        choose_experiments(["alpha", "alhpa"])
    assert [e.name for e in choose_experiments([])] == list(EXPERIMENTS)
    assert [e.name for e in choose_experiments(["steps", "alpha"])] == ["alpha", "steps"]


def test_a_setting_in_two_experiments_is_measured_once() -> None:
    made = made_measurements()
    made.outcomes.clear()
    missing = get_missing(EXPERIMENTS.values(), made)
    assert len({setting.key for setting in missing}) == len(missing)
    assert len(missing) < sum(len(experiment.settings) for experiment in EXPERIMENTS.values())


def test_only_what_is_missing_is_left_to_measure() -> None:
    made = made_measurements()
    assert get_missing(EXPERIMENTS.values(), made) == []
    gone = EXPERIMENTS["steps"].settings[2]
    del made.outcomes[gone.key]
    assert get_missing(EXPERIMENTS.values(), made) == [gone]
    assert get_missing([EXPERIMENTS["text"]], made) == []


def test_a_file_of_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    made_measurements().save(path)
    assert open_measurements(path, dict(PROVENANCE), fresh=False) == made_measurements()
    other = {**PROVENANCE, "pairs": 30, "torch": "2"}
    with pytest.raises(ValueError, match=r"pairs 20 there, 30 here, torch 1 there, 2 here\).*--fresh.*--render-only"):
        open_measurements(path, other, fresh=False)
    assert open_measurements(path, other, fresh=True).outcomes == {}
    assert open_measurements(tmp_path / "none.json", other, fresh=False).provenance == other


def test_a_run_knows_its_code_weights_and_versions() -> None:
    told = describe_run(60, 1)
    assert (told["pairs"], told["seed"]) == (60, 1)
    assert {"zimage-vl", "torch", "diffusers", "transformers"} <= set(told)
    assert len(told["pipeline"]) == len(told["toy"]) == 12
