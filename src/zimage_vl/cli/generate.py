"""`zimage-vl generate`: one prompt, a reference or none, PNG files that say how they were made."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import zimage_vl
from zimage_vl.blend.registry import KNOBS
from zimage_vl.recipes import RECIPES, WISHES
from zimage_vl.workflows.files import remove_leftovers

from ._models import Model
from ._options import OffloadOption, choose, option, option_names, with_options
from ._outputs import OverwriteOption, check_output_path, numbered_paths
from ._parsing import parse_alpha, parse_size
from ._records import PICTURE_KNOBS, describe_file, recorded_versions, repeat, write_png
from ._sources import NoUrlsOption, read_picture
from ._terminal import FormatOption, OutputFormat, count_of, note, print_json, say


_STRENGTH = 0.6  # diffusers' own
_SAME_STRENGTH, _SAME_KNOBS = 0.85, {"vl_alpha": 0.4}  # as of `paint_like`
_SEVERAL = "name-0.png, name-1.png"
_FROM = "Repeat a picture of `generate`, whose settings stand in it; options beside it take precedence."
_TAKE = f"What to take of the reference: {', '.join(WISHES)}; or a recipe of `zimage-vl recipes`. Options override it."
_SAME = "Paint over the reference itself, which is blended in too. --strength is 0.85 then, and --alpha 0.4."
_ROUNDS = "Rounds: from the second on, the last picture is the reference. Each is kept, as name-round1.png."
_START = "Picture to paint over. Its aspect is kept, unless a size is given: then it is scaled and cropped."
_SHARE = f"Above 0, up to 1, with --init-image: the share of the steps that is run. Default: {_STRENGTH}."
_FILE = "File of `zimage-vl statistics`, for knobs that need the text encoder's. Default: they are measured."
_SIZE = "WIDTHxHEIGHT in pixels, multiples of 16. Default: 1024x1024; 64x64 with toy."
_SEED = "Seed of the first picture; the next take the next ones. Default: random, told and recorded."
_STEPS = "Denoising steps. Default: 9; 8 with toy."
_STAGES = "Load VL encoder, text encoder and transformer one after another, never two at a time."


@with_options(KNOBS)
def generate(
    prompt: Annotated[str, option("--prompt -p", "TEXT", "What to paint; with --from, what that file says.")],
    output: Annotated[Path, option("--output -o", "FILE", f"PNG file to write. Several: {_SEVERAL}.")],
    model: Model,
    repeated: Annotated[Path | None, option("--from", "FILE", _FROM, callback=repeat, is_eager=True)] = None,
    take: Annotated[list[str] | None, option("--take --recipe", "NAME", _TAKE, parser=choose(tuple(RECIPES)))] = None,
    same_picture: Annotated[bool, option("--same-picture", None, _SAME)] = False,
    iterations: Annotated[int, option("--iterations", "INT", _ROUNDS, min=1, max=1000)] = 1,
    init_image: Annotated[str | None, option("--init-image", "PATH|URL", _START)] = None,
    strength: Annotated[float | None, option("--strength", "NUMBER", _SHARE, max=1)] = None,
    statistics: Annotated[Path | None, option("--statistics", "FILE", _FILE)] = None,
    negative_prompt: Annotated[str | None, option("--negative-prompt", "TEXT", "Keep away; needs --guidance.")] = None,
    steps: Annotated[int | None, option("--steps", "INT", _STEPS, min=1, max=10_000)] = None,
    guidance: Annotated[float, option("--guidance", "NUMBER", "Scale; 0 is off, for Turbo.", min=0)] = 0.0,
    seed: Annotated[int | None, option("--seed", "INT", _SEED, min=0, max=2**62)] = None,
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
    from zimage_vl.workflows.sweep_plan import as_list, describe_knobs

    settings, conditioning = _read_knobs(asked)
    _check_together(asked, conditioning)
    if same_picture:
        init_image, strength = knobs["reference_image"][0], _SAME_STRENGTH if strength is None else strength
    files: list[Any] = [init_image, statistics, *(path for name in PICTURE_KNOBS for path in as_list(knobs.get(name)))]
    paths = [round_path(p, i, iterations) for p in numbered_paths(output, num_images) for i in range(iterations)]
    remove_leftovers(output.parent, {path.name for path in paths})
    for path in paths:
        check_output_path(path, overwrite=overwrite, inputs=[*files, repeated, model.model, model.vl_model])
    if statistics is not None:
        flags, wanted = ["--include-sinks", "--exclude-sinks"], conditioning.vl_exclude_sinks
        measured = zimage_vl.TextStatistics.load(statistics).statistics.exclude_sinks
        if measured != wanted:
            raise ValueError(f"{statistics} is of {flags[measured]}, and this is painted with {flags[wanted]}.")
    arguments, sources = _read_files(settings, asked)
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
        "references": sources,
        "reference_acts": bool(sources) and not conditioning.is_inert,
        "knobs": describe_knobs(settings, conditioning) if sources else None,
        "versions": recorded_versions(),
        "init_image": described and {**described, **_describe_start(steps, strength)},
        "statistics": None if statistics is None else describe_file(statistics),
    }
    call = {**painted, "num_inference_steps": steps, "guidance_scale": guidance, **arguments}
    paint: Callable[..., Any]
    if low_memory:
        paint = model.paint_in_stages
    else:
        paint = pipe = _load(asked, conditioning)
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


def _read_knobs(asked: Any) -> tuple[dict[str, Any], zimage_vl.VLConditioning]:
    """The knobs, those of a recipe among them, and the checked ones; pictures are still names."""
    from zimage_vl.workflows.sweep_plan import make_conditioning

    given = dict(asked.knobs)
    if "vl_alpha" in given:
        given["vl_alpha"] = parse_alpha(given["vl_alpha"])
    base: Mapping[str, Any] = RECIPES[asked.take[0]] if asked.take else _SAME_KNOBS if asked.same_picture else {}
    knobs = {**base, **given}
    return knobs, make_conditioning(knobs, "neutral_image" in knobs)


def _check_together(asked: Any, conditioning: zimage_vl.VLConditioning) -> None:
    """Refuse options that cannot be had, or do nothing, beside the others."""
    knobs, take, low, iterations = asked.knobs, asked.take or [], asked.low_memory, asked.iterations
    images, embeds = len(knobs.get("reference_image", ())), len(knobs.get("reference_embeds", ()))
    start = "--same-picture" if asked.same_picture else "--init-image" if asked.init_image is not None else ""
    offload, weights = asked.offload.replace("none", ""), conditioning.reference_weights or ()
    negative = [f"`{name}`" for name in knobs if name.startswith("negative_")]
    useless = [] if images or embeds or negative else [f"`{name}`" for name in knobs] + ["--take"] * bool(take)
    negative += ["--negative-prompt"] * (asked.negative_prompt is not None)
    window = [f"`{name}`" for name in ("vl_start", "vl_end") if name in knobs]
    fixed = conditioning.is_inert or not conditioning.needs_text_statistics
    refused: list[tuple[object, str]] = [
        (not isfinite(asked.guidance), "--guidance must be a finite number of at least 0."),
        (negative and not asked.guidance, f"{_do_nothing(negative)} without guidance: add --guidance, such as 4.0."),
        (asked.strength is not None and not start, "--strength does nothing without --init-image: add it."),
        (
            asked.strength is not None and asked.strength <= 0,
            "--strength must be above 0, which would give the start picture back, and at most 1.",
        ),
        (low and offload, "--low-memory and --offload exclude each other: leave out one of them."),
        (offload and asked.model.device == "cpu", f"--offload {offload} needs an accelerator, and this is the CPU."),
        (low and start, f"{start} cannot be had with --low-memory: leave out one of them."),
        (low and asked.statistics, "--statistics cannot be had with --low-memory: leave out one of them."),
        (asked.statistics and fixed, "--statistics would do nothing: no knob that is set compares with the text's."),
        (
            start and window,
            f"{' and '.join(window)} cannot be had with {start}: there the reference counts in all steps.",
        ),
        (images and embeds, "`reference_image` and `reference_embeds` exclude each other: leave out one of them."),
        (iterations > 1 and not images, "--iterations above 1 needs a `reference_image` to begin with."),
        (
            iterations > 1 and conditioning.is_inert,
            "--iterations with an alpha of 0 gives the same picture each time.",
        ),
        (len(take) > 1, f"--take can be had once, got {' and '.join(take)}."),
        (asked.same_picture and asked.init_image, "--same-picture and --init-image exclude each other."),
        (asked.same_picture and images != 1, "--same-picture paints over the reference: give one --reference."),
        (useless, f"{_do_nothing(useless)} without `reference_image` or `reference_embeds`: add one of these."),
        (
            weights and len(weights) != images + embeds,
            f"`reference_weights` has {len(weights)} numbers for {count_of(images + embeds, 'reference')}: one each.",
        ),
    ]
    for wrong, message in refused:
        if wrong:
            raise ValueError(message)
    if images + embeds and conditioning.is_inert:
        note("Alpha is 0 everywhere: the reference is not read, and this is the prompt's own picture.")


def _do_nothing(options: list[str]) -> str:
    return f"{' and '.join(options)} {'does' if len(options) == 1 else 'do'} nothing"


def _read_files(knobs: dict[str, Any], asked: Any) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The knobs with pictures and embeddings in the place of their names, and what is recorded of these."""
    from zimage_vl.workflows.sweep_plan import as_list

    arguments, sources = dict(knobs), list[dict[str, str]]()
    for name in (name for name in PICTURE_KNOBS if name in knobs):
        option, found = option_names(name)[0], list[Any]()
        for source in as_list(knobs[name]):
            if name.endswith("_embeds"):
                found.append(_load_embeds(option, source, knobs, asked.prompt))
                sources.append(describe_file(Path(source), option=option))
            else:
                image, described = read_picture(option, source, asked.no_urls)
                found.append(image)
                sources.append(described)
        arguments[name] = found[0] if len(found) == 1 else [found]  # several for the one prompt
    return arguments, sources


