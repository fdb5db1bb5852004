"""Stage `transformer`: a small ZImageTransformer2DModel, trained by flow matching in ZImagePipeline's convention.

The model is given t = 1 - sigma and learns x0 - noise (the pipeline negates it). Captions are hidden_states[-2] of
the text encoder over the chat turn, as the pipeline makes them; they are written and encoded as they are needed. A
fifth of the batches have captions of 64 to 200 tokens. Two in five captions name only some of the attributes; the
picture is any that fits, so that what is open is drawn at random. In a third cycle the model learns to paint without
guidance what it painted with it, as Z-Image-Turbo is distilled.

Beside the flow, linear readers of the picture's tokens between the layers are to tell the attributes. They are thrown
away; with them the words reach the picture's tokens much sooner.
"""

from __future__ import annotations

import copy
import random
import re
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from zimage_vl.toy.judging import count_right, judge
from zimage_vl.toy.world import ATTRIBUTES, TRAINED, Scene

from . import fast
from . import tokenizer as toy_tokenizer
from .captions import EVERYTHING, SUBSETS, random_caption
from .fast import MULTIPLE, check_forward, forward, rope_tables
from .language import load as load_language
from .language import turn
from .loop import Average, Run, train
from .optimizers import MuonAndAdamW
from .vae import load as load_vae
from .vae import pictures, to_image, to_model


STEPS, MORE_STEPS, TURBO_STEPS, BATCH, PICTURES = 5000, 5500, 2000, 32, 10 * len(TRAINED)
LR, TURBO_LR = 2.5e-3, 1e-3
EMPTY, PARTIAL, LONG = 0.05, 0.4, 0.2
# The scale of the guidance that is distilled, and the noise above which there is any: below it would oversaturate.
GUIDANCE, GUIDED_ABOVE = 3.0, 0.5
TURBO_PARTIAL = 0.7
# Padded lengths of long captions and how often each is drawn.
LENGTHS = {96: 0.4, 128: 0.25, 160: 0.2, 192: 0.15}
LONGEST, TEMPLATE = 192, 8  # about so many tokens of a turn, and of them those that the template has
LONGEST_SENTENCE = 17  # tokens, a comma included
CONDITIONING_NOISE = 0.2
TRACE, TRACED = 1.0, 0.5  # the most of another picture in a noisy one (times sigma), and how often
SHIFT, DWELLING = 2.0, 5.0  # of the scheduler, and of half of the second cycle's batches
READ_LAYERS, READING = (1, 3), 0.1  # the layers that the readers read, and the weight of what they get wrong


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


