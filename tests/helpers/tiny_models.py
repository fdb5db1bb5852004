"""Tiny models of the real classes with random weights, built in memory: nothing is downloaded, nothing is trained.

The chat template is the text of Qwen3's own (`chat_template` in tokenizer_config.json of Qwen/Qwen3-4B, Apache-2.0,
written out in data/qwen3_chat_template.jinja): it renders string content and drops content given as a list.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3Model, Qwen3VLConfig, Qwen3VLForConditionalGeneration


IS_OLD_TRANSFORMERS = int(transformers.__version__.split(".")[0]) < 5
QWEN3_CHAT_TEMPLATE = (Path(__file__).parent.parent / "data" / "qwen3_chat_template.jinja").read_text(encoding="utf-8")
SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
]
# Qwen2's pre-tokenizer, as in its tokenizer.json.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CORPUS = [
    "user\nassistant\nsystem\na red circle on a white background\na blue square in front of a black wall",
    "\n\na green triangle, gray background\n\nthe cross is yellow and the background is brown",
] * 4


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """An RGB picture of random pixels."""
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def white_box(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A black greyscale mask with a white box in it."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def tiny_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE trained on a handful of sentences; a blank line is one token, as in
    Qwen's."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def _tokenizer_files(folder: Path) -> tuple[str, str]:
    vocab, merges = tiny_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    return str(folder / "vocab.json"), str(folder / "merges.txt")


def _special_token_arguments() -> dict[str, Any]:
    return {
        "additional_special_tokens": SPECIAL_TOKENS[1:],
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 131072,
    }


def tiny_tokenizer() -> Any:
    """transformers' fast Qwen2 tokenizer with Qwen's special tokens and Qwen3's chat template."""
    import tempfile

    arguments = _special_token_arguments()
    if IS_OLD_TRANSFORMERS:
        with tempfile.TemporaryDirectory() as folder:
            vocab_file, merges_file = _tokenizer_files(Path(folder))
            tokenizer = transformers.Qwen2TokenizerFast(vocab_file=vocab_file, merges_file=merges_file, **arguments)
    else:
        vocab, merges = tiny_vocabulary()
        tokenizer = transformers.Qwen2Tokenizer(vocab=vocab, merges=merges, **arguments)
    tokenizer.chat_template = QWEN3_CHAT_TEMPLATE
    return tokenizer


def tiny_slow_tokenizer(folder: Path) -> Any:
    """The slow class of transformers 4 over the same vocabulary (there is none from transformers 5 on)."""
    vocab_file, merges_file = _tokenizer_files(folder)
    tokenizer = transformers.Qwen2Tokenizer(vocab_file, merges_file, **_special_token_arguments())
    tokenizer.chat_template = QWEN3_CHAT_TEMPLATE
    return tokenizer


def tiny_image_processor(patch_size: int = 8, merge_size: int = 2, **kwargs: Any) -> Any:
    """Qwen2-VL's image processor, the one that needs Pillow alone; one image token per 16 x 16 pixels."""
    name = "Qwen2VLImageProcessor" if IS_OLD_TRANSFORMERS else "Qwen2VLImageProcessorPil"
    kwargs = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **kwargs}
    return getattr(transformers, name)(
        patch_size=patch_size, merge_size=merge_size, temporal_patch_size=2, min_pixels=256, **kwargs
    )


@torch.no_grad()
def _randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that every part of the model matters to its outputs, the same in every version."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            spread = 1.0 if "embed" in name and "patch" not in name else parameter[0].numel() ** -0.5
            parameter.copy_(noise * spread)
        else:
            parameter.copy_(noise * 0.1 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))


def tiny_vl_encoder(
    width: int = 32,
    num_hidden_layers: int = 6,
    *,
    seed: int = 0,
    attn_implementation: str = "sdpa",
    tokenizer: Any = None,
) -> Qwen3VLForConditionalGeneration:
    """Qwen3-VL in float32: a 3-layer vision tower with DeepStack on its first two layers, patches of 8 merged 2 by
    2."""
    tokenizer = tokenizer or tiny_tokenizer()
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end", "image_pad")
    }
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 4096,
            "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": width,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    config._attn_implementation = attn_implementation
    with torch.random.fork_rng():
        model = Qwen3VLForConditionalGeneration(config)
    _randomize(model, seed)
    return model.eval()


def tiny_text_encoder(
    width: int = 32, num_hidden_layers: int = 4, *, seed: int = 1, tokenizer: Any = None
) -> Qwen3Model:
    """Qwen3 as Z-Image's text encoder, as wide as `tiny_vl_encoder`, in float32."""
    tokenizer = tokenizer or tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=4096,
        rope_theta=10000.0,
    )
    with torch.random.fork_rng():
        model = Qwen3Model(config)
    _randomize(model, seed)
    return model.eval()


def tiny_vae(*, seed: int = 2) -> AutoencoderKL:
    """A VAE with 4 latent channels that halves the sides once: pictures have sides in multiples of 4."""
    with torch.random.fork_rng():
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.5,
            shift_factor=0.1,
            use_quant_conv=False,
            use_post_quant_conv=False,
            force_upcast=False,
        )
    _randomize(vae, seed)
    return vae.eval()


def tiny_transformer(text_width: int = 32, *, seed: int = 3) -> ZImageTransformer2DModel:
    """Z-Image's transformer with the real one's caption limit (1504 tokens)."""
    with torch.random.fork_rng():
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=64,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=text_width,
            axes_dims=[8, 12, 12],
            axes_lens=[1536, 512, 512],
        )
    _randomize(transformer, seed)
    return transformer.eval()


def tiny_components(text_width: int = 32) -> dict[str, Any]:
    """What a plain `ZImagePipeline` is made of. Call it with `height=32, width=32, num_inference_steps=2`."""
    tokenizer = tiny_tokenizer()
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": tiny_vae(),
        "text_encoder": tiny_text_encoder(text_width, tokenizer=tokenizer),
        "tokenizer": tokenizer,
        "transformer": tiny_transformer(text_width),
    }


def tiny_pipeline(*, with_vl: bool = True, text_width: int = 32, **kwargs: Any) -> Any:
    """A `ZImageVLPipeline` of tiny random models: an image in a fraction of a second, the same in every process.

    Args:
        with_vl: Whether it holds its VL encoder and image processor; without them it has none to load either.
        text_width: Dimensions of the text states, a multiple of 8.
        **kwargs: Components or settings in place of these.
    """
    from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline

    parts = {**tiny_components(text_width), "vl_model_id": None}
    if with_vl:
        parts["vl_encoder"] = tiny_vl_encoder(text_width, tokenizer=parts["tokenizer"])
        parts["vl_processor"] = tiny_image_processor()
    pipe = ZImageVLPipeline(**{**parts, **kwargs})
    pipe.set_progress_bar_config(disable=True)
    return pipe
