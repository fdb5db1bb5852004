"""One run: which settings are still to be measured, and a file that knows what is done."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from zimage_vl._version import __version__
from zimage_vl.toy.loading import CHECKPOINT

from .bench import EvidenceBench
from .embedding_tables import measure_embedding_tables
from .experiments_more import EXPERIMENTS
from .outcomes import SYNTHETIC_TABLES, TOY_TABLES, Measurements
from .settings import Experiment, Setting
from .synthetic import synthetic_experiments


EMBEDDING_PAIRS = 24  # of the bench's, for the tables that need no pictures
_LIBRARIES = ("torch", "diffusers", "transformers")


def choose_experiments(names: Sequence[str]) -> list[Experiment]:
    """The experiments of these names, in the order of the page; all for none.

    Raises:
        ValueError: A name that is none.

    Example:
        >>> [experiment.name for experiment in choose_experiments(["steps", "alpha"])]
        ['alpha', 'steps']
    """
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown:
        raise ValueError(f"--only {' '.join(unknown)}: there are the experiments {', '.join(EXPERIMENTS)}.")
    return [experiment for name, experiment in EXPERIMENTS.items() if not names or name in names]


def describe_run(pairs: int, seed: int) -> dict[str, Any]:
    """What has to be the same for two measurements to belong together."""
    bundle = (files("zimage_vl") / "single_file_pipeline.txt").read_text(encoding="utf-8")
    found = re.search(r"sha256 ([0-9a-f]{12})", bundle)
    toy = hashlib.sha256((CHECKPOINT / "manifest.json").read_bytes()).hexdigest()[:12]
    versions = {"zimage-vl": __version__, **{name: version(name) for name in _LIBRARIES}}
    return {"pairs": pairs, "seed": seed, "pipeline": found[1] if found else "unknown", "toy": toy, **versions}


def open_measurements(path: Path, provenance: dict[str, Any], fresh: bool) -> Measurements:
    """The measurements of an earlier run of the same kind, or none.

    Raises:
        ValueError: The file is of another run: other pairs, seed, versions, weights or code.
    """
    if fresh or not path.exists():
        return Measurements(provenance)
    found = Measurements.load(path)
    if found.provenance != provenance:
        differing = [name for name in provenance if found.provenance.get(name) != provenance[name]]
        told = ", ".join(f"{name} {found.provenance.get(name)} there, {provenance[name]} here" for name in differing)
        raise ValueError(
            f"{path} holds measurements of another run ({told}). Pass --fresh to measure everything again in its "
            "place, another --output, or --render-only to write the page from what it holds."
        )
    known = {setting.key for experiment in EXPERIMENTS.values() for setting in experiment.settings}
    found.outcomes = {key: rounds for key, rounds in found.outcomes.items() if key in known}
    return found


def get_missing(experiments: Iterable[Experiment], measurements: Measurements) -> list[Setting]:
    """The settings that are not measured yet, each of a kind once."""
    wanted = {setting.key: setting for experiment in experiments for setting in experiment.settings}
    return [setting for key, setting in wanted.items() if key not in measurements.outcomes]


def lacks_tables(measurements: Measurements) -> bool:
    """Whether a table that needs no pictures is still to be made."""
    return not {TOY_TABLES, SYNTHETIC_TABLES} <= set(measurements.tables)


def run_experiments(
    pipe: Any,
    missing: Sequence[Setting],
    measurements: Measurements,
    path: Path,
    *,
    on_pictures: Callable[[int], object] = lambda _: None,
) -> None:
    """Measure what is missing; the file holds each setting as soon as it is done.

    Args:
        pipe: A toy pipeline.
        missing: The settings to measure.
        measurements: What is there already; it is added to.
        path: Its file.
        on_pictures: Called with the number of pairs that a batch has done.
    """
    pairs, seed = measurements.provenance["pairs"], measurements.provenance["seed"]
    bench = EvidenceBench(pipe, pairs, seed)
    if TOY_TABLES not in measurements.tables:
        measurements.tables[TOY_TABLES] = measure_embedding_tables(pipe, bench.pairs[:EMBEDDING_PAIRS])
        measurements.save(path)
    if SYNTHETIC_TABLES not in measurements.tables:
        measurements.tables[SYNTHETIC_TABLES] = synthetic_experiments()
        measurements.save(path)
    for setting in missing:
        started = time.monotonic()
        measurements.outcomes[setting.key] = bench.measure(setting, on_pictures)
        spent = time.monotonic() - started
        measurements.remarks["seconds"] = round(measurements.remarks.get("seconds", 0.0) + spent, 1)
        measurements.save(path)
