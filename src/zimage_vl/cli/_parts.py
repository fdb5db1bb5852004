"""Parts of a model for the commands that paint nothing: a text encoder to measure, or a VL encoder to read with.

Neither needs the transformer, and from the Hub only the folders in use are fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._shared import TOY_MODEL


if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
    from zimage_vl.reference.embeds import ReferenceEmbeds

# As the pipeline's own call has it: a longer text is cut there too.
_MAX_SEQUENCE_LENGTH = 512


@dataclass(frozen=True)
class ReferenceReader:
    """The parts that read a reference, without those that paint.

    Attributes:
        vl_encoder: A Qwen3-VL.
        vl_processor: Its image processor.
        tokenizer: Z-Image's tokenizer.
        model_id: What is recorded as the encoder's name.
    """

    vl_encoder: Any
    vl_processor: Any
    tokenizer: Any
    model_id: str

    def check_layers(self, layers: tuple[int, ...]) -> None:
        """Refuse layers that the encoder does not have.

        Raises:
            ValueError: Naming the layer and those that there are.
        """
        from zimage_vl.reference.readers import resolve_vl_layers

        resolve_vl_layers(self.vl_encoder, layers)

    def read(
        self, image: Image, text: str, layers: tuple[int, ...], *, text_position: Any, max_pixels: int
    ) -> ReferenceEmbeds:
        """What a pipeline of the same parts would read in one call, bit for bit; all layers from one forward."""
        from zimage_vl.reference.reading import encode_reference

        return encode_reference(
            self.vl_encoder,
            self.vl_processor,
            self.tokenizer,
            image,
            text,
            layers,
            text_position=text_position,
            max_pixels=max_pixels,
            max_sequence_length=_MAX_SEQUENCE_LENGTH,
            model_id=self.model_id,
        )


def load_reference_reader(
    model: str, vl_model: str | None, dtype: torch.dtype, device: str, revision: str | None
) -> ReferenceReader:
    """A Z-Image's tokenizer, and the Qwen3-VL that its pipeline would read with.

    Args:
        model: "toy", a folder in diffusers' layout, or a Hub id.
        vl_model: Folder or Hub id of the Qwen3-VL; None for the one the model holds or names.
        dtype: Of the VL encoder's weights.
        device: Where it runs.
        revision: Branch, tag or commit of `model` on the Hub.

    Raises:
        OSError: Something cannot be found or fetched; the message says what.
        ValueError: The VL encoder is not as wide as the model's text encoder.
    """
    if model == TOY_MODEL:
        from zimage_vl.toy import load_toy_pipeline

        toy: Any = load_toy_pipeline()
        encoder = toy.vl_encoder.to(device=device, dtype=dtype)
        return ReferenceReader(encoder, toy.vl_processor, toy.tokenizer, TOY_MODEL)
    from transformers import AutoConfig, AutoTokenizer

    from zimage_vl.reference.readers import check_vl_encoder

    try:
        index = _read_index(model, revision)
        tokenizer: Any = AutoTokenizer.from_pretrained(model, subfolder="tokenizer", **_at(revision))
        width = AutoConfig.from_pretrained(model, subfolder="text_encoder", **_at(revision)).hidden_size
    except (OSError, ValueError) as error:
        raise _not_loaded(model, error) from error
    encoder, processor, model_id = _load_vl_parts_of(model, vl_model, index, dtype, revision)
    check_vl_encoder(encoder, width)
    return ReferenceReader(encoder.to(device), processor, tokenizer, model_id)


def _read_index(model: str, revision: str | None) -> dict[str, Any]:
    """The pipeline's model_index.json."""
    from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline

    index: Any = ZImageVLPipeline.load_config(model, revision=revision)
    return index


def _load_vl_parts_of(
    model: str, vl_model: str | None, index: dict[str, Any], dtype: torch.dtype, revision: str | None
) -> tuple[Any, Any, str]:
    """Encoder, processor and name: those asked for, or those saved with the model, or those it names."""
    from zimage_vl.reference.loading import load_vl_parts

    if vl_model is None and (index.get("vl_encoder") or [None])[0] is not None:
        from transformers import AutoImageProcessor, Qwen3VLForConditionalGeneration

        try:
            encoder = Qwen3VLForConditionalGeneration.from_pretrained(
                model, subfolder="vl_encoder", dtype=dtype, **_at(revision)
            )
            processor = AutoImageProcessor.from_pretrained(model, subfolder="vl_processor", **_at(revision))
        except (OSError, ValueError) as error:
            raise _not_loaded(model, error) from error
        return encoder.eval(), processor, model
    wanted = vl_model or index.get("vl_model_id", _default_vl_model())
    if wanted is None:
        raise ValueError(f"--model {model!r} names no VL model to read with: add --vl-model.")
    return *load_vl_parts(wanted, None, dtype), str(wanted)


def _default_vl_model() -> str:
    import inspect

    from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline

    return inspect.signature(ZImageVLPipeline.__init__).parameters["vl_model_id"].default


def load_text_side(model: str, dtype: torch.dtype, device: str, revision: str | None) -> ZImageVLPipeline:
    """A pipeline that can encode prompts and nothing else: a Z-Image's text encoder and tokenizer.

    Args:
        model: "toy", a folder in diffusers' layout, or a Hub id.
        dtype: Of the text encoder's weights.
        device: Where it runs.
        revision: Branch, tag or commit on the Hub.

    Raises:
        OSError: The model cannot be found or fetched.
    """
    if model == TOY_MODEL:
        from zimage_vl.toy import load_toy_pipeline

        toy: Any = load_toy_pipeline().to(device)
        toy.text_encoder.to(dtype)
        return toy
    from transformers import AutoModel, AutoTokenizer

    from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline

    try:
        _read_index(model, revision)  # first: what it says of a folder that is no model is the clearest
        text_encoder: Any = AutoModel.from_pretrained(model, subfolder="text_encoder", dtype=dtype, **_at(revision))
        tokenizer: Any = AutoTokenizer.from_pretrained(model, subfolder="tokenizer", **_at(revision))
    except (OSError, ValueError) as error:
        raise _not_loaded(model, error) from error
    nothing: Any = None
    return ZImageVLPipeline(nothing, nothing, text_encoder.eval(), tokenizer, nothing, vl_model_id=None).to(device)


def _at(revision: str | None) -> dict[str, Any]:
    return {} if revision is None else {"revision": revision}


def _not_loaded(model: str, error: Exception) -> OSError:
    reason = " ".join(str(error).split())
    hint = "" if Path(model).is_dir() else " Instead of an id, a folder with the model's files can be given."
    return OSError(f"--model {model!r} could not be loaded: {reason}{hint}")