def _load_embeds(option: str, path: str, knobs: Mapping[str, Any], prompt: str) -> Any:
    """Embeddings from a file, read as the knobs say; said is a text beside the picture that is not the prompt."""
    try:
        embeds = zimage_vl.ReferenceEmbeds.load(path)
    except (ValueError, OSError) as error:
        raise type(error)(f"{option}: {error}") from error
    made = embeds.provenance
    read = {"vl_text": made.text, "vl_treatment": made.treatment or "none", "vl_describe": bool(made.described)}
    for name in read.keys() & knobs.keys():
        if read[name] != knobs[name]:
            raise ValueError(
                f"{option} {path} was read with `{name}` {read[name]!r}, and {knobs[name]!r} is asked for: extract "
                "the reference again with that, or leave it (or the recipe that asks for it) out."
            )
    if option == "--embeds" and "vl_text" not in knobs and not made.described and made.text not in (None, prompt):
        note(f"{path} was read beside the text {made.text!r}; one call reads the reference beside the prompt.")
    return embeds


def _describe_start(steps: int, strength: float) -> dict[str, Any]:
    """How much of the start picture goes, and how many of the steps are run over it."""
    from zimage_vl.workflows.image_to_image import check_strength, count_run_steps

    check_strength(strength, steps)
    run = count_run_steps(steps, strength)
    if strength == 1:
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


