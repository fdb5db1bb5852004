"""Every argument about references, checked and brought to one request a prompt."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from embedding_samples import make_reference
from zimage_vl.blend.knobs import VLConditioning
from zimage_vl.pipeline.inputs import KNOB_NAMES, ReferenceRequest, build_requests
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
from zimage_vl.reference.embeds import ReferenceEmbeds


DEFAULTS: dict[str, Any] = {name: getattr(VLConditioning(), name) for name in KNOB_NAMES}
PROMPTS = ["a red circle", "a blue square"]
READY = make_reference()
STYLE_DELTA = {"vl_blend_mode": "style_delta", "vl_normalization": "none"}


def picture(colour: str = "red", size: tuple[int, int] = (32, 16)) -> PIL.Image.Image:
    return PIL.Image.new("RGB", size, colour)


def build(prompts: list[str] | None = PROMPTS, *, size: int = 2, **arguments: Any) -> list[ReferenceRequest]:
    requests = build_or_none(prompts, size=size, **arguments)
    assert requests is not None
    return requests


def build_or_none(
    prompts: list[str] | None = PROMPTS, *, size: int = 2, **arguments: Any
) -> list[ReferenceRequest] | None:
    knobs = {**DEFAULTS, **{name: arguments.pop(name) for name in list(arguments) if name in KNOB_NAMES}}
    return build_requests(prompts, size, knobs, **arguments)


def pixels(item: Any) -> Any:
    return item.getpixel((0, 0))


def test_the_knobs_are_those_of_the_call() -> None:
    parameters = inspect.signature(ZImageVLPipeline.__call__).parameters
    assert {name for name in parameters if name.startswith("vl_")} - {"vl_text"} == set(KNOB_NAMES)
    assert {name: parameters[name].default for name in KNOB_NAMES} == DEFAULTS


def test_without_a_reference_there_is_no_request() -> None:
    assert build_or_none() is None


def test_the_knobs_are_checked_without_a_reference_too() -> None:
    with pytest.raises(ValueError, match="`vl_alpha`"):
        build_or_none(vl_alpha=2.0)


def test_one_picture_serves_all_prompts_and_is_read_once() -> None:
    first, second = build(reference_image=picture())
    assert (first.prompt, second.prompt) == tuple(PROMPTS)
    assert (first.text, second.text) == tuple(PROMPTS)
    assert first.references[0] is second.references[0]
    assert first.masks == second.masks == (None,)
    assert first.neutral is None


def test_a_list_is_one_a_prompt_and_a_list_in_it_several() -> None:
    first, second = build(reference_image=[picture("red"), picture("blue")])
    assert (pixels(first.references[0]), pixels(second.references[0])) == ((255, 0, 0), (0, 0, 255))
    only = build(["a"], size=1, reference_image=[[picture("red"), picture("blue")]], reference_weights=[2, 1])[0]
    assert [pixels(item) for item in only.references] == [(255, 0, 0), (0, 0, 255)]
    assert only.knobs.reference_weights == (2.0, 1.0)


def test_the_callers_lists_are_as_before() -> None:
    images, texts, alphas = [picture(), picture()], ["x", "y"], [{"default": 0.1}, {"default": 0.2}]
    copies = list(images), list(texts), [dict(alpha) for alpha in alphas]
    build(reference_image=images, vl_text=texts, vl_alpha=alphas)
    assert (images, texts, alphas) == copies


def test_alphas_a_prompt_and_alphas_a_token() -> None:
    by_place = build(reference_image=picture(), vl_alpha=[{"suffix": 1.0}, [0.1, 0.2]])
    assert [request.knobs.vl_alpha for request in by_place] == [{"suffix": 1.0}, (0.1, 0.2)]
    for alpha in ([0.1, 0.2], torch.tensor([0.5, 0.25]), (0.1, 0.2)):
        requests = build(reference_image=picture(), vl_alpha=alpha)
        assert requests[0].knobs.vl_alpha == requests[1].knobs.vl_alpha == pytest.approx(tuple(map(float, alpha)))
    tensors = build(reference_image=picture(), vl_alpha=[torch.tensor([0.5]), torch.tensor([0.25, 1.0])])
    assert [request.knobs.vl_alpha for request in tensors] == [(0.5,), (0.25, 1.0)]


def test_one_text_for_all_or_one_a_prompt() -> None:
    assert [r.text for r in build(reference_image=picture(), vl_text="a photo")] == ["a photo"] * 2
    assert [r.text for r in build(reference_image=picture(), vl_text=["x", ""])] == ["x", ""]
    assert build(None, size=1, reference_image=picture(), vl_text="")[0].prompt is None


def test_masks_fit_their_pictures() -> None:
    mask = PIL.Image.new("L", (8, 4), 255)
    images = [[picture(size=(32, 16)), picture(size=(64, 32))]]
    both = build(["a"], size=1, reference_image=images, reference_mask=mask)[0]
    assert [m.size for m in both.masks if m is not None] == [(32, 16), (64, 32)]
    each = build(["a"], size=1, reference_image=images, reference_mask=[[mask, PIL.Image.new("L", (8, 4), 200)]])[0]
    assert [pixels(m) for m in each.masks] == [255, 200]


def test_the_vl_encoder_is_needed_for_pictures_that_count() -> None:
    assert build(reference_image=picture())[0].needs_vl_encoder
    assert not build(reference_image=picture(), vl_alpha=0.0)[0].needs_vl_encoder
    assert not build(reference_embeds=READY)[0].needs_vl_encoder
    per_prompt = build(reference_image=picture(), vl_alpha=[{"default": 0.0}, {"default": 0.5}])
    assert [request.needs_vl_encoder for request in per_prompt] == [False, True]


def test_ready_embeddings_have_their_text_already() -> None:
    other = make_reference(seed=5)
    requests = build(reference_embeds=[READY, other])
    assert [request.references for request in requests] == [(READY,), (other,)]
    assert [request.text for request in requests] == [None, None]
    assert [request.masks for request in requests] == [(None,), (None,)]


def test_a_neutral_picture_serves_all_or_one_a_prompt() -> None:
    one = build(reference_image=picture(), neutral_image=picture("white"), **STYLE_DELTA)
    assert [pixels(request.neutral) for request in one] == [(255, 255, 255)] * 2
    each = build(reference_image=picture(), neutral_image=[picture("white"), picture("blue")], **STYLE_DELTA)
    assert [pixels(request.neutral) for request in each] == [(255, 255, 255), (0, 0, 255)]
    ready = build(reference_embeds=READY, neutral_image=READY, **STYLE_DELTA)
    assert isinstance(ready[0].neutral, ReferenceEmbeds)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.png"):
        build(reference_image=tmp_path / "nowhere.png")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"reference_image": picture(), "reference_embeds": READY}, "not both"),
        ({"reference_weights": [1, 2]}, "`reference_weights` needs a reference"),
        ({"reference_mask": picture()}, "`reference_mask` needs a reference"),
        ({"neutral_image": picture(), **STYLE_DELTA}, "`neutral_image` needs a reference"),
        ({"vl_text": ""}, "`vl_text` needs a reference"),
        ({"reference_embeds": READY, "vl_text": "x"}, "`vl_text` was settled"),
        ({"reference_embeds": READY, "reference_mask": picture()}, "`reference_mask` was settled"),
        ({"reference_embeds": READY, "vl_text_position": "before"}, "`vl_text_position` was settled"),
        ({"reference_embeds": READY, "vl_max_pixels": 4096}, "`vl_max_pixels` was settled"),
        ({"reference_image": [picture()] * 3}, "3 entries for 2 prompts"),
        ({"reference_image": []}, "empty list"),
        ({"reference_image": picture(), "vl_text": ["x"]}, "1 texts for 2 prompts"),
        ({"reference_image": picture(), "vl_alpha": [{"default": 0.1}]}, "list of 1, one a prompt"),
        ({"reference_image": picture(), "vl_alpha": [[0.1], [0.2], [0.3]]}, "list of 3, one a prompt"),
        ({"reference_image": picture(), "reference_weights": [1, 2]}, "2 numbers for 1 references"),
        ({"reference_image": picture(), "reference_mask": [[picture(), picture()]]}, "has 2 masks"),
        ({"reference_image": picture(), "neutral_image": READY, **STYLE_DELTA}, "of the references' kind"),
        ({"reference_embeds": READY, "neutral_image": picture(), **STYLE_DELTA}, "of the references' kind"),
        ({"reference_image": picture(), "neutral_image": [[picture()] * 2], **STYLE_DELTA}, "one picture a prompt"),
        ({"prompts": None, "reference_image": picture()}, "the prompt's words are not known"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_or_none(**arguments)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"reference_image": READY}, "pass ReferenceEmbeds as `reference_embeds`"),
        ({"reference_embeds": picture()}, "`reference_embeds` takes ReferenceEmbeds"),
        ({"reference_image": 7}, "`reference_image`"),
        ({"reference_image": picture(), "vl_text": 7}, "`vl_text` must be a string"),
        ({"reference_image": picture(), "vl_text": ["x", None]}, "`vl_text` must be a string"),
    ],
)
def test_what_is_of_the_wrong_type_is_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        build_or_none(**arguments)
