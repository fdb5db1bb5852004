"""Models by name: refused before anything else is read, loaded whole or in part, each failure one readable line."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import zimage_vl
from zimage_vl.workflows.errors import is_out_of_memory

from ._terminal import escape, note, one_line


TOY_MODEL = "toy"
DTYPES = ("float32", "bfloat16", "float16")
_PROBE_SECONDS = 4.0
_VL_PARTS = ("vl_encoder", "vl_processor", "vl_vision")


@dataclass
class Model:
    """The models that a command works with, as its options name them, and where and how precisely they run.

    Making it is the check: names that can be none, no pipeline behind them, a device that is not there.
    A quiet one shows no bars of progress.
    """

    model: str = TOY_MODEL
    vl_model: str | None = None
    revision: str | None = None
    device: str | None = None
    dtype: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        for option, given in (("--revision", self.revision), ("--vl-model", self.vl_model)):
            if given is not None and self.is_toy:
                raise ValueError(f"{option} does nothing with --model toy, which comes whole with this package.")
        for option, name, toy in (("--model", self.model, ", nor 'toy'"), ("--vl-model", self.vl_model, "")):
            known = name is None or (toy and self.is_toy) or (name and Path(name).is_dir())
            if not known and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name), re.ASCII) is None:
                said = "is neither a folder that exists, nor a Hub id (owner/name)"
                raise ValueError(f"{option} '{escape(str(name))}' {said}{toy}.")
        self.device = choose_device(self.device)
        self.dtype = self.dtype or DTYPES[not self.is_toy]
        if self.is_toy:
            return
        _check_reachable(self.model, "--model", self.revision, "model_index.json")
        from diffusers import DiffusionPipeline

        with loading(self.model):
            index: object = DiffusionPipeline.load_config(self.model, revision=self.revision)
            if not isinstance(index, dict):
                raise ValueError("its model_index.json holds no JSON object.")
            for config in Path(self.model).glob("*/config.json"):  # which would be said to be missing on the Hub
                if not isinstance(json.loads(config.read_text(encoding="utf-8")), dict):
                    raise ValueError(f"{config.parent.name}/config.json holds no JSON object.")

    @property
    def is_toy(self) -> bool:
        """It is the miniature that comes with the package."""
        return self.model == TOY_MODEL

    @property
    def defaults(self) -> tuple[int, int]:
        """Side of a picture in pixels, and steps: the toy's, or those of Z-Image-Turbo's card."""
        from zimage_vl import toy

        return (int(toy.SIZE), int(toy.STEPS)) if self.is_toy else (1024, 9)

    def describe(self) -> dict[str, str | None]:
        """Get the options for a record; of a folder the name, without those that it lies in."""
        shown = Path(self.model).name if Path(self.model).is_dir() else self.model
        return {**{name: value for name, value in asdict(self).items() if name != "quiet"}, "model": shown}

    def load(self, **parts: None) -> Any:
        """Get the pipeline, on the CPU. The `parts` are left out: they are not even fetched."""
        import torch

        from zimage_vl.workflows.low_memory import DTYPE

        if self.quiet:
            silence_bars()
        precision = getattr(torch, str(self.dtype))
        if self.is_toy:
            pipe = zimage_vl.load_toy_pipeline()
            pipe.set_progress_bar_config(disable=self.quiet)
            return pipe if pipe.dtype == precision else pipe.to(precision)
        given: dict[str, Any] = {DTYPE: precision, **parts}
        if self.vl_model is not None:  # takes precedence over one that is saved with the model
            given |= {**dict.fromkeys(_VL_PARTS), "vl_model_id": self.vl_model}
        with loading(self.model):
            pipe = zimage_vl.ZImageVLPipeline.from_pretrained(self.model, revision=self.revision, **given)
        pipe.set_progress_bar_config(disable=self.quiet)
        return pipe

    def load_text_side(self) -> Any:
        """Get a pipeline that can encode prompts and nothing else, on its device."""
        nothing = dict.fromkeys(("transformer", "vae", *_VL_PARTS, "vl_model_id"))
        return self.load(**nothing).to(self.device)

    def load_reader(self, vl_reader: str, layers: Sequence[int]) -> Any:
        """Get a pipeline that can read references and nothing else, on its device, checked as `check_reader` does."""
        import torch
        from transformers import AutoConfig

        small = vl_reader == "text_encoder"
        pipe = self.load(transformer=None, vae=None, **({} if small else {"text_encoder": None, "vl_vision": None}))
        if pipe.text_encoder is None:  # its sizes, which a reading is checked against, without gigabytes of weights
            sizes: Any = torch.nn.Module()
            at = {} if self.revision is None else {"revision": self.revision}
            with loading(self.model):
                sizes.config = AutoConfig.from_pretrained(self.model, subfolder="text_encoder", **at)
            sizes.dtype, sizes.device = getattr(torch, str(self.dtype)), torch.device("cpu")
            pipe.text_encoder = sizes
        self.check_reader(pipe, vl_reader, layers)
        if pipe.vl_encoder is None and pipe.vl_vision is None:
            with loading(pipe.config["vl_model_id"], "--vl-model"):
                (pipe.load_vl_vision if small else pipe.load_vl_encoder)()
        return pipe.to(self.device)

    def check_reader(self, pipe: Any, vl_reader: str, layers: Sequence[int]) -> None:
        """Refuse a reader that is not there, does not fit or lacks a layer, before its weights are loaded."""
        from zimage_vl.reference.reading import resolve_layers

        blamed = (self.model, "--model")
        if pipe.vl_encoder is None and (pipe.vl_vision is None or vl_reader != "text_encoder"):
            blamed = (pipe.config["vl_model_id"], "--vl-model")
            if blamed[0] is None:
                raise ValueError(f"--model '{escape(self.model)}' names no VL model to read with: add --vl-model.")
            _check_reachable(*blamed, None, "config.json")
        with loading(*blamed):
            depth = pipe.find_reader(vl_reader).num_hidden_layers
        resolve_layers(layers, depth)

    def place(self, pipe: Any, offload: str) -> Any:
        """Get a pipeline on its device: as a whole, or a model or a layer at a time."""
        place = {"model": pipe.enable_model_cpu_offload, "sequential": pipe.enable_sequential_cpu_offload}
        place.get(offload, pipe.to)(device=self.device)
        return pipe

    def paint_in_stages(self, prompt: str, **arguments: Any) -> Any:
        """Paint what the pipeline would, with one model in memory at a time; the toy, too."""
        import torch
        from safetensors import SafetensorError

        if self.quiet:
            silence_bars()
        with tempfile.TemporaryDirectory() as folder:
            if self.is_toy:
                self.load().save_pretrained(folder)
            given: dict[str, Any] = {"dtype": getattr(torch, str(self.dtype)), "device": self.device, **arguments}
            given |= {"vl_model_id": self.vl_model, "revision": self.revision}
            try:
                return zimage_vl.generate_low_memory(folder if self.is_toy else self.model, prompt, **given)
            except (OSError, SafetensorError):
                with loading(self.model):
                    raise


def announce(model: str) -> None:
    """Say which model it is, before anything slow begins, and of the toy how little it knows; once per command."""
    toy = "the toy, which knows only coloured shapes; for more: --model Tongyi-MAI/Z-Image-Turbo"
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        note(f"Model: {toy if model == TOY_MODEL else model}")


def silence_bars() -> None:
    """Show no bars while models are fetched and loaded."""
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as of_transformers

    disable_progress_bars()
    for library in (of_diffusers, of_transformers):
        library.disable_progress_bar()


def choose_device(device: str | None) -> str:
    """Get the device asked for, or the best there is: cuda, mps, cpu."""
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).tolist()  # which torch's meta device cannot
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--device '{escape(device)}' cannot be used here: {reason}") from error
    return device


@contextmanager
def loading(model: str, option: str = "--model") -> Generator[None]:
    """Within it, whatever a model's files make the libraries raise is an OSError that names the model."""
    try:
        yield
    except Exception as error:
        if isinstance(error, NotImplementedError) or is_out_of_memory(error):
            raise
        if isinstance(error, (KeyError, TypeError, AttributeError)):
            reason = f"its files are not those of such a model ({type(error).__name__}: {one_line(error)})."
        elif type(error).__name__ == "SafetensorError":
            reason = f"a file of its weights is damaged or cut short ({one_line(error)})."
        else:
            reason = shorten(one_line(error), 400, placeholder=" ...")
        raise OSError(f"{option} '{escape(model)}' could not be loaded: {reason}") from error


def _check_reachable(model: str, option: str, revision: str | None, file: str) -> None:
    """Refuse a Hub id of which nothing is cached where there is no network, in seconds; a folder passes."""
    import requests
    from huggingface_hub import constants, try_to_load_from_cache

    if Path(model).is_dir() or isinstance(try_to_load_from_cache(model, file, revision=revision), str):
        return
    reason = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            requests.head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
            return
        except requests.RequestException:
            reason = f"{constants.ENDPOINT} does not answer"
    raise OSError(
        f"{option} '{escape(model)}' is not in the local cache and cannot be downloaded: {reason}. Connect, or pass "
        f"the path of a folder with the model's files: {option} FOLDER."
    )
