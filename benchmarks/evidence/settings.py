"""What an experiment is: settings to paint with, each beside what the guide claims of it. Data, no measuring."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from zimage_vl.blend.knobs import VLConditioning
from zimage_vl.recipes import RECIPES


REFERENCES = ("scene", "grey", "noise")
MASKS = ("", "middle", "border")
NEUTRALS = (
    "",
    "grey",
    "desaturated",
    "other colours",
    "prompt's colours",
    "prompt's colour",
    "prompt's background",
    "prompt's shape",
)
# Fields for captions and places: the prompt's shape, colour, background, and the reference's.
FIELDS = ("ps", "pc", "pb", "rs", "rc", "rb")
NO_CLAIM = "-"


@dataclass(frozen=True)
class Setting:
    """One row of a table: every pair of the bench is painted with it.

    Attributes:
        label: Its name in the table, unique in its experiment.
        claim: What the guide says of it.
        knobs: The pipeline's keyword arguments; places of `vl_alpha` may hold the `FIELDS`, as `{ps}`.
        reference: What the reference shows: the pair's "scene", or one of the controls "grey" and "noise".
        text: What stands beside the reference, with `FIELDS`; None is the prompt.
        text_position: "after" or "before" the picture.
        mask: Which part of the reference counts: "" all, "middle" or "border".
        second: A second reference, another scene: the weights of the two. Empty: none.
        neutral: The picture without what is to be transferred, for style_delta: flat "grey"; the reference
            "desaturated"; its shape in "other colours"; or the reference with the "prompt's colours" (colour and
            background), "prompt's colour", "prompt's background" or "prompt's shape" in place of its own.
        rounds: How often the picture that comes out becomes the reference.
    """

    label: str
    claim: str = NO_CLAIM
    knobs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reference: str = "scene"
    text: str | None = None
    text_position: Literal["after", "before"] = "after"
    mask: str = ""
    second: tuple[float, ...] = ()
    neutral: str = ""
    rounds: int = 1

    def __post_init__(self) -> None:
        for value, known in ((self.reference, REFERENCES), (self.mask, MASKS), (self.neutral, NEUTRALS)):
            if value not in known:
                raise ValueError(f"A setting knows {known}, got {value!r}.")

    @property
    def key(self) -> str:
        """What is painted, without how it is called: settings of the same key are measured once.

        Example:
            >>> Setting("a", knobs={"vl_alpha": 0.0}).key == Setting("b", reference="grey").key
            False
            >>> Setting("a", knobs={"vl_alpha": 0.0}).key == Setting("b", knobs={"vl_alpha": 0}, mask="middle").key
            True
        """
        if self.knobs.get("vl_alpha") == 0:
            return "the prompt alone"
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("label", "claim")}
        parts = {name: value for name, value in parts.items() if value != _DEFAULTS[name]}
        knobs = {name: value for name, value in self.knobs.items() if value != getattr(VLConditioning, name)}
        return json.dumps({**parts, "knobs": knobs}, sort_keys=True)


_DEFAULTS: dict[str, Any] = {
    "knobs": None,
    "reference": "scene",
    "text": None,
    "text_position": "after",
    "mask": "",
    "second": (),
    "neutral": "",
    "rounds": 1,
}


@dataclass(frozen=True)
class Experiment:
    """One section of the page.

    Attributes:
        name: On the command line.
        title: The heading.
        claim: What the guide says about the knob as a whole.
        settings: The rows.
        common: What all rows have in common, in words.
    """

    name: str
    title: str
    claim: str
    settings: tuple[Setting, ...]
    common: str = ""


def row(label: str, claim: str = NO_CLAIM, /, **arguments: Any) -> Setting:
    """A setting; `vl_...` arguments are knobs, the others fields of `Setting`.

    Example:
        >>> row("half", vl_alpha=0.5, reference="grey").reference
        'grey'
    """
    knobs = {name: value for name, value in arguments.items() if name.startswith("vl_")}
    others = {name: value for name, value in arguments.items() if not name.startswith("vl_")}
    return Setting(label, claim, knobs, **others)


def recipe_row(label: str, name: str, claim: str, /, **arguments: Any) -> Setting:
    """A recipe, with changes; its vl_text becomes the setting's text."""
    knobs = {**json.loads(json.dumps(RECIPES[name])), **arguments}
    if "vl_text" in knobs:
        knobs.setdefault("text", knobs.pop("vl_text"))
    return row(label, claim, **knobs)