def _load(asked: Any, conditioning: zimage_vl.VLConditioning) -> Any:
    pipe = asked.model.load()
    if asked.statistics is not None:
        pipe.load_text_statistics(asked.statistics)
    if not conditioning.is_inert and any("reference_image" in name for name in asked.knobs):
        asked.model.check_reader(pipe, conditioning.vl_reader, conditioning.layers)
    return asked.model.place(pipe, asked.offload)


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
        paths = numbered_paths(self.output, len(self.seeds))
        if self.rounds == 1:
            output = paint(prompt, generator=noises, num_images_per_prompt=len(noises), **call)
            self._tell(output)
            for seed, path, image in zip(self.seeds, paths, output.images, strict=True):
                self._keep(image, path, seed, 0, output)
            return
        for seed, path, noise in zip(self.seeds, paths, noises, strict=True):

            def keep(number: int, output: Any, path: Path = path, seed: int = seed) -> None:
                note(f"round {number + 1} of {self.rounds}")
                self._tell(output)
                self._keep(output.images[0], round_path(path, number, self.rounds), seed, number, output)

            zimage_vl.refine_iteratively(paint, prompt, iterations=self.rounds, on_round=keep, generator=noise, **call)

    def _tell(self, output: Any) -> None:
        """Say in a line what the reference did."""
        from zimage_vl.blend.report import measure_dose

        sides = ("reference", output.conditioning), ("negative reference", output.negative_conditioning)
        for side, report in ((side, report) for side, reports in sides for report in reports or ()):
            if report.influence is None:
                said = [f"{report.appended_tokens} tokens of it stand behind the text"]
            else:
                said = [f"influence {report.influence:.2f} (0: none)"]
            if (dose := measure_dose(report)) is not None:
                effective, acted = dose
                where = f" on {acted} of {report.text_tokens} tokens" * (acted < report.text_tokens)
                said.append(f"effective alpha {effective:.2f}{where}")
            if self.parameters["knobs"]["vl_exclude_sinks"] and not any((report.text_sinks, *report.reference_sinks)):
                said.append("no attention sinks found, so that --exclude-sinks changed nothing")
            note(f"{side}: {', '.join(said)}")

    def _keep(self, image: Any, path: Path, seed: int, number: int, output: Any) -> None:
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
        first = {name: value for name, value in self.written[0].items() if name not in ("output", "round")}
        told = {"outputs": [record["output"] for record in self.written], **first}
        each = ("output", "seed", "round", "references", "report")
        rounds = [{name: record[name] for name in each} for record in self.written if self.rounds > 1]
        return {**told, **({"rounds": rounds} if rounds else {})}
