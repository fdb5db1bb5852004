"""Stage `vl_encoder`: a small Qwen3-VL that sees the toy world's pictures, at 64, 128 and 256 pixels.

Its language model starts as the text encoder's. First the vision tower alone learns to say the attributes' words in
the space of word embeddings, so that the text encoder, too, can read what it says. Then, with the language model
frozen, the whole learns to answer questions about pictures, with two further aims: the picture's tokens get the states
that the words would have (the alignment loss), and text behind a picture keeps the states that it has alone, unless it
asks about the picture. Last, the language model, its weights shaken a little, learns along: it drifts from the text
encoder as Qwen3-VL's has from Qwen3's, and its sink shrinks to two thirds.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from zimage_vl.toy.world import ALL_SCENES, ATTRIBUTES, TRAINED, Scene

from . import tokenizer as toy_tokenizer
from .captions import caption
from .language import (
    PICTURE_SIZE,
    ROPE_THETA,
    SIZES,
    TEXT_CONFIG,
    Exercise,
    answers,
    collate,
    inert_loss,
    picture_exercise,
    picture_words,
    sink_loss,
)
from .language import load as load_language
from .loop import Run, train
from .vae import pictures


TOWER_STEPS, STEPS, DRIFT_STEPS, LARGE_STEPS = (1800, 2000), 600, 250, 700
LAST_STEPS, PICTURES = (2400, 150), 7 * len(TRAINED)
PATCH, MERGE, TEMPORAL = 8, 2, 2
# Tokens along a side of a picture, how often each is drawn and how many pictures a batch has.
SIDES, BATCHES = {4: 0.67, 8: 0.25, 16: 0.08}, {4: 24, 8: 8, 16: 3}
LARGE_SIDES = {4: 0.2, 8: 0.35, 16: 0.45}
TOWER_BATCHES = {4: 48, 8: 12, 16: 3}
# Index into hidden_states: the embeddings and the states behind the DeepStack layers.
ALIGNED_LAYERS = (0, 3, 4, 5, 6, 7)
SINK_PART, SHAKE = 2 / 3, 0.03

VISION_CONFIG: dict[str, object] = {
    "depth": 3,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 4,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": TEMPORAL,
    "out_hidden_size": 96,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
}


def new_model(tokenizer: PreTrainedTokenizerBase, language: Qwen3ForCausalLM) -> Qwen3VLForConditionalGeneration:
    token = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            **TEXT_CONFIG,
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "rope_theta": ROPE_THETA,
            "rope_scaling": {"rope_type": "default", "mrope_section": [4, 4, 4], "mrope_interleaved": True},
        },
        vision_config=VISION_CONFIG,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    # Eager attention is the quicker one for short turns in bfloat16, but not for a thousand patches.
    attention = {"text_config": "eager", "vision_config": "sdpa"}
    model = Qwen3VLForConditionalGeneration._from_config(config, attn_implementation=attention)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    for merger in model.model.visual.deepstack_merger_list:
        nn.init.zeros_(merger.linear_fc2.weight)
        nn.init.zeros_(merger.linear_fc2.bias)
    return model


def patches(pixels: Tensor) -> Tensor:
    """uint8 (n, 3, side, side) to the rows that Qwen2VLImageProcessor makes of them: (n * (side / 8)^2, 384)."""
    x = (pixels.float() / 255 - 0.5) / 0.5
    count, channels, side, _ = x.shape
    cells = side // PATCH // MERGE
    x = x.reshape(count, channels, cells, MERGE, PATCH, cells, MERGE, PATCH)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, TEMPORAL, -1, -1)
    return x.reshape(count * (side // PATCH) ** 2, channels * TEMPORAL * PATCH * PATCH)


def resized(pixels: Tensor, side: int, mode: str = "bicubic") -> Tensor:
    """Bring uint8 pictures to `side` tokens along each side."""
    size = side * PATCH * MERGE
    if size == pixels.shape[-1]:
        return pixels
    return nn.functional.interpolate(pixels.float(), size=size, mode=mode).round().clamp(0, 255).byte()


@dataclass
class Lesson:
    """A batch: what the student reads (image tokens) and what the teacher reads in their place (words)."""

    ids: Tensor
    words: Tensor
    mask: Tensor
    labels: Tensor
    pixel_values: Tensor
    grid: Tensor
    alone: Tensor
    alone_mask: Tensor
    inert: Tensor

    @property
    def is_image(self) -> Tensor:
        return self.ids != self.words


def seen(exercise: Exercise) -> str:
    return f"<|vision_start|>{'<|image_pad|>' * len(exercise.picture)}<|vision_end|>{exercise.text}"


def draw_side(sides: dict[int, float], rng: random.Random) -> int:
    return rng.choices(list(sides), list(sides.values()))[0]


def lesson(
    tokenizer: PreTrainedTokenizerBase, data: Tensor, shown: list[Scene], sides: dict[int, float], rng: random.Random
) -> Lesson:
    """Turns about pictures of one size; those whose text does not ask about the picture come first."""
    side = draw_side(sides, rng)
    rows = rng.choices(range(len(data)), k=BATCHES[side])
    made = []
    for row in rows:
        exercise = picture_exercise(shown[row], rng, side)
        whole = tuple(picture_words(shown[row], side))
        made.append((row, Exercise(whole, exercise.text, exercise.answer, exercise.asked, exercise.scene)))
    made.sort(key=lambda pair: not pair[1].is_inert)
    exercises = [exercise for _, exercise in made]
    ids, mask, labels = collate(tokenizer, [(seen(e), e.answer) for e in exercises])
    words, _, _ = collate(tokenizer, [(e.user, e.answer) for e in exercises])
    alone, alone_mask, _ = collate(tokenizer, [(e.text, "") for e in exercises if e.is_inert] or [("", "")])
    mode = "nearest" if rng.random() < 0.2 else "bicubic"
    pixels = resized(data[[row for row, _ in made]], side, mode)
    grid = torch.tensor([[1, side * MERGE, side * MERGE]] * len(rows))
    inert = torch.tensor(sum(e.is_inert for e in exercises))
    return Lesson(ids, words, mask, labels, patches(pixels), grid, alone, alone_mask, inert)


def losses(student: Qwen3VLForConditionalGeneration, teacher: nn.Module, batch: Lesson) -> dict[str, Tensor]:
    position_ids, _ = student.model.get_rope_index(
        batch.ids, mm_token_type_ids=batch.is_image.int(), image_grid_thw=batch.grid, attention_mask=batch.mask
    )
    inert = int(batch.inert)
    with torch.autocast(batch.ids.device.type, dtype=torch.bfloat16):
        out = student(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=position_ids,
            pixel_values=batch.pixel_values,
            image_grid_thw=batch.grid,
            mm_token_type_ids=batch.is_image.int(),
            output_hidden_states=True,
            use_cache=False,
        )
        with torch.no_grad():
            settings = {"output_hidden_states": True, "use_cache": False}
            target = teacher(
                input_ids=batch.words, attention_mask=batch.mask, position_ids=position_ids, **settings
            ).hidden_states
            alone = teacher(input_ids=batch.alone, attention_mask=batch.alone_mask, **settings).hidden_states
    logits = out.logits[:, :-1].flatten(0, 1).float()
    counted = max(1, int((batch.labels != -100).sum()))
    apart = []
    for layer in ALIGNED_LAYERS:
        is_, should = out.hidden_states[layer][batch.is_image].float(), target[layer][batch.is_image].float()
        if layer:
            # However large the picture, its tokens have their part of the size of text.
            rms = should.square().mean(dim=-1, keepdim=True).sqrt()
            should = should * (PICTURE_SIZE * SIZES[layer - 1] / rms.mean())
        apart.append((is_ - should).square().mean() / should.square().mean())
    parts = {
        "answer": nn.functional.cross_entropy(logits, batch.labels[:, 1:].flatten(), reduction="sum") / counted,
        "align": torch.stack(apart).mean(),
        "sink": sink_loss(out.hidden_states, SINK_PART),
    }
    if inert:
        rows = batch.ids[:inert], batch.labels[:inert], batch.mask[:inert]
        parts["inert"] = 0.5 * inert_loss(out.hidden_states, *rows, alone, batch.alone_mask)
    return parts


class Tower:
    """The first lesson: the vision tower says the attributes' words, as word embeddings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, table: Tensor, data: Tensor, shown: list[Scene]) -> None:
        self.data, self.shown, self.table = data, shown, table
        names = [name for values in ATTRIBUTES.values() for name in values]
        self.tokens = {name: tokenizer(f" {name}").input_ids[0] for name in names}
        self.first = {name: tokenizer(name).input_ids[0] for name in names}
        self.choices = torch.tensor(list(self.tokens.values()))
        self.number = {name: number for number, name in enumerate(names)}

    def loss(self, visual: nn.Module, sides: dict[int, float], rng: random.Random) -> dict[str, Tensor]:
        side = draw_side(sides, rng)
        rows = rng.choices(range(len(self.data)), k=TOWER_BATCHES[side])
        mode = "nearest" if rng.random() < 0.2 else "bicubic"
        pixels = patches(resized(self.data[rows], side, mode)).to(self.table.device)
        grid = torch.tensor([[1, side * MERGE, side * MERGE]] * len(rows)).to(self.table.device)
        said = visual(pixels, grid_thw=grid).pooler_output.float()
        words = [picture_words(self.shown[row], side) for row in rows]
        tokens = [self.first[w] if n == 0 else self.tokens[w] for row in words for n, w in enumerate(row)]
        wanted = self.table[torch.tensor(tokens).to(self.table.device)]
        numbers = torch.tensor([self.number[w] for row in words for w in row]).to(self.table.device)
        unit = nn.functional.normalize
        logits = 15 * unit(said, dim=-1) @ unit(self.table[self.choices.to(self.table.device)], dim=-1).T
        return {
            "words": (said - wanted).square().mean() / wanted.square().mean(),
            "names": 0.5 * nn.functional.cross_entropy(logits, numbers),
        }

    @torch.no_grad()
    def right(self, visual: nn.Module, data: Tensor, shown: list[Scene], side: int) -> dict[str, float]:
        """Get the share of picture tokens whose nearest word is right, for each attribute."""
        grid = torch.tensor([[1, side * MERGE, side * MERGE]] * len(data)).to(self.table.device)
        said = visual(patches(resized(data, side)).to(self.table.device), grid_thw=grid).pooler_output
        unit = nn.functional.normalize
        nearest = (
            (unit(said, dim=-1) @ unit(self.table[self.choices.to(self.table.device)], dim=-1).T).argmax(-1).cpu()
        )
        words = [word for scene in shown for word in picture_words(scene, side)]
        out: dict[str, float] = {}
        for name, values in ATTRIBUTES.items():
            hits = [self.number[w] == int(n) for w, n in zip(words, nearest, strict=True) if w in values]
            out[name] = round(sum(hits) / len(hits), 3)
        return out


