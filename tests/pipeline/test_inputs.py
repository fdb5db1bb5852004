"""From arguments to a plan: what it holds, what is refused before any model loads or runs, what is only warned of."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedding_samples import make_reference
from pipeline_samples import (
    KNOBS,
    OTHER_PROMPT,
    PROMPT,
    call,
    make_picture,
    paint,
    paint_with,
    record_runs,
    same,
    save_vl_parts,
    seeded,
)
from tiny_models import tiny_image_processor, tiny_pipeline, tiny_transformer, tiny_vl_encoder
from zimage_vl.blend.registry import KNOBS as REGISTRY
from zimage_vl.pipeline import inputs
from zimage_vl.pipeline.inputs import Plan, max_text_tokens, read_inputs, warn_about_models
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
from zimage_vl.reference import readers
from zimage_vl.reference.embeds import ReferenceEmbeds


PICTURE, OTHER = make_picture(0), make_picture(1)
PROMPTS = [PROMPT, OTHER_PROMPT]
WIDTH = 32
READY = make_reference(dims=WIDTH, layers=(-2,))
WHITE = Image.new("L", (48, 32), 255)
STYLE = {"vl_blend_mode": "style_delta"}


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is logged, as if nothing had been said before."""
    monkeypatch.setattr(inputs, "_warned", set())
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("zimage_vl.pipeline.inputs")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


# ---- The plan ----


def plan(pipe: Any, prompts: Any = PROMPTS, **arguments: Any) -> Plan:
    knobs = {**KNOBS, **arguments} if set(arguments) & {"reference_image", "reference_embeds"} else arguments
    return read_inputs(pipe.get_host(), {"prompt": prompts, "guidance_scale": 0.0}, knobs)


def plain(colour: str, size: tuple[int, int] = (32, 16)) -> Image.Image:
    return Image.new("RGB", size, colour)


def colours(made: Plan) -> list[list[tuple[int, int, int]]]:
    """The colours of each prompt's pictures."""
    return [[picture.picture.getpixel((0, 0)) for picture in one.pictures] for one in made.references]


RED, BLUE, ALL_WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def test_no_pictures_one_for_all_one_for_each_and_several_for_one(pipe: ZImageVLPipeline) -> None:
    for nothing in ({}, {"reference_image": [None]}, {"reference_embeds": [None, None]}):
        made = plan(pipe, **nothing)
        assert (made.prompts, made.guided, made.references, made.acting_pictures) == (PROMPTS, False, (), ())
    made = plan(pipe, reference_image=plain("red"))
    assert [one.turn.text for one in made.references] == PROMPTS
    assert [reading.provenance.text for reading in made.acting_pictures] == PROMPTS
    for two in ([plain("red"), plain("blue")], [np.asarray(plain("red")), (plain("blue"),)]):
        assert colours(plan(pipe, reference_image=two)) == [[RED], [BLUE]]
    several = plan(pipe, PROMPT, reference_image=[[plain("red"), plain("blue")]], reference_weights=[2, 1])
    assert colours(several) == [[RED, BLUE]]
    assert several.references[0].conditioning.reference_weights == (2.0, 1.0)
    one = plan(pipe, reference_image=[None, plain("red")])
    assert colours(one) == [[], [RED]]
    assert [each.conditioning.is_inert for each in one.references] == [True, False]


def test_alphas_per_prompt_and_per_token(pipe: ZImageVLPipeline) -> None:
    tokens = [len(pipe.tokenize_prompt(prompt)) for prompt in PROMPTS]
    ramp = torch.linspace(0, 1, tokens[1])
    for alpha in ([0.3, 0.7], [{"default": 0.3}, {"default": 0.7}], [[0.3] * tokens[0], ramp]):
        first, second = plan(pipe, reference_image=PICTURE, vl_alpha=alpha).references
        torch.testing.assert_close(first.alpha, torch.full((tokens[0],), 0.3))
        torch.testing.assert_close(second.alpha, ramp if alpha[1] is ramp else torch.full((tokens[1],), 0.7))


