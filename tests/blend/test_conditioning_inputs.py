from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conditioning_samples import (
    REFERENCE,
    TEXT,
    TEXT_REGIONS,
    condition,
)
from embedding_samples import (
    make_reference,
)
from zimage_vl.blend.condition import condition_prompt_embeds
from zimage_vl.blend.knobs import VLConditioning
from zimage_vl.reference.embeds import ReferenceEmbeds


def test_bad_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="`text_embeds` contains NaN"):
        condition(text=TEXT.log())
    with pytest.raises(ValueError, match="at least one token"):
        condition(text=TEXT[:0], regions=TEXT_REGIONS[:0])
    with pytest.raises(ValueError, match="each of 12 text tokens, got"):
        condition(regions=TEXT_REGIONS[:3])


@pytest.mark.parametrize("alpha", [torch.ones(3), torch.tensor(0.5), torch.full((12,), 1.5)])
def test_bad_alphas_are_refused(alpha: Tensor) -> None:
    with pytest.raises(ValueError, match="`alpha"):
        condition(alpha=alpha)


def test_bad_references_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"reference 0: .*layers \[-6\], not of layer -2"):
        condition(vl_hidden_layer=-2)
    wide = make_reference(dims=32)
    with pytest.raises(ValueError, match=r"`reference 1, layer -6` must be 16 wide.*got 32"):
        condition(REFERENCE, wide)
    with pytest.raises(ValueError, match="at least one reference"):
        condition_prompt_embeds(TEXT, TEXT_REGIONS, [], VLConditioning())
    with pytest.raises(ValueError, match="each of 1 references, got 2"):
        condition(reference_weights=[1, 1])


def test_non_finite_stages_are_named() -> None:
    broken = make_reference()
    broken.hidden_states[-6][3, 3] = float("nan")
    with pytest.raises(ValueError, match="`reference 0, layer -6` contains NaN"):
        condition(broken)
    with pytest.raises(ValueError, match="`the blended embeddings` contains NaN or inf"):
        condition(text=TEXT.half(), vl_target_std=1e6, vl_alpha=1)


def test_an_empty_selection_is_refused() -> None:
    wordy = ReferenceEmbeds({-6: TEXT}, TEXT_REGIONS)
    for selection in ("image", "image_no_markers"):
        with pytest.raises(ValueError, match=f"'{selection}' keeps none of the 12 tokens of reference 0"):
            condition(wordy, vl_token_selection=selection)


def test_too_few_tokens_to_truncate_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 12 tokens of the reference, got 9"):
        condition(vl_alignment="truncate", vl_token_selection="image_no_markers")