class Readers(nn.Module):
    """Tell the attributes from the mean of the picture's tokens, between the layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.counts = [len(values) for values in ATTRIBUTES.values()]
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self.counts))) for _ in READ_LAYERS
        )

    def loss(self, seen: list[Tensor], values: Tensor) -> Tensor:
        losses = []
        for layer, head in zip(READ_LAYERS, self.heads, strict=True):
            logits = head(seen[layer].float().mean(dim=1)).split(self.counts, dim=-1)
            losses += [nn.functional.cross_entropy(part, values[:, n]) for n, part in enumerate(logits)]
        return torch.stack(losses).mean()


def count_tokens(text: str) -> int:
    """Get the tokens of a caption: each of its words and commas is one."""
    return len(re.findall(r"\w+|,", text))


def caption_of_length(scene: Scene, named: frozenset[str], tokens: int, rng: random.Random) -> str:
    """Say these attributes in many sentences, as many as `tokens` tokens hold."""
    names, sentences = sorted(named), [random_caption(scene, named, rng)]
    left = tokens - count_tokens(sentences[0])
    while left > LONGEST_SENTENCE:
        more = random_caption(scene, rng.sample(names, rng.randint(1, len(names))), rng)
        sentences.append(more)
        left -= count_tokens(more) + 1
    rng.shuffle(sentences)
    return ", ".join(sentences)


class Captions:
    """Writes captions and encodes them as the transformer will read them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: Qwen3ForCausalLM, device: str) -> None:
        self.tokenizer, self.encoder, self.device = tokenizer, encoder, device

    @torch.no_grad()
    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Get the states (n, length, 96), length a multiple of 32, and which of them are no padding."""
        turns = [turn(self.tokenizer, text) for text in texts]
        batch = self.tokenizer(turns, padding=True, return_tensors="pt", padding_side="right").to(self.device)
        states = self.encoder.model(**batch, output_hidden_states=True).hidden_states[-2]
        padding = -states.shape[1] % MULTIPLE
        real = nn.functional.pad(batch.attention_mask.bool(), (0, padding))
        return nn.functional.pad(states, (0, 0, 0, padding)) * real[..., None], real

    def draw(self, scenes: list[Scene], rng: random.Random, partial: float = PARTIAL) -> list[str]:
        longest = rng.choices(list(LENGTHS), list(LENGTHS.values()))[0] if rng.random() < LONG else 0
        texts = []
        for scene in scenes:
            named = rng.choice(SUBSETS) if rng.random() < partial else EVERYTHING
            if longest:
                least = longest - MULTIPLE + 1 + LONGEST_SENTENCE
                tokens = rng.randint(min(least, LONGEST), min(longest, LONGEST)) - TEMPLATE
                texts.append(caption_of_length(scene, named, tokens, rng))
            else:
                texts.append("" if rng.random() < EMPTY else random_caption(scene, named, rng))
        return texts


@torch.no_grad()
def encode_latents(run: Run) -> tuple[Tensor, list[Scene]]:
    """Get the latents of all training pictures and their scenes; they are kept beside the other results."""
    data, scenes = pictures(PICTURES, seed=6)
    kept = run.path("latents.pt")
    if kept.exists():
        return torch.load(kept).to(run.device), scenes
    vae = load_vae(run)
    chunks = [vae.encode(to_model(rows).to(run.device)).latent_dist.mean for rows in data.split(100)]
    latents = (torch.cat(chunks) - vae.config.shift_factor) * vae.config.scaling_factor
    torch.save(latents.cpu(), kept)
    return latents, scenes


@torch.no_grad()
def paint(
    model: ZImageTransformer2DModel,
    vae: AutoencoderKL,
    captions: Captions,
    texts: list[str],
    seed: int,
    steps: int = 8,
) -> list:
    """Paint as ZImagePipeline does, in batches."""
    images = []
    for start in range(0, len(texts), 50):
        states, real = captions.encode(texts[start : start + 50])
        generator = torch.Generator().manual_seed(seed + start)
        x = torch.randn(len(states), 16, 8, 8, generator=generator).to(states.device)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
        scheduler.set_timesteps(steps)
        sigmas = [float(sigma) for sigma in scheduler.sigmas[:steps]] + [0.0]
        ropes = tuple(rope.to(states.device) for rope in rope_tables(model, states.shape[1], 4, 4))
        for now, then in pairwise(sigmas):
            t = torch.full((len(x),), 1 - now, device=x.device)
            out, _ = forward(model, x, t, states, real, ropes)
            x = x + (now - then) * out
        decoded = vae.decode(x / vae.config.scaling_factor + vae.config.shift_factor).sample
        images += [to_image(picture) for picture in decoded]
    return images


def exam(
    model: ZImageTransformer2DModel, vae: AutoencoderKL, captions: Captions, count: int = 100
) -> dict[str, object]:
    """Paint prompts that name everything, and prompts that name some, and read the pictures back."""
    rng, was_training = random.Random(17), model.training
    torch.compiler.set_stance("force_eager")  # not worth compiling for other sizes
    model.eval()
    scenes = rng.choices(TRAINED, k=count)
    full = [judge(i) for i in paint(model, vae, captions, [random_caption(s, EVERYTHING, rng) for s in scenes], 1)]
    names = [rng.choice(SUBSETS) for _ in scenes]
    texts = [random_caption(scene, named, rng) for scene, named in zip(scenes, names, strict=True)]
    partial = [judge(i) for i in paint(model, vae, captions, texts, 2)]
    kept = {
        name: [v.matches(s)[name] for v, s, named in zip(partial, scenes, names, strict=True) if name in named]
        for name in ATTRIBUTES
    }
    model.train(was_training)
    torch.compiler.set_stance("default")
    return {
        "full": count_right(full, scenes),
        "correlation": round(float(np.mean([verdict.correlation for verdict in full])), 3),
        "partial": {name: round(float(np.mean(values)), 3) for name, values in kept.items()},
    }


def rate(step: int, steps: int) -> float:
    """Warm-up, a slow fall to two thirds over three quarters of the way, then straight down to a fiftieth."""
    if step < 100:
        return (step + 1) / 100
    turning = 0.75 * steps
    if step < turning:
        return 1 - step / turning / 3
    return 0.02 + (2 / 3 - 0.02) * (steps - step) / (steps - turning)


def train_transformer(run: Run) -> None:
    torch.manual_seed(run.seed + 3)
    model = new_transformer()
    check_forward(model)
    both = nn.ModuleDict({"transformer": model, "readers": Readers(model.dim)}).to(run.device)
    readers = both["readers"]
    latents, scenes = encode_latents(run)
    values = torch.tensor([[ATTRIBUTES[n].index(v) for n, v in s.values.items()] for s in scenes]).to(run.device)
    captions = Captions(toy_tokenizer.load(run), load_language(run), run.device)
    vae = load_vae(run)
    steps = run.steps(STEPS)
    if run.compile:
        fast.compile_blocks()

    @lru_cache
    def ropes(length: int) -> tuple[Tensor, Tensor]:
        picture, caption = rope_tables(model, length, 4, 4)
        return picture.to(run.device), caption.to(run.device)

    def loss_at(step: int, teacher: ZImageTransformer2DModel | None = None) -> dict[str, Tensor]:
        rng, generator = random.Random(hash((run.seed, 4, step))), run.generator(4, step)
        rows = rng.choices(range(len(latents)), k=BATCH)
        texts = captions.draw([scenes[row] for row in rows], rng, TURBO_PARTIAL if teacher else PARTIAL)
        clean, real = captions.encode(texts)
        rope = ropes(clean.shape[1])
        loud = clean.square().mean(dim=-1, keepdim=True).sqrt()
        cap = clean + CONDITIONING_NOISE * loud * torch.randn(clean.shape, generator=generator).to(clean.device)
        x0 = latents[rows]
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        u = torch.rand(BATCH, generator=generator).to(x0.device)
        # From the second cycle on half of the batches dwell on noisy pictures: there it is decided what is painted of
        # that which is open.
        shift = SHIFT if step < steps or rng.random() < 0.5 else DWELLING
        sigma = shift * u / (1 + (shift - 1) * u)
        wide = sigma[:, None, None, None]
        mixed, target = torch.lerp(x0, noise, wide), x0 - noise
        if step >= steps:
            # And some pictures come with a trace of another one, as they do in a few coarse steps of sampling; the
            # way out of it is the caption's. What is off counts as noise.
            other = latents[rng.choices(range(len(latents)), k=BATCH)]
            trace = TRACE * torch.rand(BATCH, generator=generator).to(x0.device)
            trace = (trace * (torch.rand(BATCH, generator=generator).to(x0.device) < TRACED))[:, None, None, None]
            mixed = mixed + trace * (1 - wide) * wide * (other - x0)
            target = target - trace * (1 - wide) * (other - x0)
        with torch.autocast(run.device.split(":")[0], dtype=torch.bfloat16, enabled=run.half):
            if teacher:
                with torch.no_grad():
                    empty, kept = captions.encode([""] * BATCH)
                    bare, _ = forward(teacher, mixed, 1 - sigma, empty, kept, ropes(empty.shape[1]))
                    told, _ = forward(teacher, mixed, 1 - sigma, clean, real, rope)
                    target = torch.lerp(bare, told, torch.where(wide > GUIDED_ABOVE, GUIDANCE, 1.0).to(bare))
            out, seen = forward(model, mixed, 1 - sigma, cap, real, rope)
        flow = (out.float() - target.float()).square().mean()
        return {"flow": flow, "read": READING * readers.loss(seen, values[rows])}

    def watch(step: int, average: Average | None) -> None:
        shown = new_transformer().to(run.device).eval()
        state = average.shadow if average else both.state_dict()
        shown.load_state_dict({k.removeprefix("transformer."): v for k, v in state.items() if k.startswith("transf")})
        print(f"[transformer] exam after {step}: {exam(shown, vae, captions)}", flush=True)

    more = run.steps(MORE_STEPS)
    settings = {"rate": rate, "decay": 0.998, "log_every": 50, "save_every": 100, "watch_every": 500}
    settings |= {"optimizer": lambda _: MuonAndAdamW(both, LR), "watch": watch}
    train(run, "transformer", both, loss_at, steps=steps, lr=LR, **settings)
    # A second, longer cycle: captions that name little, and shapes, come slowest.
    train(run, "transformer_more", both, lambda n: loss_at(steps + n), steps=more, lr=LR, **settings)
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    turbo, before = run.steps(TURBO_STEPS), steps + more
    log = train(
        run, "transformer_turbo", both, lambda n: loss_at(before + n, teacher), steps=turbo, lr=TURBO_LR, **settings
    )
    model.save_pretrained(run.path("transformer"))
    run.finish("transformer", {"steps": [steps, more, turbo], "log": log[-1], "exam": exam(model, vae, captions, 200)})


def load(run: Run) -> ZImageTransformer2DModel:
    """Get the trained transformer, or the average of the weights so far where the training has not ended."""
    folder: Path = run.path("transformer")
    if folder.exists():
        return ZImageTransformer2DModel.from_pretrained(folder).to(run.device).eval()
    model = new_transformer()
    states = (run.path(f"{part}.state.pt") for part in ("transformer_turbo", "transformer_more", "transformer"))
    state = torch.load(next(filter(Path.exists, states)), weights_only=False)["average"]
    model.load_state_dict({k.removeprefix("transformer."): v for k, v in state.items() if k.startswith("transf")})
    return model.to(run.device).eval()
