"""`zimage-vl env`, run as a person runs it."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version

import torch

import zimage_vl
from command_line import run
from zimage_vl.cli.env import collect_environment


def test_json_says_what_runs_here() -> None:
    done = run("env", "--format", "json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["zimage-vl"] == zimage_vl.__version__
    assert facts["python"].startswith(platform.python_version())
    for name in ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow", "numpy", "typer"):
        assert facts["packages"][name] == version(name)
    assert facts["packages"]["huggingface-hub"] == version("huggingface-hub")
    assert facts["torch"]["torch_threads"] == 1  # of the subprocess
    assert len(facts["devices"]) >= 1 + torch.cuda.device_count()
    cpu = facts["devices"][-1]
    assert cpu["device"] == "cpu"
    assert cpu["memory_bytes"] is None or cpu["memory_bytes"] > 2**20


def test_text_has_a_line_for_each_fact() -> None:
    done = run("env")
    assert done.returncode == 0
    assert done.stderr == ""
    rows = {line[:17].strip(): line[18:] for line in done.stdout.splitlines()}
    assert rows["zimage-vl"] == zimage_vl.__version__
    assert rows["torch"] == torch.__version__
    assert "cores" in rows["device cpu"]


def test_versions_alone_need_no_torch() -> None:
    done = run("env", "--no-devices", "--format", "json")
    facts = json.loads(done.stdout)
    assert facts["devices"] == []
    assert facts["packages"]["torch"] == version("torch")


def test_optional_packages_are_named_only_where_they_are() -> None:
    packages = collect_environment(with_devices=False)["packages"]
    for name in ("torchvision", "peft", "torchao", "bitsandbytes"):
        assert packages.get(name, "absent") is not None


def test_an_unknown_format_is_refused() -> None:
    done = run("env", "--format", "yaml")
    assert done.returncode == 2
    assert "--format" in done.stderr
    assert "'text', 'json'" in done.stderr
