"""Any combination of knobs works with its identities, or is refused before a model runs."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conditioning_samples import condition
from embedding_samples import make_reference, make_text, rms_of
from pipeline_samples import PROMPT, SMALL, make_picture, record_runs, seeded
from tally import count, expect, fuzz, is_ours, load_toy_once
from tiny_models import tiny_pipeline, white_box
from zimage_vl.blend.registry import CONDITIONING_NAMES, KNOBS, Knob
from zimage_vl.blend.report import ConditioningReport
from zimage_vl.reference.embeds import ReferenceEmbeds


ROW = "knobs"
PICTURE, OTHER, BLACK = make_picture(0), make_picture(1), make_picture(2).point(lambda _: 0)
PROMPTS = [PROMPT, "", "a", "red " * 40, "a red circle\n\n漢字 👩‍🚀", [PROMPT, "a cross"]]
CALL: dict[str, Any] = {
    **SMALL, "num_images_per_prompt": 1, "sigmas": None, "latents": None, "output_type": "pil", "generator": None,
    "callback_on_step_end": None, "callback_on_step_end_tensor_inputs": ["latents"], "joint_attention_kwargs": None,
}  # fmt: skip
unit = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)


@cache
def pipeline() -> Any:
    return tiny_pipeline()


@cache
def embeds() -> ReferenceEmbeds:
    return pipeline().encode_reference(PICTURE, PROMPT, (-6, -2), muted=True)


def some(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


# What a knob without choices is meant to take. One that is neither here nor has choices gets its default and ODD.
pictures = some(
    PICTURE, OTHER, BLACK, np.zeros((2, 3), np.uint8), [[PICTURE, OTHER]], [[OTHER, OTHER]], [PICTURE, OTHER]
)
layers = st.integers(-7, 6)
alphas = st.dictionaries(some("prefix", "prompt", "suffix", "default", "red", "a"), unit, min_size=1)
MEANT: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("reference_image", "negative_reference_image"), pictures),
    **dict.fromkeys(("reference_embeds", "negative_reference_embeds"), st.builds(embeds)),
    "reference_weights": some([1], [2, 1], (0.0, 1e308), [1e-320, 0]),
    "reference_mask": some(*(white_box((48, 32), (0, 0, width, 32)) for width in (20, 48))),
    "vl_treatment": some("none", "palette", "blur", "greyscale", lambda picture: picture.rotate(180)),
    "vl_alpha": st.one_of(unit, unit, alphas, st.lists(unit, min_size=9, max_size=13), st.lists(unit, max_size=2)),
    "vl_hidden_layer": st.one_of(layers, st.lists(layers, max_size=3), st.dictionaries(layers, unit, max_size=3)),
    "vl_text": some("", "a cross", ["a", "b"], "word " * 600),
    "vl_describe": some(False),  # 96 tokens from a model: in its own tests
    "vl_target_std": st.floats(1e-3, 1e3),
    "vl_outlier_threshold": st.floats(1.001, 20),
    "vl_concat_tokens": st.integers(1, 40) | some(1500),
    "neutral_image": some(OTHER, PICTURE, BLACK, [PICTURE, OTHER]),
    "vl_start": some(0.0, 0.4, 0.5),
    "vl_end": some(1.0, 0.9, 0.5),
    "vl_max_pixels": some(256, 257, 1024, 10**9),
}
ODD = some(
    None, True, False, -1, 0, 1, 3, 10**400, 0.5, 1.0, -0.0, 5e-324, math.nan, math.inf, -math.inf, "", "none",
    "\ud800", "x" * 300, b"x", (), [], [[]], [0.5], [None], {}, {"default": 0.5}, {"x": 1}, {-6: 1, -8: 0}, range(3),
    Decimal(1), Fraction(1, 2), 1j, np.float32(0.5), np.int64(2), np.array([0.5]), np.array(math.nan),
    torch.tensor(0.5), torch.zeros(2, 2), torch.tensor([math.nan]), PICTURE, [PICTURE, None], [PICTURE] * 3, "no.png",
)  # fmt: skip


def values(knob: Knob) -> st.SearchStrategy[Any]:
    meant = some(*knob.choices) if knob.choices else st.booleans() if isinstance(knob.default, bool) else ODD
    return MEANT.get(knob.name, st.just(knob.default) | meant)


@st.composite
def knobs_of(draw: st.DrawFn, names: tuple[str, ...]) -> dict[str, Any]:
    """Up to seven knobs with values that they take, and now and then one with a value that they may not."""
    chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=7))
    drawn = {name: draw(values(KNOBS[name])) for name in chosen}
    return drawn | ({draw(st.sampled_from(names)): draw(ODD)} if draw(st.integers(0, 5)) == 0 else {})


def check_result(text: Tensor, out: Tensor, report: ConditioningReport, alpha: Tensor | None, what: object) -> None:
    """What holds for every combination; the report's figures are computed anew."""
    length, shares, told = len(text), [one.weight for one in report.references], json.dumps(report.to_dict())
    sinks = rms_of(text) > 8 * rms_of(text).median()
    holds = {
        "the kind": out.dtype == text.dtype and out.shape[1:] == text.shape[1:],
        "finite": bool(torch.isfinite(out).all()) and "NaN" not in told and '"nan"' not in told,
        "the counts": (report.text_tokens, report.out_tokens) == (length, len(out)),
        "the shares": not shares or math.isclose(sum(shares), 1, rel_tol=1e-6),
        "the sinks": report.text_sinks == tuple(torch.where(sinks)[0].tolist()),
    }
    if report.appended_tokens:
        holds["the text of concat"] = torch.equal(out[:length], text)
    elif alpha is not None:
        still, acted = alpha == 0, report.effective_alpha
        holds["alpha 0"] = torch.equal(out[still], text[still])
        holds["the effective alpha"] = acted is None or bool(((acted >= 0) & (acted <= ~still)).all())
    if report.influence is not None:
        one, other = out[:length][~sinks].double(), text[~sinks].double()
        cosine = torch.where((one == other).all(1), 1.0, torch.cosine_similarity(one, other, dim=1, eps=1e-300))
        holds["the influence"] = math.isclose(report.influence, float((1 - cosine).mean()), rel_tol=0.01, abs_tol=1e-4)
    for name, one in holds.items():
        expect(ROW, one, f"{name} with {what}")


