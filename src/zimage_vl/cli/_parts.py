"""Models and parts of models, each loaded with the checks that make a failure one readable line."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from ._shared import TOY_MODEL, escape, load_pipeline, one_line


if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
    from zimage_vl.reference.embeds import ReferenceEmbeds

_MAX_SEQUENCE_LENGTH = 512  # as the pipeline's own call has it: a longer text is cut there too
_PROBE_SECONDS = 4.0


@contextmanager
def loading(model: str, option: str = "--model") -> Generator[None]:
    """Within it, whatever a model's files make the libraries raise is an OSError that names the model."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (MemoryError, NotImplementedError)) or type(error).__name__ == "OutOfMemoryError":
            raise
        if isinstance(error, (KeyError, TypeError, AttributeError)):
            reason = f"its files are not those of such a model ({type(error).__name__}: {one_line(error)})."
        elif type(error).__name__ == "SafetensorError":
            reason = f"a file of its weights is damaged or cut short ({one_line(error)})."
        else:
            reason = shorten(one_line(error), 400, placeholder=" ...")
        raise OSError(f"{option} '{escape(model)}' could not be loaded: {reason}") from error


def check_reachable(model: str, revision: str | None, file: str, option: str = "--model") -> None:
    """Refuse a Hub id of which nothing is cached where there is no network, in seconds; a folder passes."""
    if Path(model).is_dir():
        return
    import requests
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model, file, revision=revision), str):
        return
    reason = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            requests.head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
            return
        except requests.RequestException:
            reason = f"{constants.ENDPOINT} does not answer"
    raise _unreachable(model, option, reason)


def _unreachable(model: str, option: str, reason: str) -> OSError:
    return OSError(
        f"{option} '{escape(model)}' is not in the local cache and cannot be downloaded: {reason}. Connect, or pass "
        f"the path of a folder with the model's files: {option} FOLDER."
    )


def read_index(model: str, revision: str | None) -> dict[str, Any]:
    """Get a pipeline's model_index.json, a JSON object."""
    check_reachable(model, revision, "model_index.json")
    file = Path(model) / "model_index.json"
    if not Path(model).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            with loading(model):
                file = Path(hf_hub_download(model, "model_index.json", revision=revision))
        except OSError as error:
            if isinstance(error.__cause__, LocalEntryNotFoundError):
                raise _unreachable(model, "--model", "the Hub does not answer") from error
            raise
    with loading(model):
        if not file.is_file():
            raise ValueError("it has no model_index.json, so that it is no pipeline in diffusers' layout.")
        try:
            index = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its model_index.json is no JSON ({one_line(error)}).") from error
        if not isinstance(index, dict):
            raise ValueError("its model_index.json holds no JSON object.")
    return index


