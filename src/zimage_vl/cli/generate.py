"""`zimage-vl generate`: one prompt, a reference or none, PNG files that say how they were made."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zimage_vl._version import __version__
from zimage_vl.blend.registry import CONDITIONING_NAMES
from zimage_vl.recipes import RECIPES

from ._options import (
    DeviceOption,
    DtypeChoice,
    DtypeOption,
    ModelOption,
    RevisionOption,
    VLModelOption,
    choose,
    number,
    option,
    option_names,
    with_knobs,
)
from ._parsing import parse_alpha, parse_size
from ._parts import paint_in_stages
from ._shared import (
    RECORDED_PACKAGES,
    TOY_MODEL,
    FormatOption,
    OutputFormat,
    OverwriteOption,
    check_model_name,
    check_output_path,
    check_text,
    choose_device,
    get_package_versions,
    load_pipeline,
    note,
    numbered_paths,
    print_json,
    say,
    write_png,
)


if TYPE_CHECKING:
    from zimage_vl.blend.knobs import VLConditioning

_REAL_SIDE, _REAL_STEPS = 1024, 9  # Z-Image-Turbo's own card
_STRENGTH = 0.6  # diffusers' own
_PICTURES = (
    "reference_image",
    "reference_embeds",
    "neutral_image",
    "reference_mask",
    "negative_reference_image",
    "negative_reference_embeds",
)
_OFFLOADS = ("none", "model", "sequential")
_SEVERAL = "name-0.png, name-1.png"
_RECIPES = f"{', '.join(RECIPES)}: ready settings; options beside it take precedence."
_ROUNDS = "Rounds: from the second on, the last picture is the reference. Each is kept, as name-round1.png."
_START = "Picture to paint over. Without a size in its aspect at the default's area, else scaled and cropped."
_SHARE = f"Above 0, up to 1, with --init-image: the share of the steps that is run. Default: {_STRENGTH}."
_FILE = "File of `zimage-vl statistics`, for knobs that need the text encoder's. Default: they are measured."
_SIZE = "WIDTHxHEIGHT in pixels, multiples of 16. Default: 1024x1024; 64x64 with toy."
_SEED = "Seed of the first picture; the next take the next ones. Default: random, told and recorded."
_KEPT = "none, model, sequential: keep one model or one layer at a time on the accelerator."
_STAGES = "Load VL encoder, text encoder and transformer one after another, never two at a time."


@with_knobs(after="output")
def generate(
    prompt: Annotated[str, option("--prompt -p", "TEXT", "What to paint.")],
    output: Annotated[Path, option("--output -o", "FILE", f"PNG file to write. Several: {_SEVERAL}.")],
    recipe: Annotated[str | None, option("--recipe", "NAME", _RECIPES, parser=choose(tuple(RECIPES)))] = None,
    iterations: Annotated[int, option("--iterations", "INT", _ROUNDS, min=1, max=1000)] = 1,
    init_image: Annotated[str | None, option("--init-image", "PATH|URL", _START)] = None,
    strength: Annotated[float | None, option("--strength", "NUMBER", _SHARE, min=0, max=1)] = None,
    statistics: Annotated[Path | None, option("--statistics", "FILE", _FILE)] = None,
    negative_prompt: Annotated[str | None, option("--negative-prompt", "TEXT", "Keep away; needs --guidance.")] = None,
    steps: Annotated[int | None, option("--steps", "INT", "Denoising steps. Default: 9; 8 with toy.", min=1)] = None,
    guidance: Annotated[float, option("--guidance", "NUMBER", "Scale; 0 is off, for Turbo.", parser=number(0))] = 0.0,
    seed: Annotated[int | None, option("--seed", "INT", _SEED, min=0, max=2**63 - 1)] = None,
    size: Annotated[str | None, option("--size", "WxH", _SIZE)] = None,
    width: Annotated[int | None, option("--width", "INT", "Width alone.", min=16)] = None,
    height: Annotated[int | None, option("--height", "INT", "Height alone.", min=16)] = None,
    num_images: Annotated[int, option("--num-images -n", "INT", "How many pictures.", min=1, max=10_000)] = 1,
    model: ModelOption = TOY_MODEL,
    revision: RevisionOption = None,
    vl_model: VLModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    offload: Annotated[str, option("--offload", "CHOICE", _KEPT, parser=choose(_OFFLOADS))] = "none",
    low_memory: Annotated[bool, typer.Option("--low-memory", help=_STAGES)] = False,
    overwrite: OverwriteOption = False,
    output_format: FormatOption = OutputFormat.TEXT,
    **knobs: Any,
) -> None:
    """Paint a prompt, with a reference picture or without; over a start picture, or in rounds that read the last one.

    The knobs, the seed, the versions and a report of what the reference did stand in the PNG as its text "parameters".
    The paths are printed last.
    """
    knobs = {name: value for name, value in knobs.items() if value not in (None, [])}
    given = {name: value for name, value in locals().items() if name != "knobs"} | {"given_knobs": knobs}
    _check_together(given)
    files: list[Any] = [init_image, statistics, *(path for name in _PICTURES for path in _listed(knobs.get(name, ())))]
    for path in (round_path(p, i, iterations) for p in numbered_paths(output, num_images) for i in range(iterations)):
        check_output_path(path, overwrite=overwrite, inputs=[*files, model, vl_model])
    references = _read_references(knobs, recipe)
    _check_conditioning(given, references.conditioning)
    start = None if init_image is None else _read_picture("--init-image", init_image)
    request = _Request.read(given, None if start is None else start[0])
    recorded = {
        "prompt": prompt,
        "model": Path(model).name if Path(model).is_dir() else model,
        "revision": revision,
        "vl_model": vl_model,
        "recipe": recipe,
        **{item.name: getattr(request, item.name) for item in fields(request)},
        **references.describe(),
        "versions": {"zimage-vl": __version__, **get_package_versions(RECORDED_PACKAGES)},
        "init_image": None if start is None else {**start[1], **request.describe_start(strength)},
        "statistics": None if statistics is None else _describe_file(statistics),
    }
    paint: Callable[..., Any]
    if low_memory:
        paint = partial(paint_in_stages, model, vl_model, revision, request.torch_dtype, request.device)
    else:
        paint = pipe = _load(given, request)
        if start is not None:
            from zimage_vl.workflows.image_to_image import paint_from_image

            strength = _STRENGTH if strength is None else strength
            paint = partial(paint_from_image, pipe, init_image=start[0], strength=strength)
    pictures = _Pictures(output, recorded, request.seeds, iterations, overwrite)
    pictures.paint(paint, prompt, lambda seeds: {**request.arguments(seeds), **references.arguments})
    if output_format is OutputFormat.JSON:
        print_json(pictures.to_dict())
        return
    if seed is None:
        note(f"seed {request.seed}")
    for record in pictures.written:
        say(record["output"])


def round_path(path: Path, number: int, rounds: int) -> Path:
    """Get the path of a round's picture, the first one's number being 0.

    Example:
        >>> str(round_path(Path("a.png"), 0, 1)), str(round_path(Path("a.png"), 1, 3))
        ('a.png', 'a-round2.png')
    """
    return path if rounds == 1 else path.with_name(f"{path.stem}-round{number + 1}{path.suffix}")


def _check_together(given: Mapping[str, Any]) -> None:
    """Refuse options that are no text, or that cannot be had or do nothing beside the others."""
    check_model_name(given["model"], given["vl_model"], given["revision"])
    knobs, start = given["given_knobs"], given["init_image"]
    texts = [("--prompt", given["prompt"]), ("--negative-prompt", given["negative_prompt"])]
    texts += [("`vl_text`", knobs.get("vl_text")), *(("`vl_alpha`", text) for text in knobs.get("vl_alpha", ()))]
    for name, text in texts:
        check_text(name, text)
    if given["negative_prompt"] is not None and not given["guidance"]:
        raise ValueError("--negative-prompt does nothing without guidance: add --guidance, as 4.0.")
    if given["strength"] is not None and start is None:
        raise ValueError("--strength does nothing without --init-image: add it, or leave out --strength.")
    if given["strength"] is not None and not given["strength"] > 0:
        raise ValueError("--strength must be above 0, which would give the start picture back, and at most 1.")
    if given["low_memory"] and given["offload"] != "none":
        raise ValueError("--low-memory and --offload exclude each other: --low-memory holds one model at a time.")
    for name in ("init_image", "statistics"):
        if given["low_memory"] and given[name] is not None:
            raise ValueError(f"--{name.replace('_', '-')} cannot be had with --low-memory: leave out one of them.")
    for name in ("vl_start", "vl_end"):
        if start is not None and name in knobs:
            raise ValueError(
                f"`{name}` cannot be had with --init-image: diffusers' image-to-image pipeline takes one conditioning "
                "for all of its steps. Leave out one of them."
            )
    has_image, has_embeds = ("reference_image" in knobs), ("reference_embeds" in knobs)
    if has_image and has_embeds:
        raise ValueError(
            "`reference_image` and `reference_embeds` exclude each other: embeddings hold what a picture would say."
        )
    if given["iterations"] > 1 and not has_image:
        raise ValueError(
            "--iterations above 1 needs a `reference_image` to begin with: the later rounds read pictures, so "
            "that the VL model is needed anyway."
        )
    negative = [name for name in knobs if name.startswith("negative_")]
    if negative and not given["guidance"]:
        raise ValueError(f"`{negative[0]}` does nothing without guidance: add --guidance, as 4.0.")
    if not has_image and not has_embeds and not negative and (knobs or given["recipe"] is not None):
        useless = " and ".join(f"`{name}`" for name in knobs) or "--recipe"
        raise ValueError(f"{useless} does nothing without `reference_image` or `reference_embeds`: add one of these.")


@dataclass(frozen=True)
class _References:
    """What the pipeline gets, and what is recorded of where it came from."""

    arguments: dict[str, Any]
    sources: list[dict[str, str]]
    conditioning: VLConditioning

    def describe(self) -> dict[str, Any]:
        from zimage_vl.blend.report import make_jsonable

        used = {item.name: getattr(self.conditioning, item.name) for item in fields(self.conditioning)}
        if "vl_text" in self.arguments:
            used["vl_text"] = self.arguments["vl_text"]
        return {
            "references": self.sources,
            "reference_acts": bool(self.sources) and not self.conditioning.is_inert,
            "knobs": make_jsonable(used) if self.sources else None,
        }


def _read_references(given: Mapping[str, Any], recipe: str | None) -> _References:
    """Check the knobs and read what is in files, before any model is loaded."""
    from zimage_vl.blend.knobs import VLConditioning
    from zimage_vl.reference.embeds import ReferenceEmbeds

    knobs = {**({} if recipe is None else RECIPES[recipe]), **given}
    if "vl_alpha" in given:
        knobs["vl_alpha"] = parse_alpha(given["vl_alpha"])
    conditioning = VLConditioning(
        **{name: value for name, value in knobs.items() if name in (*CONDITIONING_NAMES, "reference_weights")},
        has_neutral_image="neutral_image" in knobs,
    )
    sources: list[dict[str, str]] = []
    for name in _PICTURES:
        if name not in knobs:
            continue
        option, found = option_names(name)[0], list[Any]()
        for given_source in _listed(knobs[name]):
            if name.endswith("_embeds"):
                found.append(ReferenceEmbeds.load(given_source))
                sources.append({"option": option, **_describe_file(Path(given_source))})
            else:
                image, source = _read_picture(option, given_source)
                found.append(image)
                sources.append(source)
        knobs[name] = found[0] if len(found) == 1 else [found]  # several for the one prompt
    count = sum(source["option"] in ("--reference", "--embeds") for source in sources)
    weights = conditioning.reference_weights
    if weights is not None and len(weights) != count:
        raise ValueError(f"`reference_weights` has {len(weights)} numbers for {count} references: one each.")
    if count and conditioning.is_inert:
        note("Alpha is 0 everywhere: the reference is not read, and this is the prompt's own picture.")
    return _References(knobs, sources, conditioning)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _read_picture(option: str, source: str) -> tuple[Any, dict[str, str]]:
    from zimage_vl.reference.pictures import load_reference_image, read_image_bytes

    data = read_image_bytes(source, option)
    name = source.split("?")[0] if "://" in source else source  # what follows the question mark may be a signature
    image = load_reference_image(data, f"{option} {name}")
    return image, {"option": option, "name": Path(name).name, "sha256": hashlib.sha256(data).hexdigest()}


def _describe_file(path: Path) -> dict[str, str]:
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _check_conditioning(given: Mapping[str, Any], conditioning: VLConditioning) -> None:
    """Refuse rounds that would change nothing, and a file of statistics that nothing would read."""
    if given["iterations"] > 1 and conditioning.is_inert:
        raise ValueError("--iterations above 1 with an alpha of 0 everywhere would give the same picture each time.")
    if given["statistics"] is None:
        return
    from zimage_vl.pipeline.text_statistics import TextStatistics

    loaded = TextStatistics.load(given["statistics"])
    if conditioning.is_inert or not conditioning.needs_text_statistics:
        raise ValueError("--statistics would do nothing: no knob that is set compares with the text encoder's.")
    if loaded.statistics.exclude_sinks != conditioning.vl_exclude_sinks:
        flags = ["--include-sinks", "--exclude-sinks"]
        measured, wanted = flags[loaded.statistics.exclude_sinks], flags[conditioning.vl_exclude_sinks]
        raise ValueError(
            f"{given['statistics']} was measured with {measured}, the picture is made with {wanted}: use the same."
        )


@dataclass(frozen=True)
class _Request:
    """The picture that is asked for, with the model's defaults filled in."""

    negative_prompt: str | None
    width: int
    height: int
    steps: int
    guidance: float
    seed: int
    num_images: int
    device: str
    dtype: str

    @classmethod
    def read(cls, given: Mapping[str, Any], start: Any) -> _Request:
        is_toy = given["model"] == TOY_MODEL
        side, steps = _REAL_SIDE, _REAL_STEPS
        if is_toy:
            from zimage_vl.toy import SIZE, STEPS

            side, steps = int(SIZE), int(STEPS)
        device = choose_device(given["device"])
        if given["offload"] != "none" and device == "cpu":
            raise ValueError(
                f"--offload {given['offload']} needs an accelerator: on the CPU all models are in its memory."
            )
        width, height = choose_size(given["size"], given["width"], given["height"], side, start)
        default = DtypeChoice.FLOAT32 if is_toy else DtypeChoice.BFLOAT16
        return cls(
            negative_prompt=given["negative_prompt"],
            width=width,
            height=height,
            steps=given["steps"] or steps,
            guidance=given["guidance"],
            seed=secrets.randbelow(2**32) if given["seed"] is None else given["seed"],
            num_images=given["num_images"],
            device=device,
            dtype=(given["dtype"] or default).value,
        )

    @property
    def torch_dtype(self) -> Any:
        import torch

        return getattr(torch, self.dtype)

    @property
    def seeds(self) -> list[int]:
        """A seed per picture, so that each can be had again alone."""
        return list(range(self.seed, self.seed + self.num_images))

    def arguments(self, seeds: Sequence[int]) -> dict[str, Any]:
        """The keyword arguments of diffusers for pictures of these seeds."""
        import torch

        return {
            "negative_prompt": self.negative_prompt,
            "width": self.width,
            "height": self.height,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "num_images_per_prompt": len(seeds),
            # On the CPU on every machine: the same seed starts from the same noise.
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        }

    def describe_start(self, strength: float | None) -> dict[str, Any]:
        """How much of the start picture goes, and how many of the steps are run over it."""
        strength = _STRENGTH if strength is None else strength
        run = self.steps - int(max(self.steps - self.steps * strength, 0))  # as diffusers counts
        if run == self.steps:
            note(f"At strength {strength} all {run} steps are run: nothing of the start picture is left.")
        return {"strength": strength, "steps_run": run}


