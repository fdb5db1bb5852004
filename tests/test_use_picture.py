"""The model card's first picture: fresh, picked by rule, and counted as the card says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image


ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import use_picture  # noqa: E402


CARD = use_picture.CARD.read_text(encoding="utf-8")


def test_the_committed_picture_was_made_with_these_parameters_and_is_the_cards_first() -> None:
    with Image.open(use_picture.OUTPUT) as picture:
        assert picture.info["parameters"] == use_picture.parameters(), "stale: python tools/use_picture.py"
    assert CARD[CARD.index("![") :].split("](")[1].startswith("use.png)")
    assert "python tools/use_picture.py" in CARD
    assert f"Counted over {use_picture.PAIRS} such pairs at alpha {use_picture.DEFAULT}" in CARD


def test_the_command_paints_and_writes_the_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use_picture, "STEPS", 2)
    card = tmp_path / "card.md"
    card.write_text("<!-- counts:use -->\n<!-- /counts:use -->\n", encoding="utf-8")
    options = ["--pairs", "3", "--output", str(tmp_path / "use.png"), "--card", str(card)]
    assert use_picture.main(options) == 0
    printed = capsys.readouterr().out
    assert "Counted over 3 such pairs" in printed
    assert card.read_text(encoding="utf-8").splitlines()[1:-1] == printed.splitlines()[1:]
    with Image.open(tmp_path / "use.png") as picture:
        assert picture.width > 900
    card.write_text("nothing", encoding="utf-8")
    assert use_picture.main(options) == 1
