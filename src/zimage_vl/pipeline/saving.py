"""What makes a saved pipeline self-describing: its own code beside its weights.

diffusers loads `pipeline.py` from a folder whose `model_index.json` names the class as `["pipeline", "ClassName"]`. So
`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` restores the pipeline where this package is not
installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch


#: The pipeline as one file without relative imports: the package carries a copy, in the single file it is that file.
SINGLE_FILE = Path(__file__).with_name("single_file_pipeline.txt")
#: What the single file says of its sources; the package's copy is only read, so that the package needs none.
SINGLE_FILE_DIGEST: str | None = None

_CODE_FILE = "pipeline.py"
_INDEX_FILE = "model_index.json"


def read_single_file(pipeline_class: type) -> str:
    """The code of a pipeline as one file.

    Args:
        pipeline_class: The class that the file must define, by its name.

    Raises:
        ValueError: The file defines no such class (a subclass of the pipeline has code that no file here holds), or
            is no longer the one this pipeline was loaded from.
        FileNotFoundError: The file is gone.
    """
    if not SINGLE_FILE.is_file():
        raise FileNotFoundError(
            f"The pipeline's code, {SINGLE_FILE}, is missing, so that a saved folder could not load by itself. "
            "Install the package again (in a checkout: `make bundle`)."
        )
    source = SINGLE_FILE.read_text(encoding="utf-8")
    if SINGLE_FILE_DIGEST is not None and SINGLE_FILE_DIGEST not in source:
        raise ValueError(
            f"{SINGLE_FILE} is no longer the file this pipeline was loaded from: diffusers keeps local custom "
            "pipelines under one name, and another one took its place. Load the pipeline again in a new process, or "
            "from a Hub repository, and save it there."
        )
    if f"\nclass {pipeline_class.__name__}(" not in source:
        raise ValueError(
            f"{pipeline_class.__name__} is not defined in {SINGLE_FILE.name}, so that a folder with it could not load "
            "by itself. Save a ZImageVLPipeline made of the same components: ZImageVLPipeline(**pipe.components)."
        )
    return source


def refuse_attached_adapters(components: Mapping[str, Any]) -> None:
    """Refuse to save models with a LoRA (or another adapter of peft) attached, fused or not.

    diffusers would write the wrapped layers under names that no model has (`...base_layer.weight`): the folder loads
    with random weights in their place, and no error.

    Raises:
        ValueError: Naming the components, and what to do.
    """
    wrapped = [
        name
        for name, part in components.items()
        if isinstance(part, torch.nn.Module) and any(".base_layer." in weight for weight, _ in part.named_parameters())
    ]
    if wrapped:
        raise ValueError(
            f"An adapter is attached to {', '.join(wrapped)}: saved like this, the folder would load with random "
            "weights in its layers. Take it off with pipe.unload_lora_weights() and load it again after loading the "
            "folder; or bake it in: pipe.fuse_lora(), then pipe.unload_lora_weights()."
        )


@contextmanager
def image_processor_alone(pipe: Any) -> Generator[None]:
    """Within it, the pipeline's `vl_processor` is the image processor, also where it is a full `Qwen3VLProcessor`.

    A full one loads only where torchvision is installed, and the pipeline uses no more of it.
    """
    full = pipe.vl_processor
    image_processor = getattr(full, "image_processor", None)
    if image_processor is None:
        yield
        return
    pipe.register_modules(vl_processor=image_processor)
    try:
        yield
    finally:
        pipe.register_modules(vl_processor=full)


def make_self_describing(folder: str | os.PathLike[str], pipeline_class: type) -> None:
    """Put the pipeline's code into a folder that `save_pretrained` or `save_config` wrote, and name it in the index.

    Args:
        folder: It must hold a `model_index.json`; its own `pipeline.py` is replaced.
        pipeline_class: The class to load, `ZImageVLPipeline`.

    Raises:
        FileNotFoundError: There is no `model_index.json` in the folder.
        ValueError: As `read_single_file`; nothing is written then.

    Example:
        >>> make_self_describing("saved", ZImageVLPipeline)  # doctest: +SKIP
    """
    folder = Path(folder)
    index_file = folder / _INDEX_FILE
    if not index_file.is_file():
        raise FileNotFoundError(f"{folder} holds no {_INDEX_FILE}: save the pipeline into it first.")
    source = read_single_file(pipeline_class)
    index = json.loads(index_file.read_text(encoding="utf-8"))
    index["_class_name"] = [Path(_CODE_FILE).stem, pipeline_class.__name__]
    _replace_text_file(folder / _CODE_FILE, source)
    # As diffusers writes it. Last: without it the folder is still one that diffusers can read.
    _replace_text_file(index_file, json.dumps(index, indent=2, sort_keys=True) + "\n")


def plain_class_name(config: dict[str, Any]) -> dict[str, Any]:
    """A pipeline's config with its class name as a string, where the index of a self-describing folder has a pair.

    A class that is asked for by name, as in `ZImageVLPipeline.from_pretrained(folder)`, needs no code from the folder.
    """
    name = config.get("_class_name")
    if isinstance(name, (list, tuple)):
        return {**config, "_class_name": cast("list[str]", name)[-1]}
    return config


def _replace_text_file(path: Path, text: str) -> None:
    # In full or not at all: an interrupted save must not leave half a file that is run later.
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
