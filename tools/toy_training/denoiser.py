"""Stage `transformer`: a small ZImageTransformer2DModel, trained by flow matching in ZImagePipeline's convention.

The model is given t = 1 - sigma and learns x0 - noise (the pipeline negates it). Captions are hidden_states[-2] of the
text encoder over the chat turn, as the pipeline makes them. Most batches hold captions of up to 32 tokens; the rest
are padded to 64, half of them several paraphrases in one turn, half the states of one paraphrase behind those of
another, which is what the alignment "concat" makes.
"""

from __future__ import annotations

import math
import random

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from zimage_vl.toy.world import ALL_SCENES, FULL_CAPTIONS, HELD_OUT, PARTIAL_CAPTIONS, Scene

from . import tokenizer as toy_tokenizer
from .language import load as load_language
from .language import turn
from .loop import Run, train
from .vae import load as load_vae
from .vae import pictures, to_model


STEPS, FINE_STEPS, BATCH, PICTURES, LONG_CAPTIONS = 4800, 2500, 32, 20000, 6
EMPTY, PARTIAL, LONG = 0.07, 0.12, 0.1
CONDITIONING_NOISE = 0.3
MULTIPLE = 32  # the transformer pads captions and pictures to multiples of this


def new_transformer() -> ZImageTransformer2DModel:
    model = ZImageTransformer2DModel(
        in_channels=16,
        dim=128,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=96,
        axes_dims=[8, 12, 12],
        axes_lens=[1536, 512, 512],
    )
    final = model.all_final_layer["2-1"].linear
    torch.nn.init.zeros_(final.weight)
    torch.nn.init.zeros_(final.bias)
    torch.nn.init.normal_(model.x_pad_token, std=0.02)
    torch.nn.init.normal_(model.cap_pad_token, std=0.02)
    return model


def _rope(model: ZImageTransformer2DModel, ids: Tensor) -> Tensor:
    return model.rope_embedder(ids)[None]


def batched_forward(
    model: ZImageTransformer2DModel, latents: Tensor, t: Tensor, captions: Tensor, real: Tensor
) -> Tensor:
    """The transformer's own forward for pictures of one size and captions padded to one length, without its lists.

    latents (n, 16, 8, 8), t (n,), captions (n, length, 96) with `real` (n, length) true on tokens that are no padding.
    """
    count, channels, height, width = latents.shape
    rows, columns = height // 2, width // 2
    length, device = captions.shape[1], latents.device
    emb = model.t_embedder(t * model.t_scale)
    x = latents.reshape(count, channels, rows, 2, columns, 2).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    x = model.all_x_embedder["2-1"](x)
    padding = -x.shape[1] % MULTIPLE
    x = torch.cat([x, model.x_pad_token.expand(count, padding, -1)], dim=1)
    grid = torch.meshgrid(torch.tensor([length + 1]), torch.arange(rows), torch.arange(columns), indexing="ij")
    ids = torch.cat([torch.stack(grid, dim=-1).reshape(-1, 3), torch.zeros(padding, 3, dtype=torch.long)]).to(device)
    x_rope = _rope(model, ids)
    for layer in model.noise_refiner:
        x = layer(x, None, x_rope, emb)
    places = torch.zeros(length, 3, dtype=torch.long, device=device)
    places[:, 0] = torch.arange(1, length + 1)
    cap_rope = _rope(model, places)
    cap = torch.where(real[..., None], model.cap_embedder(captions), model.cap_pad_token)
    for layer in model.context_refiner:
        cap = layer(cap, None, cap_rope)
    both, rope = torch.cat([x, cap], dim=1), torch.cat([x_rope, cap_rope], dim=1)
    for layer in model.layers:
        both = layer(both, None, rope, emb)
    out = model.all_final_layer["2-1"](both, c=emb)[:, : rows * columns]
    out = out.reshape(count, rows, columns, 2, 2, channels).permute(0, 5, 1, 3, 2, 4)
    return out.reshape(count, channels, height, width)