def test_texts_masks_and_neutral_pictures(pipe: ZImageVLPipeline) -> None:
    for given, texts in (("a photo", ["a photo"] * 2), (["x", ""], ["x", ""])):
        made = plan(pipe, reference_image=PICTURE, vl_text=given)
        assert [reading.provenance.text for reading in made.acting_pictures] == texts
    both = [[plain("red", (32, 16)), plain("red", (64, 32))]]
    half = Image.new("L", (8, 4), 0)
    half.paste(255, (0, 0, 4, 4))
    for masks in (half, [[half, half]]):
        made = plan(pipe, PROMPT, reference_image=both, reference_mask=masks)
        assert [reading.visible.sum().item() for reading in made.acting_pictures] == [1, 4]
    for neutral, expected in ((plain("white"), [ALL_WHITE] * 2), ([plain("white"), plain("blue")], [ALL_WHITE, BLUE])):
        made = plan(pipe, reference_image=PICTURE, neutral_image=neutral, **STYLE)
        assert [each[-1] for each in colours(made)] == expected
        assert len({picture.grid for picture in made.acting_pictures}) == 1


def test_nothing_is_derived_twice(pipe: ZImageVLPipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "reference.png")
    paint_with(pipe, tmp_path / "reference.png")
    counts = dict.fromkeys(("render", "tokenise", "load", "scan"), 0)

    def count(owner: Any, attribute: str, name: str) -> None:
        original = getattr(owner, attribute)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, counted)

    count(type(pipe.tokenizer), "apply_chat_template", "render")
    count(type(pipe.tokenizer), "__call__", "tokenise")
    count(Image, "open", "load")
    count(torch, "isfinite", "scan")
    pipe.clear_reference_cache()
    paint_with(pipe, tmp_path / "reference.png")
    assert counts["load"] == 1
    assert all(0 < counts[name] <= most for name, most in {"render": 4, "tokenise": 4, "scan": 6}.items())


# ---- Refused: the call ----


def refused(pipe: Any, match: str, prompt: Any = PROMPT, error: Any = ValueError, **kwargs: Any) -> None:
    with record_runs(pipe) as runs, pytest.raises(error, match=f"(?s){match}"):
        call(pipe, prompt, **kwargs)
    assert runs == []


def refused_beside_a_picture(pipe: Any, match: str, prompt: Any = PROMPT, error: Any = ValueError, **kw: Any) -> None:
    refused(pipe, match, prompt, error, **{"reference_image": PICTURE, **KNOBS, **kw})


def embeds(tokens: int = 5, width: int = WIDTH, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(tokens, width, generator=seeded()).to(dtype)


GUIDED = {"guidance_scale": 3.0}


def test_prompts(pipe: ZImageVLPipeline) -> None:
    refused(pipe, "`prompt`.*or `prompt_embeds`.*neither", None)
    refused(pipe, "`prompt`.*or `prompt_embeds`.*both", PROMPT, prompt_embeds=[embeds()])
    refused(pipe, "empty list", [])
    for wrong in (3, [PROMPT, None], b"a"):
        refused(pipe, "`prompt` must be a string or a list of strings", wrong, TypeError)
    refused(pipe, "`negative_prompt` must be a string", error=TypeError, negative_prompt=7, **GUIDED)
    refused(pipe, "2 entries for 1 prompts", negative_prompt=["", ""], **GUIDED)
    refused(pipe, "at most 1504 text tokens, the prompt has", "a " * 2000, max_sequence_length=4000)
    for arguments in ({"prompt": "a \ud800"}, {"negative_prompt": "\udc80", **GUIDED}):
        refused(pipe, "prompt` is no valid Unicode", **arguments)
    refused_beside_a_picture(pipe, "`vl_text` is no valid Unicode", vl_text="a \ud800 b")
    refused(pipe, "`negative_prompt_embeds` are needed", None, prompt_embeds=[embeds()], **GUIDED)
    two = {"prompt_embeds": [embeds()], "negative_prompt_embeds": [embeds()] * 2}
    refused(pipe, "2 entries for 1 prompts", None, **two, **GUIDED)
    both = {"negative_prompt": "a", "negative_prompt_embeds": [embeds()]}
    refused(pipe, "`negative_prompt` or `negative_prompt_embeds`, not both", **both, **GUIDED)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ([embeds(0)], ValueError, r"prompt_embeds\[0\]`.*\(tokens, dims\).*\(0, 32\)"),
        ([embeds(), embeds(4, 4096)], ValueError, r"prompt_embeds\[1\]` must be 32 wide.*got 4096.*8B 4096"),
        ([embeds()[None]], ValueError, r"\(1, 5, 32\)"),
        *[(x, TypeError, "must be a list") for x in (embeds(), (embeds(),), [])],
        ([embeds().int()], TypeError, "floating-point.*int32"),
        ([np.zeros((5, 32))], TypeError, "floating-point.*ndarray"),
        *[([embeds() + x], ValueError, "NaN or inf") for x in (math.nan, math.inf)],
        ([embeds(1505)], ValueError, r"1504 text tokens, `.*prompt_embeds\[0\]` has 1505"),
    ],
)
def test_embeddings_that_do_not_fit(pipe: ZImageVLPipeline, given: Any, error: Any, match: str) -> None:
    refused(pipe, match, None, error, prompt_embeds=given)
    refused(pipe, match, None, error, prompt_embeds=[embeds()], negative_prompt_embeds=given, **GUIDED)


