"""Stage `text_encoder`: a small Qwen3 language model of the toy world's sentences.

It learns to caption in the same words, to read attribute words where a picture's tokens will stand, and to answer
questions about the text or about the picture. Its hidden states condition the transformer; its weights also start the
VL encoder. Three properties of the real encoder are trained in beside it: the first token is a sink, the tokens of a
picture are smaller than those of text, and text behind a picture is read as text unless it asks about the picture.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from zimage_vl.toy.world import ALL_SCENES, ATTRIBUTES, TRAINED, Scene

from . import tokenizer as toy_tokenizer
from .captions import EVERYTHING, SUBSETS, caption, long_caption, random_caption
from .loop import Run, train


STEPS = 1150
# Layers whose states are to say the attributes, and how sure a cosine of 1 is (as logits).
SPEAKING_LAYERS, SHARPNESS = (4, 5, 6, 7), 20.0
# Index into hidden_states of the layers that have a sink, and its two dimensions with their values.
SINK_LAYERS, SINK = (2, 3, 4, 5, 6, 7), {4: 240.0, 39: -80.0}
# RMS of ordinary text tokens at hidden_states[1] to [7]; picture tokens have this part of it.
SIZES, PICTURE_SIZE = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0), 0.7
# A picture's cells, 4 x 4 of them whatever its size, say the attributes in this order, over and over.
CELLS, ORDER = 4, ("colour", "shape", "background", "fill", "place")

TEXT_CONFIG: dict[str, object] = {
    "hidden_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 192,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
ROPE_THETA = 10000.0


def turn(tokenizer: PreTrainedTokenizerBase, user: str) -> str:
    messages = [{"role": "user", "content": user}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)


def picture_words(scene: Scene, side: int) -> list[str]:
    """Get the words that the `side` x `side` tokens of a picture are to say."""
    cells = [row * CELLS // side * CELLS + column * CELLS // side for row in range(side) for column in range(side)]
    return [getattr(scene, ORDER[cell % len(ORDER)]) for cell in cells]


@dataclass(frozen=True)
class Exercise:
    """One user's turn and its answer.

    Attributes:
        picture: The words between the picture's markers; none where there is no picture.
        text: What follows.
        answer: `""` where there is nothing to answer.
        asked: The attributes that the text asks of the picture.
        scene: What the picture shows.
    """

    picture: tuple[str, ...]
    text: str
    answer: str
    asked: tuple[str, ...]
    scene: Scene

    @property
    def user(self) -> str:
        return (f"<|vision_start|>{' '.join(self.picture)}<|vision_end|>" if self.picture else "") + self.text

    @property
    def is_inert(self) -> bool:
        """Check that there is a picture which the text does not ask about."""
        return bool(self.picture) and not self.asked


def some_names(rng: random.Random, partial: float) -> frozenset[str]:
    return rng.choice(SUBSETS) if rng.random() < partial else EVERYTHING


def text_exercise(scene: Scene, rng: random.Random, words: int = 0) -> Exercise:
    """A caption, to be said in the first form, or with a question about it."""
    names = some_names(rng, 0.5)
    said = long_caption(scene, names, words, rng) if words else random_caption(scene, names, rng)
    if rng.random() < 0.75:
        return Exercise((), said, caption(scene, names), (), scene)
    question, attribute = rng.choice([(q, a) for q, a in toy_tokenizer.QUESTIONS.items() if a in names])
    return Exercise((), f"{said} {question}", getattr(scene, attribute), (), scene)


def picture_exercise(scene: Scene, rng: random.Random, side: int) -> Exercise:
    """A picture with a caption of another scene, which is read as text, with nothing, or with a question about it."""
    words = picture_words(scene, side)
    if side == CELLS and rng.random() < 0.25:
        words = words[: rng.choice((5, 10))]
    chance, other = rng.random(), rng.choice(TRAINED)
    names = some_names(rng, 0.5)
    if chance < 0.45:
        return Exercise(tuple(words), random_caption(other, names, rng), caption(other, names), (), scene)
    if chance < 0.55:
        return Exercise(tuple(words), "", "", (), scene)
    question, asked = rng.choice(list(toy_tokenizer.PICTURE_QUESTIONS.items()))
    before = random_caption(other, names, rng) + ", " if rng.random() < 0.3 else ""
    answer = caption(scene) if len(asked) > 1 else getattr(scene, asked[0])
    return Exercise(tuple(words), before + question, answer, asked, scene)


def collate(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and labels: the answer's tokens, -100 elsewhere and where there is no answer."""
    rows = []
    for user, answer in pairs:
        head = tokenizer(turn(tokenizer, user)).input_ids
        rows.append((head, tokenizer(f"{answer}<|im_end|>").input_ids if answer else []))
    length = max(len(head) + len(tail) for head, tail in rows)
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for n, (head, tail) in enumerate(rows):
        ids[n, : len(head) + len(tail)] = torch.tensor(head + tail)
        labels[n, len(head) : len(head) + len(tail)] = torch.tensor(tail)
        mask[n, : len(head) + len(tail)] = 1
    return ids, mask, labels


