"""Measure what references do with a checkpoint of the user's own, on both axes, with nothing to download.

There is no judge for photographs. Measured is how like each painted picture is to two others: the one that the prompt
alone gives from the same noise, and the reference. With s the similarity and s0 that of these two,

    kept = (s(painted, prompt alone) - s0) / (1 - s0)        followed = (s(painted, reference) - s0) / (1 - s0)

so that the prompt alone has (1, 0), a copy of the reference (0, 1), and neither wins both.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from zimage_vl import Region, paint_from_image, recipes
from zimage_vl.blend.report import measure_dose


if TYPE_CHECKING:
    from zimage_vl import ZImageVLPipeline

Floats = NDArray[np.float64]
MEASURES = ("colours", "structure", "content")
ALONE = "the prompt alone"
ANOTHER = "the prompt alone, other noise"
SHOWN = ("alpha 0.15", "alpha 0.3", "alpha 0.5", "alpha 0.7", "alpha 1.0", "blend 0.3 from the same picture")
_READING_SIZE, _GUIDE_LAYERS = 512, 36
_XYZ_OF_RGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def convert_to_lab(picture: Image.Image) -> Floats:
    """Convert a picture from sRGB to CIELAB (CIE 15, white D65): `(height, width, 3)`, L 0..100.

    Example:
        >>> convert_to_lab(Image.new("RGB", (1, 1), "red")).round(1).tolist()
        [[[53.2, 80.1, 67.2]]]
    """
    rgb = np.asarray(picture.convert("RGB")).astype(np.float64) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ_OF_RGB.T / _XYZ_OF_RGB.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def describe_colours(picture: Image.Image) -> Floats:
    """Project a picture's colours in CIELAB on 64 directions spread evenly; get 256 quantiles of each, `(256, 64)`."""
    size = min(picture.width, 256), min(picture.height, 256)
    colours = convert_to_lab(picture.convert("RGB").resize(size, Image.Resampling.BOX)).reshape(-1, 3)
    n = np.arange(64) + 0.5
    z, angle = n / 64, n * np.pi * (3 - 5**0.5)  # the golden angle
    directions = np.stack([np.sqrt(1 - z * z) * np.cos(angle), np.sqrt(1 - z * z) * np.sin(angle), z])
    levels = ((np.arange(256) + 0.5) / 256 * len(colours)).astype(int)
    return np.sort(colours @ directions, axis=0)[levels]


def describe_structure(picture: Image.Image) -> Floats:
    """Get histograms of oriented gradients of a picture's lightness (Dalal and Triggs 2005), `(1764,)`.

    A grid of 64 x 64, cells of 8 x 8, nine orientations without sign, blocks of 2 x 2 cells of length 1; the length
    has a floor relative to the picture's, so that flat parts stay faint. Brightness and contrast do not count.
    """
    lightness = Image.fromarray(convert_to_lab(picture)[..., 0].astype(np.float32))
    dy, dx = np.gradient(np.asarray(lightness.resize((64, 64), Image.Resampling.BOX), dtype=np.float64))
    length = np.where(np.hypot(dx, dy) > 1e-3, np.hypot(dx, dy), 0.0)
    place = np.mod(np.arctan2(dy, dx), np.pi) / np.pi * 9
    lower = np.floor(place).astype(int)
    cells = np.zeros((8, 8, 9))
    rows, columns = (index // 8 for index in np.indices((64, 64)))
    np.add.at(cells, (rows, columns, lower % 9), length * (1 - place + lower))
    np.add.at(cells, (rows, columns, (lower + 1) % 9), length * (place - lower))
    blocks = np.lib.stride_tricks.sliding_window_view(cells, (2, 2), axis=(0, 1)).reshape(49, -1)
    norms = np.linalg.norm(blocks, axis=-1, keepdims=True)
    return (blocks / np.sqrt(norms**2 + (0.1 * norms.mean()) ** 2 + 1e-12)).ravel()


def get_cosine(first: Floats, second: Floats) -> float:
    """Get the cosine of two vectors; of two vectors of zeros 1, of one 0."""
    norms = float(np.linalg.norm(first)), float(np.linalg.norm(second))
    return float(first @ second / (norms[0] * norms[1])) if all(norms) else float(norms[0] == norms[1])


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a picture: `describe_colours`, `describe_structure`, and the VL encoder's pooled states."""

    colours: Floats
    structure: Floats
    content: Floats

    def compare(self, other: Features) -> dict[str, float]:
        """Get the similarities to another picture, 1 for the same.

        Colours: 1 - d / 100, d the sliced Wasserstein distance (Rabin et al. 2011) in units of CIELAB, doubled since a
        shift moves a projection by half of it on average; 0 is black against white. Structure: the correlation.
        Content: the cosine.
        """
        colours = 1 - 2 * float(np.abs(self.colours - other.colours).mean()) / 100
        first, second = (one.structure - one.structure.mean() for one in (self, other))
        values = max(0.0, colours), get_cosine(first, second), get_cosine(self.content, other.content)
        return dict(zip(MEASURES, values, strict=True))


@dataclass
class Outcome:
    """Results of one setting over all its pictures.

    Attributes:
        kept: For each measure a number per pair of prompt and picture.
        followed: Likewise.
        doses: Median effective alpha of the tokens acted on, a number per pair; none unless the blend is linear.
        refused: Why nothing was painted, or "".
    """

    kept: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MEASURES})
    followed: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MEASURES})
    doses: list[float] = field(default_factory=list[float])
    refused: str = ""