def test_embeddings_in_another_precision_are_brought_to_float32(pipe: ZImageVLPipeline) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        given = {"prompt_embeds": [embeds(dtype=dtype)], "negative_prompt_embeds": [embeds(4, dtype=dtype)], **GUIDED}
        plain = {name: [x.float() for x in each] for name, each in given.items() if "embeds" in name}
        same(paint(pipe, None, **given), paint(pipe, None, **plain, **GUIDED))


NOT_FINITE = [math.nan, math.inf, "5"]
BAD_CALLS: list[tuple[dict[str, Any], Any, str]] = [
    *[({"height": x}, ValueError, f"`height` must be a whole number from 1 to .*, got {x!r}") for x in (0, 64.0, "6")],
    ({"width": 2**13}, ValueError, "`width` must be at most 2048, the most that this transformer has, got 8192"),
    ({"width": 33}, ValueError, "`width` must be divisible by 4, got 33"),
    *[({"num_inference_steps": x}, ValueError, f"from 1 to 10000, got {x}") for x in (0, True, 10**30)],
    *[({"num_images_per_prompt": x}, ValueError, f"`num_images_per_prompt`.*{x}") for x in (0, None)],
    *[({"max_sequence_length": x}, ValueError, f"`max_sequence_length`.*{x}") for x in (0, 64.5, 4097, 10**30)],
    *[({"guidance_scale": x}, ValueError, f"`guidance_scale` must be.*at least 0.*{x}") for x in [-1.0, *NOT_FINITE]],
    ({"guidance_scale": 10**400}, ValueError, "`guidance_scale` must be a finite number"),
    ({"cfg_truncation": math.nan}, ValueError, "`cfg_truncation`.*nan"),
    ({"sigmas": []}, ValueError, "`sigmas` must be a list of numbers"),
    ({"sigmas": [1.0, math.nan]}, ValueError, r"`sigmas\[1\]`.*nan"),
    ({"latents": torch.zeros(1, 4, 8, 8)}, ValueError, r"`latents`.*\(1, 4, 16, 16\).*\(1, 4, 8, 8\)"),
    ({"latents": [1]}, ValueError, "`latents` must be a tensor"),
    ({"latents": torch.full((1, 4, 16, 16), math.nan)}, ValueError, "NaN or infinity in `latents`"),
    ({"output_type": "png"}, ValueError, "`output_type` must be one of.*'png'"),
    ({"generator": [seeded(), seeded()]}, ValueError, "`generator` is a list of 2, but 1"),
    *[({"generator": x}, TypeError, "`generator` must be a torch.Generator") for x in (7, [None], (seeded(),))],
    ({"callback_on_step_end": "print"}, TypeError, "`callback_on_step_end` must be a function"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, "callback_on_step_end_tensor_inputs.*noise"),
]


