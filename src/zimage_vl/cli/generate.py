"""`zimage-vl generate`: one prompt, a reference or none, PNG files that say how they were made."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zimage_vl._version import __version__
from zimage_vl.recipes import RECIPES

from ._options import (
    AlignmentOption,
    AlphaOption,
    BlendModeOption,
    DeviceOption,
    DtypeOption,
    EmbedsOption,
    EndOption,
    ExcludeSinksOption,
    GuidanceOption,
    HeightOption,
    LayerOption,
    LowMemoryOption,
    MaskingOption,
    MaskOption,
    MaxPixelsOption,
    ModelOption,
    NegativePromptOption,
    NeutralOption,
    NormalizationOption,
    NumImagesOption,
    OffloadChoice,
    OffloadOption,
    OutputOption,
    PromptOption,
    RecipeOption,
    ReferenceOption,
    RevisionOption,
    SeedOption,
    SizeOption,
    StartOption,
    StepsOption,
    TargetStdOption,
    ThresholdOption,
    TokensOption,
    VLModelOption,
    VLTextOption,
    VLTextPositionOption,
    WeightsOption,
    WidthOption,
)
from ._painting import (
    InitImageOption,
    IterationsOption,
    Pictures,
    StartPicture,
    StatisticsFileOption,
    StrengthOption,
    check_iterations,
    check_low_memory,
    choose_size,
    describe_start,
    paint,
    read_start,
    read_statistics,
)
from ._parsing import parse_alpha, parse_layer, parse_numbers
from ._shared import (
    TOY_MODEL,
    FormatOption,
    OutputFormat,
    check_model_name,
    check_output_path,
    choose_device,
    get_package_versions,
    load_pipeline,
    note,
    paint_in_stages,
    print_json,
)


if TYPE_CHECKING:
    from zimage_vl.blend.knobs import VLConditioning

_REAL_SIDE, _REAL_STEPS = 1024, 9  # Z-Image-Turbo's own card
_RECORDED_PACKAGES = ("torch", "diffusers", "transformers")


def generate(
    prompt: PromptOption,
    output: OutputOption,
    reference: ReferenceOption = None,
    embeds: EmbedsOption = None,
    reference_weights: WeightsOption = None,
    reference_mask: MaskOption = None,
    neutral_image: NeutralOption = None,
    recipe: RecipeOption = None,
    vl_text: VLTextOption = None,
    vl_text_position: VLTextPositionOption = None,
    vl_max_pixels: MaxPixelsOption = None,
    vl_alpha: AlphaOption = None,
    vl_hidden_layer: LayerOption = None,
    vl_token_selection: TokensOption = None,
    vl_normalization: NormalizationOption = None,
    vl_target_std: TargetStdOption = None,
    vl_outlier_masking: MaskingOption = None,
    vl_outlier_threshold: ThresholdOption = None,
    vl_exclude_sinks: ExcludeSinksOption = None,
    vl_alignment: AlignmentOption = None,
    vl_blend_mode: BlendModeOption = None,
    vl_start: StartOption = None,
    vl_end: EndOption = None,
    iterations: IterationsOption = None,
    init_image: InitImageOption = None,
    strength: StrengthOption = None,
    statistics: StatisticsFileOption = None,
    negative_prompt: NegativePromptOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    seed: SeedOption = None,
    size: SizeOption = None,
    width: WidthOption = None,
    height: HeightOption = None,
    num_images: NumImagesOption = 1,
    model: ModelOption = TOY_MODEL,
    revision: RevisionOption = None,
    vl_model: VLModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    offload: OffloadOption = OffloadChoice.NONE,
    low_memory: LowMemoryOption = False,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Paint a prompt, with a reference picture or without; over a start picture, or in rounds that read the last one.

    The knobs, the seed, the versions and a report of what the reference did stand in the PNG as its text "parameters".
    The paths are printed last.
    """
    given = dict(locals())  # every option by its name, before anything else is one
    check_output_path(output)
    check_model_name(model)
    if vl_model is not None and model == TOY_MODEL:
        raise ValueError("--vl-model does nothing with --model toy, which has a VL model of its own: leave one out.")
    if negative_prompt is not None and not guidance:
        raise ValueError("--negative-prompt does nothing without guidance: add --guidance, as 4.0.")
    if low_memory:
        check_low_memory(given)
    knobs = _read_knobs(given)
    start = read_start(given, knobs, _read_image)
    request = _read_request(given, start)
    references = _read_references(given, knobs)
    rounds = check_iterations(given, references.conditioning)
    used_statistics = read_statistics(statistics, references.conditioning)
    if references.count and references.conditioning.is_inert:
        note("Alpha is 0 everywhere: the reference is not read, and this is the prompt's own picture.")
    recorded = {
        **_parameters(given, knobs, references, request),
        "init_image": describe_start(start, request.steps),
        "statistics": used_statistics,
    }
    if low_memory:
        painter: Any = partial(paint_in_stages, model, vl_model, revision, request.torch_dtype, request.device)
    else:
        painter = load_pipeline(model, vl_model, request.torch_dtype, revision)
        if statistics is not None:
            painter.load_text_statistics(statistics)
        _place(painter, request.device, offload)
    pictures = Pictures(output, recorded, request.seeds, rounds)
    paint(
        painter, prompt, lambda seeds: {**request.arguments(seeds), **references.arguments, **knobs}, pictures, start
    )
    if output_format is OutputFormat.JSON:
        print_json(pictures.to_dict())
        return
    if seed is None:
        note(f"seed {request.seed}")
    for record in pictures.written:
        typer.echo(record["output"])


