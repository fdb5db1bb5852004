"""The transformer's forward for batches of equal sizes: what its own forward computes, without lists and complex
numbers, so that a training step is cheap and compiles."""

from __future__ import annotations

import torch
import torch._dynamo
from diffusers import ZImageTransformer2DModel
from torch import Tensor
from torch.nn import functional


MULTIPLE = 32  # the transformer pads captions and pictures to multiples of this


def _rope(model: ZImageTransformer2DModel, ids: Tensor) -> Tensor:
    """Angles as (cos, sin): (2, tokens, 1, head_dim / 2)."""
    return torch.view_as_real(model.rope_embedder(ids)).permute(2, 0, 1).unsqueeze(2)


def rope_tables(model: ZImageTransformer2DModel, length: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Get the angles of a picture of `rows` x `columns` patches, padding included, and of a caption of `length`."""
    padding = -rows * columns % MULTIPLE
    grid = torch.meshgrid(torch.tensor([length + 1]), torch.arange(rows), torch.arange(columns), indexing="ij")
    picture = torch.cat([torch.stack(grid, dim=-1).reshape(-1, 3), torch.zeros(padding, 3, dtype=torch.long)])
    places = torch.zeros(length, 3, dtype=torch.long)
    places[:, 0] = torch.arange(1, length + 1)
    return _rope(model, picture), _rope(model, places)


def _turn(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate pairs of neighbours: (n, tokens, heads, head_dim)."""
    cos, sin = rope.to(x.dtype)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def _attention(attention: torch.nn.Module, x: Tensor, rope: Tensor) -> Tensor:
    weights = torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight])
    q, k, v = functional.linear(x, weights).unflatten(-1, (3, attention.heads, -1)).unbind(2)
    q, k = _turn(attention.norm_q(q), rope), _turn(attention.norm_k(k), rope)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    # In bfloat16 on a CPU the plain product is quicker than the fused attention.
    weights = (q * q.shape[-1] ** -0.5 @ k.mT).float().softmax(dim=-1).to(v.dtype)
    return attention.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


def _block(layer: torch.nn.Module, x: Tensor, rope: Tensor, emb: Tensor | None = None) -> Tensor:
    if emb is None:
        x = x + layer.attention_norm2(_attention(layer.attention, layer.attention_norm1(x), rope))
        return x + layer.ffn_norm2(layer.feed_forward(layer.ffn_norm1(x)))
    scale_a, gate_a, scale_f, gate_f = layer.adaLN_modulation(emb).unsqueeze(1).chunk(4, dim=2)
    read = layer.attention_norm1(x) * (1 + scale_a)
    x = x + gate_a.tanh() * layer.attention_norm2(_attention(layer.attention, read, rope))
    return x + gate_f.tanh() * layer.ffn_norm2(layer.feed_forward(layer.ffn_norm1(x) * (1 + scale_f)))


def forward(
    model: ZImageTransformer2DModel,
    latents: Tensor,
    t: Tensor,
    captions: Tensor,
    real: Tensor,
    ropes: tuple[Tensor, Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Get the prediction, and the picture's tokens behind each of the joint layers.

    latents (n, 16, 8, 8), t (n,), captions (n, length, 96) with `real` (n, length) true on tokens that are no padding;
    ropes of `rope_tables`.
    """
    count, channels, height, width = latents.shape
    rows, columns = height // 2, width // 2
    x_rope, cap_rope = ropes
    emb = model.t_embedder(t * model.t_scale)
    x = latents.reshape(count, channels, rows, 2, columns, 2).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    x = model.all_x_embedder["2-1"](x)
    x = torch.cat([x, model.x_pad_token.to(x.dtype).expand(count, -x.shape[1] % MULTIPLE, -1)], dim=1)
    for layer in model.noise_refiner:
        x = _block(layer, x, x_rope, emb)
    cap = model.cap_embedder(captions)
    cap = torch.where(real[..., None], cap, model.cap_pad_token.to(cap.dtype))
    for layer in model.context_refiner:
        cap = _block(layer, cap, cap_rope)
    both, rope = torch.cat([x, cap], dim=1), torch.cat([x_rope, cap_rope], dim=1)
    seen = []
    for layer in model.layers:
        both = _block(layer, both, rope, emb)
        seen.append(both[:, : rows * columns])
    out = model.all_final_layer["2-1"](both[:, : rows * columns], c=emb)
    out = out.reshape(count, rows, columns, 2, 2, channels).permute(0, 5, 1, 3, 2, 4)
    return out.reshape(count, channels, height, width), seen


def compile_blocks() -> None:
    """Compile one block for each length; all layers share the result."""
    global _block
    torch._dynamo.config.cache_size_limit = 64  # pyright: ignore[reportPrivateImportUsage]
    _block = torch.compile(_block, dynamic=False)


@torch.no_grad()
def check_forward(model: ZImageTransformer2DModel, tolerance: float = 1e-4) -> float:
    """Get the largest difference from the model's own forward, on random inputs and a random final layer."""
    final = model.all_final_layer["2-1"].linear.weight
    kept = final.clone()
    torch.nn.init.normal_(final, std=0.1)
    x, t, lengths = torch.randn(3, 16, 8, 8), torch.rand(3), (7, 20, 32)
    captions = [torch.randn(n, 96) for n in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(captions, batch_first=True)
    real = torch.arange(32)[None] < torch.tensor(lengths)[:, None]
    own = torch.stack(model([i[:, None] for i in x], t, captions, return_dict=False)[0])[:, :, 0]
    mine, _ = forward(model, x, t, padded, real, rope_tables(model, 32, 4, 4))
    difference = (mine - own).abs().max().item()
    final.copy_(kept)
    if difference > tolerance:
        raise RuntimeError(f"The fast forward differs from the model's own by {difference}.")
    return difference