@pytest.mark.parametrize(("kwargs", "error", "match"), BAD_CALLS, ids=[str(i) for i in range(len(BAD_CALLS))])
def test_what_diffusers_finds_late_or_never(pipe: ZImageVLPipeline, kwargs: Any, error: Any, match: str) -> None:
    refused(pipe, match, error=error, **kwargs)
    refused_beside_a_picture(pipe, match, error=error, **kwargs)


def test_embeddings_for_other_pipelines_are_checked_alike(pipe: ZImageVLPipeline) -> None:
    wrong: list[tuple[Any, str, dict[str, Any]]] = [
        (ValueError, "`vl_start` is refused here", {"vl_start": 0.5}),
        (TypeError, "no argument `vl_aplha` here. Did you mean vl_alpha", {"vl_aplha": 0.5}),
        (ValueError, "max_sequence_length", {"max_sequence_length": 0}),
        (ValueError, "needs a reference", {"reference_image": None, "vl_text": "a circle"}),
        (TypeError, "True or False", {"do_classifier_free_guidance": 1}),
        (TypeError, "`negative_prompt`", {"negative_prompt": 7}),
        (ValueError, "`prompt`.*neither", {"prompt": None}),
    ]
    reading: list[tuple[Any, str, dict[str, Any]]] = [
        (ValueError, "must be one of", {"vl_reader": "x"}),
        (TypeError, "`muted` must be", {"muted": "x"}),
        (TypeError, "`describe` must be", {"describe": 1}),
        (ValueError, "needs vl_reader", {"describe": True, "text": "", "vl_reader": "text_encoder"}),
        (ValueError, "leave out `text`", {"describe": True}),
        (TypeError, "no argument `text_tokens_only` here: use it in the call", {"text_tokens_only": True}),
        (TypeError, "no argument `vl_alpha` here: use it in the call", {"vl_alpha": 0.5}),
        (TypeError, "no argument `hidden_layer` here: use layers", {"hidden_layer": -2}),
        (TypeError, "no argument `vl_text_position` here: use text_position", {"vl_text_position": "before"}),
        (TypeError, "`text` must be a string", {"text": 7}),
        (ValueError, "max_sequence_length", {"max_sequence_length": 0}),
        (ValueError, "max_sequence_length", {"max_sequence_length": None}),
    ]
    with record_runs(pipe) as runs:
        for error, match, kwargs in wrong:
            with pytest.raises(error, match=match):
                pipe.encode_prompt_with_reference(**{"prompt": PROMPT, "reference_image": PICTURE, **kwargs})
        for error, match, kwargs in reading:
            with pytest.raises(error, match=match):
                pipe.encode_reference(PICTURE, **{"text": PROMPT, "layers": (-2,), **kwargs})
    assert runs == []


# ---- Refused: what is about references ----


def test_numbers_that_do_not_match(pipe: ZImageVLPipeline) -> None:
    refused_beside_a_picture(pipe, "3 entries for 2 prompts", PROMPTS, reference_image=[PICTURE] * 3)
    refused_beside_a_picture(pipe, "2 entries for 1 prompt", reference_image=[PICTURE] * 2)
    refused_beside_a_picture(pipe, "3 entries for 2 prompts", PROMPTS, reference_image=[None, None, PICTURE])
    for empty in ([], [[]]):
        refused_beside_a_picture(pipe, "empty list", reference_image=empty)
    refused_beside_a_picture(pipe, "nested too deep", reference_image=[[[PICTURE]]])
    refused_beside_a_picture(pipe, "`vl_text` has 3 entries for 2", PROMPTS, vl_text=["a"] * 3)
    refused_beside_a_picture(pipe, "`vl_alpha` is a list of 1.*2 prompts", PROMPTS, vl_alpha=[{"prompt": 0.5}])
    several = r"2 numbers for 1 references.*reference_image=\[\[first, second\]\]"
    refused_beside_a_picture(pipe, several, reference_weights=[1, 1])
    refused_beside_a_picture(pipe, "2 masks", reference_mask=[[WHITE] * 2])
    refused_beside_a_picture(pipe, "one picture per prompt, got 2", neutral_image=[[PICTURE] * 2], **STYLE)
    negative = {"negative_reference_image": [PICTURE] * 3, **GUIDED, **KNOBS}
    refused(pipe, "`negative_reference_image` has 3 entries for 2 prompts", PROMPTS, **negative)


