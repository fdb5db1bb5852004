"""Stage `vl_encoder`: a small Qwen3-VL that sees the toy world's pictures.

Its language model starts as the text encoder's and stays frozen while the vision tower learns to caption, and to say
the attributes' words where the picture's tokens stand (the alignment loss). Without that loss it captions just as well
but its image tokens lie outside the space of words, and a reference has little effect. In a second, shorter part the
language model learns along, so that it drifts a little from the text encoder, as Qwen3-VL's has from Qwen3's.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from zimage_vl.toy.world import ALL_SCENES, FULL_CAPTIONS, PARTIAL_CAPTIONS, Scene

from . import tokenizer as toy_tokenizer
from .language import IMAGE_TOKENS, ROPE_THETA, TEXT_CONFIG, answers, attribute_words, collate
from .language import load as load_language
from .loop import Run, train
from .vae import pictures


STEPS, DRIFT_STEPS, BATCH, PICTURES = 1800, 200, 24, 6000
PATCH, MERGE, TEMPORAL = 8, 2, 2
# Index into hidden_states: the embeddings and the states behind the DeepStack layers.
ALIGNED_LAYERS = (0, 3, 4, 5, 6, 7)

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
    model = Qwen3VLForConditionalGeneration._from_config(config, attn_implementation="eager")
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    return model


def patches(pixels: Tensor) -> Tensor:
    """uint8 (n, 3, 64, 64) to the rows that Qwen2VLImageProcessor makes of them: (n * 64, 3 * 2 * 8 * 8) in -1..1."""
    x = (pixels.float() / 255 - 0.5) / 0.5
    count, channels, side, _ = x.shape
    cells = side // PATCH // MERGE
    x = x.reshape(count, channels, cells, MERGE, PATCH, cells, MERGE, PATCH)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, TEMPORAL, -1, -1)
    return x.reshape(count * (side // PATCH) ** 2, channels * TEMPORAL * PATCH * PATCH)


def example(scene: Scene, rng: random.Random) -> tuple[str, str, bool]:
    """The text beside the picture, the answer, and whether the text comes before the picture."""
    kind, before = rng.random(), rng.random() < 0.15
    if kind < 0.45:
        return "", scene.caption(), False
    if kind < 0.75:
        # Half of the captions are of other scenes: the picture, not the words beside it, is to be described.
        said = scene if rng.random() < 0.5 else rng.choice(ALL_SCENES)
        return said.caption(rng.choice((*FULL_CAPTIONS, *PARTIAL_CAPTIONS))), scene.caption(), before
    question, attribute = rng.choice(list(toy_tokenizer.QUESTIONS.items()))
    return question, getattr(scene, attribute), before


def with_picture(text: str, filler: str, before: bool) -> str:
    picture = f"<|vision_start|>{filler}<|vision_end|>"
    return text + picture if before else picture + text


@dataclass
class Lesson:
    """A batch: what the student reads (image tokens) and what the teacher reads in their place (words)."""

    ids: Tensor
    words: Tensor
    mask: Tensor
    labels: Tensor
    pixel_values: Tensor
    grid: Tensor

    @property
    def is_image(self) -> Tensor:
        return self.ids != self.words


def lesson(tokenizer: PreTrainedTokenizerBase, data: Tensor, which: Tensor, rng: random.Random) -> Lesson:
    rows = rng.choices(range(len(data)), k=BATCH)
    scenes = [ALL_SCENES[int(which[row])] for row in rows]
    examples = [example(scene, rng) for scene in scenes]
    seen, said = [], []
    for scene, (text, answer, before) in zip(scenes, examples, strict=True):
        seen.append((with_picture(text, "<|image_pad|>" * IMAGE_TOKENS, before), answer))
        said.append((with_picture(text, " ".join(attribute_words(scene, IMAGE_TOKENS)), before), answer))
    ids, mask, labels = collate(tokenizer, seen)
    words, _, _ = collate(tokenizer, said)
    side = data.shape[-1] // PATCH
    return Lesson(ids, words, mask, labels, patches(data[rows]), torch.tensor([[1, side, side]] * BATCH))


def losses(student: Qwen3VLForConditionalGeneration, teacher: torch.nn.Module, batch: Lesson) -> dict[str, Tensor]:
    position_ids, _ = student.model.get_rope_index(
        batch.ids, mm_token_type_ids=batch.is_image.int(), image_grid_thw=batch.grid, attention_mask=batch.mask
    )
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
            target = teacher(
                input_ids=batch.words,
                attention_mask=batch.mask,
                position_ids=position_ids,
                output_hidden_states=True,
                use_cache=False,
            ).hidden_states
    answer = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), batch.labels[:, 1:].flatten())
    apart = []
    for layer in ALIGNED_LAYERS:
        is_, should = out.hidden_states[layer][batch.is_image].float(), target[layer][batch.is_image].float()
        apart.append((is_ - should).square().mean() / should.square().mean())
    return {"answer": answer, "align": torch.stack(apart).mean()}


@torch.no_grad()
def captions_right(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, data: Tensor, which: Tensor
) -> dict[str, int]:
    right = {"caption": 0, "caption_beside_other_text": 0}
    rng, side = random.Random(7), data.shape[-1] // PATCH
    for pixels, index in zip(data, which, strict=True):
        scene = ALL_SCENES[int(index)]
        inputs = {"pixel_values": patches(pixels[None]), "image_grid_thw": torch.tensor([[1, side, side]])}
        inputs = {name: value.to(next(model.parameters()).device) for name, value in inputs.items()}
        for name, text in (("caption", ""), ("caption_beside_other_text", rng.choice(ALL_SCENES).caption())):
            user = with_picture(text, "<|image_pad|>" * IMAGE_TOKENS, before=False)
            right[name] += answers(model, tokenizer, user, **inputs) == scene.caption()
    return right


@torch.no_grad()
def drift(model: Qwen3VLForConditionalGeneration, language: Qwen3ForCausalLM, ids: Tensor) -> float:
    """Relative difference of the two language models' states at layer -2 on the same text."""
    mask = torch.ones_like(ids)
    mine = model.model.language_model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    theirs = language.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    return ((mine.hidden_states[-2] - theirs.hidden_states[-2]).norm() / theirs.hidden_states[-2].norm()).item()