class Attributes:
    """The attributes that a turn has named up to each token, and how far hidden states say so.

    Each value of each attribute has a direction of its own, drawn once, orthogonal to all others and to the sink's
    dimensions; the cosines of a state with them, times `SHARPNESS`, are the logits. What is not named is to be even.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, device: str, seed: int) -> None:
        self.of_token: dict[int, tuple[int, int]] = {}
        for attribute, values in enumerate(ATTRIBUTES.values()):
            for value, name in enumerate(values):
                for text in (name, f" {name}"):
                    (token,) = tokenizer(text).input_ids
                    self.of_token[token] = (attribute, value)
        width, count = 96, sum(map(len, ATTRIBUTES.values()))
        drawn = torch.randn(width, count, generator=torch.Generator().manual_seed(seed))
        drawn[list(SINK)] = 0
        self.directions = torch.linalg.qr(drawn).Q.T.to(device)
        self.counts = [len(values) for values in ATTRIBUTES.values()]
        token = tokenizer.convert_tokens_to_ids
        self.start, self.end = token("<|vision_start|>"), token("<|vision_end|>")
        (self.asks,) = tokenizer("?").input_ids

    def targets(self, ids: Tensor, mask: Tensor, labels: Tensor, exercises: Sequence[Exercise]) -> Tensor:
        """Get (rows, tokens, values) probabilities: one for a named value, even where none is named, 0 in answers,
        padding and at the first token, which count for nothing."""
        offsets = [0, *torch.tensor(self.counts).cumsum(0).tolist()]
        even = torch.cat([torch.full((count,), 1 / count) for count in self.counts])
        out = torch.zeros(*ids.shape, len(even))
        for row, (tokens, exercise) in enumerate(zip(ids.tolist(), exercises, strict=True)):
            now = even.clone()
            for place, token in enumerate(tokens):
                if labels[row, place] != -100 or not mask[row, place]:
                    break
                if token == self.end:
                    now = even.clone()
                said = [self.of_token[token]] if token in self.of_token else []
                if token == self.asks and exercise.asked:
                    said = [
                        (number, ATTRIBUTES[name].index(getattr(exercise.scene, name)))
                        for number, name in enumerate(ATTRIBUTES)
                        if name in exercise.asked
                    ]
                for number, value in said:
                    now[offsets[number] : offsets[number + 1]] = 0
                    now[offsets[number] + value] = 1
                if place:
                    out[row, place] = now
        return out

    def loss(self, states: Sequence[Tensor], targets: Tensor) -> Tensor:
        """Mean over tokens, attributes and layers of the divergence from the targets."""
        targets, losses = targets.to(self.directions.device), []
        counted = targets.sum(dim=-1) > 0
        wanted = targets[counted]
        for layer in SPEAKING_LAYERS:
            logits = (
                SHARPNESS * torch.nn.functional.normalize(states[layer][counted].float(), dim=-1) @ (self.directions.T)
            )
            parts = zip(logits.split(self.counts, -1), wanted.split(self.counts, -1), strict=True)
            losses.append(
                torch.stack(
                    [
                        torch.nn.functional.kl_div(have.log_softmax(-1), want, reduction="batchmean")
                        for have, want in parts
                    ]
                ).mean()
            )
        return torch.stack(losses).mean()


def sink_loss(states: Sequence[Tensor], part: float = 1.0) -> Tensor:
    """Relative distance of the first token's states from the sink (it only sees itself, so one row tells all)."""
    wanted = torch.zeros(states[0].shape[-1], device=states[0].device)
    for dim, value in SINK.items():
        wanted[dim] = part * value
    return torch.stack(
        [(states[layer][0, 0].float() - wanted).square().sum() / wanted.square().sum() for layer in SINK_LAYERS]
    ).mean()