@fuzz(70)
@given(some(*PROMPTS), knobs_of(tuple(KNOBS)), some(0.0, 0.0, 4.0), st.integers(0, 9).map(bool))
def test_any_combination_works_or_is_refused_before_a_model_runs(
    prompt: Any, knobs: dict[str, Any], guidance: float, with_picture: bool
) -> None:
    count(ROW)
    pipe, call = pipeline(), {**CALL, "prompt": prompt, "guidance_scale": guidance}
    if with_picture and "reference_embeds" not in knobs:
        knobs.setdefault("reference_image", PICTURE)
    with record_runs(pipe) as runs:
        try:
            plan = pipe.make_plan(call, knobs)
        except (ValueError, TypeError, FileNotFoundError) as error:
            expect(ROW, is_ours(error) or isinstance(error, FileNotFoundError), f"{error!r} with {knobs}")
            return
        finally:
            expect(ROW, runs == [], f"{runs} ran before all was checked, with {knobs}")
    with torch.no_grad():
        text, negative = pipe.encode_text(plan)
        kept, read = [one.clone() for one in text], pipe.read_pictures(plan.acting_pictures)
        ready = pipe.condition(plan, text, negative, read)
    expect(ROW, all(map(torch.equal, text, kept)), f"the text was changed, with {knobs}")
    for one, out, report, own in zip(text, ready.prompt_embeds, ready.reports, plan.references, strict=False):
        check_result(one, out, report, own.alpha, knobs)
    plain = pipe.make_plan(call, {**knobs, "vl_alpha": 0.0})
    expect(ROW, not plain.acting_pictures, f"alpha 0 reads, with {knobs}")
    ready = pipe.condition(plain, text, negative, [])
    expect(ROW, all(a is b for a, b in zip(ready.prompt_embeds, text, strict=True)), f"alpha 0 changes, with {knobs}")


KINDS = some("random", "random", "zeros", "equal", "sink", "a zero", "a loud dimension")
SPECS = st.tuples(KINDS, st.integers(-6, 12), some(torch.float32, torch.bfloat16, torch.float64))


def make_states(tokens: int, seed: int, kind: str, size: int, dtype: torch.dtype) -> Tensor:
    """Tokens of a kind that a model may give: loud, quiet, equal, empty, one far louder than all others."""
    x = torch.randn(tokens, 16, generator=seeded(seed)) * 10.0**size
    x = {"zeros": x * 0, "equal": x[:1].expand(tokens, 16).clone()}.get(kind, x)
    x[0] *= {"sink": 1e4, "a zero": 0.0}.get(kind, 1.0)
    x[:, 0] *= 1e4 if kind == "a loud dimension" else 1.0
    return x.to(dtype)


@fuzz(120)
@given(knobs_of(CONDITIONING_NAMES), SPECS, SPECS, st.integers(0, 9), st.integers(0, 5), st.integers(0, 99))
def test_any_combination_on_any_states(
    knobs: dict[str, Any], own: Any, other: Any, patches: int, words: int, seed: int
) -> None:
    count(ROW)
    _, regions = make_text(words)
    text = make_states(len(regions), seed, *own)
    like = make_reference(words, patches)
    knobs = {**knobs, "vl_hidden_layer": -6, "has_neutral_image": knobs.get("vl_blend_mode") == "style_delta"}
    neutral = make_reference(words, patches, seed=11) if knobs["has_neutral_image"] else None
    reference = ReferenceEmbeds({-6: make_states(like.num_tokens, seed + 1, *other)}, like.regions)
    before = reference.hidden_states[-6].clone()
    inputs = {"text": text, "regions": regions, **({} if neutral is None else {"neutral": neutral})}
    try:
        out, report = condition(reference, **inputs, **knobs)
    except (ValueError, TypeError) as error:
        expect(ROW, is_ours(error), f"{error!r} with {knobs}")
        return
    expect(ROW, torch.equal(before, reference.hidden_states[-6]), "the reference was changed")
    alpha = knobs.get("vl_alpha", KNOBS["vl_alpha"].default)
    check_result(text, out, report, None if not isinstance(alpha, float) else torch.full((len(text),), alpha), knobs)
    again, _ = condition(reference, **inputs, **knobs)
    expect(ROW, torch.equal(again, out), f"twice is not once, with {knobs}")


@fuzz(3)
@given(knobs_of(tuple(name for name in CONDITIONING_NAMES if name != "vl_max_pixels")))
def test_the_toy_paints_with_them(knobs: dict[str, Any]) -> None:
    count(ROW)

    def paint(**arguments: Any) -> np.ndarray[Any, Any]:
        size = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 0.0, "output_type": "np"}
        return load_toy_once()(PROMPT, generator=seeded(), **size, **arguments).images

    try:
        painted = paint(reference_image=PICTURE, **knobs)
    except (ValueError, TypeError) as error:
        expect(ROW, is_ours(error), f"{error!r} with {knobs}")
        return
    expect(ROW, np.isfinite(painted).all(), knobs)
    still = paint(reference_image=PICTURE, **{**knobs, "vl_alpha": 0.0})
    expect(ROW, np.array_equal(still, paint()), f"alpha 0 is not the plain picture, with {knobs}")
