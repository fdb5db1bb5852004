"""The shapes of the real models, from the config.json files they are published with, and those divided in width."""

from __future__ import annotations

from typing import Any


# Qwen/Qwen3-4B, Z-Image's text encoder.
TEXT: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
# Qwen/Qwen3-VL-4B-Instruct: its language model and its vision tower.
VL_TEXT: dict[str, Any] = {
    **TEXT,
    "max_position_embeddings": 262144,
    "rope_theta": 5e6,
    "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
}
VISION: dict[str, Any] = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 2560,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
    "hidden_act": "gelu_pytorch_tanh",
}
# Tongyi-MAI/Z-Image-Turbo.
TRANSFORMER: dict[str, Any] = {
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "norm_eps": 1e-5,
    "qk_norm": True,
    "cap_feat_dim": 2560,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": True,
}
SCHEDULER: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}
SCALES = (1, 2, 4, 8, 16, 32)


def _check_scale(scale: int) -> None:
    if scale not in SCALES:
        raise ValueError(f"`scale` must be one of {SCALES}, by which all widths can be divided, got {scale!r}.")


def scale_text(config: dict[str, Any], scale: int) -> dict[str, Any]:
    """A language model of as many blocks and of a part of the width: fewer heads of the same size, a smaller
    vocabulary."""
    _check_scale(scale)
    divided = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")
    key_heads = max(1, config["num_key_value_heads"] // scale)
    return {**config, **{name: config[name] // scale for name in divided}, "num_key_value_heads": key_heads}


def scale_vision(scale: int) -> dict[str, Any]:
    _check_scale(scale)
    divided = ("hidden_size", "intermediate_size", "out_hidden_size")
    return {**VISION, **{name: VISION[name] // scale for name in divided}, "num_heads": max(1, 16 // scale)}


def scale_transformer(scale: int) -> dict[str, Any]:
    """Whole heads, so that the width is only about that part."""
    _check_scale(scale)
    heads = max(1, TRANSFORMER["n_heads"] // scale)
    head_dim = sum(TRANSFORMER["axes_dims"])
    changed = {"dim": heads * head_dim, "n_heads": heads, "n_kv_heads": heads, "cap_feat_dim": 2560 // scale}
    return {**TRANSFORMER, **changed}


def scale_vae(scale: int) -> dict[str, Any]:
    _check_scale(scale)
    channels = [width // scale for width in VAE["block_out_channels"]]
    return {**VAE, "block_out_channels": channels, "norm_num_groups": min(32, channels[0])}
