"""The table at the end picks the setting whose weakest wished share is largest."""

from __future__ import annotations

from evidence_samples import made_measurements
from test_evidence_prose import outcome
from zimage_vl.evidence.experiments_more import EXPERIMENTS
from zimage_vl.evidence.reading import Reader
from zimage_vl.evidence.wishes import WISHES, find_candidates, score, tabulate_wishes
from zimage_vl.toy.measuring import ATTRIBUTES


def test_controls_words_rounds_and_second_references_are_no_candidates() -> None:
    made = made_measurements()
    labels = [label for label, _ in find_candidates(Reader(made))]
    assert len(labels) > 100
    assert not [label for label in labels if label.startswith(("Controls", "Iterative", "Several"))]
    assert not [label for label in labels if "description" in label or "in words" in label]


def test_the_best_is_found_by_hand_too() -> None:
    reader = Reader(made_measurements())
    rows = [line for line in tabulate_wishes(reader)[0].splitlines() if line.startswith("| the") or "near-" in line]
    candidates = list(find_candidates(reader))
    for wish in WISHES:
        scores = {
            label: min(getattr(o, name).count(side) / 20 for name, side in zip(ATTRIBUTES, wish.sides, strict=True))
            for label, o in candidates
        }
        line = next(row for row in rows if row.startswith(f"| {wish.name} "))
        best = max(scores.values())
        assert any(f"| {label} |" in line for label, value in scores.items() if value == best)


def test_a_wish_is_reached_only_clearly() -> None:
    made = made_measurements()
    setting = EXPERIMENTS["steps"].settings[0]
    made.outcomes[setting.key] = [outcome("prr")]
    line = tabulate_wishes(Reader(made))[0].splitlines()[2]
    assert setting.label in line
    assert line.endswith("| yes |")
    del made.outcomes[setting.key]
    assert tabulate_wishes(Reader(made))[0].splitlines()[2].endswith("| no |")
    assert score(outcome("prr"), ("p", "r", "r")) == (1.0, "background")


def test_a_hint_leaves_the_prompt_alone() -> None:
    made = made_measurements()
    assert "none of those measured" in tabulate_wishes(Reader(made))[0]
    made.outcomes[EXPERIMENTS["alpha"].settings[2].key] = [outcome("ppp")]
    assert "Alpha: alpha 0.3 (influence 0.10)" in tabulate_wishes(Reader(made))[0]
