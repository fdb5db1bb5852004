"""What a call asks for, prompt by prompt: every argument about references, checked and brought to one form.

All of it happens before any model runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from PIL import Image

from ..blend.knobs import VLConditioning
from ..reference.embeds import ReferenceEmbeds
from ..reference.pictures import group_references, load_reference_image, load_reference_mask


# The knobs that a call takes under these names; the rest of VLConditioning follows from other arguments.
KNOB_NAMES = tuple(spec.name for spec in fields(VLConditioning) if spec.name.startswith("vl_"))
# What only matters while a picture is encoded: with ready embeddings it would be ignored.
_ENCODING_KNOBS = ("vl_text_position", "vl_max_pixels")


@dataclass(frozen=True)
class ReferenceRequest:
    """The references of one prompt and how they are to act.

    Attributes:
        prompt: The prompt; None where only its embeddings are known.
        references: Pictures, or what the VL encoder said about them.
        masks: One a reference, None where the whole picture counts.
        neutral: The neutral picture of "style_delta".
        text: The text beside the pictures; None with ready embeddings.
        knobs: How they are to act.
    """

    prompt: str | None
    references: tuple[Image.Image | ReferenceEmbeds, ...]
    masks: tuple[Image.Image | None, ...]
    neutral: Image.Image | ReferenceEmbeds | None
    text: str | None
    knobs: VLConditioning

    @property
    def needs_vl_encoder(self) -> bool:
        """Whether a picture has to be read: not with ready embeddings, nor where alpha is 0 everywhere."""
        given = (*self.references, self.neutral)
        return not self.knobs.is_inert and any(isinstance(item, Image.Image) for item in given)


def build_requests(
    prompts: Sequence[str] | None,
    batch_size: int,
    knobs: Mapping[str, Any],
    *,
    reference_image: Any = None,
    reference_embeds: Any = None,
    reference_weights: Any = None,
    reference_mask: Any = None,
    neutral_image: Any = None,
    vl_text: str | Sequence[str] | None = None,
) -> list[ReferenceRequest] | None:
    """One request a prompt, or None where no reference was given.

    Args:
        prompts: The prompts; None where only their embeddings are known.
        batch_size: Number of prompts.
        knobs: Values for `KNOB_NAMES`; they are checked without a reference too.
        reference_image: Pictures, nested as `group_references` says.
        reference_embeds: `ReferenceEmbeds`, nested alike.
        reference_weights: Numbers >= 0, as many as one prompt has references.
        reference_mask: Greyscale pictures, nested alike; one alone serves all references.
        neutral_image: One picture (or `ReferenceEmbeds`) for all prompts or one a prompt.
        vl_text: One text for all or one a prompt; None is the prompt.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: A knob out of range, numbers that do not match, arguments that exclude each other or would do
            nothing.
    """
    alphas = _split_alphas(knobs["vl_alpha"], batch_size)
    common: dict[str, Any] = {
        **knobs,
        "reference_weights": reference_weights,
        "has_neutral_image": neutral_image is not None,
    }
    conditionings = [VLConditioning(**{**common, "vl_alpha": alpha}) for alpha in alphas]
    if reference_image is not None and reference_embeds is not None:
        raise ValueError("Pass `reference_image` or `reference_embeds`, not both.")
    if reference_image is None and reference_embeds is None:
        extras = {
            "reference_weights": reference_weights,
            "reference_mask": reference_mask,
            "neutral_image": neutral_image,
            "vl_text": vl_text,
        }
        _refuse_set(extras, "needs a reference: pass `reference_image` or `reference_embeds`")
        return None
    if reference_image is not None:
        groups = _load_groups(reference_image, batch_size, "reference_image")
        masks = _load_masks(reference_mask, groups)
        texts = _texts_beside(vl_text, prompts, batch_size)
    else:
        _refuse_set({"vl_text": vl_text, "reference_mask": reference_mask}, _SETTLED)
        _refuse_set({n: knobs[n] for n in _ENCODING_KNOBS if knobs[n] != _default_of(n)}, _SETTLED)
        groups = _check_embeds(group_references(reference_embeds, batch_size, "reference_embeds"))
        masks = [(None,) * len(group) for group in groups]
        texts = [None] * batch_size
    neutrals = _load_neutrals(neutral_image, batch_size, ready=reference_embeds is not None)
    _check_weight_count(reference_weights, groups)
    return [
        ReferenceRequest(prompts[n] if prompts is not None else None, *parts)
        for n, parts in enumerate(zip(groups, masks, neutrals, texts, conditionings, strict=True))
    ]


_SETTLED = "was settled when `reference_embeds` were encoded: leave it out, or encode the reference again with it"


def _default_of(name: str) -> Any:
    return next(spec.default for spec in fields(VLConditioning) if spec.name == name)


def _refuse_set(values: Mapping[str, Any], reason: str) -> None:
    for name, value in values.items():
        if value is not None:
            raise ValueError(f"`{name}` {reason}. Got {name}={value!r:.80}.")


def _split_alphas(vl_alpha: Any, batch_size: int) -> list[Any]:
    """One alpha a prompt: a list of lists, dicts or tensors is one a prompt, anything else serves all."""
    if not isinstance(vl_alpha, (list, tuple)):
        return [vl_alpha] * batch_size
    entries = cast("Sequence[Any]", vl_alpha)
    if not any(isinstance(entry, (Mapping, list, tuple)) or getattr(entry, "ndim", 0) for entry in entries):
        return [vl_alpha] * batch_size
    if len(entries) != batch_size:
        raise ValueError(f"`vl_alpha` is a list of {len(entries)}, one a prompt, but there are {batch_size} prompts.")
    return list(entries)


def _load_groups(references: Any, batch_size: int, name: str) -> list[tuple[Image.Image, ...]]:
    loaded: dict[int, Image.Image] = {}  # a picture that serves several prompts is read once
    groups = group_references(references, batch_size, name)
    for item in (item for group in groups for item in group):
        if isinstance(item, ReferenceEmbeds):
            raise TypeError(f"`{name}` takes pictures; pass ReferenceEmbeds as `reference_embeds`.")
        if id(item) not in loaded:
            loaded[id(item)] = load_reference_image(item, name)
    return [tuple(loaded[id(item)] for item in group) for group in groups]


def _load_masks(mask: Any, groups: Sequence[tuple[Image.Image, ...]]) -> list[tuple[Image.Image | None, ...]]:
    if mask is None:
        return [(None,) * len(group) for group in groups]
    result: list[tuple[Image.Image | None, ...]] = []
    for own, pictures in zip(group_references(mask, len(groups), "reference_mask"), groups, strict=True):
        if len(own) not in (1, len(pictures)):
            raise ValueError(
                f"`reference_mask` has {len(own)} masks for a prompt with {len(pictures)} references: pass one for "
                "all or one a reference."
            )
        each = own * len(pictures) if len(own) == 1 else own
        result.append(tuple(load_reference_mask(m, picture.size) for m, picture in zip(each, pictures, strict=True)))
    return result


def _texts_beside(vl_text: Any, prompts: Sequence[str] | None, batch_size: int) -> list[str | None]:
    if vl_text is None:
        if prompts is None:
            raise ValueError(
                "With `prompt_embeds` the prompt's words are not known, so `vl_text` must say what stands beside the "
                'reference (vl_text="" for nothing), or pass `reference_embeds`.'
            )
        return list(prompts)
    texts = [vl_text] * batch_size if isinstance(vl_text, str) else vl_text
    if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in cast("Sequence[Any]", texts)):
        raise TypeError(f"`vl_text` must be a string or a list of strings, one a prompt, got {vl_text!r}.")
    if len(cast("Sequence[Any]", texts)) != batch_size:
        raise ValueError(
            f"`vl_text` has {len(cast('Sequence[Any]', texts))} texts for {batch_size} prompts: pass one for all or "
            "one a prompt."
        )
    return list(cast("Sequence[str]", texts))


def _check_embeds(groups: list[list[Any]]) -> list[tuple[ReferenceEmbeds, ...]]:
    for item in (item for group in groups for item in group):
        if not isinstance(item, ReferenceEmbeds):
            raise TypeError(
                f"`reference_embeds` takes ReferenceEmbeds, from pipe.encode_reference(...) or ReferenceEmbeds.load, "
                f"got {type(item).__name__}."
            )
    return [tuple(group) for group in groups]


def _load_neutrals(neutral: Any, batch_size: int, ready: bool) -> list[Any]:
    if neutral is None:
        return [None] * batch_size
    groups = group_references(neutral, batch_size, "neutral_image")
    for group in groups:
        if len(group) != 1:
            raise ValueError(f"`neutral_image` is one picture a prompt, got {len(group)} for one prompt.")
        if isinstance(group[0], ReferenceEmbeds) != ready:
            raise ValueError(
                "`neutral_image` must be of the references' kind: a picture beside `reference_image`, ReferenceEmbeds "
                f"beside `reference_embeds`; got {type(group[0]).__name__}."
            )
    return [group[0] if ready else load_reference_image(group[0], "neutral_image") for group in groups]


def _check_weight_count(weights: Any, groups: Sequence[tuple[Any, ...]]) -> None:
    if weights is None:
        return
    for group in groups:
        if len(weights) != len(group):
            raise ValueError(
                f"`reference_weights` has {len(weights)} numbers for {len(group)} references of one prompt: several "
                "references for one prompt go into a list of their own, reference_image=[[first, second]]."
            )
