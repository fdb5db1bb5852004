"""What `toy_fidelity.py` measures with: pairs of prompt and reference, painted and judged, and encoder states."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from zimage_vl import paint_from_image
from zimage_vl.toy import ATTRIBUTES, SIZE, STEPS, disagreeing_pairs, draw_scene, judge


READ_AT = 256
EVERYTHING = frozenset(ATTRIBUTES)
DEFAULTS = {"vl_hidden_layer": -2, "vl_alignment": "interpolate", "vl_normalization": "global"}
MARKER, IMAGE = 1, 2  # of `ReferenceEmbeds.regions`
OPEN = ("shape", "background")  # named where something is to be open
BATCH = 20


@dataclass(frozen=True)
class Outcome:
    """Shares of pictures that show the prompt's and the reference's value of each attribute, and the correlation."""

    prompt: dict[str, float]
    reference: dict[str, float]
    correlation: float

    def kept(self, named: Collection[str] = EVERYTHING) -> float:
        return sum(self.prompt[name] for name in named) / len(named)

    def followed(self, of: Collection[str] = EVERYTHING) -> float:
        return sum(self.reference[name] for name in of) / len(of)


def others(named: Collection[str]) -> list[str]:
    return [name for name in ATTRIBUTES if name not in named]


def median_rms(states: Tensor) -> float:
    return float(states.square().mean(dim=-1).sqrt().median())


class Bench:
    """Pairs of prompt and reference, the references encoded once for each kind of prompt."""

    def __init__(self, pipe: Any, count: int, seed: int) -> None:
        self.pipe, self.seed = pipe, seed
        self.pairs = disagreeing_pairs(count, seed)
        self.pictures = [
            draw_scene(reference, 10_000_019 * (seed + 1) + n).resize((READ_AT, READ_AT), Image.Resampling.BICUBIC)
            for n, (_, reference) in enumerate(self.pairs)
        ]
        self.layers = tuple(range(-len(pipe.text_encoder.layers), 0))
        self._embeds: dict[frozenset[str], list[Any]] = {}

    def prompts(self, named: Collection[str]) -> list[str]:
        return [prompt.caption(*named) for prompt, _ in self.pairs]

    def embeds(self, named: Collection[str]) -> list[Any]:
        key = frozenset(named)
        if key not in self._embeds:
            self._embeds[key] = [
                self.pipe.encode_reference(picture, text, self.layers)
                for picture, text in zip(self.pictures, self.prompts(named), strict=True)
            ]
        return self._embeds[key]

    def generators(self, rows: Sequence[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(self.seed + n) for n in rows]

    def judge(self, images: Sequence[Image.Image]) -> Outcome:
        verdicts = [judge(image) for image in images]

        def shares(side: int) -> dict[str, float]:
            rows = [v.matches(pair[side]) for v, pair in zip(verdicts, self.pairs, strict=True)]
            return {name: sum(row[name] for row in rows) / len(rows) for name in ATTRIBUTES}

        correlation = sum(verdict.correlation for verdict in verdicts) / len(verdicts)
        return Outcome(shares(0), shares(1), correlation)

    def call(self, make: Callable[[list[int]], dict[str, Any]]) -> Outcome:
        """Paint one picture per pair; `make` gives a batch's arguments."""
        images: list[Image.Image] = []
        for start in range(0, len(self.pairs), BATCH):
            rows = list(range(start, min(start + BATCH, len(self.pairs))))
            images += self.pipe(
                height=SIZE,
                width=SIZE,
                num_inference_steps=STEPS,
                guidance_scale=0.0,
                generator=self.generators(rows),
                **make(rows),
            ).images
        return self.judge(images)

    def measure(self, named: Collection[str], alpha: float, **knobs: Any) -> Outcome:
        prompts, embeds = self.prompts(named), self.embeds(named)
        settings = {**DEFAULTS, "vl_alpha": alpha, **knobs}
        if settings.get("vl_blend_mode") == "adain_per_dim":
            del settings["vl_alignment"]  # it needs none and refuses one
        return self.call(
            lambda rows: {
                "prompt": [prompts[n] for n in rows],
                "reference_embeds": [embeds[n] for n in rows],
                **settings,
            }
        )

    def paint_over(self, named: Collection[str], alpha: float) -> Outcome:
        """Image-to-image from the reference's own picture, with the blend where alpha is above 0."""
        prompts, embeds, images = self.prompts(named), self.embeds(named), []
        for n, picture in enumerate(self.pictures):
            knobs = {"reference_embeds": embeds[n], "vl_alpha": alpha, **DEFAULTS} if alpha else {}
            start = picture.resize((SIZE, SIZE))
            settings = {"num_inference_steps": STEPS, "guidance_scale": 0.0, "generator": self.generators([n])[0]}
            images += paint_from_image(self.pipe, prompts[n], start, 0.85, **settings, **knobs).images
        return self.judge(images)


class States:
    """Hidden states of both encoders on the same captions, and of the picture readings."""

    def __init__(self, bench: Bench) -> None:
        self.pipe = bench.pipe
        prompts = bench.prompts(EVERYTHING)
        self.text = [self.read(self.pipe.text_encoder, prompt) for prompt in prompts]
        self.vl = [self.read(self.pipe.vl_encoder.model.language_model, prompt) for prompt in prompts]
        self.embeds = bench.embeds(EVERYTHING)

    @torch.no_grad()
    def read(self, model: Any, prompt: str) -> tuple[Tensor, ...]:
        turn = self.pipe.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        batch = self.pipe.tokenizer(turn, return_tensors="pt")
        out = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True, use_cache=False
        )
        return tuple(states[0] for states in out.hidden_states)

    def picture_tokens(self) -> Tensor:
        """Get the states of all image tokens at layer -2, of all references."""
        return torch.cat([embeds.hidden_states[-2][embeds.regions == IMAGE] for embeds in self.embeds])

    def text_tokens(self) -> Tensor:
        """Get those of the text around and behind the pictures, without the sink."""
        return torch.cat([embeds.hidden_states[-2][1:][(embeds.regions[1:] > IMAGE) | (embeds.regions[1:] < MARKER)]
                          for embeds in self.embeds])  # fmt: skip
