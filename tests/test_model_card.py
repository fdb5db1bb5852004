"""The model card: its metadata, its table of knobs, its placeholders, and its Python, run on the toy."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from pages import ROOT, desk, python_blocks, run_page  # noqa: F401 - desk is a fixture


sys.path.insert(0, str(ROOT / "tools"))

import model_card


REPO = "someone/zimage-vl"
TEMPLATE = model_card.CARD.read_text(encoding="utf-8")
CARD = model_card.fill_model_card(TEMPLATE, REPO, "1.2.3")


def test_the_metadata_is_what_the_hub_reads() -> None:
    metadata = yaml.safe_load(CARD.split("---\n")[1])
    assert metadata["library_name"] == "diffusers"
    assert metadata["pipeline_tag"] == "image-to-image"
    assert metadata["license"] == "apache-2.0"
    assert metadata["base_model"] == ["Tongyi-MAI/Z-Image-Turbo", "Qwen/Qwen3-VL-4B-Instruct"]
    assert {"diffusers", "z-image", "qwen3-vl"} <= set(metadata["tags"])


def test_its_table_is_the_registry_of_knobs() -> None:
    assert model_card.knob_table() in CARD, "write the output of `python tools/model_card.py --knobs` there"


def test_its_python_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    # The repository of the Hub is a folder here; what downloads it gives the folder.
    shutil.copytree(model_card.CARD.parent, desk / REPO)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **_: repo)
    (desk / "card.md").write_text(CARD, encoding="utf-8")
    run_page(desk / "card.md")


def test_code_from_the_hub_is_pinned(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text(CARD, encoding="utf-8")
    blocks = [block for block in python_blocks(tmp_path / "card.md") if REPO in block]
    assert len(blocks) == 2
    for block in blocks:
        assert 'revision="v1.2.3"' in block
        assert "trust_remote_code=True" in block


def test_the_published_card_has_no_placeholder_and_no_note_about_them() -> None:
    assert "{{" not in CARD.replace("{{The zimage-vl authors}}", "")
    assert "template" not in CARD
    assert "version = {1.2.3}" in CARD
    assert f"huggingface.co/{REPO}/blob/main/colab.ipynb" in CARD


def test_the_template_names_nobody() -> None:
    assert "{{REPO}}" in TEMPLATE
    hub_links = re.findall(r"huggingface\.co/([^\s)}/]+/[^\s)}/]+)", TEMPLATE)
    assert not [link for link in hub_links if not link.startswith("{{REPO")]


@pytest.mark.parametrize("repo", ["zimage-vl", "a/b/c", "a/", "https://huggingface.co/a/b", "-a/b", "a b/c"])
def test_what_is_no_repository_is_refused(repo: str) -> None:
    with pytest.raises(ValueError, match="owner/name"):
        model_card.fill_model_card(TEMPLATE, repo, "1.2.3")


def test_an_unknown_placeholder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\{\{OTHER\}\}"):
        model_card.fill_model_card(TEMPLATE + "{{OTHER}}", "a/b", "1")


def test_the_command_prints_the_card_of_this_version_or_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    from zimage_vl import __version__

    assert model_card.main([REPO]) == 0
    assert capsys.readouterr().out == model_card.fill_model_card(TEMPLATE, REPO, __version__)
    assert model_card.main(["--knobs"]) == 0
    assert capsys.readouterr().out == model_card.knob_table()
    assert model_card.main(["nobody"]) == 1
    assert "owner/name" in capsys.readouterr().err