@dataclass(frozen=True)
class _References:
    """What the pipeline gets, and what is recorded of where it came from."""

    count: int
    arguments: dict[str, Any]
    sources: list[dict[str, str]]
    conditioning: VLConditioning


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

    @property
    def torch_dtype(self) -> Any:
        import torch

        return getattr(torch, self.dtype)

    @property
    def seeds(self) -> list[int]:
        """A seed a picture, so that each can be had again alone."""
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


def _read_knobs(given: dict[str, Any]) -> dict[str, Any]:
    """The knobs of the recipe and those that were given, which go before, as the pipeline's keyword arguments."""
    names = [name for name in given if name.startswith("vl_") and name != "vl_model"]
    knobs = {name: getattr(given[name], "value", given[name]) for name in names if given[name] is not None}
    if "vl_alpha" in knobs:
        knobs["vl_alpha"] = parse_alpha(knobs["vl_alpha"])
    if "vl_hidden_layer" in knobs:
        knobs["vl_hidden_layer"] = parse_layer(knobs["vl_hidden_layer"])
    if given["reference_weights"] is not None:
        knobs["reference_weights"] = parse_numbers("--reference-weights", given["reference_weights"])
    if (knobs or given["recipe"]) and not given["reference"] and not given["embeds"]:
        useless = _flags(knobs) if knobs else "--recipe"
        raise ValueError(f"{useless} without --reference or --embeds would do nothing: add one of these.")
    recipe = RECIPES[given["recipe"].value] if given["recipe"] is not None else {}
    return {**recipe, **knobs}


