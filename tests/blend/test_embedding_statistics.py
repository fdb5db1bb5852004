from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from embedding_samples import PUBLISHED_SINK, make_states, put_sink
from zimage_vl.blend.embedding_statistics import (
    EmbeddingStatistics,
    find_sink_tokens,
    get_dimension_std,
    get_overall_std,
    per_dimension_correlation,
)


@pytest.mark.parametrize("position", [0, 5, 19])
def test_the_published_sink_is_found_wherever_it_stands(position: int) -> None:
    x = put_sink(make_states(20, 2560, rms=10.5), position, PUBLISHED_SINK)
    assert find_sink_tokens(x).nonzero().flatten().tolist() == [position]


def test_the_factor_is_a_strict_bound_on_the_median_rms() -> None:
    x = torch.ones(5, 4)
    x[3] = 8.0
    assert find_sink_tokens(x, factor=7.9).tolist() == [False, False, False, True, False]
    for ordinary in (x, make_states(50), make_states(1)):
        assert not find_sink_tokens(ordinary).any()


def test_dimension_std_is_numpys_with_correction_one_and_exactly_zero_where_nothing_varies() -> None:
    x = make_states(9)
    np.testing.assert_allclose(get_dimension_std(x).numpy(), x.double().numpy().std(axis=0, ddof=1), rtol=1e-5)
    assert not get_dimension_std(torch.full((1000, 3), 0.1)).any()
    assert not get_dimension_std(make_states(1, 4)).any()
    assert get_overall_std(torch.ones(1, 1)) == 0


def test_statistics_of_several_sequences_are_those_of_all_their_tokens() -> None:
    parts = [make_states(4, seed=1), make_states(6, seed=2)]
    several = EmbeddingStatistics.from_embeddings(parts)
    together = torch.cat(parts).double().numpy()
    np.testing.assert_allclose(several.mean.numpy(), together.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(several.std.numpy(), together.std(axis=0, ddof=1), rtol=1e-5)
    assert (several.count, several.exclude_sinks) == (10, False)
    one = EmbeddingStatistics.from_embeddings(torch.cat(parts))
    assert torch.equal(one.mean, several.mean)


def test_sinks_left_out_are_found_on_each_sequence() -> None:
    # The second sequence is 100 times as loud: judged together, it would be all sinks.
    parts = [make_states(4, seed=1), make_states(6, seed=2, rms=1000.0)]
    with_sinks = [torch.cat([parts[0], put_sink(parts[0])[:1]]), parts[1]]
    clean = EmbeddingStatistics.from_embeddings(with_sinks, exclude_sinks=True)
    assert (clean.count, clean.exclude_sinks) == (10, True)
    torch.testing.assert_close(clean.std, torch.cat(parts).std(dim=0))


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EmbeddingStatistics.from_embeddings([]), "at least one sequence"),
        (lambda: EmbeddingStatistics.from_embeddings([torch.ones(2, 3), torch.ones(2, 4)]), r"widths \[3, 4\]"),
        (lambda: EmbeddingStatistics.from_embeddings(torch.ones(1, 3)), "at least two tokens"),
        (lambda: EmbeddingStatistics.from_embeddings(torch.full((2, 2), NAN)), "NaN"),
        (lambda: EmbeddingStatistics(torch.ones(2), torch.ones(3), 5), r"\(2,\) and \(3,\)"),
        (lambda: EmbeddingStatistics(torch.ones(2), -torch.ones(2), 5), "not negative"),
        (lambda: EmbeddingStatistics(torch.ones(2), torch.tensor([1.0, NAN]), 5), "finite"),
        (lambda: find_sink_tokens(make_states(3), 0), "`factor` must be a number above 0"),
        (lambda: find_sink_tokens(make_states(3), NAN), "`factor` must be a number above 0"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_correlation_is_pearsons_of_the_std_vectors() -> None:
    x, y = make_states(9, seed=1), make_states(30, seed=2) * torch.linspace(1, 5, 16)
    expected = np.corrcoef(x.double().numpy().std(axis=0, ddof=1), y.double().numpy().std(axis=0, ddof=1))[0, 1]
    assert per_dimension_correlation(x, EmbeddingStatistics.from_embeddings(y)) == pytest.approx(expected, rel=1e-4)
    scaled = EmbeddingStatistics.from_embeddings(3 * x + 7)
    assert per_dimension_correlation(x, scaled) == pytest.approx(1, abs=1e-5)
    for single_or_flat in (make_states(1), torch.ones(3, 16)):
        with pytest.raises(ValueError, match="not defined"):
            per_dimension_correlation(single_or_flat, scaled)
    with pytest.raises(ValueError, match="16 wide"):
        per_dimension_correlation(make_states(3, 8), scaled)
