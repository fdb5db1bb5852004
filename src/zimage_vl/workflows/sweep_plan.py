"""The plan of a sweep: the values of each axis, and that every combination of them is one that a call would take."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..blend.checks import check_choice
from ..blend.knobs import VLConditioning
from ..blend.registry import CONDITIONING_NAMES, KNOBS
from ..blend.report import make_jsonable
from ..pipeline.inputs import check_describe
from ..recipes import RECIPES
from ..reference.pictures import TREATMENTS


#: The files of a job, in the order in which they are recorded, and what a record calls them.
SOURCES = {
    "reference_image": "--reference",
    "reference_embeds": "--embeds",
    "reference_mask": "--reference-mask",
    "negative_reference_image": "--negative-reference",
    "negative_reference_embeds": "--negative-embeds",
    "neutral_image": "--neutral-image",
}
#: What is settled when a picture is read, beside the reader.
OF_READING = ("vl_text", "vl_treatment", "vl_describe", "vl_text_position", "vl_max_pixels")
_SLOWEST = (*SOURCES, "reference_weights", "prompt", "negative_prompt", "recipe", "vl_reader", *OF_READING)
_PAINTING = ("size", "steps", "guidance", "seed")
_MOST_COMBINATIONS = 100_000  # of knobs; prompts, pictures and seeds may be any number
#: What a plan may vary, slowest first: jobs that share a reading follow each other.
AXES = (*_SLOWEST, *(name for name in KNOBS if name not in _SLOWEST), *_PAINTING)


@dataclass(frozen=True)
class SweepPlan:
    """Every combination of the values of its axes, numbered from 0; the last axis changes fastest.

    Attributes:
        axes: Values by name, of `AXES`. Pictures and embeddings are paths or URLs, a list of them is several that act
            together; a size is `(width, height)`; a recipe is a name, or None.
        layers: By reader, all layers that any job asks of it.
        muted: Whether any job subtracts the muted reference.

    Raises:
        TypeError: A name that is none of `AXES`.
        ValueError: No prompt, size, steps, guidance or seed; an axis without values; a combination of knobs that a
            call would refuse.

    Example:
        >>> painting = {"size": [(64, 64)], "steps": [8], "guidance": [0.0], "seed": [0, 1, 2]}
        >>> plan = SweepPlan({"prompt": ["a circle", "a square"], **painting})
        >>> len(plan), plan[4]["prompt"], plan[4]["seed"]
        (6, 'a square', 1)
    """

    axes: Mapping[str, Sequence[Any]]
    layers: Mapping[str, tuple[int, ...]] = field(init=False)
    muted: bool = field(init=False)

    def __post_init__(self) -> None:
        for name in self.axes:
            if name not in AXES:
                raise TypeError(f"A sweep has no axis {name!r}; it has {', '.join(AXES)}.")
        for name in ("prompt", *_PAINTING):
            if not self.axes.get(name):
                raise ValueError(f"A sweep needs at least one value of `{name}`.")
        # Each value once; they need not be hashable.
        once = {name: tuple({repr(x): x for x in self.axes[name]}.values()) for name in AXES if name in self.axes}
        object.__setattr__(self, "axes", {name: values for name, values in once.items() if values})
        if math.prod(map(len, self.axes.values())) > sys.maxsize:
            raise ValueError(f"The plan has more than {sys.maxsize} jobs: plan fewer.")
        layers: dict[str, dict[int, None]] = {}
        muted = False
        for one in self._check():
            layers.setdefault(one.vl_reader, {}).update(dict.fromkeys(one.layers))
            muted = muted or one.needs_muted
        object.__setattr__(self, "layers", {reader: tuple(found) for reader, found in layers.items()})
        object.__setattr__(self, "muted", muted)

    def __len__(self) -> int:
        return math.prod(len(values) for values in self.axes.values())

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Get a job: one value of each axis."""
        if not 0 <= number < len(self):
            raise IndexError(f"The plan has the jobs 0 to {len(self) - 1}, got {number}.")
        job: dict[str, Any] = {}
        for name, values in reversed(list(self.axes.items())):
            number, place = divmod(number, len(values))
            job[name] = values[place]
        return job

    def _check(self) -> Iterator[VLConditioning]:
        """What each combination of knobs makes of the blend, and that a call would take it."""
        read = {name for name in SOURCES if name in self.axes and "reference_" in name and name != "reference_mask"}
        negative = [name for name in self.axes if name.startswith("negative_")]
        useless = [name for name in self.axes if name in KNOBS or name == "recipe"]
        if {"reference_image", "reference_embeds"} <= read:
            raise ValueError("`reference_image` and `reference_embeds` exclude each other in a sweep.")
        if negative and not all(self.axes["guidance"]):
            raise ValueError(f"`{negative[0]}` does nothing without guidance: every job needs one above 0.")
        if useless and not read:
            raise ValueError(f"`{useless[0]}` does nothing without `reference_image` or `reference_embeds`: add one.")
        names = [name for name in self.axes if (name in KNOBS and name not in SOURCES) or name == "recipe"]
        varied = {name: self.axes[name] for name in names}
        if "vl_text" in varied:  # any text is as good as another
            varied["vl_text"] = tuple({text is None: text for text in varied["vl_text"]}.values())
        if (count := math.prod(map(len, varied.values()))) > _MOST_COMBINATIONS:
            many = " x ".join(f"{len(values)} of `{name}`" for name, values in varied.items() if len(values) > 1)
            raise ValueError(f"{many} are {count} combinations, at most {_MOST_COMBINATIONS} are tried: plan fewer.")
        for values in itertools.product(*varied.values()):
            knobs = merge_knobs(dict(zip(names, values, strict=True)))
            check_choice("vl_treatment", knobs.get("vl_treatment", "none"), TREATMENTS)
            yield make_conditioning(knobs, "neutral_image" in self.axes)


def merge_knobs(job: Mapping[str, Any]) -> dict[str, Any]:
    """Get a job's arguments about references: those of its recipe, and its own, which take precedence."""
    own = {name: value for name, value in job.items() if name in KNOBS and value is not None}
    return {**(RECIPES[job["recipe"]] if job.get("recipe") else {}), **own}


def make_conditioning(knobs: Mapping[str, Any], has_neutral_image: bool) -> VLConditioning:
    """Get what arguments about references make of the blend, checked."""
    text = "" if knobs.get("vl_text") is None else "vl_text"
    check_describe("vl_describe", knobs.get("vl_describe", False), text, knobs.get("vl_reader", "qwen3-vl"))
    own = {name: knobs[name] for name in (*CONDITIONING_NAMES, "reference_weights") if name in knobs}
    return VLConditioning(**own, has_neutral_image=has_neutral_image)


def describe_knobs(knobs: Mapping[str, Any], conditioning: VLConditioning) -> object:
    """Get all knobs but pictures as they act, as plain values for a record."""
    used = {name: knobs.get(name, knob.default) for name, knob in KNOBS.items() if name not in SOURCES}
    return make_jsonable({name: getattr(conditioning, name, value) for name, value in used.items()})


def as_list(value: Any) -> list[Any]:
    """Get the items of a list, the value alone, or nothing for None."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
