"""`zimage-vl statistics` on the toy world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cli_calls import call
from zimage_vl.blend.embedding_statistics import EmbeddingStatistics
from zimage_vl.cli.statistics import describe_statistics
from zimage_vl.pipeline.text_statistics import TextStatistics, calibration_prompts_sha256
from zimage_vl.toy import load_toy_pipeline


@pytest.mark.slow
def test_the_file_fits_the_encoder_it_is_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "statistics", "-o", tmp_path / "toy.safetensors", "--format", "json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    loaded = TextStatistics.load(tmp_path / "toy.safetensors")
    pipe = load_toy_pipeline()
    loaded.check_fits(pipe.text_encoder)
    assert torch.equal(loaded.statistics.std, pipe.text_statistics().std)
    assert (facts["model_id"], facts["layer"], facts["sinks_excluded"]) == ("toy", -2, False)
    assert facts["prompts_sha256"] == calibration_prompts_sha256()
    assert facts["fingerprint"] == loaded.fingerprint
    assert facts["tokens"] == loaded.statistics.count
    assert facts["output"] == str(tmp_path / "toy.safetensors")
    widest = facts["widest_dimensions"][0]
    assert widest["dimension"] == int(loaded.statistics.std.argmax())
    again = call(capsys, "statistics", "-o", tmp_path / "toy.safetensors")
    again.refused("exists already: name another file, or add --overwrite")
    shown = call(capsys, "inspect", tmp_path / "toy.safetensors")
    assert f"dimension {widest['dimension']} mean" in shown.out
    assert loaded.fingerprint in shown.out


def test_a_model_s_own_file_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "text_encoder" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    (tmp_path / "model_index.json").write_text("{}")
    call(capsys, "statistics", "--model", tmp_path, "-o", weights, "--overwrite").refused(
        "is an input of this command"
    )
    assert weights.read_bytes() == b"weights"


def test_the_overall_std_is_that_of_all_values() -> None:
    tokens = torch.randn(50, 12, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 9, 12) + 3
    measured = TextStatistics(EmbeddingStatistics.from_embeddings(tokens), "a/model", "0" * 64)
    described = describe_statistics(measured)
    assert described["overall_std"] == pytest.approx(float(tokens.double().std()), rel=1e-5)
    assert [row["dimension"] for row in described["widest_dimensions"]] == (
        tokens.std(dim=0).argsort(descending=True)[:5].tolist()
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-o", "a.json"], "must end in .safetensors"),
        (["-o", "gone/a.safetensors"], "does not exist. Create it first"),
        (["--model", "./nowhere"], "--model './nowhere' is neither a folder"),
        (["--device", "gpu"], "--device 'gpu' cannot be used here"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, "statistics", *options).refused(reason)