def make_settings(num_layers: int) -> dict[str, dict[str, Any]]:
    """Get the settings that are compared, by name: knobs of the call, and "shown" or "strength" where that differs.

    Args:
        num_layers: Of the encoders; layers mean the depth that they have among the guide's 36.
    """

    def scale(layer: int) -> int:
        number = round((layer % (_GUIDE_LAYERS + 1)) * num_layers / _GUIDE_LAYERS)
        return min(number, num_layers - 1) - num_layers - 1

    base = {"vl_hidden_layer": scale(-6), "vl_alignment": "interpolate"}
    settings: dict[str, dict[str, Any]] = {
        f"alpha {alpha}": {"vl_alpha": alpha} for alpha in (0.15, 0.3, 0.5, 0.7, 1.0)
    }
    for shown in ("noise", "grey"):
        settings[f"{shown}, alpha 0.5"] = {"vl_alpha": 0.5, "shown": shown}
    for alpha in (0.3, 0.5):
        settings[f"every token at its size, {alpha}"] = {"vl_alpha": alpha, "vl_normalization": "token_rms"}
    settings["sinks left out, 0.3"] = {"vl_alpha": 0.3, "vl_exclude_sinks": True}
    for tokens in ("text", "image"):
        for alpha in (0.3, 1.0):
            settings[f"{tokens} tokens, {alpha}"] = {"vl_alpha": alpha, "vl_token_selection": tokens}
    for layer in (-2, -8, -16):
        settings[f"layer {layer}, 0.5"] = {"vl_alpha": 0.5, "vl_hidden_layer": scale(layer)}
    for mode in ("pool", "anchored"):
        settings[f"{mode}, 0.5"] = {"vl_alpha": 0.5, "vl_alignment": mode}
    for count in (4, 16, 64):
        settings[f"{count} tokens appended"] = {"vl_alignment": "concat", "vl_concat_tokens": count}
    settings["slerp, 0.5"] = {"vl_alpha": 0.5, "vl_blend_mode": "slerp"}
    for name, recipe in recipes.RECIPES.items():
        settings[f"recipe {name}"] = {**recipe, "vl_hidden_layer": scale(recipe.get("vl_hidden_layer", -6))}
    settings["image-to-image alone"] = {"vl_alpha": 0.0, "strength": 0.85}
    for alpha in (0.3, 0.5):
        settings[f"blend {alpha} from the same picture"] = {"vl_alpha": alpha, "strength": 0.85}
    return {name: {**base, **knobs} for name, knobs in settings.items()}


@dataclass(frozen=True)
class Studio:
    """A pipeline, and what is the same for every picture that it paints here. `call` goes to the pipeline.

    Picture n of a prompt starts from noise of seed + n, with every setting and every reference.
    """

    pipe: ZImageVLPipeline
    prompts: Sequence[str]
    seed: int
    call: dict[str, Any]

    def paint(self, prompt: int, picture: Image.Image | None = None, shift: int = 0, **knobs: Any) -> Any:
        """Paint one picture; get the pipeline's output."""
        call: dict[str, Any] = {**self.call, "generator": torch.Generator().manual_seed(self.seed + prompt + shift)}
        shown, strength = knobs.pop("shown", "picture"), knobs.pop("strength", None)
        if picture is not None:
            noise = np.random.default_rng(self.seed).integers(
                0, 256, (picture.height, picture.width, 3), dtype=np.uint8
            )
            controls = {"noise": Image.fromarray(noise), "grey": Image.new("RGB", picture.size, (128, 128, 128))}
            call |= {**knobs, "reference_image": controls.get(shown, picture)}
        if strength is not None and picture is not None:
            return paint_from_image(self.pipe, self.prompts[prompt], picture, strength, **call)
        return self.pipe(self.prompts[prompt], **call)

    def read(self, picture: Image.Image) -> Features:
        """Describe a picture. Its content is the mean state of its image tokens at the depth of the guide's -6, less
        that of flat grey: what all pictures have in common drops out."""
        side = min(self.call["width"], self.call["height"], _READING_SIZE)
        layer: int = make_settings(int(self.pipe.text_encoder.config.num_hidden_layers))["alpha 0.3"][
            "vl_hidden_layer"
        ]
        pooled: list[Floats] = []
        for image in (picture.convert("RGB").resize((side, side)), Image.new("RGB", (side, side), (128, 128, 128))):
            embeds = self.pipe.encode_reference(image, "", (layer,))
            states = embeds.hidden_states[layer][embeds.regions == Region.IMAGE]  # (image tokens, dims)
            pooled.append(states.to("cpu", torch.float64).mean(dim=0).numpy())
        return Features(describe_colours(picture), describe_structure(picture), pooled[0] - pooled[1])


