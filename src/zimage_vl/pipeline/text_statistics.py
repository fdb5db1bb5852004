"""The text encoder's own statistics, measured with the encoder in use on prompts of ours, and their file.

"per_dim", "hybrid" and outlier masking compare a reference with what the text encoder usually says. The figures of the
Qwen3-VL conditioning guide belong to one model and one set of prompts, and a constant copied from there would be wrong
for any other: nothing is shipped but the prompts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

import diffusers
import torch
from torch import Tensor

from ..blend.checks import check_kind
from ..blend.embedding_statistics import EmbeddingStatistics, check_statistics
from ..reference.files import FileKind, read_tensor_file, write_tensor_file
from ..reference.readers import fingerprint_text_encoder
from ..reference.reading import VERSIONS


# Image prompts as people write them: one word to about 100, plain lists of tags and whole sentences, ten languages in
# six scripts. Any change changes `calibration_prompts_sha256`, and with it the files that are told apart by it.
CALIBRATION_PROMPTS: tuple[str, ...] = (
    "lighthouse",
    "red",
    "a cat",
    "a glass of water",
    "portrait of an old fisherman",
    "a red circle on a white background",
    "flat vector icon of a mountain and a sun",
    "a poster that says OPEN in thick blue letters",
    "watercolour of a village under snow, muted palette",
    "aerial view of a river delta in autumn colours",
    "a robot repairs a bicycle in front of a brick wall",
    "black and white photograph of a jazz trio on a narrow stage",
    "a bowl of oranges on a wooden table, morning light",
    "isometric drawing of a small workshop with tools on the walls",
    "macro photograph of a bee on lavender, shallow depth of field",
    "two children run along a beach at low tide, kites above them",
    "oil painting of a storm over wheat fields, heavy strokes, dramatic sky",
    "the interior of a glasshouse, ferns, dust in the light, a forgotten chair",
    "three wooden toys: a horse, a train and a duck, on a grey felt surface, soft studio light",
    "pixel art, side view, a knight with a green cape in front of a castle gate, 16 colours, no gradients",
    "an empty street in the rain at night, neon signs mirrored in the puddles, a cyclist in a yellow coat far away",
    "cinematic still, woman in a red raincoat on a ferry, overcast, 35 mm, film grain, looking out of the frame",
    "ein Leuchtturm in der Abenddämmerung, ruhige See",
    "eine alte Buchhandlung mit einer Katze im Schaufenster",
    "un marché couvert à midi, fruits et fleurs, lumière chaude",
    "un gato dormido sobre un tejado de tejas rojas",
    "una piazza vuota all'alba, ombre lunghe",
    "um barco de pesca azul na areia, gaivotas, céu nublado",
    "灯塔与晚霞",
    "一位穿着青色长袍的老人在竹林里喝茶,薄雾,清晨",
    "极简风格的客厅,低矮的灰色沙发,纸灯,橡木地板",
    "雨の夜の交差点、傘をさした人々、水たまりに映る光",
    "눈 덮인 산길을 걷는 여행자",
    "рыжая лиса в зимнем лесу, мягкий свет",
    "منارة على شاطئ البحر عند الغروب",
    "a minimalist living room with a low grey sofa, a round paper lamp, an oak floor and one large window that looks "
    "out on bare trees; the light is cold, the shadows are long, and nothing moves",
    "Product photograph of a ceramic teapot with a cracked turquoise glaze, standing on wet slate. A single lamp from "
    "the left draws a bright line along the spout, steam rises behind the handle, the background falls off to black.",
    "Children's book illustration: a hedgehog in a knitted scarf waits at a tiny bus stop made of twigs while the "
    "first leaves fall; behind him a beetle sells acorn soup from a walnut shell, and a paper lantern glows above the "
    "timetable that nobody can read. Pencil and gouache, warm browns and ochres, plenty of white space around the "
    "scene.",
    "A wide photograph of a mountain lake before sunrise. The water is perfectly still and doubles the dark line of "
    "the firs; behind them three peaks catch the first pink light. In the foreground a wooden jetty leads a few steps "
    "into the water, and at its end lies an overturned blue rowing boat with peeling paint. A thin band of fog hangs "
    "between the trees, and on the far shore one window of a stone house is lit. No people, no birds, high detail, "
    "natural colours, medium format, focal length 35 mm, a little noise in the shadows, calm and slightly melancholy.",
    "Eine weite, menschenleere Bahnhofshalle aus Stahl und Glas am frühen Morgen: Sonnenstrahlen fallen schräg durch "
    "den Staub, auf Gleis drei steht ein grüner Zug mit offenen Türen, und eine vergessene rote Reisetasche wirft "
    "einen langen Schatten auf den hellen Stein.",
)


STATISTICS_FILE = FileKind(
    contents="text-encoder statistics",
    schema="zimage_vl.text_statistics",
    version="2",
    remedy="measure them again with `zimage-vl statistics --output FILE`",
)
TEXT_LAYER = -2  # where Z-Image reads its text encoder
_CALIBRATION_BATCH = 4


def measure_text_statistics(
    encode: Callable[[list[str]], Sequence[Tensor]], exclude_sinks: bool = False
) -> EmbeddingStatistics:
    """Get the statistics of what `encode` makes of the calibration prompts, over all tokens, template included.

    `exclude_sinks` leaves attention sinks out: on Qwen3-4B one token per prompt gives nearly all of the variance.
    """
    embeddings: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(CALIBRATION_PROMPTS), _CALIBRATION_BATCH):
            embeddings.extend(encode(list(CALIBRATION_PROMPTS[start : start + _CALIBRATION_BATCH])))
        return EmbeddingStatistics.from_embeddings(embeddings, exclude_sinks)


def calibration_prompts_sha256() -> str:
    """Get the SHA-256 of the calibration prompts, as a JSON list in UTF-8."""
    return hashlib.sha256(json.dumps(CALIBRATION_PROMPTS, ensure_ascii=False).encode("utf-8")).hexdigest()


@dataclass(frozen=True, eq=False)
class TextStatistics:
    """Statistics of a text encoder with where they come from.

    Example:
        >>> import tempfile
        >>> from zimage_vl import load_toy_pipeline
        >>> pipe = load_toy_pipeline()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     TextStatistics.measure(pipe, "toy").save(f"{folder}/toy.safetensors")
        ...     TextStatistics.load(f"{folder}/toy.safetensors").check_fits(pipe.text_encoder)
    """

    statistics: EmbeddingStatistics
    model_id: str  # the model's name, for people
    fingerprint: str  # of the text encoder they belong to, as `fingerprint_text_encoder` gives it
    layer: int = TEXT_LAYER  # of the hidden states that were measured
    prompts_sha256: str = ""  # of the prompts they were measured on
    dtype: str = ""  # of the text encoder, such as "bfloat16"
    versions: Mapping[str, str] = field(default_factory=dict[str, str])  # library to version, zimage_vl among them

    def __post_init__(self) -> None:
        check_statistics("statistics", self.statistics)

    @property
    def width(self) -> int:
        """Dimensions of a token's embedding."""
        return self.statistics.std.shape[0]

    @classmethod
    def measure(cls, pipe: Any, model_id: str, exclude_sinks: bool = False) -> TextStatistics:
        """Measure the text encoder of a `ZImageVLPipeline`, unless that has done so already."""
        check_kind("pipe", pipe, "text_statistics", "a ZImageVLPipeline")
        return cls(
            statistics=pipe.text_statistics(exclude_sinks),
            model_id=model_id,
            fingerprint=fingerprint_text_encoder(pipe.text_encoder),
            prompts_sha256=calibration_prompts_sha256(),
            dtype=str(pipe.text_encoder.dtype).removeprefix("torch."),
            versions={**VERSIONS, "diffusers": diffusers.__version__},
        )

    def check_fits(self, text_encoder: Any) -> None:
        """Check that the statistics are of this text encoder.

        Raises:
            ValueError: They are not; the message names the model they are from, and what differs.
        """
        fingerprint = fingerprint_text_encoder(text_encoder)  # which refuses another kind of object
        expected = (TEXT_LAYER, text_encoder.config.hidden_size, fingerprint)
        found = (self.layer, self.width, self.fingerprint)
        for name, own, theirs in zip(("layer", "width", "fingerprint"), expected, found, strict=True):
            if own != theirs:
                raise ValueError(
                    f"The statistics are of {self.model_id!r}, {name} {theirs!s:.12}; this text encoder has {name} "
                    f"{own!s:.12}. Instead, {STATISTICS_FILE.remedy}."
                )

    def save(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Write a safetensors file: all of it or nothing; or into an open file. Equal contents give equal bytes.

        Raises:
            FileNotFoundError: Its folder does not exist.
        """
        tensors = {"mean": self.statistics.mean.float(), "std": self.statistics.std.float()}
        write_tensor_file(path, STATISTICS_FILE, tensors, self.to_metadata())

    def to_metadata(self) -> dict[str, str]:
        """Get all but the tensors, as the texts that the file carries."""
        known: dict[str, object] = {each.name: getattr(self, each.name) for each in fields(self)}
        known |= {name: getattr(known["statistics"], name) for name in ("count", "exclude_sinks")}
        known |= {"width": self.width, "versions": dict(self.versions)}
        del known["statistics"]
        return {name: x if isinstance(x, str) else json.dumps(x, sort_keys=True) for name, x in known.items()}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TextStatistics:
        """Read a file that `save` wrote, onto the CPU.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged, of another kind or schema version, holds NaN or contradicts itself.
        """
        tensors, metadata = read_tensor_file(path, STATISTICS_FILE)
        try:
            excluded = {"true": True, "false": False}[metadata["exclude_sinks"]]
            statistics = EmbeddingStatistics(tensors["mean"], tensors["std"], int(metadata["count"]), excluded)
            rest: dict[str, Any] = {**metadata, "layer": int(metadata["layer"])}
            rest["versions"] = json.loads(metadata["versions"])
            own = {name: x for name, x in rest.items() if name not in ("count", "exclude_sinks", "width")}
            loaded = cls(statistics, **own)
            if loaded.to_metadata() != metadata or {x.dtype for x in tensors.values()} != {torch.float32}:
                raise ValueError("its metadata and its tensors contradict each other")
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            reason = str(error).rstrip(".")
            raise ValueError(f"{Path(path)} is refused: {reason}. To mend it, {STATISTICS_FILE.remedy}.") from error
        return loaded
