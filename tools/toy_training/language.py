"""Stage `text_encoder`: a small Qwen3 language model of the toy world's sentences.

It learns to caption in the same words, to complete partial captions, to read attribute words where a picture's tokens
will stand, and to answer questions. Its hidden states condition the transformer; its weights also start the VL
encoder.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from zimage_vl.toy.world import ALL_SCENES, BACKGROUNDS, COLOURS, FULL_CAPTIONS, PARTIAL_CAPTIONS, SHAPES, Scene

from . import tokenizer as toy_tokenizer
from .loop import Run, train


STEPS, BATCH = 600, 48
# Layers whose states are to say the attributes, and how sure a cosine of 1 is (as logits).
SPEAKING_LAYERS, SHARPNESS = (3, 4, 5, 6, 7), 20.0
IMAGE_TOKENS = 16  # of a 64 x 64 picture: patches of 8, merged 2 x 2

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


def attribute_words(scene: Scene, count: int, phase: int = 0) -> list[str]:
    """The attributes' words, over and over: what the tokens of a picture are to say."""
    words = (scene.colour, scene.shape, scene.background)
    return [words[(i + phase) % 3] for i in range(count)]


def example(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """One exercise: the user's turn and the answer."""
    answer, kind = scene.caption(), rng.random()
    if kind < 0.3:
        return scene.caption(rng.choice(FULL_CAPTIONS)), answer
    if kind < 0.45:
        return scene.caption(rng.choice(PARTIAL_CAPTIONS)), answer
    if kind < 0.8:
        count = rng.choice((3, 6, IMAGE_TOKENS, IMAGE_TOKENS))
        words = " ".join(attribute_words(scene, count))
        user = f"<|vision_start|>{words}<|vision_end|>"
        if rng.random() < 0.6:
            said = scene if rng.random() < 0.5 else rng.choice(ALL_SCENES)
            user += said.caption(rng.choice((*FULL_CAPTIONS, *PARTIAL_CAPTIONS)))
        return user, answer
    question, attribute = rng.choice(list(toy_tokenizer.QUESTIONS.items()))
    said = scene.caption(rng.choice(FULL_CAPTIONS))
    if rng.random() < 0.5:
        said = f"<|vision_start|>{' '.join(attribute_words(scene, IMAGE_TOKENS))}<|vision_end|>"
    return f"{said} {question}", getattr(scene, attribute)


def turn(tokenizer: PreTrainedTokenizerBase, user: str) -> str:
    messages = [{"role": "user", "content": user}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)


def collate(tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and labels: the answer's tokens, -100 elsewhere."""
    rows = []
    for user, answer in pairs:
        head = tokenizer(turn(tokenizer, user)).input_ids
        rows.append((head, tokenizer(f"{answer}<|im_end|>").input_ids))
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
    """Which attributes a turn has named up to each token, and how far hidden states say so.

    Each value of each attribute has a direction of its own, drawn once and orthogonal to all others; the cosines of a
    state with them, times `SHARPNESS`, are the logits.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, device: str, seed: int) -> None:
        self.names: list[tuple[str, ...]] = [tuple(SHAPES), tuple(COLOURS), tuple(BACKGROUNDS)]
        self.of_token: dict[int, tuple[int, int]] = {}
        for attribute, values in enumerate(self.names):
            for value, name in enumerate(values):
                for text in (name, f" {name}"):
                    (token,) = tokenizer(text).input_ids
                    self.of_token[token] = (attribute, value)
        width, count = int(TEXT_CONFIG["hidden_size"]), sum(map(len, self.names))  # type: ignore[call-overload]
        drawn = torch.randn(width, count, generator=torch.Generator().manual_seed(seed))
        self.directions = torch.linalg.qr(drawn).Q.T.to(device).split([len(values) for values in self.names])
        self.picture_end = tokenizer.convert_tokens_to_ids("<|vision_end|>")

    def named(self, ids: Tensor, labels: Tensor) -> Tensor:
        """`(rows, tokens, 3)` value of each attribute so far, -100 where none, in answers and in padding."""
        out = torch.full((*ids.shape, 3), -100)
        for row, tokens in enumerate(ids.tolist()):
            has_picture = self.picture_end in tokens
            now = [-100, -100, -100]
            for place, token in enumerate(tokens):
                if labels[row, place] != -100:
                    break
                attribute, value = self.of_token.get(token, (0, -100))
                # A picture, which comes first, outweighs the words that follow it.
                if value != -100 and not (has_picture and now[attribute] != -100):
                    now[attribute] = value
                out[row, place] = torch.tensor(now)
        return out

    def loss(self, states: Sequence[Tensor], named: Tensor) -> Tensor:
        losses = []
        for layer in SPEAKING_LAYERS:
            unit = torch.nn.functional.normalize(states[layer].float(), dim=-1)
            for attribute, directions in enumerate(self.directions):
                logits = SHARPNESS * unit @ directions.T
                target = named[..., attribute].to(logits.device)
                losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()))
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


def exam(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, count: int = 60) -> dict[str, int]:
    """How many of `count` exercises of each kind are answered as the canonical caption or word."""
    rng, right = random.Random(5), {"paraphrase": 0, "words": 0, "question": 0}
    for scene in rng.choices(ALL_SCENES, k=count):
        right["paraphrase"] += answers(model, tokenizer, scene.caption(rng.choice(FULL_CAPTIONS))) == scene.caption()
        words = f"<|vision_start|>{' '.join(attribute_words(scene, IMAGE_TOKENS))}<|vision_end|>"
        right["words"] += answers(model, tokenizer, words) == scene.caption()
        question, attribute = rng.choice(list(toy_tokenizer.QUESTIONS.items()))
        right["question"] += answers(model, tokenizer, f"{scene.caption()} {question}") == getattr(scene, attribute)
    return right


def train_text_encoder(run: Run) -> None:
    tokenizer = toy_tokenizer.load(run)
    torch.manual_seed(run.seed + 1)
    model = new_model(tokenizer).to(run.device)
    steps = run.steps(STEPS)
    attributes = Attributes(tokenizer, run.device, run.seed)

    def loss_at(step: int) -> dict[str, Tensor]:
        rng = random.Random(hash((run.seed, 2, step)))
        pairs = [example(scene, rng) for scene in rng.choices(ALL_SCENES, k=BATCH)]
        ids, mask, labels = collate(tokenizer, pairs)
        named = attributes.named(ids, labels)
        ids, mask, labels = (t.to(run.device) for t in (ids, mask, labels))
        with torch.autocast(run.device.split(":")[0], dtype=torch.bfloat16):
            out = model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
        logits = out.logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        # A little of plain language modelling over the prompts, so that every position learns to carry the meaning.
        prompt = torch.where((labels == -100) & mask.bool(), ids, -100)
        plain = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), prompt[:, 1:].flatten())
        return {"answer": loss, "prompt": 0.2 * plain, "attributes": attributes.loss(out.hidden_states, named)}

    log = train(run, "text_encoder", model, loss_at, steps=steps, lr=3e-3)
    model.save_pretrained(run.path("text_encoder"))
    run.finish("text_encoder", {"steps": steps, "right_of_60": exam(model, tokenizer), "log": log[-1]})


def load(run: Run) -> Qwen3ForCausalLM:
    model = Qwen3ForCausalLM.from_pretrained(run.path("text_encoder"), attn_implementation="eager")
    return model.to(run.device).eval()
