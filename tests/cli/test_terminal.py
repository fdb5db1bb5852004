"""Words for the terminal."""

from __future__ import annotations

import json

import pytest

from zimage_vl.cli._terminal import OutputFormat, count_of, escape, fact_lines, print_facts


def test_what_moves_a_cursor_or_is_no_unicode_is_escaped() -> None:
    assert escape("a\x1b[2J\udcff ä") == r"a\x1b[2J\udcff ä"


def test_one_thing_is_one() -> None:
    assert (count_of(1, "reference"), count_of(0, "reference")) == ("1 reference", "0 references")


def test_facts_are_lines_for_people_and_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {
        "model_id": "a/b",
        "missing": None,
        "std": 1 / 3,
        "yes": True,
        "empty": [],
        "short": {"a_b": 1, "none": None},
        "rows": [{"a": 1, "b": 2}, {"a": 3, "b": ""}],
        "many": list(range(10)),
        "layers": {"-6": dict.fromkeys(("one", "two", "three"), 0.5), "-2": {"text": "x" * 100}},
    }
    assert list(fact_lines(facts)) == [
        "model id          a/b",
        "std               0.3333",
        "yes               yes",
        "empty             none",
        "short             a b 1",
        "rows              a 1 b 2, a 3 b ''",
        "many              0, 1, 2, 3, 4, 5, 6, 7 and 2 more",
        "layers",
        "  -6              one 0.5, two 0.5, three 0.5",
        "  -2",
        f"    text          {'x' * 100}",
    ]
    print_facts(facts, OutputFormat.JSON)
    assert json.loads(capsys.readouterr().out) == facts