def locate_vl_model(model: str, vl_model: str | None, index: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Get the VL encoder asked for, saved with a model or named by it, and the folders of its parts in there."""
    import inspect

    from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline

    if vl_model is None and (index.get("vl_encoder") or [None])[0] is not None:
        return model, {"subfolder": "vl_encoder", "processor_subfolder": "vl_processor"}
    default = inspect.signature(ZImageVLPipeline.__init__).parameters["vl_model_id"].default
    wanted = vl_model or index.get("vl_model_id", default)
    if wanted is None:
        raise ValueError(f"--model '{escape(model)}' names no VL model to read with: add --vl-model.")
    check_reachable(str(wanted), None, "config.json", "--vl-model")
    return str(wanted), {}


@dataclass(frozen=True)
class ReferenceReader:
    """The parts that read references, without those that paint; `load` gives the encoder, the same each time."""

    config: Any
    processor: Any
    tokenizer: Any
    model_id: str
    revision: str | None
    load: Callable[[], Any]

    def read(
        self, image: Image, text: str, layers: Sequence[int], *, text_position: Any, max_pixels: int
    ) -> ReferenceEmbeds:
        """Get what a pipeline of the same parts would read in one call, bit for bit; all layers from one forward."""
        from zimage_vl.reference.readers import find_reader_source, read_reference
        from zimage_vl.reference.reading import build_reading
        from zimage_vl.reference.turn import read_text_turn

        reading = build_reading(
            find_reader_source("qwen3-vl", None, self.config, self.processor, self.model_id, self.revision),
            self.tokenizer,
            image,
            read_text_turn(self.tokenizer, text, _MAX_SEQUENCE_LENGTH),
            layers,
            text_position=text_position,
            max_pixels=max_pixels,
        )
        return read_reference(self.load(), self.processor, reading)


def load_reference_reader(
    model: str, vl_model: str | None, dtype: torch.dtype, device: str, revision: str | None
) -> ReferenceReader:
    """Get a Z-Image's tokenizer, and the Qwen3-VL that its pipeline would read with; only these are fetched."""
    from functools import cache

    if model == TOY_MODEL:
        toy: Any = load_pipeline(model, None, dtype, None)
        encoder = toy.vl_encoder.to(device)
        return ReferenceReader(encoder.config, toy.vl_processor, toy.tokenizer, TOY_MODEL, None, lambda: encoder)
    from transformers import AutoConfig, AutoTokenizer

    from zimage_vl.reference.readers import check_vl_config, load_vl_config, load_vl_encoder_parts

    index = read_index(model, revision)
    at = {} if revision is None else {"revision": revision}
    with loading(model):
        tokenizer: Any = AutoTokenizer.from_pretrained(model, subfolder="tokenizer", **at)
        width = AutoConfig.from_pretrained(model, subfolder="text_encoder", **at).hidden_size
    vl_id, folders = locate_vl_model(model, vl_model, index)
    blamed = (model, "--model") if folders else (vl_id, "--vl-model")
    vl_revision = revision if folders else None
    with loading(*blamed):
        config, processor = load_vl_config(vl_id, vl_revision, **folders)
    check_vl_config(config, width)

    @cache
    def load() -> Any:
        with loading(*blamed):
            encoder: Any = load_vl_encoder_parts(
                vl_id, vl_revision, dtype, config=config, processor=processor, **folders
            )[0]
        return encoder.to(device)

    return ReferenceReader(config, processor, tokenizer, vl_id, vl_revision, load)


def load_text_side(model: str, dtype: torch.dtype, device: str, revision: str | None) -> ZImageVLPipeline:
    """Get a pipeline that can encode prompts and nothing else; only text encoder and tokenizer are fetched."""
    if model == TOY_MODEL:
        return load_pipeline(model, None, dtype, None).to(device)
    from transformers import AutoModel, AutoTokenizer

    from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline

    read_index(model, revision)
    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    with loading(model):
        text_encoder: Any = AutoModel.from_pretrained(model, subfolder="text_encoder", dtype=dtype, **at)
        tokenizer: Any = AutoTokenizer.from_pretrained(model, subfolder="tokenizer", **at)
    nothing: Any = None
    return ZImageVLPipeline(nothing, nothing, text_encoder.eval(), tokenizer, nothing, vl_model_id=None).to(device)


def paint_in_stages(
    model: str,
    vl_model: str | None,
    revision: str | None,
    dtype: torch.dtype,
    device: str,
    prompt: str,
    **arguments: Any,
) -> Any:
    """Paint what a pipeline from `load_pipeline` would, with one model in memory at a time; the toy, too."""
    import tempfile

    from zimage_vl.workflows.low_memory import generate_low_memory

    with tempfile.TemporaryDirectory() as folder:
        source = folder if model == TOY_MODEL else model
        if model == TOY_MODEL:
            load_pipeline(model, None, dtype, None).save_pretrained(folder)
        else:
            read_index(model, revision)
        try:
            return generate_low_memory(
                source, prompt, vl_model_id=vl_model, torch_dtype=dtype, device=device, revision=revision, **arguments
            )
        except Exception as error:
            if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
                with loading(model):
                    raise
            raise
