"""Reads measurements for the page: a share by its row, and words that follow from the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from zimage_vl.toy.measuring import ATTRIBUTES, CHANCE

from .experiments_more import EXPERIMENTS
from .outcomes import PROMPT, REFERENCE, SECOND, Measurements, Outcome
from .settings import Setting


_SIDES = {PROMPT: "prompt's", REFERENCE: "reference's", SECOND: "second's"}


class NotMeasured(LookupError):
    """A paragraph needs a row that no run has measured."""


class Reader:
    """Looks rows up by experiment and label.

    Args:
        measurements: Of a toy run.
    """

    def __init__(self, measurements: Measurements) -> None:
        self.measurements = measurements
        self._settings: dict[tuple[str, str], Setting] = {
            (experiment.name, setting.label): setting
            for experiment in EXPERIMENTS.values()
            for setting in experiment.settings
        }

    @property
    def pairs(self) -> int:
        """How many pairs each row is made of."""
        return int(self.measurements.provenance["pairs"])

    def rounds(self, setting: Setting) -> list[Outcome]:
        """The outcomes of a setting, one a round; none where it is not measured."""
        return self.measurements.outcomes.get(setting.key, [])

    def get(self, experiment: str, label: str, number: int = 0) -> Outcome:
        """The outcome of a row.

        Raises:
            NotMeasured: There is none yet.
        """
        rounds = self.rounds(self._settings[experiment, label])
        if not rounds:
            raise NotMeasured(f"{experiment}: {label}")
        return rounds[number]

    def prompt(self, experiment: str, label: str, attribute: str, number: int = 0) -> float:
        """Share of the prompt's value."""
        return self.get(experiment, label, number).share(attribute, PROMPT)

    def reference(self, experiment: str, label: str, attribute: str, number: int = 0) -> float:
        """Share of the reference's value."""
        return self.get(experiment, label, number).share(attribute, REFERENCE)

    def triple(self, experiment: str, label: str, side: str, number: int = 0) -> str:
        """The three shares of a side for running text, as `.95, 1.00 and .98`."""
        outcome = self.get(experiment, label, number)
        shares = [f"{outcome.share(name, side):.2f}" for name in ATTRIBUTES]
        return f"{shares[0]}, {shares[1]} and {shares[2]}"

    def lead(self, experiment: str, label: str, number: int = 0) -> str:
        """In short what a row shows, as in the table."""
        return tell_outcome(self.get(experiment, label, number))


def mean_share(outcome: Outcome, side: str) -> float:
    """The mean of a side's shares over the three attributes."""
    return fmean(outcome.share(name, side) for name in ATTRIBUTES)


def get_leader(outcome: Outcome, attribute: str) -> str | None:
    """The side whose share is above one half by two standard errors; None where none is."""
    for side in _SIDES:
        if outcome.share(attribute, side) - 2 * outcome.error(attribute, side) > 0.5:
            return side
    return None


def tell_outcome(outcome: Outcome) -> str:
    """What a row shows, in words that follow from its numbers.

    Example:
        >>> tell_outcome(Outcome("pppp", "rrrr", "pprr", [90] * 4, [0] * 4, 0.5, 0.1, 0.0))
        "shape the prompt's, colour the reference's, background open"
    """
    told: Mapping[str, str] = {
        name: f"the {_SIDES[side]}" if (side := get_leader(outcome, name)) else "open" for name in ATTRIBUTES
    }
    if len(set(told.values())) == 1:
        return f"all {told['shape']}"
    return ", ".join(f"{name} {words}" for name, words in told.items())


def is_above_chance(outcome: Outcome, attribute: str, side: str = REFERENCE) -> bool:
    """Whether a share is above what chance gives, 1/k with k the values that the prompt leaves, by three errors."""
    chance = CHANCE[attribute]
    count = outcome.count(attribute)
    return outcome.share(attribute, side) > chance + 3 * (chance * (1 - chance) / count) ** 0.5


def differ(first: Outcome, second: Outcome, attribute: str, side: str) -> bool:
    """Whether two rows differ by more than two standard errors of their difference, over the same pairs.

    The pairs and their noise are the same, so the error is that of the differences pair by pair.

    Example:
        >>> same = Outcome("pppp", "rrrr", "pprr", [90] * 4, [0] * 4, 0.5, 0.1, 0.0)
        >>> differ(same, same, "shape", "p"), differ(same, Outcome("rrrr", "", "", [], [], None, 0, 0), "shape", "p")
        (False, True)
    """
    pairs = zip(getattr(first, attribute), getattr(second, attribute), strict=True)
    changes = [(b == side) - (a == side) for a, b in pairs]
    mean = fmean(changes)
    error = (fmean((change - mean) ** 2 for change in changes) / len(changes)) ** 0.5
    return abs(mean) > 2 * error


def format_share(outcome: Outcome, attribute: str, side: str) -> str:
    """A share with its standard error.

    Example:
        >>> format_share(Outcome("pprr", "", "", [], [], None, 0.0, 0.0), "shape", "p")
        '.50 ± .25'
    """
    return f"{_short(outcome.share(attribute, side))} ± {_short(outcome.error(attribute, side))}"


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value < 1 else "1.0"
