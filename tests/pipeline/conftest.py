"""What the tests of the pipeline share: a tiny one for each file, and a Qwen3-VL in a folder."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline_samples import save_vl_parts
from tiny_models import tiny_pipeline


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def vl_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_vl_parts(tmp_path_factory.mktemp("tiny-qwen3-vl"))
