"""A process that loads pipelines the way a user without the package does, told what to load line by line.

Each line of its input is a JSON object:

    {"source": "folder or repo", "kwargs": {...}, "call": {...}, "embeds": "file" or null, "out": "images.npy"}

With "passed", the folder of a VL encoder, that encoder is loaded first and passed; with "over", the pipeline is made
by `from_pipe` over a plain one, with "None" given for what is not passed. With "block", the repository of the block,
a modular pipeline paints.

and each line of its output one that says what was loaded, or the error. `import zimage_vl` fails in this process.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline, ZImagePipeline
from huggingface_hub import snapshot_download
from transformers import Qwen3VLForConditionalGeneration

from dtype_name import DTYPE


def paint(pipe: Any, call: dict[str, Any], embeds: str | None) -> np.ndarray:
    """The images of a call, from the same noise every time."""
    if embeds is not None:
        call = {**call, "reference_embeds": sys.modules[type(pipe).__module__].ReferenceEmbeds.load(embeds)}
    pipe.set_progress_bar_config(disable=True)
    return pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np").images


def answer_block(order: dict[str, Any]) -> dict[str, Any]:
    """As `answer`, by a modular pipeline with our block in it."""
    from diffusers import ModularPipelineBlocks, ZImageAutoBlocks

    kwargs = order["kwargs"]
    settings = {"vl_model_id": kwargs.pop("vl_model_id")}
    step = ModularPipelineBlocks.from_pretrained(kwargs.pop("block"), **kwargs)
    blocks = ZImageAutoBlocks()
    blocks.sub_blocks.insert("reference", step, 1)
    pipe = blocks.init_pipeline(order["source"])
    pipe.update_components(**settings)
    pipe.load_components()
    call = {name: value for name, value in order["call"].items() if name != "guidance_scale"}
    state = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np")
    np.save(order["out"], state.get("images"))
    module = type(step).__module__
    joined = sys.modules[f"{module.rpartition('.')[0]}.pipeline"]
    return {"class": type(step).__name__, "module": module, "version": joined.__version__}


def answer(order: dict[str, Any]) -> dict[str, Any]:
    """Loads, paints and writes the images; returns what was loaded."""
    kwargs = order["kwargs"]
    if "block" in kwargs:
        return answer_block(order)
    if "custom_snapshot" in kwargs:  # what the model card says to do where there is no network
        kwargs["custom_pipeline"] = snapshot_download(kwargs.pop("custom_snapshot"), allow_patterns=["*.py"])
    if "passed" in order:
        kwargs["vl_encoder"] = Qwen3VLForConditionalGeneration.from_pretrained(order["passed"], dtype=torch.float32)
    if "over" in order:
        if tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 38):
            kwargs.pop("trust_remote_code")  # taken there for an argument of the pipeline
        plain = ZImagePipeline.from_pretrained(order["source"])
        if order["over"] == "None":  # diffusers wants to be told that the VL parts are left out
            kwargs = {"vl_encoder": None, "vl_processor": None, "vl_vision": None, **kwargs}
        pipe = DiffusionPipeline.from_pipe(plain, **{DTYPE: torch.float32}, **kwargs)
    else:
        pipe = DiffusionPipeline.from_pretrained(order["source"], **kwargs)
    if "save" in order:
        pipe.save_pretrained(order["save"])
    if "out" in order:
        np.save(order["out"], paint(pipe, order["call"], order.get("embeds")))
    return {
        "class": type(pipe).__name__,
        "module": type(pipe).__module__,
        "version": sys.modules[type(pipe).__module__].__version__,
        "missing": sorted(name for name, part in pipe.components.items() if part is None),
        "vl_model_id": pipe.config.get("vl_model_id"),
        "has_passed": pipe.vl_encoder is not None and pipe.vl_encoder is kwargs.get("vl_encoder"),
    }


def main() -> None:
    sys.modules["zimage_vl"] = None  # type: ignore[assignment]  # whoever imports it now gets an ImportError
    torch.set_num_threads(1)  # results depend on their number, bit for bit
    for line in sys.stdin:
        try:
            result = answer(json.loads(line))
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print("ANSWER " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
