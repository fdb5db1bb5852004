"""`zimage-vl generate`: one prompt, a reference or none, PNG files that say how they were made."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import zimage_vl
from zimage_vl.blend.registry import CONDITIONING_NAMES, KNOBS
from zimage_vl.recipes import RECIPES, WISHES

from ._models import Model
from ._options import OffloadOption, choose, option, option_names, with_options
from ._outputs import OverwriteOption, check_output_path, numbered_paths
from ._parsing import parse_alpha, parse_size
from ._records import PICTURE_KNOBS, describe_file, recorded_versions, repeat, write_png
from ._sources import NoUrlsOption, read_picture
from ._terminal import FormatOption, OutputFormat, check_text, note, print_json, say


_STRENGTH = 0.6  # diffusers' own
_SAME_STRENGTH, _SAME_KNOBS = 0.9, {"vl_alpha": 0.4}  # as of `paint_like`
_SEVERAL = "name-0.png, name-1.png"
_FROM = "Repeat a picture of `generate`, whose settings stand in it; options beside it take precedence."
_TAKE = f"What to take of the reference: {', '.join(WISHES)}; or a recipe of `zimage-vl recipes`. Options win over it."
_SAME = "Paint over the reference itself, which is blended in too. --strength is 0.9 then, and --alpha 0.4."
_ROUNDS = "Rounds: from the second on, the last picture is the reference. Each is kept, as name-round1.png."
_START = "Picture to paint over. Without a size in its aspect at the default's area, else scaled and cropped."
_SHARE = f"Above 0, up to 1, with --init-image: the share of the steps that is run. Default: {_STRENGTH}."
_FILE = "File of `zimage-vl statistics`, for knobs that need the text encoder's. Default: they are measured."
_SIZE = "WIDTHxHEIGHT in pixels, multiples of 16. Default: 1024x1024; 64x64 with toy."
_SEED = "Seed of the first picture; the next take the next ones. Default: random, told and recorded."
_STAGES = "Load VL encoder, text encoder and transformer one after another, never two at a time."


@with_options(KNOBS)
def generate(
    prompt: Annotated[str, option("--prompt -p", "TEXT", "What to paint.")],
    output: Annotated[Path, option("--output -o", "FILE", f"PNG file to write. Several: {_SEVERAL}.")],
    model: Model,
    repeated: Annotated[Path | None, option("--from", "FILE", _FROM, callback=repeat, is_eager=True)] = None,
    take: Annotated[list[str] | None, option("--take --recipe", "NAME", _TAKE, parser=choose(tuple(RECIPES)))] = None,
    same_picture: Annotated[bool, option("--same-picture", None, _SAME)] = False,
    iterations: Annotated[int, option("--iterations", "INT", _ROUNDS, min=1, max=1000)] = 1,
    init_image: Annotated[str | None, option("--init-image", "PATH|URL", _START)] = None,
    strength: Annotated[float | None, option("--strength", "NUMBER", _SHARE, min=0, max=1)] = None,
    statistics: Annotated[Path | None, option("--statistics", "FILE", _FILE)] = None,
    negative_prompt: Annotated[str | None, option("--negative-prompt", "TEXT", "Keep away; needs --guidance.")] = None,
    steps: Annotated[int | None, option("--steps", "INT", "Denoising steps. Default: 9; 8 with toy.", min=1)] = None,
    guidance: Annotated[float, option("--guidance", "NUMBER", "Scale; 0 is off, for Turbo.", min=0)] = 0.0,
    seed: Annotated[int | None, option("--seed", "INT", _SEED, min=0, max=2**63 - 1)] = None,
    size: Annotated[str | None, option("--size", "WxH", _SIZE)] = None,
    width: Annotated[int | None, option("--width", "INT", "Width alone.", min=16)] = None,
    height: Annotated[int | None, option("--height", "INT", "Height alone.", min=16)] = None,
    num_images: Annotated[int, option("--num-images -n", "INT", "How many pictures.", min=1, max=10_000)] = 1,
    offload: OffloadOption = "none",
    low_memory: Annotated[bool, option("--low-memory", None, _STAGES)] = False,
    no_urls: NoUrlsOption = False,
    overwrite: OverwriteOption = False,
    output_format: FormatOption = OutputFormat.TEXT,
    **knobs: Any,
) -> None:
    """Paint a prompt, with a reference picture or without; over a start picture, or in rounds that read the last one.

    The knobs, the seed, the versions and a report of what the reference did stand in the PNG as its text "parameters".
    The paths are printed last.
    """
    asked = SimpleNamespace(**locals())
    _check_together(asked)
    if same_picture:
        init_image, strength = knobs["reference_image"][0], _SAME_STRENGTH if strength is None else strength
    files: list[Any] = [init_image, statistics, *(path for name in PICTURE_KNOBS for path in _listed(knobs.get(name)))]
    for path in (round_path(p, i, iterations) for p in numbered_paths(output, num_images) for i in range(iterations)):
        check_output_path(path, overwrite=overwrite, inputs=[*files, model.model, model.vl_model])
    references = _read_references(asked)
    _check_conditioning(asked, references.conditioning)
    start, described = (None, None) if init_image is None else read_picture("--init-image", init_image, no_urls)
    side, usual_steps = model.defaults
    width, height = choose_size(size, width, height, side, start)
    steps, strength = steps or usual_steps, _STRENGTH if strength is None else strength
    first = secrets.randbelow(2**32) if seed is None else seed
    painted = {"negative_prompt": negative_prompt, "width": width, "height": height}
    recorded = {
        "prompt": prompt,
        **model.describe(),
        "recipe": take[0] if take else None,
        **painted,
        "steps": steps,
        "guidance": guidance,
        "num_images": num_images,
        **references.describe(),
        "versions": recorded_versions(),
        "init_image": described and {**described, **_describe_start(steps, strength)},
        "statistics": None if statistics is None else describe_file(statistics),
    }
    call = {**painted, "num_inference_steps": steps, "guidance_scale": guidance, **references.arguments}
    model.announce()
    paint: Callable[..., Any]
    if low_memory:
        paint = model.paint_in_stages
    else:
        paint = pipe = _load(asked, references)
        if start is not None:
            paint = partial(zimage_vl.paint_from_image, pipe, init_image=start, strength=strength)
    seeds = list(range(first, first + num_images))  # one per picture, so that each can be had again alone
    pictures = _Pictures(output, recorded, seeds, iterations, overwrite)
    pictures.paint(paint, prompt, call)
    if output_format is OutputFormat.JSON:
        print_json(pictures.to_dict())
        return
    if seed is None:
        note(f"seed {first}")
    for record in pictures.written:
        say(record["output"])


def round_path(path: Path, number: int, rounds: int) -> Path:
    """Get the path of a round's picture, the first one's number being 0."""
    return path if rounds == 1 else path.with_name(f"{path.stem}-round{number + 1}{path.suffix}")


def _check_together(asked: Any) -> None:
    """Refuse options that are no text, or that cannot be had or do nothing beside the others."""
    knobs, take, offload = asked.knobs, asked.take or [], asked.offload if asked.offload != "none" else ""
    texts = {"--prompt": asked.prompt, "--negative-prompt": asked.negative_prompt, "`vl_text`": knobs.get("vl_text")}
    for name, text in [*texts.items(), *(("`vl_alpha`", text) for text in knobs.get("vl_alpha", ()))]:
        check_text(name, text)
    has_image, has_embeds = "reference_image" in knobs, "reference_embeds" in knobs
    start = "--same-picture" if asked.same_picture else "--init-image" if asked.init_image is not None else ""
    negative = [f"`{name}`" for name in knobs if name.startswith("negative_")]
    useless = [] if has_image or has_embeds or negative else [f"`{name}`" for name in knobs] + ["--take"] * bool(take)
    negative += ["--negative-prompt"] * (asked.negative_prompt is not None)
    window = [f"`{name}`" for name in ("vl_start", "vl_end") if name in knobs]
    refused: list[tuple[object, str]] = [
        (not isfinite(asked.guidance), "--guidance must be a finite number of at least 0."),
        (negative and not asked.guidance, f"{_do_nothing(negative)} without guidance: add --guidance, as 4.0."),
        (asked.strength is not None and not start, "--strength does nothing without --init-image: add it."),
        (asked.strength == 0, "--strength must be above 0, which would give the start picture back, and at most 1."),
        (asked.low_memory and offload, "--low-memory and --offload exclude each other: leave out one of them."),
        (offload and asked.model.device == "cpu", f"--offload {offload} needs an accelerator, and this is the CPU."),
        (asked.low_memory and start, f"{start} cannot be had with --low-memory: leave out one of them."),
        (
            asked.low_memory and asked.statistics,
            "--statistics cannot be had with --low-memory: leave out one of them.",
        ),
        (
            start and window,
            f"{' and '.join(window)} cannot be had with {start}, which has one conditioning for all steps.",
        ),
        (
            has_image and has_embeds,
            "`reference_image` and `reference_embeds` exclude each other: leave out one of them.",
        ),
        (asked.iterations > 1 and not has_image, "--iterations above 1 needs a `reference_image` to begin with."),
        (len(take) > 1, f"--take can be had once, got {' and '.join(take)}."),
        (asked.same_picture and asked.init_image, "--same-picture and --init-image exclude each other."),
        (
            asked.same_picture and len(knobs.get("reference_image", ())) != 1,
            "--same-picture paints over the reference, and needs one: a `reference_image`.",
        ),
        (useless, f"{_do_nothing(useless)} without `reference_image` or `reference_embeds`: add one of these."),
    ]
    for wrong, message in refused:
        if wrong:
            raise ValueError(message)


def _do_nothing(options: list[str]) -> str:
    return f"{' and '.join(options)} {'does' if len(options) == 1 else 'do'} nothing"


@dataclass(frozen=True)
class _References:
    """What the pipeline gets, and what is recorded of where it came from."""

    arguments: dict[str, Any]
    sources: list[dict[str, str]]
    conditioning: zimage_vl.VLConditioning

    def describe(self) -> dict[str, Any]:
        from zimage_vl.blend.report import make_jsonable

        knobs = {name: self.arguments.get(name, knob.default) for name, knob in KNOBS.items()}
        knobs |= {name: getattr(self.conditioning, name) for name in (*CONDITIONING_NAMES, "reference_weights")}
        used = {name: value for name, value in knobs.items() if name not in PICTURE_KNOBS}
        return {
            "references": self.sources,
            "reference_acts": bool(self.sources) and not self.conditioning.is_inert,
            "knobs": make_jsonable(used) if self.sources else None,
        }


def _read_references(asked: Any) -> _References:
    """Check the knobs and read what is in files, before any model is loaded."""
    given = dict(asked.knobs)
    if "vl_alpha" in given:
        given["vl_alpha"] = parse_alpha(given["vl_alpha"])
    base: dict[str, Any] = RECIPES[asked.take[0]] if asked.take else _SAME_KNOBS if asked.same_picture else {}
    if "reference_embeds" in given:  # the text was settled when they were read
        base = {name: value for name, value in base.items() if name != "vl_text"}
    knobs = {**base, **given}
    conditioning = zimage_vl.VLConditioning(
        **{name: value for name, value in knobs.items() if name in (*CONDITIONING_NAMES, "reference_weights")},
        has_neutral_image="neutral_image" in knobs,
    )
    sources: list[dict[str, str]] = []
    for name in (name for name in PICTURE_KNOBS if name in knobs):
        option, found = option_names(name)[0], list[Any]()
        for source in _listed(knobs[name]):
            if name.endswith("_embeds"):
                found.append(_load_embeds(option, source, knobs.get("vl_text", asked.prompt)))
                sources.append(describe_file(Path(source), option=option))
            else:
                image, described = read_picture(option, source, asked.no_urls)
                found.append(image)
                sources.append(described)
        knobs[name] = found[0] if len(found) == 1 else [found]  # several for the one prompt
    count = sum(source["option"] in ("--reference", "--embeds") for source in sources)
    weights = conditioning.reference_weights
    if weights is not None and len(weights) != count:
        raise ValueError(
            f"`reference_weights` has {len(weights)} numbers for {count} reference{'s' * (count != 1)}: one each."
        )
    if count and conditioning.is_inert:
        note("Alpha is 0 everywhere: the reference is not read, and this is the prompt's own picture.")
    return _References(knobs, sources, conditioning)


def _load_embeds(option: str, path: str, text: str) -> Any:
    try:
        embeds = zimage_vl.ReferenceEmbeds.load(path)
    except (ValueError, OSError) as error:
        raise type(error)(f"{option}: {error}") from error
    made = embeds.provenance
    if made.text not in (None, text) and not made.described and option == "--embeds":
        note(
            f"{option} {path} was read beside {made.text!r}, not {text!r}, as one call would: extract --text sets it."
        )
    return embeds


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _check_conditioning(asked: Any, conditioning: zimage_vl.VLConditioning) -> None:
    """Refuse rounds that would change nothing, and a file of statistics that nothing would read."""
    if asked.iterations > 1 and conditioning.is_inert:
        raise ValueError("--iterations above 1 with an alpha of 0 everywhere would give the same picture each time.")
    if asked.statistics is None:
        return
    loaded = zimage_vl.TextStatistics.load(asked.statistics)
    if conditioning.is_inert or not conditioning.needs_text_statistics:
        raise ValueError("--statistics would do nothing: no knob that is set compares with the text encoder's.")
    if loaded.statistics.exclude_sinks != conditioning.vl_exclude_sinks:
        flags = ["--include-sinks", "--exclude-sinks"]
        measured, wanted = flags[loaded.statistics.exclude_sinks], flags[conditioning.vl_exclude_sinks]
        raise ValueError(
            f"{asked.statistics} was measured with {measured}, the picture is made with {wanted}: use the same."
        )


def _describe_start(steps: int, strength: float) -> dict[str, Any]:
    """How much of the start picture goes, and how many of the steps are run over it."""
    run = steps - int(max(steps - steps * strength, 0))  # as diffusers counts
    if run == steps:
        note(f"At strength {strength} all {run} steps are run: nothing of the start picture is left.")
    return {"strength": strength, "steps_run": run}


def choose_size(
    size: str | None, width: int | None, height: int | None, side: int, start: Any = None
) -> tuple[int, int]:
    """Get width and height: those that were given, a start picture's aspect for what is missing, or the default."""
    if start is None or size is not None:
        return parse_size(size, width, height, side)
    from zimage_vl.workflows.image_to_image import fit_size

    if width is None and height is None:
        return fit_size(start.size, 16, side * side)
    return zimage_vl.load_init_image(start, width, height).size


