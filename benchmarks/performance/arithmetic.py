"""How much arithmetic a pass of Qwen3-VL is, from its shape and the numbers of tokens.

A product of an (m, k) and a (k, n) matrix is 2 m k n operations. Attention of q queries over s keys, with h heads of
d numbers, is 4 q s h d: the scores and the mixing of the values, each 2 q s h d, over the whole square (kernels that
skip the masked half do less; the language model's attention is a small part). Everything else is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


FORMULA = (
    "Operations: 2 m k n for each product of an (m, k) and a (k, n) matrix, that is 2 x tokens x parameters for every "
    "linear layer; 4 x queries x keys x heads x head size for attention. The vision tower counts its patches (4 to a "
    "token), the patch embedding, 24 blocks with attention over all patches, and 4 mergers; the language model its "
    "blocks; the obvious way the logits of all tokens on top."
)


@dataclass(frozen=True)
class Product:
    """`times` products of a (rows, inner) and an (inner, columns) matrix."""

    rows: int
    inner: int
    columns: int
    times: int = 1

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.inner * self.columns * self.times


@dataclass(frozen=True)
class Attention:
    """`times` attentions of `queries` over `keys`."""

    queries: int
    keys: int
    heads: int
    head_dim: int
    causal: bool
    times: int = 1

    @property
    def operations(self) -> int:
        return 4 * self.queries * self.keys * self.heads * self.head_dim * self.times


Work = list["Product | Attention"]


def count_operations(work: Work) -> int:
    return sum(each.operations for each in work)


def vision_work(vision: Any, patches: int) -> Work:
    """The vision tower with its mergers over the patches of one picture."""
    width, merged = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
    tokens = patches // vision.spatial_merge_size**2
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    mergers = 1 + len(vision.deepstack_visual_indexes)
    return [
        Product(patches, values, width),
        Product(patches, width, 3 * width, vision.depth),
        Attention(patches, patches, vision.num_heads, width // vision.num_heads, False, vision.depth),
        Product(patches, width, width, vision.depth),
        Product(patches, width, vision.intermediate_size, vision.depth),
        Product(patches, vision.intermediate_size, width, vision.depth),
        Product(tokens, merged, merged, mergers),
        Product(tokens, merged, vision.out_hidden_size, mergers),
    ]


def block_work(text: Any, tokens: int, blocks: int, keys: int | None = None) -> Work:
    """`blocks` blocks of the language model over `tokens` tokens that look at `keys` ones (None: at themselves)."""
    heads, key_heads, size = text.num_attention_heads, text.num_key_value_heads, text.head_dim
    width, inner = text.hidden_size, text.intermediate_size
    return [
        Product(tokens, width, heads * size, blocks),
        Product(tokens, width, key_heads * size, 2 * blocks),
        Attention(tokens, keys or tokens, heads, size, True, blocks),
        Product(tokens, heads * size, width, blocks),
        Product(tokens, width, inner, 2 * blocks),
        Product(tokens, inner, width, blocks),
    ]


def logits_work(text: Any, tokens: int) -> Work:
    return [Product(tokens, text.hidden_size, text.vocab_size)]


def obvious_work(config: Any, patches: int, tokens: int) -> Work:
    """The full forward of `Qwen3VLForConditionalGeneration`."""
    text = config.text_config
    blocks = block_work(text, tokens, text.num_hidden_layers)
    return [*vision_work(config.vision_config, patches), *blocks, *logits_work(text, tokens)]


def extraction_work(config: Any, patches: int, tokens: int, layer: int = -6) -> Work:
    """What the states of that layer need."""
    blocks = layer % (config.text_config.num_hidden_layers + 1)
    return [*vision_work(config.vision_config, patches), *block_work(config.text_config, tokens, blocks)]


def limit(config: Any, patches: int, tokens: int, layer: int = -6) -> float:
    """The least part of the obvious way's arithmetic that the states of that layer need."""
    needed = count_operations(extraction_work(config, patches, tokens, layer))
    return needed / count_operations(obvious_work(config, patches, tokens))