def train_vl_encoder(run: Run) -> None:
    tokenizer, language = toy_tokenizer.load(run), load_language(run)
    torch.manual_seed(run.seed + 2)
    model = new_model(tokenizer, language).to(run.device)
    teacher = copy.deepcopy(model.model.language_model).eval().requires_grad_(False)
    data, which = pictures(PICTURES, seed=3)

    def loss_at(step: int) -> dict[str, Tensor]:
        batch = lesson(tokenizer, data, which, random.Random(hash((run.seed, 3, step))))
        return losses(model, teacher, Lesson(*(t.to(run.device) for t in vars(batch).values())))

    steps, drift_steps = run.steps(STEPS), run.steps(DRIFT_STEPS)
    model.model.language_model.requires_grad_(False)
    train(run, "vl_encoder", model, loss_at, steps=steps, lr=2e-3)
    model.requires_grad_(True)
    log = train(
        run, "vl_drift", model, lambda step: loss_at(steps + step), steps=drift_steps, lr=3e-5, weight_decay=0.0
    )
    fresh, fresh_which = pictures(60, seed=4)
    text = tokenizer([scene.caption() for scene in ALL_SCENES], return_tensors="pt").input_ids.to(run.device)
    model.save_pretrained(run.path("vl_encoder"))
    record = {
        "steps": steps,
        "drift_steps": drift_steps,
        "right_of_60": captions_right(model, tokenizer, fresh, fresh_which),
        "drift_from_text_encoder": round(drift(model, language, text), 4),
        "log": log[-1],
    }
    run.finish("vl_encoder", record)


def load(run: Run) -> Qwen3VLForConditionalGeneration:
    return Qwen3VLForConditionalGeneration.from_pretrained(run.path("vl_encoder")).to(run.device).eval()
