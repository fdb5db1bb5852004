"""Tables of the toy's embeddings, against a recomputation by hand."""

from __future__ import annotations

import pytest
import torch

from zimage_vl.evidence.embedding_tables import measure_embedding_tables
from zimage_vl.toy import load_toy_pipeline
from zimage_vl.toy.world import disagreeing_pairs, draw_scene


def test_sizes_and_effective_alpha() -> None:
    pipe = load_toy_pipeline()
    pairs = disagreeing_pairs(3, 1)
    sizes, alphas = measure_embedding_tables(pipe, pairs, alphas=(0.3,))
    row = next(row for row in sizes.rows if row[:2] == ("-2", "image_no_markers"))
    prompts = [prompt.caption() for prompt, _ in pairs]
    embeds = [pipe.encode_reference(draw_scene(r, n), prompts[n], (-2,)) for n, (_, r) in enumerate(pairs)]
    image = torch.cat([e.hidden_states[-2][e.regions == 2] for e in embeds])
    assert len(image) == 3 * 16
    assert float(row[2]) == pytest.approx(float(image.std()), abs=0.006)
    std, reference = image.std(dim=0), pipe.text_statistics().std
    assert float(row[3]) == pytest.approx(float(torch.corrcoef(torch.stack([std, reference]))[0, 1]), abs=0.001)
    ratio = torch.maximum(std / reference, reference / std)
    assert row[4:6] == (str(int((ratio > 10).sum())), str(int((ratio > 2).sum())))
    exact = next(row for row in alphas.rows if row[0] == "token_rms")
    assert exact[3:] == ("0.30 ± 0.00",)
