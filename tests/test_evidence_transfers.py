"""The guide's lists, entry by entry."""

from __future__ import annotations

from evidence_samples import made_measurements
from test_evidence_prose import outcome, reader
from zimage_vl.evidence.outcomes import Measurements
from zimage_vl.evidence.reading import Reader
from zimage_vl.evidence.transfers import tabulate_transfers


# The guide's own entries.
ENTRIES = {
    "may transfer": 4,
    "unreliable": 5,
    "does not work": 3,
}


def test_a_row_for_each_entry_of_the_three_lists() -> None:
    rows = tabulate_transfers(Reader(made_measurements())).rows
    assert {kind: sum(row[0] == kind for row in rows) for kind in ENTRIES} == ENTRIES
    assert all(len(row[2]) > 20 for row in rows)


def test_what_the_toy_has_not_is_said() -> None:
    told = {row[1]: row[2] for row in tabulate_transfers(Reader(made_measurements())).rows}
    for entry in ("visual style (cartoon or realistic)", "fine details", "text and writing"):
        assert told[entry].startswith("nothing")


def test_the_words_follow_the_numbers() -> None:
    for letters, words in (("rrr", "colour and background above chance"), ("ppp", "none above chance")):
        rows = tabulate_transfers(reader("alpha", {"alpha 1": outcome(letters)})).rows
        assert words in rows[0][2]


def test_what_is_not_measured_is_said() -> None:
    rows = tabulate_transfers(Reader(Measurements(made_measurements().provenance))).rows
    assert rows[0][2] == "not measured yet (alpha: alpha 1)"
