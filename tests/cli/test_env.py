"""`zimage-vl env`."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version

import pytest
import torch

import zimage_vl
from cli_calls import call
from command_line import run


def test_json_says_what_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "env", "--format", "json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["zimage-vl"] == zimage_vl.__version__
    assert facts["python"].startswith(platform.python_version())
    for name in ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow", "numpy", "typer"):
        assert facts["packages"][name] == version(name)
    assert facts["packages"]["huggingface-hub"] == version("huggingface-hub")
    for name in ("torchvision", "peft", "torchao", "bitsandbytes"):  # only where they are
        assert facts["packages"].get(name, "absent") is not None
    assert facts["torch"]["torch_threads"] == torch.get_num_threads()
    assert len(facts["devices"]) >= 1 + torch.cuda.device_count()
    cpu = facts["devices"][-1]
    assert cpu["device"] == "cpu"
    assert cpu["memory_bytes"] is None or cpu["memory_bytes"] > 2**20


def test_text_has_a_line_for_each_fact() -> None:
    done = run("env")  # as a person runs it
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line[:17].strip(): line[18:] for line in done.stdout.splitlines()}
    assert rows["zimage-vl"] == zimage_vl.__version__
    assert rows["torch"] == torch.__version__
    assert "cores" in rows["device cpu"]


def test_versions_alone_are_told_without_devices_and_unknown_formats_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts = json.loads(call(capsys, "env", "--no-devices", "--format", "json").out)
    assert (facts["devices"], facts["packages"]["torch"]) == ([], version("torch"))
    done = call(capsys, "env", "--format", "yaml")
    assert done.code == 2
    assert "--format" in done.err
    assert "'text', 'json'" in done.err
