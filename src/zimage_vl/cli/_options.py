"""The options of commands that paint with a reference.

The knobs of the method are parameters named as the pipeline's keyword arguments. Left out they are None and not passed
on, so that the pipeline's defaults are the only ones; the help texts quote them, and a test compares.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class TokenChoice(str, Enum):
    """Values of `--tokens`."""

    ALL = "all"
    TEXT = "text"
    IMAGE = "image"
    IMAGE_NO_MARKERS = "image_no_markers"


class PositionChoice(str, Enum):
    """Values of `--vl-text-position`."""

    AFTER = "after"
    BEFORE = "before"


class NormalizationChoice(str, Enum):
    """Values of `--normalization`."""

    GLOBAL = "global"
    PER_DIM = "per_dim"
    HYBRID = "hybrid"
    TOKEN_RMS = "token_rms"
    NONE = "none"


class MaskingChoice(str, Enum):
    """Values of `--outlier-masking`."""

    NONE = "none"
    ZERO = "zero"
    CLAMP = "clamp"
    SCALE = "scale"


class AlignmentChoice(str, Enum):
    """Values of `--alignment`."""

    ANCHORED = "anchored"
    POOL = "pool"
    INTERPOLATE = "interpolate"
    TRUNCATE = "truncate"
    CONCAT = "concat"


class BlendChoice(str, Enum):
    """Values of `--blend-mode`."""

    LINEAR = "linear"
    SLERP = "slerp"
    ADAIN = "adain"
    ADAIN_PER_DIM = "adain_per_dim"
    STYLE_DELTA = "style_delta"


class RecipeChoice(str, Enum):
    """Values of `--recipe`."""

    STYLE_TRANSFER = "style-transfer"
    IMAGE_VARIATION = "image-variation"
    COMPOSITION = "composition"
    COLOUR_PALETTE = "colour-palette"
    GUIDE = "guide"
    CALIBRATED = "calibrated"
    APPEARANCE = "appearance"
    STRUCTURE = "structure"


class DtypeChoice(str, Enum):
    """Values of `--dtype`."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class OffloadChoice(str, Enum):
    """Values of `--offload`."""

    NONE = "none"
    MODEL = "model"
    SEQUENTIAL = "sequential"


PromptOption = Annotated[str, typer.Option("--prompt", "-p", help="What to paint.")]
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="PNG file to write, in a folder that exists. Several: name-0.png, name-1.png."
    ),
]

ReferenceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        "-r",
        metavar="PATH|URL",
        help="Path or URL of a picture to follow; again for several, which act together. Default: none.",
    ),
]
EmbedsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--embeds",
        metavar="FILE",
        help="File of ready reference embeddings (safetensors) in place of --reference; no VL model is needed.",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--reference-weights",
        metavar="NUMBERS",
        help="Numbers of at least 0, one a reference, as 2,1; made to sum to 1. Default: equal.",
    ),
]
MaskOption = Annotated[
    str | None,
    typer.Option(
        "--reference-mask",
        metavar="PATH|URL",
        help="Greyscale picture: white is the part of the reference that counts. Default: all of it.",
    ),
]
NeutralOption = Annotated[
    str | None,
    typer.Option(
        "--neutral-image",
        metavar="PATH|URL",
        help="Picture without the style, for --blend-mode style_delta. Default: none.",
    ),
]
VLTextOption = Annotated[
    str | None,
    typer.Option(
        "--vl-text",
        metavar="TEXT",
        help="What the VL model reads beside the picture; an empty text for none. Default: the prompt.",
    ),
]
VLTextPositionOption = Annotated[
    PositionChoice | None,
    typer.Option(
        "--vl-text-position",
        metavar="CHOICE",
        help="after, before: where that text stands, seen from the picture. Default: after.",
    ),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        metavar="INT",
        help="Largest area that a reference is read at, in pixels, at least 1. Default: 1048576.",
    ),
]

