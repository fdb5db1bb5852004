#!/usr/bin/env python
"""Print what is published of the real models beside what the toy world shows: python benchmarks/toy_fidelity.py

Twelve rows; a row that does not hold is printed as such. The published figures are those of the guide and of its
author's later notes. Prompts and references disagree in everything, references are read at 256 px, layer -2 (of the
toy's eight layers; the real model's -6 of 36 lies nearest to it), alignment interpolate, the call's other defaults.
"kept" is the share of the named attributes that the pictures show, "followed" the share of the open ones that are the
reference's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fidelity_bench import DEFAULTS, EVERYTHING, OPEN, Bench, Outcome, States, median_rms, others
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from zimage_vl import (
    EmbeddingStatistics,
    align_sequence,
    blend_embeddings,
    get_outlier_dimensions,
    load_toy_pipeline,
    match_token_rms,
    per_dimension_correlation,
)
from zimage_vl.toy.world import ATTRIBUTES


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    what: str
    published: str
    measured: str
    holds: bool


def sink_row(states: States) -> Row:
    ratios = []
    for layer in range(-7, -1):
        for row in states.text:
            rms = row[layer].square().mean(dim=-1).sqrt()
            ratios.append(float(rms[0] / rms.median()))
    last = [row[-1].square().mean(dim=-1).sqrt() for row in states.text]
    at_last = max(float(rms[0] / rms.median()) for rms in last)
    rest = max(float((rms := row[-2].square().mean(dim=-1).sqrt())[1:].max() / rms.median()) for row in states.text)
    first, vl = states.text[0][-2][0], states.vl[0][-2][0]
    high, low = int(first.argmax()), int(first.argmin())
    shape = float(-first[high] / first[low])
    share = float(vl[high] / first[high])
    holds = (
        min(ratios) >= 20 and max(ratios) <= 40 and at_last < 2 and rest < 2 and 2 < shape < 4 and 0.5 < share < 0.8
    )
    return Row(
        "sink: token 0 over the median RMS at -2 and below; at -1; others; its two dimensions; the VL encoder's",
        "20 to 40 (about 27); none; below 2; opposite, 3 to 1; two thirds",
        f"{min(ratios):.0f} to {max(ratios):.0f}; {at_last:.1f}; {rest:.1f}; dims {high} and {low}, {shape:.1f} to 1; "
        f"{share:.2f}",
        holds and 2 < shape < 4 and 0.5 < share < 0.8,
    )


def spread_row(states: States) -> Row:
    reference = EmbeddingStatistics.from_embeddings([row[-2] for row in states.text], exclude_sinks=True)
    text = per_dimension_correlation(states.text_tokens(), reference)
    image = per_dimension_correlation(states.picture_tokens(), reference)
    return Row(
        "per-dimension std against the text encoder's (sinks left out): VL text tokens; image tokens",
        ">= .99; .6 to .85",
        f"{text:.3f}; {image:.2f}",
        text >= 0.99 and 0.6 <= image <= 0.85,
    )


def outlier_row(states: States) -> Row:
    found = {}
    for exclude in (False, True):
        reference = EmbeddingStatistics.from_embeddings([row[-2] for row in states.text], exclude_sinks=exclude)
        found[exclude] = get_outlier_dimensions(states.picture_tokens(), reference)
    first = states.text[0][-2][0]
    sink = {int(first.argmax()), int(first.argmin())}
    dims = ", ".join(f"{dim} ({ratio:.0f}x)" for dim, ratio in found[False]) or "none"
    return Row(
        "outlier dimensions of image tokens; with sinks excluded",
        "the sink's two, as deficits (396: 618x, 4: 42x); none",
        f"{dims}; {', '.join(str(dim) for dim, _ in found[True]) or 'none'}",
        {dim for dim, _ in found[False]} == sink and not found[True],
    )


def text_row(bench: Bench, none: Outcome) -> Row:
    low, high = (bench.measure(EVERYTHING, alpha, vl_token_selection="text") for alpha in (0.3, 1.0))
    change = max(abs(low.prompt[name] - none.prompt[name]) for name in ATTRIBUTES)
    return Row(
        "text tokens alone: largest change of an attribute at alpha .3; kept and followed at 1.0",
        "below .03; the prompt leads",
        f"{change:.2f}; {high.kept():.2f} and {high.followed():.2f}",
        change <= 0.03 and high.kept() > high.followed(),
    )


def dose_row(bench: Bench, none: Outcome, none_open: Outcome) -> Row:
    alphas = (0.3, 0.5, 0.7, 1.0)
    open_, named = ([bench.measure(names, alpha) for alpha in alphas] for names in (OPEN, EVERYTHING))
    left = others(OPEN)
    follow = [none_open.followed(left), *(outcome.followed(left) for outcome in open_)]
    lead = [(outcome.kept(), outcome.followed()) for outcome in named]
    holds = follow[1] > follow[0] + 0.05 and follow[2] >= follow[1] and lead[2][1] > lead[2][0] and lead[3][1] >= 0.8
    return Row(
        "all tokens, alpha 0 / .3 / .5 / .7 / 1.0: followed of what is open; kept and followed where all is named; "
        "correlation at 0 and 1.0",
        ".3 visible, .5 strong, .7 the reference leads, 1.0 rebuilt (>= .8) with artifacts",
        f"{' / '.join(f'{share:.2f}' for share in follow)}; "
        f"{none.kept():.2f}, {none.followed():.2f} / {' / '.join(f'{k:.2f}, {f:.2f}' for k, f in lead)}; "
        f"{none.correlation:.2f}, {named[3].correlation:.2f}",
        holds and named[3].correlation < none.correlation,
    )


def size_row(states: States) -> Row:
    text = median_rms(torch.cat([row[-2] for row in states.text]))
    image = median_rms(states.picture_tokens())
    return Row(
        "ordinary RMS of image tokens over text tokens'", "about .7", f"{image / text:.2f}", 0.6 <= image / text <= 0.8
    )


def alpha_row(bench: Bench) -> Row:
    prompts, embeds = bench.prompts(EVERYTHING), bench.embeds(EVERYTHING)
    reports = bench.pipe.encode_prompt_with_reference(
        prompts, reference_embeds=embeds, do_classifier_free_guidance=False, vl_alpha=0.3, **DEFAULTS
    ).reports
    alphas = torch.cat([report.effective_alpha[1:] for report in reports])
    value = float(alphas.median())
    return Row("the default's alpha .3 acts as", ".55 to .7", f"{value:.2f}", 0.55 <= value <= 0.7)


def layer_row(bench: Bench) -> Row:
    depth = len(bench.layers)
    left = others(OPEN)
    scores = {}
    for index in range(1, depth + 1):
        outcome = bench.measure(OPEN, 0.5, vl_hidden_layer=index - depth - 1)
        scores[index] = outcome.kept(OPEN) * outcome.followed(left) * outcome.correlation
    best = max(scores, key=lambda index: scores[index])
    early = max(score for index, score in scores.items() if index / depth <= 1 / 3)
    return Row(
        "layers 1 to 8 of 8: kept x followed x correlation at alpha .5, something open",
        "the best between .75 and .95 of the depth, the last worse, the first third severe",
        f"{' / '.join(f'{score:.2f}' for score in scores.values())}; best at {best / depth:.2f}",
        0.75 <= best / depth <= 0.95 and scores[depth] < scores[best] and early < 0.5 * scores[best],
    )


def adain_row(bench: Bench, none: Outcome) -> Row:
    token = bench.measure(EVERYTHING, 1.0, vl_blend_mode="adain")
    dims = bench.measure(EVERYTHING, 1.0, vl_blend_mode="adain_per_dim")
    inert = max(abs(token.prompt[name] - none.prompt[name]) for name in ATTRIBUTES)
    return Row(
        "AdaIN at alpha 1: per token, largest change; per dimension, colour followed and shape kept",
        "inert; colour transfers, the subject is lost",
        f"{inert:.2f}; {dims.reference['colour']:.2f} and {dims.prompt['shape']:.2f}",
        inert <= 0.05 and dims.reference["colour"] >= 0.5 and dims.prompt["shape"] <= 0.5,
    )


@torch.no_grad()
def tower_tokens(pipe: Any, picture: Image.Image) -> Tensor:
    """Get the vision tower's merged tokens of a picture: (tokens, dims)."""
    batch = pipe.vl_processor(images=[picture], return_tensors="pt")
    out = pipe.vl_encoder.model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"])
    return out[0] if isinstance(out, tuple) else out.pooler_output


