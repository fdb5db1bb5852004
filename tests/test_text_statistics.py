"""Statistics in a file: whose they are, and that nobody else's are taken."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tiny_models import tiny_pipeline, tiny_text_encoder, tiny_tokenizer
from zimage_vl.calibration import calibration_prompts_sha256
from zimage_vl.text_statistics import TextStatistics, fingerprint_text_encoder


TOKENIZER = tiny_tokenizer()
PIPE = tiny_pipeline(with_vl=False)
MEASURED = TextStatistics.measure(PIPE, "a/model")


def encoder(**kwargs: Any) -> Any:
    return tiny_text_encoder(tokenizer=TOKENIZER, **kwargs)


def test_the_fingerprint_reads_sizes_norms_and_rows_written_out_here() -> None:
    model = encoder(num_hidden_layers=2)
    sizes = '{"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4, '
    sizes += f'"num_key_value_heads": 2, "vocab_size": {len(TOKENIZER)}}}'
    norms = ("input_layernorm", "post_attention_layernorm", "self_attn.k_norm", "self_attn.q_norm")
    names = [*(f"layers.{layer}.{norm}.weight" for layer in (0, 1) for norm in norms), "norm.weight"]
    weights = dict(model.named_parameters())
    middle = len(TOKENIZER) // 2
    digest = hashlib.sha256(sizes.encode())
    for weight in (*(weights[name] for name in names), weights["embed_tokens.weight"][middle : middle + 16]):
        bits = weight.detach().numpy().view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000  # to bfloat16, half to even
        values = rounded.astype(np.uint32).view(np.float32).copy()
        values[np.abs(values) < 2.0**-14] = 0
        digest.update(values.tobytes())
    assert fingerprint_text_encoder(model) == digest.hexdigest()


def test_the_fingerprint_tells_encoders_apart() -> None:
    base = fingerprint_text_encoder(encoder())
    assert base == fingerprint_text_encoder(encoder())
    others = [encoder(seed=9), encoder(num_hidden_layers=5), encoder(width=64)]
    changed = encoder()
    with torch.no_grad():
        changed.layers[2].post_attention_layernorm.weight[3] += 0.5
    rows = encoder()
    with torch.no_grad():
        rows.embed_tokens.weight[rows.embed_tokens.weight.shape[0] // 2 + 3, 1] += 0.5
    assert len({base, *(fingerprint_text_encoder(model) for model in (*others, changed, rows))}) == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_fingerprint_does_not_depend_on_how_it_is_loaded(dtype: torch.dtype, tmp_path: Path) -> None:
    stored = encoder().to(torch.bfloat16)  # as the real checkpoint is
    with torch.no_grad():
        stored.embed_tokens.weight[stored.embed_tokens.weight.shape[0] // 2, :4] = torch.tensor(
            [1e-7, -3e-6, 2.0**-14, -5e-5], dtype=torch.bfloat16
        )
    expected = fingerprint_text_encoder(stored)
    stored.save_pretrained(tmp_path)
    loaded = type(stored).from_pretrained(tmp_path, dtype=dtype)
    assert fingerprint_text_encoder(loaded) == expected
    assert fingerprint_text_encoder(type(stored).from_pretrained(tmp_path, dtype=torch.float32)) == expected


def test_a_model_with_a_head_is_the_same_encoder() -> None:
    from transformers import Qwen3ForCausalLM

    bare = encoder()
    whole = Qwen3ForCausalLM(bare.config)
    whole.model.load_state_dict(bare.state_dict())
    assert fingerprint_text_encoder(whole) == fingerprint_text_encoder(bare)


def test_weights_that_are_not_in_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="before enable_sequential_cpu_offload"):
        fingerprint_text_encoder(encoder().to("meta"))


def test_what_is_measured_is_the_pipelines_own() -> None:
    assert MEASURED.statistics is PIPE.text_statistics()
    assert (MEASURED.model_id, MEASURED.layer, MEASURED.width, MEASURED.dtype) == ("a/model", -2, 32, "float32")
    assert MEASURED.prompts_sha256 == calibration_prompts_sha256()
    assert set(MEASURED.versions) >= {"zimage_vl", "torch", "transformers", "diffusers"}
    assert not MEASURED.statistics.exclude_sinks
    assert TextStatistics.measure(PIPE, "a/model", exclude_sinks=True).statistics.exclude_sinks


def test_a_file_gives_back_what_went_in(tmp_path: Path) -> None:
    MEASURED.save(tmp_path / "a.safetensors")
    loaded = TextStatistics.load(tmp_path / "a.safetensors")
    assert torch.equal(loaded.statistics.mean, MEASURED.statistics.mean)
    assert torch.equal(loaded.statistics.std, MEASURED.statistics.std)
    assert loaded.statistics.count == MEASURED.statistics.count
    assert loaded.to_metadata() == MEASURED.to_metadata()
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as opened:
        assert opened.metadata()["schema"] == "zimage_vl.text_statistics"


def test_sinks_left_out_are_remembered(tmp_path: Path) -> None:
    TextStatistics.measure(PIPE, "a/model", exclude_sinks=True).save(tmp_path / "a.safetensors")
    assert TextStatistics.load(tmp_path / "a.safetensors").statistics.exclude_sinks is True


def test_another_encoders_statistics_are_refused_by_name() -> None:
    MEASURED.check_fits(PIPE.text_encoder)
    MEASURED.check_fits(encoder())
    with pytest.raises(ValueError, match=r"of 'a/model' \(fingerprint .{12}\), which is not this text encoder"):
        MEASURED.check_fits(encoder(seed=5))
    with pytest.raises(ValueError, match=r"of 'a/model', which is 32 wide; this text encoder is 64 wide"):
        MEASURED.check_fits(encoder(width=64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": "33"}, "its metadata say width 33, its tensors 32"),
        ({"count": "many"}, "invalid literal"),
        ({"count": "1"}, "at least two tokens"),
        ({"exclude_sinks": "perhaps"}, "is refused"),
        ({"exclude_sinks": "1"}, "its metadata cannot be read"),
        ({"versions": "[]"}, "its metadata cannot be read"),
        ({"fingerprint": None}, "'fingerprint' is missing"),
        ({"schema": "zimage_vl.reference_embeds"}, "holds no text-encoder statistics"),
        ({"schema_version": "9"}, "schema version '9'"),
    ],
)
def test_other_and_contradicting_files_are_refused(
    changes: dict[str, str | None], message: str, tmp_path: Path
) -> None:
    tensors = {"mean": MEASURED.statistics.mean, "std": MEASURED.statistics.std}
    metadata = {**MEASURED.to_metadata(), "schema": "zimage_vl.text_statistics", "schema_version": "1", **changes}
    path = tmp_path / "a.safetensors"
    save_file(tensors, str(path), {key: value for key, value in metadata.items() if value is not None})
    with pytest.raises(ValueError, match=message) as refused:
        TextStatistics.load(path)
    assert "a.safetensors" in str(refused.value)
    assert "zimage-vl statistics" in str(refused.value)


@pytest.mark.parametrize(
    "tensors",
    [
        {"mean": torch.zeros(32)},
        {"mean": torch.zeros(32), "std": torch.full((32,), float("nan"))},
        {"mean": torch.zeros(32), "std": -torch.ones(32)},
        {"mean": torch.zeros(31), "std": torch.ones(32)},
    ],
)
def test_bad_numbers_are_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    metadata = {**MEASURED.to_metadata(), "schema": "zimage_vl.text_statistics", "schema_version": "1"}
    save_file(tensors, str(tmp_path / "a.safetensors"), metadata)
    with pytest.raises(ValueError, match=r"a\.safetensors is refused"):
        TextStatistics.load(tmp_path / "a.safetensors")