def _flags(names: dict[str, Any]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _read_references(given: dict[str, Any], knobs: dict[str, Any]) -> _References:
    """Reads the pictures and checks all knobs, before any model is loaded."""
    from zimage_vl.blend.knobs import VLConditioning

    checked = {field.name for field in fields(VLConditioning)}
    conditioning = VLConditioning(
        **{name: value for name, value in knobs.items() if name in checked},
        has_neutral_image=given["neutral_image"] is not None,
    )
    if given["reference"] and given["embeds"]:
        raise ValueError("--reference and --embeds exclude each other: the embeddings hold what a picture would say.")
    arguments: dict[str, Any] = {}
    sources: list[dict[str, str]] = []
    if given["reference"]:
        arguments["reference_image"] = _one_or_nested(
            [_read_image("--reference", source, sources) for source in given["reference"]]
        )
    if given["embeds"]:
        arguments["reference_embeds"] = _one_or_nested([_read_embeds(path, sources) for path in given["embeds"]])
    count = len(sources)
    for name in ("neutral_image", "reference_mask"):
        if given[name] is not None:
            flag = "--" + name.replace("_", "-")
            if not given["reference"]:
                raise ValueError(f"{flag} without --reference would do nothing.")
            arguments[name] = _read_image(flag, given[name], sources)
    if conditioning.reference_weights is not None and len(conditioning.reference_weights) != count:
        given_weights = len(conditioning.reference_weights)
        raise ValueError(f"--reference-weights has {given_weights} numbers for {count} references: one each.")
    return _References(count, arguments, sources, conditioning)


def _one_or_nested(items: list[Any]) -> Any:
    """One for the one prompt as it is; several for it as a list in the list of prompts."""
    return items[0] if len(items) == 1 else [items]


def _read_image(flag: str, source: str, sources: list[dict[str, str]]) -> Any:
    from zimage_vl.reference.pictures import load_reference_image, read_image_bytes

    data = read_image_bytes(source, flag)
    image = load_reference_image(data, f"{flag} {source}")
    name = Path(source.split("?")[0]).name  # of a URL, what follows the question mark may be a signature
    sources.append({"option": flag, "name": name, "sha256": hashlib.sha256(data).hexdigest()})
    return image


def _read_embeds(path: Path, sources: list[dict[str, str]]) -> Any:
    from zimage_vl.reference.embeds import ReferenceEmbeds

    embeds = ReferenceEmbeds.load(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    sources.append({"option": "--embeds", "name": path.name, "sha256": digest})
    return embeds


def _read_request(given: dict[str, Any], start: StartPicture | None) -> _Request:
    """Fills in the defaults, which depend on the model."""
    is_toy = given["model"] == TOY_MODEL
    side, steps = _REAL_SIDE, _REAL_STEPS
    if is_toy:
        from zimage_vl.toy import SIZE, STEPS

        side, steps = int(SIZE), int(STEPS)
    width, height = choose_size(given, side, start)
    device = choose_device(given["device"])
    if given["offload"] is not OffloadChoice.NONE and device == "cpu":
        raise ValueError(
            f"--offload {given['offload'].value} needs an accelerator: on the CPU all models are in its memory."
        )
    dtype = given["dtype"].value if given["dtype"] is not None else "float32" if is_toy else "bfloat16"
    return _Request(
        negative_prompt=given["negative_prompt"],
        width=width,
        height=height,
        steps=steps if given["steps"] is None else given["steps"],
        guidance=given["guidance"] or 0.0,
        seed=secrets.randbelow(2**32) if given["seed"] is None else given["seed"],
        num_images=given["num_images"],
        device=device,
        dtype=dtype,
    )


def _place(pipe: Any, device: str, offload: OffloadChoice) -> None:
    if offload is OffloadChoice.MODEL:
        pipe.enable_model_cpu_offload(device=device)
    elif offload is OffloadChoice.SEQUENTIAL:
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)


def _parameters(
    given: dict[str, Any],
    knobs: dict[str, Any],
    references: _References,
    request: _Request,
) -> dict[str, Any]:
    """What is recorded with a picture: what was done, not only what was asked for. File names, but no folders."""
    from zimage_vl.blend.report import make_jsonable

    conditioning = references.conditioning
    used = {field.name: getattr(conditioning, field.name) for field in fields(conditioning)}
    model = given["model"]
    return {
        "prompt": given["prompt"],
        "model": Path(model).name if Path(model).is_dir() else model,
        "revision": given["revision"],
        "vl_model": given["vl_model"],
        "recipe": given["recipe"] and given["recipe"].value,
        **{field.name: getattr(request, field.name) for field in fields(request)},
        "references": references.sources,
        "reference_acts": references.count > 0 and not conditioning.is_inert,
        "knobs": make_jsonable({**used, **knobs}) if references.count else None,
        "versions": {"zimage-vl": __version__, **get_package_versions(_RECORDED_PACKAGES)},
    }