def raw_row(bench: Bench, none: Outcome) -> Row:
    tokens = [tower_tokens(bench.pipe, picture)[:200] for picture in bench.pictures]
    outcome = bench.call(lambda rows: {"prompt_embeds": [tokens[n] for n in rows]})
    return Row(
        "the vision tower's raw features in place of text: followed, correlation (alpha 0's)",
        "failure",
        f"{outcome.followed():.2f}, {outcome.correlation:.2f} ({none.correlation:.2f})",
        outcome.followed() < 0.5,
    )


def style_row(bench: Bench) -> Row:
    named = ("shape",)
    style = ("colour", "fill", "background")
    ways = {
        "blend": bench.measure(named, 0.4),
        "image-to-image": bench.paint_over(named, 0.0),
        "both": bench.paint_over(named, 0.4),
    }
    scores = {way: outcome.kept(named) * outcome.followed(style) for way, outcome in ways.items()}
    told = ", ".join(f"{way} {o.kept(named):.2f} x {o.followed(style):.2f}" for way, o in ways.items())
    return Row(
        "the blend (.4) and image-to-image (.85: at 8 steps .9 is noise alone) from one picture, the shape named: "
        "kept x style followed",
        "both together better than either",
        told,
        scores["both"] > max(scores["blend"], scores["image-to-image"]),
    )


