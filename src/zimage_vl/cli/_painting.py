"""How `generate` paints: at once, in rounds, over a start picture. Each picture is kept as soon as it is there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._parsing import parse_size
from ._shared import note, numbered_paths, write_png


if TYPE_CHECKING:
    from zimage_vl.blend.knobs import VLConditioning

DEFAULT_STRENGTH = 0.6  # diffusers' own

IterationsOption = Annotated[
    int | None,
    typer.Option(
        "--iterations",
        min=1,
        metavar="INT",
        help="Rounds, at least 1: from the second on the picture of the last is the reference; each is kept, as "
        "name-round1.png. Default: 1.",
    ),
]
InitImageOption = Annotated[
    str | None,
    typer.Option(
        "--init-image",
        metavar="PATH|URL",
        help="Picture to paint over (image-to-image). Without a size it is painted in its aspect, at the default's "
        "area; to a size it is scaled, and what stands over is cut off. Default: none.",
    ),
]
StrengthOption = Annotated[
    float | None,
    typer.Option(
        "--strength",
        min=0,
        max=1,
        metavar="NUMBER",
        help="Above 0, up to 1, with --init-image: the share of the steps that is run, rounded up; at 1 nothing of it "
        "is left. Default: 0.6.",
    ),
]
StatisticsFileOption = Annotated[
    Path | None,
    typer.Option(
        "--statistics",
        metavar="FILE",
        help="File of `zimage-vl statistics`, for knobs that need the text encoder's. Default: they are measured.",
    ),
]


@dataclass(frozen=True)
class StartPicture:
    """What is painted over, and how much of it goes."""

    image: Any
    strength: float
    source: dict[str, str]


def read_start(given: dict[str, Any], knobs: dict[str, Any], read_image: Callable[..., Any]) -> StartPicture | None:
    """The start picture; None where there is none.

    Raises:
        ValueError: A strength without it, or of 0; a window of steps beside it; a picture that cannot be read.
    """
    if given["init_image"] is None:
        if given["strength"] is not None:
            raise ValueError("--strength does nothing without --init-image: add it, or leave out --strength.")
        return None
    for name in ("vl_start", "vl_end"):
        if name in knobs:
            raise ValueError(
                f"--{name.removeprefix('vl_')} cannot be had with --init-image: diffusers' image-to-image pipeline "
                "takes one conditioning for all of its steps. Leave out one of them."
            )
    strength = DEFAULT_STRENGTH if given["strength"] is None else given["strength"]
    if not strength > 0:
        raise ValueError("--strength must be above 0, which would give the start picture back, and at most 1.")
    sources: list[dict[str, str]] = []
    image = read_image("--init-image", given["init_image"], sources)
    return StartPicture(image, strength, sources[0])


def describe_start(start: StartPicture | None, steps: int) -> dict[str, Any] | None:
    """What is recorded of the start picture, with how many of the steps are run over it."""
    if start is None:
        return None
    run = steps - int(max(steps - steps * start.strength, 0))  # as diffusers counts
    if run == steps:
        note(f"At strength {start.strength} all {steps} steps are run: nothing of the start picture is left.")
    return {**start.source, "strength": start.strength, "steps_run": run}


def choose_size(given: dict[str, Any], side: int, start: StartPicture | None) -> tuple[int, int]:
    """Width and height: those that were given, the start picture's aspect for what is missing, or the default."""
    size, width, height = given["size"], given["width"], given["height"]
    if start is None or size is not None:
        return parse_size(size, width, height, side)
    from zimage_vl.workflows.image_to_image import fit_size, load_init_image

    if width is None and height is None:
        return fit_size(start.image.size, 16, side * side)
    parse_size(None, width, height, side)  # refuses a side that is no multiple
    return load_init_image(start.image, width, height).size


def check_iterations(given: dict[str, Any], conditioning: VLConditioning) -> int:
    """How many rounds.

    Raises:
        ValueError: Several, without a picture to begin with, or where the reference does nothing.
    """
    iterations = given["iterations"] or 1
    if iterations == 1:
        return 1
    if given["embeds"]:
        raise ValueError(
            "--iterations above 1 cannot be had with --embeds: the rounds after the first read pictures, so that the "
            "VL model is needed all the same. Pass the first picture as --reference."
        )
    if not given["reference"]:
        raise ValueError("--iterations above 1 needs a --reference to begin with.")
    if conditioning.is_inert:
        raise ValueError("--iterations above 1 with an alpha of 0 everywhere would give the same picture each time.")
    return iterations


