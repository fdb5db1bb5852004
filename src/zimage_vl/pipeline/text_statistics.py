"""The file of a text encoder's statistics, with whose they are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from .._version import __version__
from ..blend.embedding_statistics import EmbeddingStatistics
from ..reference.fingerprints import fingerprint_text_encoder
from ..reference.tensor_files import FileKind, read_tensor_file, write_tensor_file
from .calibration import calibration_prompts_sha256


STATISTICS_FILE = FileKind(
    contents="text-encoder statistics",
    schema="zimage_vl.pipeline.text_statistics",
    version="1",
    remedy="measure them again with `zimage-vl statistics --output FILE`",
)
TEXT_LAYER = -2  # where Z-Image reads its text encoder
_RECORDED_LIBRARIES = ("torch", "transformers", "diffusers")


@dataclass(frozen=True, eq=False)
class TextStatistics:
    """Statistics of a text encoder with where they come from.

    Attributes:
        statistics: What was measured.
        model_id: The model's name, for people.
        fingerprint: Which text encoder, as `fingerprint_text_encoder` gives it.
        layer: The hidden states that were measured: those that Z-Image reads.
        prompts_sha256: Which prompts.
        dtype: Of the text encoder, such as "bfloat16".
        versions: Library to version, zimage_vl among them.

    Example:
        >>> from zimage_vl.toy import load_toy_pipeline
        >>> pipe = load_toy_pipeline()  # doctest: +SKIP
        >>> TextStatistics.measure(pipe, "toy").save("toy.safetensors")  # doctest: +SKIP
        >>> TextStatistics.load("toy.safetensors").check_fits(pipe.text_encoder)  # doctest: +SKIP
    """

    statistics: EmbeddingStatistics
    model_id: str
    fingerprint: str
    layer: int = TEXT_LAYER
    prompts_sha256: str = ""
    dtype: str = ""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def width(self) -> int:
        """Dimensions of a token's embedding."""
        return self.statistics.std.shape[0]

    @classmethod
    def measure(cls, pipe: Any, model_id: str, exclude_sinks: bool = False) -> TextStatistics:
        """Measure a pipeline's text encoder on the calibration prompts; what it knows already is not measured again.

        Args:
            pipe: A `ZImageVLPipeline`.
            model_id: The model's name, for people.
            exclude_sinks: Leave attention sinks out.
        """
        text_encoder = pipe.text_encoder
        return cls(
            statistics=pipe.text_statistics(exclude_sinks),
            model_id=model_id,
            fingerprint=fingerprint_text_encoder(text_encoder),
            prompts_sha256=calibration_prompts_sha256(),
            dtype=str(text_encoder.dtype).removeprefix("torch."),
            versions={"zimage_vl": __version__, **_library_versions()},
        )

    def check_fits(self, text_encoder: Any) -> None:
        """Refuse statistics of another text encoder.

        Raises:
            ValueError: Naming the model they are from, and what differs.
        """
        if self.layer != TEXT_LAYER:
            raise ValueError(
                f"The statistics are of layer {self.layer} of {self.model_id!r}; Z-Image reads layer {TEXT_LAYER}. "
                f"Instead, {STATISTICS_FILE.remedy}."
            )
        width = text_encoder.config.hidden_size
        if width != self.width:
            raise ValueError(
                f"The statistics are of {self.model_id!r}, which is {self.width} wide; this text encoder is {width} "
                f"wide. Instead, {STATISTICS_FILE.remedy}."
            )
        fingerprint = fingerprint_text_encoder(text_encoder)
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"The statistics are of {self.model_id!r} (fingerprint {self.fingerprint[:12]}), which is not this "
                f"text encoder (fingerprint {fingerprint[:12]}). Instead, {STATISTICS_FILE.remedy}."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: all of it or nothing. Equal contents give equal bytes.

        Raises:
            FileNotFoundError: Its folder does not exist.
        """
        tensors = {"mean": self.statistics.mean.float(), "std": self.statistics.std.float()}
        write_tensor_file(path, STATISTICS_FILE, tensors, self.to_metadata())

    def to_metadata(self) -> dict[str, str]:
        """All but the tensors, as the texts that the file carries."""
        return {
            "model_id": self.model_id,
            "fingerprint": self.fingerprint,
            "width": str(self.width),
            "layer": str(self.layer),
            "count": str(self.statistics.count),
            "exclude_sinks": json.dumps(self.statistics.exclude_sinks),
            "prompts_sha256": self.prompts_sha256,
            "dtype": self.dtype,
            "versions": json.dumps(dict(self.versions), sort_keys=True),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TextStatistics:
        """Read a file that `save` wrote, onto the CPU.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged, of another kind or schema version, holds NaN or contradicts itself.
        """
        tensors, metadata = read_tensor_file(path, STATISTICS_FILE)
        try:
            return cls._from_file(tensors, metadata)
        except (KeyError, ValueError, TypeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{Path(path)} is refused: {reason} To mend it, {STATISTICS_FILE.remedy}.") from error

    @classmethod
    def _from_file(cls, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> TextStatistics:
        exclude_sinks: Any = json.loads(metadata["exclude_sinks"])
        versions: Any = json.loads(metadata["versions"])
        if not isinstance(exclude_sinks, bool) or not isinstance(versions, dict):
            raise ValueError("its metadata cannot be read.")
        loaded = cls(
            EmbeddingStatistics(tensors["mean"], tensors["std"], int(metadata["count"]), exclude_sinks),
            model_id=metadata["model_id"],
            fingerprint=metadata["fingerprint"],
            layer=int(metadata["layer"]),
            prompts_sha256=metadata["prompts_sha256"],
            dtype=metadata["dtype"],
            versions=cast("dict[str, str]", versions),
        )
        if metadata["width"] != str(loaded.width):
            raise ValueError(f"its metadata say width {metadata['width']}, its tensors {loaded.width}.")
        return loaded


def _library_versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _RECORDED_LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
