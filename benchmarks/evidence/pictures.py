"""The guide's tables on a user's own pictures and prompts, with any Z-Image and Qwen3-VL checkpoint.

There is no judge for such pictures: measured is how alike each painted picture is to its reference, and to what the
prompt alone would have given.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from zimage_vl.blend.report import ConditioningReport
from zimage_vl.evidence.picture_settings import ReferenceShown, Setting, make_settings
from zimage_vl.evidence.similarity import (
    MEASURES,
    PictureFeatures,
    PictureReader,
    count_layers,
    describe_picture,
)
from zimage_vl.evidence.summaries import format_mean, get_typical_alpha
from zimage_vl.evidence.tables import Table
from zimage_vl.reference.embeds import ReferenceEmbeds
from zimage_vl.reference.pictures import load_reference_image
from zimage_vl.reference.readers import resolve_layers


READING_SIZE = 512
COLUMNS = (
    "setting",
    "pictures",
    "effective alpha",
    "influence",
    *(f"{name}: like the reference" for name in MEASURES),
    *(f"{name}: kept of the prompt's" for name in MEASURES),
)
# Who painted it (None: the prompt alone), the picture's and the prompt's number, and the painted picture.
OnPicture = Callable[[Setting | None, int, int, Image.Image], None]


@dataclass
class Outcomes:
    """What the pictures of one setting showed, one entry a pair of prompt and picture; or why there are none."""

    alphas: list[float] = field(default_factory=list[float])
    influences: list[float] = field(default_factory=list[float])
    near: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    kept: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    refused: str = ""

    def add(self, near: dict[str, float], kept: dict[str, float], report: ConditioningReport | None) -> None:
        self.near.append(near)
        self.kept.append(kept)
        if report is not None:
            self.influences.append(report.influence)
            alpha = get_typical_alpha(report)
            self.alphas += [] if alpha is None else [alpha]

    def make_row(self, name: str) -> tuple[str, ...]:
        if self.refused:
            return (name, "not painted", *["-"] * (len(COLUMNS) - 2))
        sizes = [f"{statistics.fmean(values):.2f}" if values else "-" for values in (self.alphas, self.influences)]
        scores = [format_mean([one[m] for one in side]) for side in (self.near, self.kept) for m in MEASURES]
        return (name, str(len(self.near)), *sizes, *scores)


@dataclass(frozen=True)
class Studio:
    """A pipeline with all that is the same for every picture it paints here."""

    pipe: Any
    reader: PictureReader
    prompts: tuple[str, ...]
    layers: tuple[int, ...]
    seed: int
    call: dict[str, Any]

    def paint(self, prompt: int, **knobs: Any) -> tuple[Image.Image, ConditioningReport | None]:
        """One picture. All pictures of a prompt start from the same noise."""
        generator = torch.Generator().manual_seed(self.seed + prompt)
        output = self.pipe(self.prompts[prompt], generator=generator, **self.call, **knobs)
        return output.images[0], output.conditioning[0] if output.conditioning else None

    def encode(self, image: Image.Image, text: str, **encoding: Any) -> ReferenceEmbeds:
        """A reference, on the CPU: with all layers it would crowd the accelerator."""
        return self.pipe.encode_reference(image, text, self.layers, **encoding).to("cpu")


class ReferenceSet:
    """One picture and its controls, encoded once for each text and way to read them."""

    def __init__(self, studio: Studio, image: Image.Image, seed: int) -> None:
        noise = np.random.default_rng(seed).integers(0, 256, (image.height, image.width, 3), dtype=np.uint8)
        self.studio = studio
        self.shown: dict[ReferenceShown, Image.Image] = {
            "picture": image,
            "grey": Image.new("RGB", image.size, (128, 128, 128)),
            "noise": Image.fromarray(noise),
        }
        self._encoded: dict[str, ReferenceEmbeds] = {}

    def get_inputs(self, setting: Setting, prompt: int) -> dict[str, Any]:
        """The references of a call."""
        text = self.studio.prompts[prompt] if setting.text is None else setting.text
        inputs = {"reference_embeds": self._encode(setting.reference, text, setting.encoding)}
        if setting.needs_neutral:
            inputs["neutral_image"] = self._encode("grey", text, setting.encoding)
        return inputs

    def _encode(self, shown: ReferenceShown, text: str, encoding: dict[str, Any]) -> ReferenceEmbeds:
        key = repr((shown, text, sorted(encoding.items())))
        if key not in self._encoded:
            self._encoded[key] = self.studio.encode(self.shown[shown], text, **encoding)
        return self._encoded[key]


def measure_pictures(
    pipe: Any,
    pictures: Sequence[str | PathLike[str]],
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int = 9,
    guidance_scale: float = 0.0,
    size: int | tuple[int, int] = 1024,
    settings: Sequence[Setting] | Mapping[str, Mapping[str, Any]] | None = None,
    on_picture: OnPicture | None = None,
) -> list[Table]:
    """Paint every prompt with every picture under many settings, and measure what came of it.

    For each pair of prompt and picture, and each setting: how like the painted picture is to the reference, and how
    like it is to the picture that the prompt alone gives from the same noise, in colour, structure and semantics (see
    `similarity`). The first row of each table is the prompt alone: what a reference has to surpass.

    Args:
        pipe: A `ZImageVLPipeline`; its VL encoder is loaded where it is missing.
        pictures: Files; all are read before anything is painted.
        prompts: Not empty.
        seed: Prompt n starts from noise of seed + n; the noise reference of picture n has seed + n too.
        steps: `num_inference_steps`.
        guidance_scale: As in the call.
        size: Of the painted pictures, in pixels: a side, or width and height.
        settings: What to compare; None is `make_settings` for the VL encoder's number of layers, some sixty. Also
            `{name: keyword arguments of the call}`, which make one table, with one of controls beside it. Settings
            that come to the same are painted once.
        on_picture: Called with each painted picture, to keep or show it.

    Returns:
        A table a group, with count, mean effective alpha, mean influence, and mean and standard error of the
        similarities. A setting that the pipeline refuses for one of the pairs says "not painted", the note says why.

    Raises:
        FileNotFoundError: A picture does not exist.
        TypeError: A prompt that is not a string, a path that is none.
        ValueError: No picture, no prompt, an empty prompt, no setting, a size that is no multiple of 16, a layer that
            the VL encoder has not, or a file that is no picture, by its name.

    Example:
        >>> import tempfile
        >>> from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
        >>> settings = [Setting("Alpha", f"alpha {alpha}", {"vl_alpha": alpha}) for alpha in (0.3, 1.0)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     photo = Path(folder) / "photo.png"
        ...     draw_scene(Scene("circle", "red", "white")).save(photo)
        ...     tables = measure_pictures(load_toy_pipeline(), [photo], ["a blue square on a black background"],
        ...                               steps=8, size=64, settings=settings)
        >>> [row[:2] for row in tables[0].rows]
        [('the prompt alone', '1'), ('alpha 0.3', '1'), ('alpha 1.0', '1')]
    """
    images = _read_pictures(pictures)
    _check_prompts(prompts)
    width, height = (size, size) if isinstance(size, int) else size
    if min(width, height) < 16 or width % 16 or height % 16:
        raise ValueError(f"`size` must be a multiple of 16, at least 16, got {size}.")
    chosen = _choose_settings(pipe, settings)
    studio = Studio(
        pipe,
        PictureReader(pipe, min(width, height, READING_SIZE)),
        tuple(prompts),
        tuple(sorted({layer for setting in chosen for layer in setting.layers})),
        seed,
        {"height": height, "width": width, "num_inference_steps": steps, "guidance_scale": guidance_scale},
    )
    alone, outcomes = _paint_all(studio, images, chosen, on_picture or _ignore)
    note = (
        f"{len(images)} pictures, {len(prompts)} prompts, {width} x {height} pixels, {steps} steps, guidance scale "
        f"{guidance_scale:g}, seed {seed}, VL encoder {pipe.config.vl_model_id or 'in the pipeline'}. Mean and "
        "standard error over the pairs, which share prompts and pictures: the true error is larger. 1 is the same "
        "picture; colour 0 is black against white, structure and semantics are near 0 for pictures with nothing in "
        "common. Semantics is what the pipeline's own VL encoder sees. Nothing here measures how good a picture looks."
    )
    groups = list(dict.fromkeys(setting.group for setting in chosen))
    notes = [note, *["Measured as in the first of these tables."] * (len(groups) - 1)]
    return [
        _make_table(group, [s for s in chosen if s.group == group], alone, outcomes, text)
        for group, text in zip(groups, notes, strict=True)
    ]


def _read_pictures(pictures: Sequence[str | PathLike[str]]) -> list[Image.Image]:
    if isinstance(pictures, (str, PathLike)) or not pictures:
        raise ValueError(f"`pictures` must be a list of at least one file, got {pictures!r}.")
    return [load_reference_image(Path(path), "pictures") for path in pictures]


def _choose_settings(
    pipe: Any, settings: Sequence[Setting] | Mapping[str, Mapping[str, Any]] | None
) -> Sequence[Setting]:
    if settings is not None and not settings:
        raise ValueError("`settings` must hold at least one setting, got none; None takes the guide's tables.")
    chosen = [] if settings is None or isinstance(settings, Mapping) else list(settings)
    if isinstance(settings, Mapping):
        chosen = [Setting("Settings", name, knobs) for name, knobs in settings.items()]
    num_layers = count_layers(pipe)
    if settings is None or isinstance(settings, Mapping):
        chosen += [one for one in make_settings(num_layers) if settings is None or one.group == "Controls"]
    for setting in chosen:
        try:
            resolve_layers(setting.layers, num_layers)
        except ValueError as error:
            raise ValueError(f"The setting {setting.name!r} does not fit the VL encoder: {error}") from error
    return chosen


def _check_prompts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"`prompts` must be a list of at least one text, got {prompts!r}.")
    for prompt in prompts:
        if not isinstance(prompt, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"`prompts` must hold texts, got {prompt!r} of type {type(prompt).__name__}.")
        if not prompt.strip():
            raise ValueError("`prompts` has an empty text in it: every picture is held against the prompt's own.")


def _paint_all(
    studio: Studio, images: Sequence[Image.Image], settings: Sequence[Setting], on_picture: OnPicture
) -> tuple[Outcomes, dict[str, Outcomes]]:
    """What the prompts alone gave, and each setting by its key. Picture by picture, so that few states are held."""
    distinct = {setting.key: setting for setting in reversed(settings)}
    alone, outcomes = Outcomes(), {setting.key: Outcomes() for setting in settings}
    baselines: list[PictureFeatures] = []
    for n in range(len(studio.prompts)):
        painted, _ = studio.paint(n)
        on_picture(None, -1, n, painted)
        baselines.append(describe_picture(studio.reader, painted))
    for number, image in enumerate(images):
        references = ReferenceSet(studio, image, studio.seed + number)
        target = describe_picture(studio.reader, image)
        for n, baseline in enumerate(baselines):
            alone.add(baseline.compare(target), baseline.compare(baseline), None)
            for key, outcome in outcomes.items():
                if outcome.refused:
                    continue
                setting = distinct[key]
                try:
                    painted, report = studio.paint(n, **references.get_inputs(setting, n), **setting.calling)
                except ValueError as error:
                    # Hours of other settings must not be lost to one that does not fit this model or these inputs.
                    outcome.refused = f"{type(error).__name__}: {error}"
                    continue
                on_picture(setting, number, n, painted)
                features = describe_picture(studio.reader, painted)
                outcome.add(features.compare(target), features.compare(baseline), report)
    return alone, outcomes


def _ignore(setting: Setting | None, picture: int, prompt: int, painted: Image.Image) -> None:
    """Keep nothing."""


def _make_table(
    group: str, settings: Sequence[Setting], alone: Outcomes, outcomes: dict[str, Outcomes], note: str
) -> Table:
    rows = [alone.make_row("the prompt alone"), *(outcomes[s.key].make_row(s.name) for s in settings)]
    refused = [f"Not painted: {s.name}: {outcomes[s.key].refused}" for s in settings if outcomes[s.key].refused]
    shown = {s.reference for s in settings}
    control = "A control is held against the picture that it stands in for, which was not shown."
    remarks = [control] if shown != {"picture"} else []
    return Table(group, COLUMNS, tuple(rows), " ".join([note, *remarks, *refused]))