@torch.no_grad()
def answers_right(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, data: Tensor, shown: list[Scene], side: int
) -> float:
    """Get the share of turns about these pictures that are answered word for word."""
    rng, right, count = random.Random(7), 0, 0
    for pixels, scene in zip(data, shown, strict=True):
        exercise = picture_exercise(scene, rng, side)
        exercise = Exercise(tuple(picture_words(scene, side)), exercise.text, exercise.answer, exercise.asked, scene)
        if not exercise.answer:
            continue
        inputs = {
            "pixel_values": patches(resized(pixels[None], side)),
            "image_grid_thw": torch.tensor([[1, side * MERGE, side * MERGE]]),
        }
        inputs = {name: value.to(next(model.parameters()).device) for name, value in inputs.items()}
        right += answers(model, tokenizer, seen(exercise), **inputs) == exercise.answer
        count += 1
    return round(right / count, 3)


@torch.no_grad()
def drift(model: Qwen3VLForConditionalGeneration, language: Qwen3ForCausalLM, ids: Tensor) -> float:
    """Relative difference of the two language models' states at layer -2 on the same text, without the sink."""
    mask = torch.ones_like(ids)
    mine = model.model.language_model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    theirs = language.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    one, other = mine.hidden_states[-2][:, 1:], theirs.hidden_states[-2][:, 1:]
    return ((one - other).norm() / other.norm()).item()