# One value of each knob that it cannot have; every form of each is tried in tests/blend/test_knobs.py.
BAD_KNOBS: list[tuple[dict[str, Any], Any, str]] = [
    ({"vl_alpha": math.nan}, ValueError, "vl_alpha.*nan"),
    ({"vl_alpha": -(10**400)}, ValueError, "a number from 0 to 1"),
    ({"vl_alpha": [0.1, 0.2]}, ValueError, "17 tokens.*got 2"),
    ({"vl_alpha": {"a yellow": 0.5}}, ValueError, "a yellow"),
    *[({"vl_hidden_layer": x}, ValueError, "-7 .. 6") for x in (7, -8)],
    ({"vl_hidden_layer": 2.0}, TypeError, "vl_hidden_layer.*-6, -8"),
    *[({"vl_text": x}, TypeError, "`vl_text` must be a string") for x in (3, ["x", None])],
    ({"vl_describe": 1}, TypeError, "`vl_describe` must be True or False"),
    ({"vl_describe": True, "vl_reader": "text_encoder"}, ValueError, "the text encoder cannot write"),
    ({"vl_target_std": 0.0}, ValueError, "vl_target_std"),
    ({"vl_outlier_threshold": 1.0}, ValueError, "vl_outlier_threshold.*> 1"),
    ({"vl_exclude_sinks": 1}, TypeError, "vl_exclude_sinks"),
    ({"vl_start": 0.6, "vl_end": 0.6}, ValueError, "vl_start.*below"),
    ({"vl_start": 0.6, "vl_end": 0.9}, ValueError, "none of 2 steps"),
    *[({"vl_max_pixels": x}, ValueError, "max_pixels") for x in (0, 255)],
    ({"reference_weights": [0.0]}, ValueError, "reference_weights.*above 0"),
    ({"vl_outlier_masking": "zero", "vl_token_selection": "text"}, ValueError, "would do nothing"),
    ({"neutral_image": PICTURE}, ValueError, "neutral_image.*do nothing"),
    ({"vl_concat_tokens": 3}, ValueError, "vl_concat_tokens.*concat"),
    ({"reference_mask": Image.new("L", (48, 32), 0)}, ValueError, "mask"),
    ({"prompt": "a <|image_pad|> circle"}, ValueError, "vision"),
    *[({n: "?"}, ValueError, f"{n}.*{k.choices[-1]}.*'\\?'") for n, k in REGISTRY.items() if k.choices],
]


@pytest.mark.parametrize(("kwargs", "error", "match"), BAD_KNOBS, ids=[str(i) for i in range(len(BAD_KNOBS))])
def test_knobs_out_of_range(pipe: ZImageVLPipeline, kwargs: dict[str, Any], error: Any, match: str) -> None:
    refused_beside_a_picture(pipe, match, error=error, **{"prompt": PROMPT, **kwargs})


def test_without_a_reference_knobs_are_checked_for_their_values_only(pipe: ZImageVLPipeline) -> None:
    for name in ("vl_alpha", "vl_target_std", "vl_max_pixels"):
        refused(pipe, name, **{name: -1})
    expected = paint(pipe)
    for knobs in (
        {"vl_alpha": {"lighthouse": 0.5}, "vl_hidden_layer": 99},
        {"vl_alpha": [0.5] * 3, "vl_start": 0.4, "vl_end": 0.5, "reference_image": [None]},
        STYLE,
        {"vl_normalization": "per_dim", "vl_target_std": 70.0, "vl_alignment": "concat"},
    ):
        same(paint(pipe, **knobs), expected)
    needing = {"reference_weights": [1.0], "reference_mask": WHITE, "vl_text": "a circle", "neutral_image": PICTURE}
    for name, value in needing.items():
        refused(pipe, f"`{name}` needs a reference", **{name: value}, **STYLE)
        negative = {"negative_reference_image": PICTURE, **GUIDED}
        refused(pipe, f"`{name}` needs a reference, one of its own", **{name: value}, **STYLE, **negative)