def choose_size(
    size: str | None, width: int | None, height: int | None, side: int, start: Any = None
) -> tuple[int, int]:
    """Get width and height: those that were given, a start picture's aspect for what is missing, or the default."""
    if start is None or size is not None:
        return parse_size(size, width, height, side)
    from zimage_vl.workflows.image_to_image import fit_size, load_init_image

    if width is None and height is None:
        return fit_size(start.size, 16, side * side)
    parse_size(None, width, height, side)  # refuses a side that is no multiple
    return load_init_image(start, width, height).size


def _load(given: Mapping[str, Any], request: _Request) -> Any:
    pipe: Any = load_pipeline(given["model"], given["vl_model"], request.torch_dtype, given["revision"])
    if given["statistics"] is not None:
        pipe.load_text_statistics(given["statistics"])
    if given["offload"] == "model":
        pipe.enable_model_cpu_offload(device=request.device)
    elif given["offload"] == "sequential":
        pipe.enable_sequential_cpu_offload(device=request.device)
    else:
        pipe.to(request.device)
    return pipe


@dataclass
class _Pictures:
    """The files of a run: each written as soon as it is painted, with how it was made."""

    output: Path
    parameters: dict[str, Any]  # what holds for all of them
    seeds: Sequence[int]
    rounds: int
    overwrite: bool
    written: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def paint(
        self, paint: Callable[..., Any], prompt: str, arguments: Callable[[Sequence[int]], dict[str, Any]]
    ) -> None:
        if self.rounds == 1:
            output = paint(prompt, **arguments(self.seeds))
            for seed, image in zip(self.seeds, output.images, strict=True):
                self.keep(image, seed, 0, output.conditioning)
            return
        from zimage_vl.workflows.rounds import refine_iteratively

        for seed in self.seeds:

            def keep(number: int, output: Any, seed: int = seed) -> None:
                self.keep(output.images[0], seed, number, output.conditioning)

            refine_iteratively(paint, prompt, iterations=self.rounds, on_round=keep, **arguments([seed]))

    def keep(self, image: Any, seed: int, number: int, reports: Any) -> None:
        path = numbered_paths(self.output, len(self.seeds))[self.seeds.index(seed)]
        path = round_path(path, number, self.rounds)
        record = {**self.parameters, "seed": seed, "report": reports and [report.to_dict() for report in reports]}
        if self.rounds > 1:
            record |= {"iterations": self.rounds, "round": number + 1}
            note(f"round {number + 1} of {self.rounds}: {path}")
        if number:  # its reference is the last picture; what spoke of the first one is no part of it
            source = {"option": "--iterations", **_describe_file(Path(self.written[-1]["output"]))}
            first_only = ("--reference", "--reference-mask")
            others = [entry for entry in self.parameters["references"] if entry["option"] not in first_only]
            knobs = {**self.parameters["knobs"], "reference_weights": None}
            record |= {"references": [source, *others], "knobs": knobs}
        write_png(image, path, record, self.overwrite)
        self.written.append({"output": str(path), **record})

    def to_dict(self) -> dict[str, Any]:
        """All of it as one JSON object; what differs between rounds is told of each."""
        paths = [record["output"] for record in self.written]
        if self.rounds == 1:
            return {"outputs": paths, **self.parameters, "report": self.written[0]["report"]}
        each = ("output", "seed", "round", "references", "report")
        rounds = [{name: record[name] for name in each} for record in self.written]
        return {"outputs": paths, **self.parameters, "iterations": self.rounds, "rounds": rounds}
