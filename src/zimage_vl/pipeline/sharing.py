"""Pipelines over the same modules, and saved folders that carry their own code.

diffusers' own `from_pipe` casts every shared module to float32 in place, the source pipeline's too
(https://github.com/huggingface/diffusers/issues/12754), and leaves new modules without the source's offload. diffusers
loads `pipeline.py` from a folder whose `model_index.json` names the class as `["pipeline", "ClassName"]`.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..reference.files import replace_file
from .offload import join_offload, model_hooks


#: Where the pipeline lies as one file: in an installed package, in a checkout. In the single file it is that file.
SINGLE_FILES = (
    Path(__file__).parents[1] / "single_file_pipeline.txt",
    Path(__file__).parents[3] / "pipelines" / "zimage_vl" / "pipeline.py",
)
#: In the single file, what it says of its sources; None in the package.
SINGLE_FILE_DIGEST: str | None = None


def build_over_modules(pipeline_class: Any, source: Any, given: Mapping[str, Any]) -> Any:
    """Build a pipeline over the modules of another one, as they are, with a scheduler of its own.

    `given` takes precedence over the source's components and settings. Model offload is on if it is on in `source`;
    under sequential and group offload the modules that are new to it are offloaded like the others.
    """
    if not hasattr(source, "components") or not hasattr(pipeline_class, "_get_signature_keys"):
        got = f"{source!r:.60} and {pipeline_class!r:.60}"
        raise TypeError(f"from_pipe takes a pipeline, to_pipe a pipeline's class such as ZImagePipeline, got {got}.")
    components, settings = pipeline_class._get_signature_keys(pipeline_class)
    taken = {name: part for name, part in source.components.items() if name in components}
    if taken.get("scheduler") is not None:
        taken["scheduler"] = copy.deepcopy(taken["scheduler"])  # a call keeps its state on it
    for name in settings:
        for key in (name, f"_{name}"):  # under the second a pipeline keeps the settings of the one it was made from
            if key in source.config:
                taken.setdefault(name, source.config[key])
    made = pipeline_class(**{**taken, **given})  # which refuses what it does not take, and names what it lacks
    names = {*components, *settings}
    known = {*names, *(f"_{name}" for name in names), "_class_name", "_diffusers_version"}
    kept = {name: value for name, value in source.config.items() if name not in known}
    made.register_to_config(**{f"_{name.removeprefix('_')}": value for name, value in kept.items()})
    shared = {id(part) for part in source.components.values()}
    if model_hooks(source):
        made.enable_model_cpu_offload(device=source._offload_device)
    else:
        for part in made.components.values():
            if isinstance(part, nn.Module) and id(part) not in shared:
                join_offload(made, part)
    return made


def read_single_file(pipeline_class: type) -> str:
    """Get the code of a pipeline as one file; refuse a class that it does not define, or a file that was replaced."""
    file = next((file for file in SINGLE_FILES if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"The pipeline's code, {SINGLE_FILES[0]}, is missing, so that a saved folder could not load by itself. "
            "Install the package again (or `make bundle`)."
        )
    source = file.read_text(encoding="utf-8")
    if SINGLE_FILE_DIGEST is not None and SINGLE_FILE_DIGEST not in source:
        raise ValueError(
            f"{file} is no longer the file this pipeline was loaded from: diffusers keeps local custom pipelines "
            "under one name, and another one took its place. Load the pipeline again in a new process, or from the "
            "Hub, and save it there."
        )
    if f"\nclass {pipeline_class.__name__}(" not in source:
        raise ValueError(
            f"{pipeline_class.__name__} is not defined in {file.name}, so that a folder with it could not load by "
            "itself. Save a ZImageVLPipeline made of the same components: ZImageVLPipeline(**pipe.components)."
        )
    return source


def refuse_attached_adapters(components: Mapping[str, Any]) -> None:
    """Refuse to save models with a LoRA attached: diffusers would write names that no model has, and say nothing."""
    wrapped = [
        name
        for name, part in components.items()
        if isinstance(part, nn.Module) and any(".base_layer." in weight for weight, _ in part.named_parameters())
    ]
    if wrapped:
        raise ValueError(
            f"An adapter is attached to {', '.join(wrapped)}: saved like this, the folder would load with random "
            "weights in its layers. Take it off with pipe.unload_lora_weights() and load it again after loading the "
            "folder; or bake it in: pipe.fuse_lora(), then pipe.unload_lora_weights()."
        )


def make_self_describing(folder: str | os.PathLike[str], pipeline_class: type) -> None:
    """Put the pipeline's code into a folder that diffusers has just saved, and name it in the index."""
    index_file = Path(folder) / "model_index.json"
    source = read_single_file(pipeline_class)
    index = json.loads(index_file.read_text(encoding="utf-8"))
    index["_class_name"] = ["pipeline", pipeline_class.__name__]
    replace_file(Path(folder) / "pipeline.py", source.encode())
    # As diffusers writes it. Last: without it the folder is still one that diffusers can read.
    replace_file(index_file, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