def _load(asked: Any, references: _References) -> Any:
    model, pipe = asked.model, asked.model.load()
    if asked.statistics is not None:
        pipe.load_text_statistics(asked.statistics)
    if not references.conditioning.is_inert and any("reference_image" in name for name in references.arguments):
        model.check_reader(pipe, references.conditioning.vl_reader, references.conditioning.layers)
    return model.place(pipe, asked.offload)


@dataclass
class _Pictures:
    """The files of a run: each written as soon as it is painted, with how it was made."""

    output: Path
    parameters: dict[str, Any]  # what holds for all of them
    seeds: Sequence[int]
    rounds: int
    overwrite: bool
    written: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def paint(self, paint: Callable[..., Any], prompt: str, call: dict[str, Any]) -> None:
        """Paint all seeds in one call; in rounds, one after another."""
        import torch

        # On the CPU on every machine: the same seed starts from the same noise.
        noises = [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]
        if self.rounds == 1:
            output = paint(prompt, generator=noises, num_images_per_prompt=len(noises), **call)
            self._tell(output.conditioning)
            for seed, image in zip(self.seeds, output.images, strict=True):
                self._keep(image, seed, 0, output)
            return
        for seed, noise in zip(self.seeds, noises, strict=True):

            def keep(number: int, output: Any, seed: int = seed) -> None:
                note(f"round {number + 1} of {self.rounds}")
                self._tell(output.conditioning)
                self._keep(output.images[0], seed, number, output)

            zimage_vl.refine_iteratively(paint, prompt, iterations=self.rounds, on_round=keep, generator=noise, **call)

    def _tell(self, reports: Any) -> None:
        """Say in a line what the reference did."""
        for report in reports or ():
            if report.influence is None:
                said = [f"{report.appended_tokens} tokens of it stand behind the text"]
            else:
                said = [f"influence {report.influence:.2f} (0: none)"]
            if report.effective_alpha is not None:
                said.append(f"effective alpha {float(report.effective_alpha.median()):.2f}")
            if self.parameters["knobs"]["vl_exclude_sinks"] and not any((report.text_sinks, *report.reference_sinks)):
                said.append("no attention sinks found, so that --exclude-sinks changed nothing")
            note(f"reference: {', '.join(said)}")

    def _keep(self, image: Any, seed: int, number: int, output: Any) -> None:
        path = numbered_paths(self.output, len(self.seeds))[self.seeds.index(seed)]
        path = round_path(path, number, self.rounds)
        record = {**self.parameters, "seed": seed}
        for name, reports in (("report", output.conditioning), ("negative_report", output.negative_conditioning)):
            record[name] = reports and [report.to_dict() for report in reports]
        if self.rounds > 1:
            record |= {"iterations": self.rounds, "round": number + 1}
        if number:  # its reference is the last picture; what spoke of the first one is no part of it
            source = describe_file(Path(self.written[-1]["output"]), option="--iterations")
            first_only = ("--reference", "--reference-mask")
            others = [entry for entry in self.parameters["references"] if entry["option"] not in first_only]
            knobs = {**self.parameters["knobs"], "reference_weights": None}
            record |= {"references": [source, *others], "knobs": knobs}
        write_png(image, path, record, self.overwrite)
        self.written.append({"output": str(path), **record})

    def to_dict(self) -> dict[str, Any]:
        """All of it as one JSON object; what differs between rounds is told of each."""
        told = {"outputs": [record["output"] for record in self.written], **self.written[0]}
        told = {name: value for name, value in told.items() if name not in ("output", "round")}
        each = ("output", "seed", "round", "references", "report")
        rounds = [{name: record[name] for name in each} for record in self.written if self.rounds > 1]
        return {**told, **({"rounds": rounds} if rounds else {})}
