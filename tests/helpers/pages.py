"""Pages whose Python blocks run as a reader would run them, one after another, on the toy."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline
from diffusers.utils import deprecation_utils

from modular_samples import HAS_MODULAR
from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline


ROOT = Path(__file__).parent.parent.parent
PICTURES = {
    "photo.jpg": Scene("square", "blue", "black"),
    "photo.png": Scene("square", "blue", "black"),
    "painting.jpg": Scene("triangle", "green", "gray"),
    "sketch.jpg": Scene("circle", "yellow", "white"),
    "sketch.png": Scene("circle", "yellow", "white"),
    "photos/one.png": Scene("cross", "purple", "brown"),
}
# What stands in a page, and what runs instead: small pictures, few steps, no accelerator. The names of models need
# nothing: on the desk they are folders.
SUBSTITUTES = {
    "num_inference_steps=9": "num_inference_steps=3, height=64, width=64",
    "size, steps = 1024, 9": "size, steps = 64, 7",
    "size, steps, strength = 1024, 9, 0.85": "size, steps, strength = 64, 4, 0.75",
    '"pipelines/zimage_vl': f'"{ROOT}/pipelines/zimage_vl',
    'device="cuda"': 'device="cpu"',
    "pipe.enable_model_cpu_offload()": "pass",
    "pipe.enable_sequential_cpu_offload()": "pass",
    "manager.enable_auto_cpu_offload()": "pass",
}


def python_blocks(page: Path) -> list[str]:
    """Get the Python of a page, each block with empty lines before it, so that errors name the page's lines."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return ["\n" * text[: match.start(1)].count("\n") + match.group(1) for match in found]


def substitute(code: str, extra: dict[str, str] | None = None) -> str:
    """Make a page's code small enough for the toy."""
    for there, here in {**SUBSTITUTES, **(extra or {})}.items():
        code = code.replace(there, here)
    if hasattr(deprecation_utils, "_resolve_dtype"):
        return code
    return re.sub(r"\bdtype=torch", "torch_dtype=torch", code)  # diffusers 0.36 knows the old name alone


def run_page(page: Path, extra: dict[str, str] | None = None) -> None:
    """Run a page's blocks in one namespace; where prints have a comment behind them, it is what they must print."""
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = python_blocks(page)
    assert blocks
    if not HAS_MODULAR:
        blocks = [block for block in blocks if not re.search("ZImageAutoBlocks|ComponentsManager", block)]
    if importlib.util.find_spec("torchao") is None:  # tests/pipeline/test_quantised.py runs these
        blocks = [block for block in blocks if "torchao" not in block]
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(substitute(block, extra), str(page), "exec"), names)
        expected = re.findall(r"^print\(.*\)  # (.+)$", block, re.MULTILINE)
        assert printed.getvalue().splitlines() == expected, block.strip()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """A folder to work in, as the pages suppose it: pictures, and the toy under the names of the real models."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "photos").mkdir()
    for name, scene in PICTURES.items():
        draw_scene(scene).save(folder / name)
    toy = load_toy_pipeline()
    ZImagePipeline(**toy.z_image_components).save_pretrained(folder / "Tongyi-MAI" / "Z-Image-Turbo")
    for part in (toy.vl_encoder, toy.vl_processor):
        part.save_pretrained(folder / "Qwen" / "Qwen3-VL-4B-Instruct")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # What diffusers keeps of custom pipelines is forgotten again.
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(folder / "modules"))
        patch.setattr(sys, "path", [*sys.path])
        kept = {name: module for name, module in sys.modules.items() if name.startswith("diffusers_modules")}
        for name in kept:
            del sys.modules[name]
        torch.manual_seed(0)
        yield folder
        for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
            del sys.modules[name]
        sys.modules.update(kept)
