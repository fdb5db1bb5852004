"""Measurements without any painting, for the tests of the evidence page."""

from __future__ import annotations

import random

from zimage_vl.evidence.experiments_more import EXPERIMENTS
from zimage_vl.evidence.outcomes import Measurements, Outcome
from zimage_vl.evidence.tables import Table


PROVENANCE = {"pairs": 20, "seed": 1, "pipeline": "abc", "toy": "def", "zimage-vl": "0", "torch": "1"}


def random_outcome(rng: random.Random, count: int = 20, letters: str = "pr-") -> Outcome:
    """An outcome of `count` pictures."""
    lines = ["".join(rng.choices(letters, k=count)) for _ in range(3)]
    iou, stray = [rng.randint(50, 90) for _ in range(count)], [rng.randint(0, 40) for _ in range(count)]
    return Outcome(*lines, iou, stray, rng.random(), rng.random(), float(rng.randint(0, 3)))


def made_measurements(seed: int = 0) -> Measurements:
    """Every setting of every experiment, with numbers that mean nothing."""
    rng = random.Random(seed)
    made = Measurements(dict(PROVENANCE), {"threads": 1, "python": "3"})
    for experiment in EXPERIMENTS.values():
        for setting in experiment.settings:
            letters = "prs-" if setting.second else "pr-"
            made.outcomes[setting.key] = [random_outcome(rng, letters=letters) for _ in range(setting.rounds)]
    made.tables["embeddings"] = [Table("Sizes", ("a", "b"), (("1", "2"),), "A note.")]
    made.tables["synthetic"] = [Table("A sink", ("a",), (("1",),), "Computed.")]
    return made
