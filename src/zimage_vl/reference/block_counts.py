"""How many blocks a VL encoder's language model has, and how many of them were loaded."""

from __future__ import annotations

from typing import Any


# In the text config of an encoder of which only the first blocks were loaded: how many the whole model has.
FULL_DEPTH_FIELD = "full_num_hidden_layers"


def get_full_depth(text_config: Any) -> int:
    """Blocks of the whole language model, also where only the first of them were loaded: -6 of 36 stays 31."""
    return getattr(text_config, FULL_DEPTH_FIELD, None) or text_config.num_hidden_layers


def is_cut_short(vl_encoder: Any) -> bool:
    """Whether only the first blocks of a VL encoder were loaded."""
    config = vl_encoder.config.text_config
    return config.num_hidden_layers < get_full_depth(config)