def measure_pictures(
    studio: Studio,
    pictures: Sequence[Image.Image],
    settings: Mapping[str, Mapping[str, Any]],
    on_picture: Callable[[str, int, int, Image.Image], None],
) -> dict[str, Outcome]:
    """Paint every prompt with every picture under every setting, and measure both axes.

    Args:
        studio: From which checkpoint, prompts and noise.
        pictures: The references.
        settings: From `make_settings`.
        on_picture: Called with the setting, the numbers of prompt and picture, and what was painted.

    Returns:
        An outcome per setting; first the prompt alone from other noise, which tells how much of "kept" the prompt
        itself accounts for. A setting that the pipeline refuses says why.
    """
    outcomes = {name: Outcome() for name in (ANOTHER, *settings)}
    targets = [studio.read(picture) for picture in pictures]
    for prompt in range(len(studio.prompts)):
        alone_picture = studio.paint(prompt).images[0]
        alone = studio.read(alone_picture)
        for number, (picture, target) in enumerate(zip(pictures, targets, strict=True)):
            on_picture(ALONE, prompt, number, alone_picture)
            between = alone.compare(target)
            for name, outcome in outcomes.items():
                if outcome.refused:
                    continue
                try:
                    if name == ANOTHER:
                        output = studio.paint(prompt, shift=len(studio.prompts))
                    else:
                        output = studio.paint(prompt, picture, **settings[name])
                except (TypeError, ValueError) as error:  # hours of others must not be lost to one
                    outcome.refused = f"{type(error).__name__}: {error}"
                    continue
                on_picture(name, prompt, number, output.images[0])
                painted = studio.read(output.images[0])
                for axis, other in ((outcome.kept, alone), (outcome.followed, target)):
                    for measure, value in painted.compare(other).items():
                        axis[measure].append((value - between[measure]) / max(0.02, 1 - between[measure]))
                dose, acted = (measure_dose(output.conditioning[0]) if output.conditioning else None) or (0.0, 0)
                outcome.doses += [dose] if acted else []
    return outcomes


def write_page(outcomes: Mapping[str, Outcome], head: str, sheet: str) -> str:
    """Write the page: what was asked, the sheet, and a row per setting.

    Args:
        outcomes: From `measure_pictures`.
        head: Title and what was run, as Markdown.
        sheet: Path of the sheet, relative to the page.
    """
    lines = [head, "", f"![Prompt alone, and more and more reference]({sheet})", ""]
    lines += [
        "**Kept**: how like the picture is to the one that the prompt alone gives from the same noise. **Followed**: "
        "how like the reference. The prompt alone has 1 and 0, a copy of the reference 0 and 1; what the prompt alone "
        "has from other noise is as good as kept, what noise and grey have is as good as not followed. *Dose* is the "
        "effective alpha. ± is the standard error over pairs, which share prompts and pictures: the true one is "
        "larger. Content is what the pipeline's own VL encoder sees. None of it says how good a picture looks.",
        "",
        f"| setting | dose | kept | followed | {' | '.join(f'{name}: kept / followed' for name in MEASURES)} |",
        "|---" * (4 + len(MEASURES)) + "|",
    ]
    for name, outcome in outcomes.items():
        if outcome.refused:
            lines.append(f"| {name} | not painted: {outcome.refused} {'| ' * (2 + len(MEASURES))}|")
            continue
        cells = [f"{fmean(outcome.doses):.2f}" if outcome.doses else "-"]
        for axis in (outcome.kept, outcome.followed):
            pairs = [float(np.mean(values)) for values in zip(*axis.values(), strict=True)]
            cells.append(
                f"{fmean(pairs):.2f}" + (f" ± {stdev(pairs) / len(pairs) ** 0.5:.2f}" if len(pairs) > 1 else "")
            )
        cells += [f"{np.mean(outcome.kept[name]):.2f} / {np.mean(outcome.followed[name]):.2f}" for name in MEASURES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def make_sheet(
    rows: Sequence[Sequence[Image.Image]], labels: Sequence[str], heads: Sequence[str], cell: int = 256
) -> Image.Image:
    """Put pictures into a labelled grid: a row per label, a column per head, each in a square of `cell` pixels."""
    ink, margin, left, gap = (38, 38, 42), 24, 260, 10
    font, heads = ImageFont.load_default(size=20), [textwrap.fill(head, cell // 11) for head in heads]
    top = 34 + 26 * max(1 + head.count("\n") for head in heads)
    size = left + (cell + gap) * len(heads) + margin, top + (cell + gap) * len(rows) + margin
    sheet = Image.new("RGB", size, (250, 250, 248))
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        draw.multiline_text((left + (cell + gap) * column, 24), head, ink, font=font)
    for row, (label, images) in enumerate(zip(labels, rows, strict=True)):
        y = top + (cell + gap) * row
        draw.multiline_text((margin, y), textwrap.fill(label, 21), ink, font=font)
        for column, image in enumerate(images):
            scale = cell / max(image.size)
            sides = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            method = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
            sheet.paste(image.convert("RGB").resize(sides, method), (left + (cell + gap) * column, y))
    return sheet