def check_low_memory(given: dict[str, Any]) -> None:
    """Refuses what `--low-memory` cannot be had with.

    Raises:
        ValueError: Offload, a start picture, or a file of statistics.
    """
    if given["offload"].value != "none":
        raise ValueError("--low-memory and --offload exclude each other: --low-memory holds one model at a time.")
    for name in ("init_image", "statistics"):
        if given[name] is not None:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} cannot be had with --low-memory: leave out one of them.")


def read_statistics(path: Path | None, conditioning: VLConditioning) -> dict[str, str] | None:
    """What is recorded of a file of statistics, once it is known that it will be used.

    Raises:
        ValueError: It is no such file, or nothing would read it.
    """
    if path is None:
        return None
    from zimage_vl.pipeline.text_statistics import TextStatistics

    loaded = TextStatistics.load(path)
    if conditioning.is_inert or not conditioning.needs_text_statistics:
        raise ValueError("--statistics would do nothing: no knob that is set compares with the text encoder's.")
    if loaded.statistics.exclude_sinks != conditioning.vl_exclude_sinks:
        flags = ["--include-sinks", "--exclude-sinks"]
        measured, wanted = flags[loaded.statistics.exclude_sinks], flags[conditioning.vl_exclude_sinks]
        raise ValueError(f"{path} was measured with {measured}, the picture is made with {wanted}: use the same.")
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@dataclass
class Pictures:
    """The files of a run: written one by one, each with how it was made.

    Attributes:
        output: The path that was asked for.
        parameters: What holds for all of them, as it is recorded.
        seeds: One a picture.
        rounds: How many times each is painted.
        written: What there is already, first to last.
    """

    output: Path
    parameters: dict[str, Any]
    seeds: Sequence[int]
    rounds: int = 1
    written: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def keep(self, image: Any, seed: int, number: int, reports: Any) -> None:
        """Write a picture of a seed and a round, from 0."""
        path = numbered_paths(self.output, len(self.seeds))[self.seeds.index(seed)]
        record = {**self.parameters, "seed": seed, "report": reports and [report.to_dict() for report in reports]}
        if self.rounds > 1:
            path = path.with_name(f"{path.stem}-round{number + 1}{path.suffix}")
            record |= {"iterations": self.rounds, "round": number + 1}
            note(f"round {number + 1} of {self.rounds}: {path}")
        if number:
            record |= self._of_a_later_round()
        write_png(image, path, record)
        self.written.append({"output": str(path), **record})

    def _of_a_later_round(self) -> dict[str, Any]:
        """A later round's reference is the last picture; what spoke of the first reference is no part of it."""
        last = Path(self.written[-1]["output"])
        source = {
            "option": "--iterations",
            "name": last.name,
            "sha256": hashlib.sha256(last.read_bytes()).hexdigest(),
        }
        first_only = ("--reference", "--reference-mask")
        others = [entry for entry in self.parameters["references"] if entry["option"] not in first_only]
        return {"references": [source, *others], "knobs": {**self.parameters["knobs"], "reference_weights": None}}

    def to_dict(self) -> dict[str, Any]:
        """All of it as one JSON object; what differs between rounds is told of each."""
        paths = [record["output"] for record in self.written]
        if self.rounds == 1:
            return {"outputs": paths, **self.parameters, "report": self.written[0]["report"]}
        each = ("output", "seed", "round", "references", "report")
        rounds = [{name: record[name] for name in each} for record in self.written]
        return {"outputs": paths, **self.parameters, "iterations": self.rounds, "rounds": rounds}


def paint(
    pipe: Any,
    prompt: str,
    arguments: Callable[[Sequence[int]], dict[str, Any]],
    pictures: Pictures,
    start: StartPicture | None = None,
) -> None:
    """Paint a prompt and keep what comes.

    Args:
        pipe: A `ZImageVLPipeline`, on its device.
        prompt: What to paint.
        arguments: The call's other arguments for these seeds.
        pictures: Where the pictures go, for which seeds and how many rounds.
        start: What is painted over.
    """
    once: Any = pipe
    if start is not None:
        from zimage_vl.workflows.image_to_image import paint_from_image

        once = partial(paint_from_image, pipe, init_image=start.image, strength=start.strength)
    if pictures.rounds == 1:
        output = once(prompt, **arguments(pictures.seeds))
        for seed, image in zip(pictures.seeds, output.images, strict=True):
            pictures.keep(image, seed, 0, output.conditioning)
        return
    from zimage_vl.workflows.rounds import refine_iteratively

    for seed in pictures.seeds:

        def keep(number: int, output: Any, seed: int = seed) -> None:
            pictures.keep(output.images[0], seed, number, output.conditioning)

        refine_iteratively(once, prompt, iterations=pictures.rounds, on_round=keep, **arguments([seed]))
