"""The model card: its metadata, its table of knobs, its placeholders, and its Python, run on the toy."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from pages import ROOT, desk, python_blocks, run_page  # noqa: F401 - desk is a fixture


sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "benchmarks"))

import memory

import model_card


REPO, SOURCE = "someone/zimage-vl", "https://example.com/zimage-vl"
TEMPLATE = model_card.CARD.read_text(encoding="utf-8")


def fill(card: str = TEMPLATE) -> str:
    return model_card.fill_model_card(card, REPO, "1.2.3", SOURCE, model_card.read_code())


CARD = fill()


def test_its_table_is_the_registry_of_knobs() -> None:
    assert model_card.knob_table() in CARD, "write the output of `python tools/model_card.py --knobs` there"


def test_its_python_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    # The repository of the Hub is a folder here; what downloads it gives the folder.
    for folder in model_card.CARD.parent.parent.iterdir():
        shutil.copytree(folder, desk / REPO, dirs_exist_ok=True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **_: repo)
    (desk / "card.md").write_text(CARD, encoding="utf-8")
    run_page(desk / "card.md")


def test_code_from_the_hub_is_pinned(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text(CARD, encoding="utf-8")
    blocks = [block for block in python_blocks(tmp_path / "card.md") if REPO in block]
    assert len(blocks) == 3
    for block in blocks:
        assert 'revision="v1.2.3"' in block
        assert "trust_remote_code=True" in block


def test_it_names_what_was_tested_where_the_source_is_and_what_the_code_is() -> None:
    for name in ("current", "oldest"):
        lock = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        for package in ("diffusers", "transformers", "torch"):
            versions = re.findall(rf"^{package}==([\d.]+)", lock, re.MULTILINE)
            assert f"{package} {versions[-1]}" in CARD
    assert SOURCE in CARD
    for name, data in model_card.read_code().items():
        assert f"| `{name}` | `{hashlib.sha256(data).hexdigest()}` |" in CARD
    assert f"https://huggingface.co/{REPO}/discussions" in CARD


def test_its_memory_by_gpu_is_what_is_computed() -> None:
    assert memory.gpu_table(memory.count_sizes()) in CARD, "write the output of `python benchmarks/memory.py` there"


def test_the_published_card_is_what_the_hub_reads_without_placeholders() -> None:
    metadata = yaml.safe_load(CARD.split("---\n")[1])
    assert [metadata[name] for name in ("library_name", "pipeline_tag", "license")] == [
        *("diffusers", "image-to-image", "apache-2.0")
    ]
    assert metadata["base_model"] == ["Tongyi-MAI/Z-Image-Turbo", "Qwen/Qwen3-VL-4B-Instruct"]
    assert {"diffusers", "z-image", "qwen3-vl"} <= set(metadata["tags"])
    assert "{{" not in CARD.replace("{{The zimage-vl authors}}", "")
    assert "A template" not in CARD
    assert "version = {1.2.3}" in CARD
    assert f"huggingface.co/{REPO}/blob/main/colab.ipynb" in CARD


def test_the_template_names_nobody() -> None:
    assert "{{REPO}}" in TEMPLATE
    hub_links = re.findall(r"huggingface\.co/([^\s)}/]+/[^\s)}/]+)", TEMPLATE)
    assert {link for link in hub_links if not link.startswith("{{REPO")} == {"docs/diffusers"}


@pytest.mark.parametrize("name", ["OTHER", "SHA256 other.py"])
def test_an_unknown_placeholder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{{{{{name}}}}}"):
        fill(TEMPLATE + f"{{{{{name}}}}}")


def test_the_command_prints_the_card_of_this_version_or_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    from zimage_vl import __version__

    assert model_card.main([REPO, "--source", SOURCE]) == 0
    assert capsys.readouterr().out == fill().replace("1.2.3", __version__)
    assert model_card.main(["--knobs"]) == 0
    assert capsys.readouterr().out == model_card.knob_table()
    assert model_card.main(["nobody"]) == 1
    assert "owner/name" in capsys.readouterr().err