@torch.no_grad()
def reader_states(pipe: Any, picture: Image.Image, text: str) -> Tensor:
    """Read a picture with the text encoder: the tower's tokens in its own turn, layer -2."""
    tokens = tower_tokens(pipe, picture)
    user = f"<|vision_start|>{'<|image_pad|>' * len(tokens)}<|vision_end|>{text}"
    turn = pipe.tokenizer.apply_chat_template(
        [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    ids = pipe.tokenizer(turn, return_tensors="pt").input_ids
    embeds = pipe.text_encoder.get_input_embeddings()(ids)
    embeds[ids == pipe.tokenizer.convert_tokens_to_ids("<|image_pad|>")] = tokens.to(embeds.dtype)
    out = pipe.text_encoder(
        inputs_embeds=embeds, attention_mask=torch.ones_like(ids), output_hidden_states=True, use_cache=False
    )
    return out.hidden_states[-2][0]


def ancestry_row(bench: Bench, states: States) -> Row:
    pairs = [(text[-2][1:], vl[-2][1:]) for text, vl in zip(states.text, states.vl, strict=True)]
    one, other = (torch.cat(side) for side in zip(*pairs, strict=True))
    drift = float((one - other).norm() / one.norm())
    prompts, left = bench.prompts(OPEN), others(OPEN)
    blended = []
    for prompt, picture in zip(prompts, bench.pictures, strict=True):
        text = states.read(bench.pipe.text_encoder, prompt)[-2]
        aligned = align_sequence(reader_states(bench.pipe, picture, prompt), len(text), mode="interpolate")
        blended.append(blend_embeddings(text, match_token_rms(aligned, text), 0.5))
    reader = bench.call(lambda rows: {"prompt_embeds": [blended[n] for n in rows]})
    qwen = bench.measure(OPEN, 0.5, vl_normalization="token_rms")
    return Row(
        "VL and text encoder: relative drift of the states at -2 (sink left out); kept and followed at .5 (token_rms) "
        "with the VL encoder, with the reader text_encoder",
        ".03 to .2; both steer",
        f"{drift:.3f}; {qwen.kept(OPEN):.2f}, {qwen.followed(left):.2f}; {reader.kept(OPEN):.2f}, "
        f"{reader.followed(left):.2f}",
        0.03 <= drift <= 0.2 and reader.followed(left) >= 0.8 * qwen.followed(left),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of rows (default: all)")
    parser.add_argument("--checkpoint", type=Path, help="a packed folder (default: the shipped one)")
    arguments = parser.parse_args()
    pipe = load_toy_pipeline(arguments.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    bench = Bench(pipe, arguments.pairs, arguments.seed)
    states = States(bench)
    none, none_open = bench.measure(EVERYTHING, 0.0), bench.measure(OPEN, 0.0)
    rows: list[Callable[[], Row]] = [
        lambda: sink_row(states),
        lambda: spread_row(states),
        lambda: outlier_row(states),
        lambda: text_row(bench, none),
        lambda: dose_row(bench, none, none_open),
        lambda: size_row(states),
        lambda: alpha_row(bench),
        lambda: layer_row(bench),
        lambda: adain_row(bench, none),
        lambda: raw_row(bench, none),
        lambda: style_row(bench),
        lambda: ancestry_row(bench, states),
    ]
    print(f"{arguments.pairs} pairs, seed {arguments.seed}\n")
    print("| | what | published | the toy | holds |\n|---|---|---|---|---|")
    held, asked = 0, arguments.only or range(1, len(rows) + 1)
    for number in tqdm(asked, desc="rows", disable=None):
        row = rows[number - 1]()
        held += row.holds
        verdict = "yes" if row.holds else "NO"
        print(f"| {number} | {row.what} | {row.published} | {row.measured} | {verdict} |", flush=True)
    print(f"\n{held} of {len(asked)} rows hold.")


if __name__ == "__main__":
    main()
