"""Fingerprints: one model has one, however it is loaded; another has another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny_models import tiny_image_processor, tiny_text_encoder, tiny_tokenizer, tiny_vl_encoder
from zimage_vl.reference.fingerprints import fingerprint_text_encoder, fingerprint_vl_encoder
from zimage_vl.reference.loading import load_vl_parts


TOKENIZER = tiny_tokenizer()


def encoder(**kwargs: Any) -> Any:
    return tiny_text_encoder(tokenizer=TOKENIZER, **kwargs)


def vl_encoder(**kwargs: Any) -> Any:
    return tiny_vl_encoder(tokenizer=TOKENIZER, **kwargs)


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


def test_a_vl_encoder_is_told_from_others_of_its_width() -> None:
    base = fingerprint_vl_encoder(vl_encoder())
    assert base is not None
    assert base == fingerprint_vl_encoder(vl_encoder())
    seen, words = vl_encoder(), vl_encoder()
    with torch.no_grad():
        seen.model.visual.blocks[1].norm2.bias[0] += 0.5
        words.model.language_model.layers[0].self_attn.q_norm.weight[0] += 0.5
    others = [vl_encoder(seed=1), vl_encoder(num_hidden_layers=5), vl_encoder(width=64), seen, words]
    assert len({base, *map(fingerprint_vl_encoder, others)}) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_vl_encoder_is_the_same_however_it_is_loaded(dtype: torch.dtype, tmp_path: Path) -> None:
    stored = vl_encoder().to(torch.bfloat16)
    stored.save_pretrained(tmp_path)
    loaded = type(stored).from_pretrained(tmp_path, dtype=dtype)
    assert fingerprint_vl_encoder(loaded) == fingerprint_vl_encoder(stored)


def test_a_vl_encoder_with_its_first_blocks_alone_is_the_same(tmp_path: Path) -> None:
    stored = vl_encoder()
    stored.save_pretrained(tmp_path)
    tiny_image_processor().save_pretrained(tmp_path)
    cut, _ = load_vl_parts(tmp_path, layers=(-4,))
    assert len(cut.model.language_model.layers) < stored.config.text_config.num_hidden_layers
    assert fingerprint_vl_encoder(cut) == fingerprint_vl_encoder(stored)


def test_a_quantised_vl_encoder_is_the_same() -> None:
    quantised = vl_encoder()
    expected = fingerprint_vl_encoder(quantised)
    # Every scheme replaces the linear layers and leaves the norms alone.
    for module in quantised.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.int8), requires_grad=False)
    assert fingerprint_vl_encoder(quantised) == expected


def test_a_vl_encoder_offloaded_layer_by_layer_is_the_same() -> None:
    from accelerate import cpu_offload

    offloaded = vl_encoder()
    expected = fingerprint_vl_encoder(offloaded)
    cpu_offload(offloaded, torch.device("cpu"))
    assert offloaded.model.language_model.norm.weight.device.type == "meta"
    assert fingerprint_vl_encoder(offloaded) == expected
    assert offloaded.model.language_model.norm.weight.device.type == "meta"


def test_weights_that_cannot_be_read_have_none() -> None:
    assert fingerprint_vl_encoder(vl_encoder().to("meta")) is None
