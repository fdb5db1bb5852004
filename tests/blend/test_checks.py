from __future__ import annotations

import pytest
import torch

from zimage_vl.blend.checks import check_embeddings


@pytest.mark.parametrize(
    ("embeddings", "error", "message"),
    [
        ([[1.0]], TypeError, "list"),
        (torch.ones(2, 2, dtype=torch.int64), TypeError, "int64"),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), TypeError, "float8"),
        *[(torch.ones(shape), ValueError, rf"got \({shape[0]},") for shape in ((2,), (1, 2, 3))],
        (torch.ones(0, 3), ValueError, "at least one token"),
        *[(torch.tensor([[float(x)]]), ValueError, "NaN or inf") for x in ("nan", "inf")],
        (torch.ones(1, 2048), ValueError, r"2560 wide.*got 2048.*Qwen3-VL-2B is 2048 wide.*Qwen3-VL-4B"),
    ],
)
def test_what_are_no_embeddings_is_refused_by_name(embeddings: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"`stage`.*{message}"):
        check_embeddings("stage", embeddings, 2560 if "2560" in message else None)