@torch.no_grad()
def check_batched_forward(model: ZImageTransformer2DModel, tolerance: float = 1e-4) -> float:
    """The largest difference from the model's own forward, on random weights and inputs."""
    final, kept = model.all_final_layer["2-1"].linear, model.all_final_layer["2-1"].linear.weight.clone()
    torch.nn.init.normal_(final.weight, std=0.1)
    x, t, lengths = torch.randn(3, 16, 8, 8), torch.rand(3), (7, 20, 32)
    captions = [torch.randn(n, 96) for n in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(captions, batch_first=True)
    real = torch.arange(32)[None] < torch.tensor(lengths)[:, None]
    own = torch.stack(model([i[:, None] for i in x], t, captions, return_dict=False)[0])[:, :, 0]
    difference = (batched_forward(model, x, t, padded, real) - own).abs().max().item()
    final.weight.copy_(kept)
    if difference > tolerance:
        raise RuntimeError(f"The batched forward differs from the model's own by {difference}.")
    return difference


class Captions:
    """Every scene's captions as the transformer will read them, encoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: Qwen3ForCausalLM, device: str) -> None:
        self.tokenizer, self.encoder, self.device = tokenizer, encoder, device
        rng = random.Random(11)
        self.empty = self._encode([""])[0]
        self.full: dict[Scene, list[Tensor]] = {}
        self.partial: dict[Scene, list[Tensor]] = {}
        self.long: dict[Scene, list[Tensor]] = {}
        for scene in ALL_SCENES:
            self.full[scene] = self._encode([scene.caption(form) for form in FULL_CAPTIONS])
            self.partial[scene] = self._encode([scene.caption(form) for form in PARTIAL_CAPTIONS])
            joined = [", ".join(map(scene.caption, rng.sample(FULL_CAPTIONS, 4))) for _ in range(LONG_CAPTIONS)]
            self.long[scene] = self._encode(joined)

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> list[Tensor]:
        turns = [turn(self.tokenizer, text) for text in texts]
        batch = self.tokenizer(turns, padding=True, return_tensors="pt").to(self.device)
        states = self.encoder.model(**batch, output_hidden_states=True).hidden_states[-2]
        return [state[mask.bool()] for state, mask in zip(states, batch.attention_mask, strict=True)]

    def draw(self, scene: Scene, rng: random.Random, long: bool) -> Tensor:
        chance = rng.random()
        if chance < EMPTY:
            return self.empty
        if chance < EMPTY + PARTIAL:
            return rng.choice(self.partial[scene])
        if not long:
            return rng.choice(self.full[scene])
        if rng.random() < 0.5:
            return rng.choice(self.long[scene])[: 2 * MULTIPLE]
        return torch.cat([rng.choice(self.full[scene]), rng.choice(self.full[scene])])


def encode_latents(run: Run) -> tuple[Tensor, list[Scene]]:
    data, which = pictures(PICTURES, seed=6)
    keep = [n for n, index in enumerate(which) if ALL_SCENES[int(index)] not in HELD_OUT]
    vae, chunks = load_vae(run), []
    with torch.no_grad():
        for rows in torch.tensor(keep).split(100):
            chunks.append(vae.encode(to_model(data[rows]).to(run.device)).latent_dist.mean)
    latents = (torch.cat(chunks) - vae.config.shift_factor) * vae.config.scaling_factor
    return latents, [ALL_SCENES[int(which[n])] for n in keep]


def rate(step: int, steps: int) -> float:
    """Warm-up, a slow fall to two thirds over four fifths of the way, then a cosine to a twentieth."""
    if step < 100:
        return (step + 1) / 100
    turning = 0.8 * steps
    if step < turning:
        return 1 - step / turning / 3
    return 0.05 + (2 / 3 - 0.05) * 0.5 * (1 + math.cos(math.pi * (step - turning) / (steps - turning)))


def train_transformer(run: Run) -> None:
    torch.manual_seed(run.seed + 3)
    model = new_transformer()
    check_batched_forward(model)
    model = model.to(run.device)
    latents, scenes = encode_latents(run)
    captions = Captions(toy_tokenizer.load(run), load_language(run), run.device)
    steps = run.steps(STEPS)
    forward = torch.compile(batched_forward, dynamic=False) if run.compile else batched_forward

    def loss_at(step: int) -> dict[str, Tensor]:
        rng, generator = random.Random(hash((run.seed, 4, step))), run.generator(4, step)
        rows = rng.choices(range(len(latents)), k=BATCH)
        long = rng.random() < LONG
        drawn = [captions.draw(scenes[row], rng, long) for row in rows]
        length = MULTIPLE * (2 if max(map(len, drawn)) > MULTIPLE else 1)
        real = torch.arange(length)[None] < torch.tensor([len(c) for c in drawn])[:, None]
        cap = torch.stack([torch.nn.functional.pad(c, (0, 0, 0, length - len(c))) for c in drawn])
        loud = cap.square().mean(dim=-1, keepdim=True).sqrt()
        cap = cap + CONDITIONING_NOISE * loud * torch.randn(cap.shape, generator=generator).to(cap.device)
        x0 = latents[rows]
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        u = torch.rand(BATCH, generator=generator).to(x0.device)
        sigma = 2 * u / (1 + u)
        mixed = torch.lerp(x0, noise, sigma[:, None, None, None])
        out = forward(model, mixed, 1 - sigma, cap, real.to(cap.device))
        return {"flow": (out - (x0 - noise)).square().mean()}

    settings = {"rate": rate, "decay": 0.998, "log_every": 100, "save_every": 200}
    train(run, "transformer", model, loss_at, steps=steps, lr=1.5e-3, **settings)
    # A second cycle for the slowest attribute, the shape.
    fine = run.steps(FINE_STEPS)
    log = train(run, "transformer_fine", model, lambda n: loss_at(steps + n), steps=fine, lr=1.2e-3, **settings)
    model.save_pretrained(run.path("transformer"))
    run.finish("transformer", {"steps": steps + fine, "log": log[-1]})


def load(run: Run) -> ZImageTransformer2DModel:
    return ZImageTransformer2DModel.from_pretrained(run.path("transformer")).to(run.device).eval()