def test_what_ready_embeddings_have_settled_and_whether_they_fit(pipe: ZImageVLPipeline) -> None:
    settled = {"vl_text": "a", "vl_text_position": "before", "vl_max_pixels": 4096, "vl_treatment": "blur"}
    for name, value in {**settled, "reference_mask": WHITE}.items():
        refused(pipe, f"`{name}` was settled", reference_embeds=READY, **{**KNOBS, name: value})
    names = {"vl_text": "text", "vl_treatment": "treatment", "vl_text_position": "text_position"}
    as_read = replace(READY.provenance, max_pixels=4096, **{names[n]: x for n, x in settled.items() if n in names})
    embeds_as_read = ReferenceEmbeds(READY.hidden_states, READY.regions, as_read)
    same(
        paint(pipe, reference_embeds=embeds_as_read, **KNOBS, **settled), paint(pipe, reference_embeds=READY, **KNOBS)
    )
    refused(pipe, "16 wide.*32", reference_embeds=make_reference(dims=16, layers=(-2,)), **KNOBS)
    refused(pipe, "-2", reference_embeds=make_reference(dims=WIDTH, layers=(-3,)), **KNOBS)
    for wrong in (embeds(), PICTURE, 7):
        refused(pipe, "ReferenceEmbeds or the path", error=TypeError, reference_embeds=wrong, **KNOBS)
    refused(pipe, "a.safetensors", error=FileNotFoundError, reference_embeds="no/a.safetensors", **KNOBS)
    refused(pipe, "not both", reference_image=PICTURE, reference_embeds=READY, **KNOBS)
    refused(pipe, "got ReferenceEmbeds", error=TypeError, reference_image=READY, **KNOBS)
    refused_beside_a_picture(pipe, "`vl_text` must say", None, prompt_embeds=[embeds()])


def test_pictures_that_are_none(pipe: ZImageVLPipeline, tmp_path: Path) -> None:
    page = tmp_path / "page.png"
    page.write_text("<!DOCTYPE html><html></html>", encoding="utf-8")
    refused_beside_a_picture(pipe, "page.png.*HTML", reference_image=page)
    refused_beside_a_picture(pipe, "missing.png", error=FileNotFoundError, reference_image=tmp_path / "missing.png")
    refused_beside_a_picture(pipe, "`reference_image`", error=TypeError, reference_image=7)
    refused_beside_a_picture(pipe, "200:1", reference_image=make_picture(0, (4000, 10)))


def test_an_unknown_argument_names_the_one_that_was_meant(pipe: ZImageVLPipeline) -> None:
    meant = {
        "text_tokens_only": 'use vl_token_selection="text"',
        "scale_to_text": 'use vl_normalization="global"',
        "target_std": "use vl_target_std",
        "text_with_image": "use vl_text",
        "alpha": "use vl_alpha",
        "vl_aplha": "Did you mean vl_alpha",
        "reference": "Did you mean reference_image",
        "strength": "use zimage_vl.paint_from_image",
        "image": "use reference_image .to paint over it, zimage_vl.paint_from_image",
        "vl_embeds": "use reference_embeds",
        "zzz": "those about references are reference_image, .*vl_max_pixels",
    }
    for name, remedy in meant.items():
        refused(pipe, f"no argument `{name}` here.*{remedy}", error=TypeError, **{name: 1})


# ---- Before models load ----


def test_mistakes_are_found_before_the_weights_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = tiny_pipeline(with_vl=False, vl_model_id=save_vl_parts(tmp_path))

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(readers.Qwen3VLForConditionalGeneration, "from_pretrained", never)
    for kwargs, match in (
        ({"vl_alpha": {"lighthouse": 0.5}}, "lighthouse"),
        ({"vl_hidden_layer": 9}, "-7 .. 6"),
        ({"vl_max_pixels": 3}, "max_pixels"),
        ({"reference_mask": Image.new("L", (4, 4), 0)}, "mask"),
    ):
        refused_beside_a_picture(lazy, match, **kwargs)
    with pytest.raises(ValueError, match=r"-7 \.\. 6"):
        lazy.encode_reference(PICTURE, layers=(9,))
    assert lazy.vl_encoder is None
    with pytest.raises(AssertionError, match="weights were loaded"):
        paint_with(lazy, PICTURE)