RecipeOption = Annotated[
    RecipeChoice | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="style-transfer, image-variation, composition, colour-palette, guide, calibrated, appearance, structure: "
        "ready settings of the knobs; options given beside it go before. Default: none.",
    ),
]
AlphaOption = Annotated[
    list[str] | None,
    typer.Option(
        "--alpha",
        "-a",
        metavar="ALPHA",
        help="0 to 1: 0 the text alone, 1 the reference alone. Or by place, the option again for each: prefix=0, "
        "prompt=0.5, suffix=1, default=0 or any phrase of the prompt. Default: 0.3.",
    ),
]
LayerOption = Annotated[
    str | None,
    typer.Option(
        "--layer",
        metavar="LAYER",
        help="Hidden layer of the VL model, -1 the last; or several with weights, as -6:1,-8:3. Default: -6.",
    ),
]
TokensOption = Annotated[
    TokenChoice | None,
    typer.Option(
        "--tokens",
        metavar="CHOICE",
        help="all, text, image, image_no_markers: which of the reference's tokens take part. Default: all.",
    ),
]
NormalizationOption = Annotated[
    NormalizationChoice | None,
    typer.Option(
        "--normalization",
        metavar="CHOICE",
        help="global, per_dim, hybrid, token_rms, none: how the reference is scaled to the text. Default: global.",
    ),
]
TargetStdOption = Annotated[
    float | None,
    typer.Option(
        "--target-std",
        metavar="NUMBER",
        help="Above 0, for normalization global and hybrid. Default: the std of the prompt's text embeddings.",
    ),
]
MaskingOption = Annotated[
    MaskingChoice | None,
    typer.Option(
        "--outlier-masking",
        metavar="CHOICE",
        help="none, zero, clamp, scale: what happens to outlier dimensions of image tokens. Default: none.",
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--outlier-threshold",
        metavar="NUMBER",
        help="Ratio, above 1, over which a dimension is an outlier. Default: 10.0.",
    ),
]
ExcludeSinksOption = Annotated[
    bool | None,
    typer.Option(
        "--exclude-sinks/--include-sinks",
        help="Leave attention sinks out of statistics, alignment and blend, or not. Default: include.",
    ),
]
AlignmentOption = Annotated[
    AlignmentChoice | None,
    typer.Option(
        "--alignment",
        metavar="CHOICE",
        help="anchored, pool, interpolate, truncate, concat: how it is laid on the text. Default: anchored.",
    ),
]
BlendModeOption = Annotated[
    BlendChoice | None,
    typer.Option(
        "--blend-mode",
        metavar="CHOICE",
        help="linear, slerp, adain, adain_per_dim, style_delta: how the two are mixed. Default: linear.",
    ),
]
StartOption = Annotated[
    float | None,
    typer.Option(
        "--start",
        min=0,
        max=1,
        metavar="NUMBER",
        help="0 to 1, below --end: fraction of the steps at which the reference begins to count. Default: 0.0.",
    ),
]
EndOption = Annotated[
    float | None,
    typer.Option(
        "--end",
        min=0,
        max=1,
        metavar="NUMBER",
        help="0 to 1: fraction of the steps at which it ceases to. Default: 1.0.",
    ),
]

NegativePromptOption = Annotated[
    str | None,
    typer.Option("--negative-prompt", metavar="TEXT", help="What to keep away from; needs --guidance. Default: none."),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        "--steps", min=1, metavar="INT", help="Denoising steps, at least 1. Default: 9; the toy world's own with toy."
    ),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        min=0,
        metavar="NUMBER",
        help="Guidance scale, at least 0; 0 is off. Default: 0.0, as Turbo wants.",
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=2**63 - 1,
        metavar="INT",
        help="Seed of the first picture, at least 0; the next take the next ones. Default: random, told and recorded.",
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="WxH", help="WIDTHxHEIGHT in pixels, multiples of 16. Default: 1024x1024; 64x64 with toy."
    ),
]
WidthOption = Annotated[
    int | None,
    typer.Option("--width", min=16, metavar="INT", help="Width alone, a multiple of 16. Default: as --size."),
]
HeightOption = Annotated[
    int | None,
    typer.Option("--height", min=16, metavar="INT", help="Height alone, a multiple of 16. Default: as --size."),
]
NumImagesOption = Annotated[
    int, typer.Option("--num-images", "-n", min=1, metavar="INT", help="How many pictures, at least 1.")
]

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="toy, this package's miniature; a folder in diffusers' layout; a Hub id as Tongyi-MAI/Z-Image-Turbo.",
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", metavar="NAME", help="Branch, tag or commit of a Hub id. Default: its main branch."),
]
VLModelOption = Annotated[
    str | None,
    typer.Option(
        "--vl-model",
        metavar="NAME",
        help="Folder or Hub id of the Qwen3-VL to read with. Default: the model's, or Qwen/Qwen3-VL-4B-Instruct.",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps. Default: the best there is.")
]
DtypeOption = Annotated[
    DtypeChoice | None,
    typer.Option(
        "--dtype",
        metavar="CHOICE",
        help="float32, bfloat16, float16 (may overflow to black): precision. Default: bfloat16; float32 with toy.",
    ),
]
OffloadOption = Annotated[
    OffloadChoice,
    typer.Option(
        "--offload",
        metavar="CHOICE",
        help="none, model, sequential: keep one model or one layer at a time on the accelerator, for little memory.",
    ),
]
LowMemoryOption = Annotated[
    bool,
    typer.Option(
        "--low-memory",
        help="Load VL encoder, text encoder and transformer one after another, never two at a time. "
        "Default: all are loaded.",
    ),
]