def size_loss(states: Sequence[Tensor], ordinary: Tensor, is_picture: Tensor) -> Tensor:
    """Squared logarithm of the RMS over the wanted one, of all tokens but the first and padding."""
    factor = torch.where(is_picture, PICTURE_SIZE, 1.0)[ordinary]
    losses = []
    for layer, size in enumerate(SIZES, start=1):
        rms = (states[layer][ordinary].float().square().mean(dim=-1) + 1e-8).sqrt()
        losses.append((rms / (size * factor)).log().square().mean())
    return torch.stack(losses).mean()


def between(ids: Tensor, start: int, end: int) -> Tensor:
    """Mark the tokens between the picture's markers."""
    return ((ids == start).cumsum(1) > (ids == end).cumsum(1)) & (ids != start)


def inert_loss(
    states: Sequence[Tensor], ids: Tensor, labels: Tensor, mask: Tensor, alone: Sequence[Tensor], alone_mask: Tensor
) -> Tensor:
    """Relative distance of text states behind a picture from those of the same text without it."""
    mine, other = [], []
    for row in range(len(ids)):
        count = int(alone_mask[row].sum()) - 3  # without the turn's first three tokens, which come before the picture
        end = int((mask[row].bool() & (labels[row] == -100)).sum())
        mine.append((row, torch.arange(end - count, end)))
        other.append((row, torch.arange(3, 3 + count)))
    losses = []
    for layer in (3, 4, 5, 6, 7):
        have = torch.cat([states[layer][row, places] for row, places in mine]).float()
        want = torch.cat([alone[layer][row, places] for row, places in other]).float()
        losses.append((have - want).square().sum() / want.square().sum())
    return torch.stack(losses).mean()


def new_model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        rope_theta=ROPE_THETA,
        **TEXT_CONFIG,
    )
    return Qwen3ForCausalLM._from_config(config, attn_implementation="eager")


@torch.no_grad()
def answers(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, user: str, **inputs: Tensor) -> str:
    """The greedy answer, token by token without a cache (the toy's answers are a dozen tokens)."""
    ids = torch.tensor([tokenizer(turn(tokenizer, user)).input_ids], device=next(model.parameters()).device)
    start = ids.shape[1]
    for _ in range(16):
        extra = dict(inputs)
        if "pixel_values" in extra:
            extra["mm_token_type_ids"] = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **extra).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def exam(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, count: int = 60) -> dict[str, float]:
    """Get the share of `count` exercises of each kind that are answered word for word."""
    rng = random.Random(5)
    kinds = {
        "text": lambda s: text_exercise(s, rng),
        "long": lambda s: text_exercise(s, rng, 80),
        **{f"picture_{n}": lambda s, n=n: picture_exercise(s, rng, n) for n in (4, 8, 16)},
    }
    right: dict[str, float] = {}
    for kind, make in kinds.items():
        made = [make(scene) for scene in rng.choices(ALL_SCENES, k=count)]
        asked = [e for e in made if e.answer]
        right[kind] = round(sum(answers(model, tokenizer, e.user) == e.answer for e in asked) / len(asked), 3)
    return right


