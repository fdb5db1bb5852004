"""The model card's pictures of failures: fresh, labelled in full, and counted as the table says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops


ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import failure_pictures  # noqa: E402
from failure_pictures import SETTINGS  # noqa: E402
from zimage_vl.toy import load_toy_pipeline  # noqa: E402


CARD = (ROOT / "pipelines" / "zimage_vl" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pipe():
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_committed_sheet_was_made_with_these_settings() -> None:
    with Image.open(failure_pictures.OUTPUT) as sheet:
        assert sheet.info["parameters"] == failure_pictures.parameters(), "stale: python tools/failure_pictures.py"
        assert min(sheet.size) > 600
    assert failure_pictures.OUTPUT.stat().st_size < 500_000


def test_the_card_shows_the_sheet_and_names_every_setting_and_command() -> None:
    assert f"({failure_pictures.OUTPUT.name})" in CARD
    assert "python tools/failure_pictures.py --pairs 200" in CARD
    table = CARD[CARD.index("<!-- table:failures -->") : CARD.index("<!-- /table:failures -->")]
    rows = re.findall(r"^\| (.+?)(?: \| [\d./ -]+){5} \|$", table, re.MULTILINE)
    assert rows == [str(setting) for setting in SETTINGS]


def test_the_command_paints_the_committed_pictures_again(pipe, tmp_path, monkeypatch, capsys) -> None:
    # The first two columns are enough to tell another toy or another order: each costs seconds.
    monkeypatch.setattr(failure_pictures, "load_toy_pipeline", lambda: pipe)
    monkeypatch.setattr(failure_pictures, "SETTINGS", SETTINGS[:2])
    assert failure_pictures.main(["--output", str(tmp_path / "sheet.png")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(failure_pictures.OUTPUT) as committed:
        assert json.loads(sheet.info["parameters"])["settings"][0] == ["plain", {"vl_alpha": 0.0}, "scene"]
        common = (0, 100, sheet.width - 30, sheet.height - 60)
        difference = ImageChops.difference(sheet.crop(common), committed.convert("RGB").crop(common)).convert("L")
        # Threads and processors change bits, not pictures.
        assert sum(difference.histogram()[40:]) < 0.001 * difference.width * difference.height
