"""The few places where the libraries' versions differ: each gives the same on all of them."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch import nn

from tiny_models import tiny_image_processor, tiny_tokenizer, tiny_transformer, tiny_vl_encoder
from zimage_vl.reference.readers import execution_device
from zimage_vl.reference.turn import reference_turn
from zimage_vl.reference.versions import (
    bring_position_table,
    compute_position_ids,
    get_own_max_pixels,
    group_offload_settings,
    takes_attention_kwargs,
)


DIFFUSERS = tuple(map(int, diffusers.__version__.split(".")[:2]))


def test_positions_are_those_of_the_paper() -> None:
    # M-RoPE: text counts on; a picture's tokens share a time and count rows and columns, all from where the text is.
    tokenizer = tiny_tokenizer()
    encoder = tiny_vl_encoder(tokenizer=tokenizer)
    ids, _ = reference_turn(tokenizer, "a red circle", 2 * 3, "after")
    image = encoder.config.image_token_id
    positions = compute_position_ids(encoder.model, ids[None], torch.tensor([[1, 4, 6]]), image)[:, 0]
    start = int((ids == image).nonzero()[0])
    assert torch.equal(positions[:, :start], torch.arange(start).expand(3, -1))
    at = torch.arange(6)
    assert torch.equal(positions[:, start : start + 6] - start, torch.stack([at * 0, at // 3, at % 3]))
    after = len(ids) - start - 6
    assert torch.equal(positions[:, start + 6 :] - start, (3 + torch.arange(after)).expand(3, -1))
    assert encoder.model.rope_deltas is None


def test_a_bound_on_pixels_is_the_processors_own_or_none() -> None:
    class Sizes(SimpleNamespace):
        """As transformers 5 has them: no dict."""

    default = 28 * 28 * 1280
    for size, own in [
        (None, None),
        ({}, None),
        ({"longest_edge": 4096}, 4096),
        (Sizes(longest_edge=4096), 4096),
        ({"longest_edge": default}, None),
        (Sizes(), None),
    ]:
        assert get_own_max_pixels(SimpleNamespace(size=size)) == own
    assert get_own_max_pixels(object()) is None
    assert get_own_max_pixels(tiny_image_processor()) in (None, tiny_image_processor().size["longest_edge"])


def test_the_position_table_is_brought_only_where_it_is_away() -> None:
    from accelerate import cpu_offload

    visual = tiny_vl_encoder().model.visual
    weights = visual.pos_embed.weight.clone()
    bring_position_table(visual)
    assert not hasattr(visual.pos_embed, "_hf_hook")
    cpu_offload(visual, torch.device("cpu"))
    assert visual.pos_embed.weight.device.type == "meta"
    bring_position_table(visual)
    bring_position_table(visual)
    assert torch.equal(visual.pos_embed.weight, weights)
    with torch.no_grad():
        assert torch.equal(visual.pos_embed(torch.tensor([3])), weights[3:4])
    assert visual.pos_embed.weight.device.type == "meta"


def test_group_offload_is_found_wherever_its_hooks_sit() -> None:
    from diffusers.hooks import apply_group_offloading

    assert group_offload_settings(None) is None
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    assert group_offload_settings(model) is None
    devices = {"onload_device": torch.device("cuda"), "offload_device": torch.device("cpu")}
    try:  # nothing runs, so nothing is brought there
        apply_group_offloading(model, offload_type="leaf_level", **devices)
    except AttributeError:
        pytest.skip("diffusers 0.36 looks the accelerator up at once")
    found = group_offload_settings(model)
    assert (found.onload_device.type, found.offload_device.type) == ("cuda", "cpu")
    assert execution_device(model).type == "cuda"


def test_whether_a_loras_scale_reaches_the_transformer() -> None:
    transformer = tiny_transformer()
    assert takes_attention_kwargs(transformer) == takes_attention_kwargs(torch.compile(transformer, backend="eager"))
    if DIFFUSERS == (0, 36):
        assert not takes_attention_kwargs(transformer)
    elif DIFFUSERS >= (0, 42):
        assert takes_attention_kwargs(transformer)
