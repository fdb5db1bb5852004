"""The guide's claims find the rows that they speak of."""

from __future__ import annotations

from zimage_vl.evidence.model_claims import CLAIMS, add_claims, find_claim
from zimage_vl.evidence.picture_settings import make_settings
from zimage_vl.evidence.tables import Table


def test_every_claim_is_of_a_setting_that_there_is() -> None:
    names: dict[str, set[str]] = {}
    for setting in make_settings():
        names.setdefault(setting.group, {"the prompt alone"}).add(setting.name)
    for group, claims in CLAIMS.items():
        for start, claim in claims:
            assert any(find_claim(group, name) == claim for name in names[group]), (group, start)


def test_a_layer_is_not_taken_for_another() -> None:
    assert find_claim("Layers", "layer -2 of 36, here -2").startswith("heavy")
    assert find_claim("Layers", "layer -24 of 36, here -24").startswith("severe")
    assert find_claim("Layers", "half -6, half -8") == "-"
    assert find_claim("Controls", "grey, alpha 1") == "-"


def test_the_column_comes_second_and_nothing_else_changes() -> None:
    table = Table("Alpha", ("setting", "n"), (("alpha 0.3", "4"), ("else", "5")), "A note.")
    (made,) = add_claims([table])
    assert made.columns == ("setting", "the guide says", "n")
    assert [row[0::2] for row in made.rows] == list(table.rows)
    assert (made.title, made.note) == ("Alpha", "A note.")
