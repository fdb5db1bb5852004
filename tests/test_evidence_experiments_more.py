"""The second half: what a row says is what it does."""

from __future__ import annotations

import pytest

from zimage_vl.evidence.experiments_more import EXPERIMENTS
from zimage_vl.evidence.settings import Setting


LABELLED = [
    (setting.label, setting)
    for name in ("normalization", "masking", "blend", "alignment", "refinement", "masks", "references")
    for setting in EXPERIMENTS[name].settings
]


@pytest.mark.parametrize(("label", "setting"), LABELLED)
def test_the_alpha_of_a_label_is_that_of_its_setting(label: str, setting: Setting) -> None:
    assert label.endswith(f"alpha {setting.knobs['vl_alpha']:g}")


def test_the_mode_of_a_label_is_that_of_its_setting() -> None:
    for experiment, knob in (
        ("normalization", "vl_normalization"),
        ("blend", "vl_blend_mode"),
        ("alignment", "vl_alignment"),
        ("masking", "vl_outlier_masking"),
    ):
        for setting in EXPERIMENTS[experiment].settings:
            assert setting.label.startswith(str(setting.knobs[knob]))


def test_windows_and_masks_are_named_by_what_they_are() -> None:
    for setting in EXPERIMENTS["steps"].settings:
        assert setting.label == f"from {setting.knobs['vl_start']:g} to {setting.knobs['vl_end']:g} of the steps"
    assert {setting.mask for setting in EXPERIMENTS["masks"].settings} == {"", "middle", "border"}
    assert {setting.rounds for setting in EXPERIMENTS["refinement"].settings} == {3}