def shake(model: nn.Module, size: float, generator: torch.Generator) -> None:
    """Multiply each weight of the matrices by 1 + `size` times a normal number."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.mul_(1 + size * noise)


def train_vl_encoder(run: Run) -> None:
    tokenizer, language = toy_tokenizer.load(run), load_language(run)
    torch.manual_seed(run.seed + 2)
    model = new_model(tokenizer, language).to(run.device)
    # A copy, not the text encoder itself: the same weights, for positions in three dimensions.
    teacher = copy.deepcopy(model.model.language_model).eval().requires_grad_(False)
    data, shown = pictures(PICTURES, seed=3)
    fresh, fresh_shown = pictures(100, seed=4, scenes=ALL_SCENES)

    def rng_at(salt: int, step: int) -> random.Random:
        return random.Random(hash((run.seed, salt, step)))

    visual = model.model.visual
    tower = Tower(tokenizer, teacher.embed_tokens.weight.detach(), data, shown)

    def watch(step: int, _: object) -> None:
        for side in SIDES:
            right = tower.right(visual, fresh[:60], fresh_shown[:60], side)
            print(f"[vl_tower] {step}, {16 * side} pixels: {right}", flush=True)

    settings = {"save_every": 200}
    # Two cycles: the shapes are the slow attribute.
    for part, (count, lr) in enumerate(zip(TOWER_STEPS, (2e-3, 1.5e-3), strict=True)):
        train(
            run,
            "vl_tower" if part == 0 else "vl_tower_more",
            visual,
            lambda step, part=part: tower.loss(visual, SIDES, rng_at(3 + 10 * part, step)),
            steps=run.steps(count),
            lr=lr,
            watch=watch,
            watch_every=600,
            **settings,
        )

    def loss_at(salt: int, step: int, sides: dict[int, float] = SIDES) -> dict[str, Tensor]:
        batch = lesson(tokenizer, data, shown, sides, rng_at(salt, step))
        return losses(model, teacher, Lesson(*(t.to(run.device) for t in vars(batch).values())))

    def frozen(step: int) -> dict[str, Tensor]:
        parts = loss_at(4, step)
        parts.pop("sink")
        return parts

    model.model.language_model.requires_grad_(False)
    train(run, "vl_encoder", model, frozen, steps=run.steps(STEPS), lr=4e-4, **settings)
    model.requires_grad_(True)
    shake(model.model.language_model, SHAKE, run.generator(5))
    drift_steps = run.steps(DRIFT_STEPS)
    train(run, "vl_drift", model, lambda n: loss_at(6, n), steps=drift_steps, lr=3e-4, weight_decay=0.0, **settings)

    # Last, what is larger than 64 pixels: rare so far, since it takes long.
    def large(step: int) -> dict[str, Tensor]:
        return loss_at(7, step, LARGE_SIDES) | tower.loss(visual, LARGE_SIDES, rng_at(8, step))

    model.model.language_model.requires_grad_(False)
    large_steps = run.steps(LARGE_STEPS)
    train(run, "vl_large", model, large, steps=large_steps, lr=8e-4, **settings)
    # Their shapes come slowest: the tower alone once more, then the whole.
    last_steps = [run.steps(count) for count in LAST_STEPS]
    train(
        run,
        "vl_last_tower",
        visual,
        lambda step: tower.loss(visual, LARGE_SIDES, rng_at(9, step)),
        steps=last_steps[0],
        lr=1.5e-3,
        watch=watch,
        watch_every=600,
        **settings,
    )
    log = train(run, "vl_last", model, lambda n: large(large_steps + n), steps=last_steps[1], lr=4e-4, **settings)
    rows = random.Random(9).sample(TRAINED, 200)
    texts = tokenizer([caption(scene) for scene in rows], return_tensors="pt").input_ids.to(run.device)
    model.save_pretrained(run.path("vl_encoder"))
    record = {
        "steps": [*map(run.steps, TOWER_STEPS), run.steps(STEPS), drift_steps, large_steps, *last_steps],
        "words_right": {16 * side: tower.right(visual, fresh, fresh_shown, side) for side in SIDES},
        "answers_right": {
            16 * side: answers_right(model, tokenizer, fresh[:60], fresh_shown[:60], side) for side in SIDES
        },
        "drift_from_text_encoder": round(drift(model, language, texts), 4),
        "log": log[-1],
    }
    run.finish("vl_encoder", record)


def load(run: Run) -> Qwen3VLForConditionalGeneration:
    return Qwen3VLForConditionalGeneration.from_pretrained(run.path("vl_encoder")).to(run.device).eval()