def test_vl_parts_that_do_not_go_together() -> None:
    refused_beside_a_picture(tiny_pipeline(vl_processor=None), "without `vl_processor`")
    refused_beside_a_picture(tiny_pipeline(with_vl=False), "`vl_model_id` is None")
    refused_beside_a_picture(tiny_pipeline(vl_processor=tiny_image_processor(patch_size=4)), "patch_size 8, got 4")
    pipe = tiny_pipeline()
    pipe.register_modules(vl_encoder=tiny_vl_encoder(16))
    refused_beside_a_picture(pipe, "32.*16")


# ---- NaN from the models ----


@pytest.mark.parametrize(
    ("name", "weight", "stage"),
    [
        ("text_encoder", "embed_tokens.weight", "the embeddings of the text encoder"),
        ("vl_encoder", "model.language_model.embed_tokens.weight", "Qwen3-VL"),
        ("transformer", "layers.0.attention.to_q.weight", "the transformer"),
        ("vae", "decoder.conv_out.bias", "the pictures that were painted"),
    ],
)
@pytest.mark.parametrize("output_type", ["pil", "latent"])
def test_nan_from_a_model_names_the_stage(name: str, weight: str, stage: str, output_type: str) -> None:
    pipe = tiny_pipeline()
    expected, parameter = paint_with(pipe, PICTURE), getattr(pipe, name).get_parameter(weight)
    pipe.clear_reference_cache()
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.fill_(math.nan)
    if (name, output_type) == ("vae", "latent"):
        paint_with(pipe, PICTURE, output_type=output_type)
    else:
        with pytest.raises(ValueError, match=f"NaN.*{stage}|{stage}.*NaN"):
            paint_with(pipe, PICTURE, output_type=output_type)
    with torch.no_grad():
        parameter.copy_(kept)
    same(paint_with(pipe, PICTURE), expected)


# ---- Warned of ----

IDLE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"vl_normalization": "per_dim", "vl_target_std": 70.0}, {"vl_normalization": "per_dim"}, "vl_target_std"),
    ({"vl_normalization": "none", "vl_target_std": 70.0}, {"vl_normalization": "none"}, "vl_target_std"),
    ({"vl_outlier_threshold": 5.0}, {}, "vl_outlier_threshold"),
]


@pytest.mark.parametrize(("knobs", "without", "name"), IDLE)
def test_knobs_without_effect_warn_once(
    pipe: ZImageVLPipeline, warned: list[str], knobs: Any, without: Any, name: str
) -> None:
    paint(pipe, **knobs)  # no reference: nothing to say
    images = [paint_with(pipe, PICTURE, **knobs) for _ in range(2)]
    assert [f"`{name}`" in line for line in warned] == [True]
    same(images[0], paint_with(pipe, PICTURE, **without))


def test_masking_beside_per_dim_is_taken_and_said(pipe: ZImageVLPipeline, warned: list[str]) -> None:
    # The guide recommends both together.
    for masking in ("clamp", "scale"):
        paint_with(pipe, PICTURE, vl_normalization="per_dim", vl_outlier_masking=masking)
    assert ["`vl_outlier_masking`" in line for line in warned] == [True, True]


