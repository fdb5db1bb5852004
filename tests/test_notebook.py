"""The Colab notebook: committed clean, pinned, and run from top to bottom on the toy, as in a fresh runtime."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image

from command_line import environment
from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline


NOTEBOOK = Path(__file__).parent.parent / "examples" / "colab.ipynb"
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_it_is_committed_clean_and_pins_what_it_fetches() -> None:
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in CELLS)
    assert CODE[1].count("snapshot_download(\n") == CODE[1].count('"{{REPO}}", revision="v{{VERSION}}"') == 1
    assert not any("trust_remote_code" in source or "zimage-vl==" in source for source in CODE)
    readme = (NOTEBOOK.parent.parent / "README.md").read_text(encoding="utf-8")
    installed = re.findall(r"(\w+)==([\d.]+)", CODE[1])
    assert [name for name, _ in installed] == ["diffusers", "transformers"]
    assert all(f"{name} {version}" in readme for name, version in installed)
    assert '"Tongyi-MAI/Z-Image-Turbo")  # "toy"' in CODE[0]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder it was run in, and all that its cells printed."""
    pytest.importorskip("nbmake")
    if f"transformers=={transformers.__version__}" not in CODE[1]:
        pytest.skip(f"the notebook installs other versions than this transformers {transformers.__version__}")
    folder = tmp_path_factory.mktemp("notebook")
    shutil.copy(NOTEBOOK, folder)
    options = ["--nbmake", "--overwrite", "-q", "-p", "no:cacheprovider"]
    code = NOTEBOOK.parent.parent / "pipelines" / "zimage_vl"
    variables = environment(ZIMAGE_VL_MODEL="toy", ZIMAGE_VL_CODE=str(code), JUPYTER_PLATFORM_DIRS="1")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, NOTEBOOK.name],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    cells = json.loads((folder / "colab.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return folder, "\n".join("".join(output.get("text", "")) for output in outputs)


def test_it_paints_what_one_call_does(executed: tuple[Path, str]) -> None:
    import torch

    expected = load_toy_pipeline()(
        "a red circle on a white background",
        reference_image=draw_scene(Scene("square", "blue", "black")),
        vl_reader="text_encoder",
        vl_alpha=0.3,
        height=64,
        width=64,
        num_inference_steps=8,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(0),
    )
    with Image.open(executed[0] / "picture.png") as image:
        assert image.tobytes() == expected.images[0].tobytes()


def test_the_figures_are_those_of_the_models(executed: tuple[Path, str]) -> None:
    said = " ".join(executed[1].split())
    for line in ("vision tower 0.415 B", "Qwen3-4B 4.022 B", "transformer 6.155 B", "VAE 0.084 B"):
        assert line in said
    assert "everything at once 21.4 GB: GPU does not fit, RAM does not fit" in said
    assert "1. picture and prompt are read 8.9 GB: GPU fits, RAM fits" in said
    assert "2. it is painted 12.5 GB: GPU fits, RAM does not fit" in said


def test_what_comes_on_top_of_the_weights_is_computed_for_two_sizes(executed: tuple[Path, str]) -> None:
    found = re.findall(r"(\d+) px: .* attention ([\d.]+) GB, VAE ([\d.]+) GB: at least ([\d.]+) GB", executed[1])
    assert [side for side, *_ in found] == ["512", "768"]
    for side, attention, vae, total in found:
        tokens, pixels = (int(side) // 16) ** 2 + 64, int(side) ** 2
        assert float(attention) == pytest.approx(30 * tokens**2 * 2 / 1e9, abs=0.005)
        # The widest layer of the decoder: 256 channels at full size, in and out.
        assert float(vae) == pytest.approx(2 * 2 * 256 * pixels / 1e9, abs=0.005)
        assert 12.5 < float(total) < 16
