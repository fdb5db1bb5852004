"""The model card: its metadata, its table of knobs against the pipeline's signature, and its placeholders."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import model_card  # noqa: E402


TEMPLATE = model_card.CARD.read_text(encoding="utf-8")
CARD = model_card.fill_model_card(TEMPLATE, "someone/zimage-vl", "1.2.3")


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", CARD, re.DOTALL)


def test_the_metadata_is_what_the_hub_reads() -> None:
    metadata = yaml.safe_load(CARD.split("---\n")[1])
    assert metadata["library_name"] == "diffusers"
    assert metadata["pipeline_tag"] == "image-to-image"
    assert metadata["license"] == "apache-2.0"
    assert metadata["base_model"] == ["Tongyi-MAI/Z-Image-Turbo", "Qwen/Qwen3-VL-4B-Instruct"]
    assert {"diffusers", "z-image", "qwen3-vl"} <= set(metadata["tags"])


def test_the_table_of_knobs_is_the_signature_of_the_call() -> None:
    from diffusers import ZImagePipeline

    from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline

    ours = inspect.signature(ZImageVLPipeline.__call__).parameters
    parents = inspect.signature(ZImagePipeline.__call__).parameters
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| .+ \|$", CARD, re.MULTILINE)
    defaults = {name: ast.literal_eval(default) for name, default in rows}
    assert len(defaults) == len(rows)
    assert defaults == {name: spec.default for name, spec in ours.items() if name not in parents}


def test_the_choices_in_the_table_are_those_of_the_knobs() -> None:
    from zimage_vl.blend.knobs import _KNOB_CHOICES

    for name, choices in _KNOB_CHOICES.items():
        row = next(line for line in CARD.splitlines() if line.startswith(f"| `{name}` "))
        assert sorted(re.findall(r'"(\w+)"', row)) == sorted(choices)


def test_every_loading_of_remote_code_is_pinned() -> None:
    blocks = [block for block in code_blocks("python") if "someone/zimage-vl" in block]
    assert len(blocks) == 2
    for block in blocks:
        ast.parse(block)
        assert 'revision="v1.2.3"' in block
        assert "trust_remote_code=True" in block


def test_the_one_call_uses_arguments_that_exist() -> None:
    from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline

    known = inspect.signature(ZImageVLPipeline.__call__).parameters
    calls = [
        node
        for node in ast.walk(ast.parse(code_blocks("python")[0]))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "pipe"
    ]
    assert len(calls) == 1
    assert {keyword.arg for keyword in calls[0].keywords} <= set(known)


def test_the_published_card_has_no_placeholder_and_no_note_about_them() -> None:
    assert "{{" not in CARD.replace("{{The zimage-vl authors}}", "")
    assert "template" not in CARD
    assert "version = {1.2.3}" in CARD
    assert "huggingface.co/someone/zimage-vl/blob/main/colab.ipynb" in CARD


def test_the_template_names_nobody() -> None:
    assert "{{REPO}}" in TEMPLATE
    hub_links = re.findall(r"huggingface\.co/([^\s)}/]+/[^\s)}/]+)", TEMPLATE)
    assert not [link for link in hub_links if not link.startswith("{{REPO")]


@pytest.mark.parametrize("repo", ["zimage-vl", "a/b/c", "a/", "https://huggingface.co/a/b", "-a/b", "a b/c"])
def test_what_is_no_repository_is_refused(repo: str) -> None:
    with pytest.raises(ValueError, match="owner/name"):
        model_card.fill_model_card(TEMPLATE, repo, "1.2.3")


def test_an_unknown_placeholder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"\{\{OTHER\}\}"):
        model_card.fill_model_card(TEMPLATE + "{{OTHER}}", "a/b", "1")


def test_the_command_prints_the_card_of_this_version(capsys: pytest.CaptureFixture[str]) -> None:
    from zimage_vl import __version__

    assert model_card.main(["someone/zimage-vl"]) == 0
    assert capsys.readouterr().out == model_card.fill_model_card(TEMPLATE, "someone/zimage-vl", __version__)
    assert model_card.main(["nobody"]) == 1
    assert "owner/name" in capsys.readouterr().err