def named(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """What the warnings look at of a pipeline."""
    return SimpleNamespace(config=SimpleNamespace(_name_or_path=name), text_encoder=SimpleNamespace(dtype=dtype))


def test_guidance_with_turbo_and_float16_are_said_once(warned: list[str]) -> None:
    warn_about_models(named("Tongyi-MAI/Z-Image-Turbo"), 0.0, None)
    warn_about_models(named("Tongyi-MAI/Z-Image"), 5.0, None)
    assert warned == []
    for _ in range(2):
        warn_about_models(named("Tongyi-MAI/Z-Image-Turbo"), 5.0, None)
        warn_about_models(named("", torch.float16), 0.0, None)
    assert ["pass guidance_scale=0.0" in warned[0], "float16" in warned[1], len(warned)] == [True, True, 2]


def test_what_is_cut_off_is_said_each_time(pipe: ZImageVLPipeline, warned: list[str]) -> None:
    tokens = len(pipe.tokenize_prompt(PROMPT))
    paint(pipe, max_sequence_length=tokens)
    assert warned == []
    for _ in range(2):
        output = call(pipe, reference_image=PICTURE, max_sequence_length=tokens - 3, **KNOBS)
    assert output.conditioning[0].text_tokens == tokens - 3
    assert [f"has {tokens} tokens with its template, of which the last 3 are cut off" in s for s in warned] == [
        True
    ] * 2
    paint(pipe, "a", reference_image=PICTURE, vl_text=PROMPT, max_sequence_length=tokens - 3, **KNOBS)
    pipe.encode_reference(PICTURE, PROMPT, max_sequence_length=tokens - 3)
    assert [s.startswith(f"The text beside the picture has {tokens} tokens") for s in warned[2:]] == [True] * 2


# ---- Whose a reference is ----


def test_a_reference_of_another_encoder_is_refused_by_name(pipe: ZImageVLPipeline, warned: list[str]) -> None:
    made = pipe.encode_reference(PICTURE, PROMPT, (-2,))
    expected = paint(pipe, reference_embeds=made, **KNOBS)

    def relabel(**provenance: Any) -> ReferenceEmbeds:
        return ReferenceEmbeds(made.hidden_states, made.regions, replace(made.provenance, **provenance))

    instruct, thinking = "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-4B-Thinking"
    other = tiny_pipeline(vl_encoder=tiny_vl_encoder(seed=7), vl_model_id="some/where")
    refused(other, f"read by another.*{instruct}.*some/where", reference_embeds=relabel(model_id=instruct), **KNOBS)
    own = other.encode_reference(PICTURE, PROMPT, (-2,))
    refused(other, "another VL encoder", reference_embeds=own, neutral_image=made, **KNOBS, **STYLE)
    # One model under two names; no fingerprint to compare; made by hand.
    bare = ReferenceEmbeds(made.hidden_states, made.regions)
    for given in (relabel(model_id=instruct), relabel(vl_fingerprint=None), bare):
        same(paint(pipe, reference_embeds=given, **KNOBS), expected)
    # Without an encoder two Hub ids are compared; a folder tells nothing, and that is said once.
    without = tiny_pipeline(with_vl=False, vl_model_id=instruct)
    refused(without, f"`vl_model_id` '{thinking}'", reference_embeds=relabel(model_id=thinking), **KNOBS)
    assert warned == []
    for _ in range(2):
        same(paint(without, reference_embeds=relabel(model_id="/data/qwen3-vl"), **KNOBS), expected)
    assert ["/data/qwen3-vl" in line for line in warned] == [True]


# ---- Facts ----


def test_the_limit_is_what_the_transformer_can_take() -> None:
    transformer = tiny_transformer()
    assert max_text_tokens(transformer.config.axes_lens) == 1504
    latents, time = [torch.zeros(4, 1, 4, 4)], torch.tensor([0.5])
    with torch.no_grad():
        transformer(latents, time, [torch.ones(1504, WIDTH)])
        with pytest.raises((IndexError, RuntimeError)):
            transformer(latents, time, [torch.ones(1536 + 1, WIDTH)])


def test_the_calls_knobs_are_the_registrys() -> None:
    parameters = inspect.signature(ZImageVLPipeline.__call__).parameters
    own = [p for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert {p.name: p.default for p in own} == {name: knob.default for name, knob in REGISTRY.items()}
    assert [p.name for p in own] == list(REGISTRY)


def test_a_negative_reference_meets_negative_embeddings_of_any_length(pipe: ZImageVLPipeline) -> None:
    ready, _ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    output = call(
        pipe, negative_reference_image=PICTURE, negative_prompt_embeds=ready, **{**KNOBS, "guidance_scale": 2.0}
    )
    assert output.negative_conditioning[0].text_tokens == len(ready[0])
