"""On today's pair we call nothing that diffusers or transformers deprecate; some of it is told in their logs alone."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from command_line import environment


pytestmark = pytest.mark.skipif(Version(version("diffusers")) < Version("0.41"), reason="the oldest pair is as it is")

PROGRAM = """
import torch
from zimage_vl import ZImageVLPipeline, generate_low_memory, load_toy_pipeline
from zimage_vl.toy import Scene, draw_scene

picture = draw_scene(Scene("circle", "red", "white"))
settings = dict(reference_image=picture, height=64, width=64, num_inference_steps=2, guidance_scale=0.0)
pipe = load_toy_pipeline()
pipe("a blue square", **settings)
pipe.encode_reference(picture, "a blue square").save("reference.safetensors")
pipe.save_pretrained("saved")
loaded = ZImageVLPipeline.from_pretrained("saved", dtype=torch.float32)
ZImageVLPipeline.from_pipe(loaded)
generate_low_memory("saved", "a blue square", **settings)
"""


def test_a_program_of_ours_prints_no_deprecation(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", PROGRAM],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "deprecated" in line or "will be removed" in line]
    assert [line for line in told if "/torch/" not in line] == []