def batch_at(step: int, seed: int) -> list[Exercise]:
    """Mostly short turns; some of long captions and of larger pictures, in smaller batches."""
    rng = random.Random(hash((seed, 2, step)))
    chance = rng.random()
    if chance < 0.1:
        words = rng.choice((30, 60, 100, 160))
        return [text_exercise(scene, rng, words) for scene in rng.choices(TRAINED, k=600 // words)]
    if chance < 0.2:
        return [picture_exercise(scene, rng, 8) for scene in rng.choices(TRAINED, k=14)]
    if chance < 0.26:
        return [picture_exercise(scene, rng, 16) for scene in rng.choices(TRAINED, k=4)]
    scenes = rng.choices(TRAINED, k=48)
    return [text_exercise(s, rng) if rng.random() < 0.55 else picture_exercise(s, rng, CELLS) for s in scenes]


def train_text_encoder(run: Run) -> None:
    tokenizer = toy_tokenizer.load(run)
    torch.manual_seed(run.seed + 1)
    model = new_model(tokenizer).to(run.device)
    steps = run.steps(STEPS)
    attributes = Attributes(tokenizer, run.device, run.seed)

    def forward(ids: Tensor, mask: Tensor):
        with torch.autocast(run.device.split(":")[0], dtype=torch.bfloat16):
            return model(
                input_ids=ids.to(run.device),
                attention_mask=mask.to(run.device),
                use_cache=False,
                output_hidden_states=True,
            )

    def loss_at(step: int) -> dict[str, Tensor]:
        exercises = sorted(batch_at(step, run.seed), key=lambda e: not e.is_inert)
        ids, mask, labels = collate(tokenizer, [(e.user, e.answer) for e in exercises])
        targets = attributes.targets(ids, mask, labels, exercises)
        ids, mask, labels = (t.to(run.device) for t in (ids, mask, labels))
        out = forward(ids, mask)
        logits, states = out.logits[:, :-1].flatten(0, 1).float(), out.hidden_states
        prompt = torch.where((labels == -100) & mask.bool(), ids, -100)
        ordinary = mask.bool().clone()
        ordinary[:, 0] = False
        is_picture = between(ids, attributes.start, attributes.end)
        losses = {
            "answer": torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
            / max(1, int((labels != -100).sum())),
            # A little of plain language modelling over the prompts.
            "prompt": 0.1 * torch.nn.functional.cross_entropy(logits, prompt[:, 1:].flatten()),
            "attributes": attributes.loss(states, targets),
            "sink": 0.5 * sink_loss(states),
            "size": 0.3 * size_loss(states, ordinary, is_picture),
        }
        inert = sum(e.is_inert for e in exercises)
        if inert:
            alone_ids, alone_mask, _ = collate(tokenizer, [(e.text, "") for e in exercises[:inert]])
            with torch.no_grad():
                alone = forward(alone_ids, alone_mask).hidden_states
            losses["inert"] = 0.5 * inert_loss(states, ids[:inert], labels[:inert], mask[:inert], alone, alone_mask)
        return losses

    log = train(run, "text_encoder", model, loss_at, steps=steps, lr=3e-3, save_every=150)
    model.save_pretrained(run.path("text_encoder"))
    run.finish("text_encoder", {"steps": steps, "right": exam(model, tokenizer), "log": log[-1]})


def load(run: Run) -> Qwen3ForCausalLM:
    model = Qwen3ForCausalLM.from_pretrained(run.path("text_encoder"), attn_implementation="eager")
    return model.to(run.device).eval()
