"""The chat turn: which tokens the encoders read, and which part of the turn each of them is.

The text encoder reads the chat template around the prompt. The VL encoder reads the same template around one string:
`<|vision_start|>`, an `<|image_pad|>` for each merged patch, `<|vision_end|>`, and the text (or the text first). The
content is a string because Qwen3's own template renders content given as a list as nothing. There is no system turn,
and the generation prompt is added with thinking left on, as `ZImagePipeline` does.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import convert_slow_tokenizer  # pyright: ignore[reportUnknownVariableType]

from ..blend.regions import PromptToken, Region, TextPosition


VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
# Tokens that only the picture may bring: in a user's text they would be taken for a picture.
_VISION_TOKENS = (VISION_START, VISION_END, IMAGE_PAD, "<|video_pad|>", "<|vision_pad|>")
# Two contents that no template treats specially, with nothing in common at either end.
_SENTINELS = ("zimage sentinel one", "another marker 2")

_fast_tokenizers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
# A fast tokenizer keeps its truncation as state: two threads must not call one at the same time.
_tokenizer_lock = threading.RLock()


@dataclass(frozen=True)
class _Turn:
    """A tokenised turn: token ids, the region of each, and its characters within the content (-1 outside)."""

    ids: list[int]
    regions: list[Region]
    spans: list[tuple[int, int]]
    melted: bool  # the first word's token begins in the template already


def prompt_turn(
    tokenizer: Any, prompt: str, max_sequence_length: int | None = 512
) -> tuple[Tensor, tuple[PromptToken, ...]]:
    """The text encoder's sequence for a prompt, token by token: row i of `prompt_embeds` is token i.

    Args:
        tokenizer: Z-Image's tokenizer. A slow one (transformers 4) is converted once, to know the tokens' places.
        prompt: The prompt, without a template.
        max_sequence_length: Tokens after which the sequence is cut, as `ZImagePipeline.encode_prompt` cuts it. None:
            never.

    Returns:
        `(tokens,)` int64 ids without padding, and a `PromptToken` for each: prefix, words or suffix. A token that
        reaches from the template into the prompt (a first line break may melt with the template's) is one of the
        words.

    Raises:
        TypeError: `prompt` is not a string.
        ValueError: The chat template does not render the prompt as it is, or the tokenizer cannot tell the tokens'
            places.

    Example:
        >>> ids, tokens = prompt_turn(tokenizer, "a red circle")  # doctest: +SKIP
        >>> [token.text for token in tokens if token.region is Region.WORDS]  # doctest: +SKIP
        ['a', ' red', ' circle']
    """
    turn = _text_turn(tokenizer, prompt, max_sequence_length)
    texts = [str(tokenizer.decode([index])) for index in turn.ids]
    tokens = zip(texts, turn.regions, turn.spans, strict=True)
    described = tuple(PromptToken(i, text, region, *span) for i, (text, region, span) in enumerate(tokens))
    return torch.tensor(turn.ids, dtype=torch.long), described


def reference_turn(
    tokenizer: Any,
    text: str,
    num_image_tokens: int,
    text_position: TextPosition = "after",
    max_sequence_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The VL encoder's sequence for one picture and a text.

    The text's tokens and the template's are those of `prompt_turn(tokenizer, text)`, one for one, with the picture's
    set in before the first word or after the last: a reference whose text is the prompt lies on the prompt's
    sequence exactly. That is what tokenising the rendered string gives, and it is checked. One case differs: a text
    that begins with a line break, whose first token the template's own line break has melted into, keeps that token
    whole, after the picture.

    Args:
        tokenizer: The pipeline's tokenizer, which holds Qwen's vision tokens.
        text: The text beside the picture, `""` for none.
        num_image_tokens: Merged patches of the picture, at least 1.
        text_position: `"after"` or `"before"` the picture.
        max_sequence_length: Bound on the text's and the template's tokens together, as for a prompt. None: no bound.

    Returns:
        `(tokens,)` int64 ids and `(tokens,)` int8 `Region` values.

    Raises:
        TypeError: `text` is not a string.
        ValueError: `text` holds vision tokens; the tokenizer has none; the template does not render the content as
            it is, or not with as many image tokens as the picture has; an unknown `text_position`.

    Example:
        >>> ids, regions = reference_turn(tokenizer, "a red circle", 16)  # doctest: +SKIP
        >>> int((regions == Region.IMAGE).sum())  # doctest: +SKIP
        16
    """
    if text_position not in get_args(TextPosition):
        raise ValueError(f"`text_position` must be one of {list(get_args(TextPosition))}, got {text_position!r}.")
    if num_image_tokens < 1:
        raise ValueError(f"A picture has at least one image token, got {num_image_tokens}.")
    turn = _text_turn(tokenizer, text, None)
    _refuse_vision_tokens(text)
    image_ids = _image_ids(tokenizer, num_image_tokens)
    _check_one_string(tokenizer, text, text_position, turn, image_ids)
    if max_sequence_length is not None:
        turn = _text_turn(tokenizer, text, max_sequence_length)
    at = _image_place(turn, text_position)
    image_regions = [Region.MARKER, *[Region.IMAGE] * num_image_tokens, Region.MARKER]
    ids = [*turn.ids[:at], *image_ids, *turn.ids[at:]]
    regions = [*turn.regions[:at], *image_regions, *turn.regions[at:]]
    return torch.tensor(ids, dtype=torch.long), torch.tensor([int(r) for r in regions], dtype=torch.int8)


def embeds_regions(tokenizer: Any, length: int, tokens: tuple[PromptToken, ...] | None) -> Tensor:
    """The regions of a prompt's embeddings.

    Args:
        tokenizer: The pipeline's tokenizer.
        length: Tokens of the embeddings.
        tokens: The prompt's tokens; None where only its embeddings are known. Then the template's own tokens are taken
            to surround them, as `encode_prompt` leaves them.

    Returns:
        `(length,)` int8 `Region` values.

    Raises:
        ValueError: Embeddings of another length than the tokens, or shorter than the template.
    """
    if tokens is not None:
        if len(tokens) != length:
            raise ValueError(f"The prompt has {len(tokens)} tokens, but its embeddings have {length}.")
        return torch.tensor([int(token.region) for token in tokens], dtype=torch.int8)
    template = _text_turn(tokenizer, "", None).regions
    prefix = sum(region is Region.PREFIX for region in template)
    words = length - len(template)
    if words < 0:
        raise ValueError(
            f"`prompt_embeds` of {length} tokens are shorter than the chat template alone ({len(template)} tokens): "
            "pass embeddings from `encode_prompt`, or the prompt itself."
        )
    regions = [Region.PREFIX] * prefix + [Region.WORDS] * words + [Region.SUFFIX] * (len(template) - prefix)
    return torch.tensor([int(region) for region in regions], dtype=torch.int8)


def _image_place(turn: _Turn, text_position: TextPosition) -> int:
    ends_before = (Region.PREFIX,) if text_position == "after" else (Region.PREFIX, Region.WORDS)
    return sum(region in ends_before for region in turn.regions)


def _refuse_vision_tokens(text: str) -> None:
    found = [token for token in _VISION_TOKENS if token in text]
    if found:
        raise ValueError(
            "The text beside a reference picture must not contain vision tokens, which stand for pictures; got "
            f"{found} in {text!r}. Remove them."
        )


def _image_ids(tokenizer: Any, num_image_tokens: int) -> list[int]:
    markers = (VISION_START, IMAGE_PAD, VISION_END)
    ids = _encode(tokenizer, "".join(markers), None)[0]
    if len(ids) != 3 or list(tokenizer.convert_ids_to_tokens(ids)) != list(markers):
        raise ValueError(
            f"The tokenizer ({type(tokenizer).__name__}) does not hold Qwen's vision tokens {list(markers)} as "
            "single tokens. Pass the tokenizer of Z-Image (Qwen3) or of Qwen3-VL."
        )
    return [ids[0], *[ids[1]] * num_image_tokens, ids[2]]


def _check_one_string(tokenizer: Any, text: str, position: TextPosition, turn: _Turn, image_ids: list[int]) -> None:
    """What is put together must be what the template and the tokenizer make of the one string."""
    num_image_tokens = len(image_ids) - 2
    picture = VISION_START + IMAGE_PAD * num_image_tokens + VISION_END
    rendered, _, _ = _render(tokenizer, picture + text if position == "after" else text + picture)
    whole = _encode(tokenizer, rendered, None)[0]
    got = whole.count(image_ids[1])
    if got != num_image_tokens:
        raise ValueError(
            f"The picture has {num_image_tokens} image tokens, but its turn was tokenised to {got} of them."
        )
    at = _image_place(turn, position)
    if whole != [*turn.ids[:at], *image_ids, *turn.ids[at:]] and not (turn.melted and position == "after"):
        raise ValueError(
            f"The tokenizer ({type(tokenizer).__name__}) splits the text beside a picture unlike the text alone, so "
            "that the reference cannot be laid on a prompt. Pass the tokenizer of Z-Image (Qwen3) or of Qwen3-VL."
        )


def _text_turn(tokenizer: Any, text: str, max_length: int | None) -> _Turn:
    """The template around a text, tokenised."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"The text of a turn must be a string, got {type(text).__name__}.")
    rendered, begin, end = _render(tokenizer, text)
    ids, offsets = _encode(tokenizer, rendered, max_length)
    regions = [_region_of(offset, begin, end) for offset in offsets]
    spans = [
        (max(first, begin) - begin, min(last, end) - begin) if region is Region.WORDS else (-1, -1)
        for (first, last), region in zip(offsets, regions, strict=True)
    ]
    melted = any(first < begin < last for first, last in offsets)
    return _Turn(ids, regions, spans, melted)


def _region_of(offset: tuple[int, int], begin: int, end: int) -> Region:
    first, last = offset
    if first < end and max(last, first + 1) > begin and begin < end:
        return Region.WORDS
    return Region.PREFIX if first < begin else Region.SUFFIX


def _apply_template(tokenizer: Any, content: str) -> str:
    messages = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)


def _render(tokenizer: Any, content: str) -> tuple[str, int, int]:
    """The content in its template, and where in it the content begins and ends, in characters."""
    around: set[tuple[str, ...]] = set()
    for sentinel in _SENTINELS:
        around.add(tuple(_apply_template(tokenizer, sentinel).split(sentinel)))
    parts = around.pop()
    rendered = _apply_template(tokenizer, content)
    if around or len(parts) != 2 or rendered != parts[0] + content + parts[1]:
        raise ValueError(
            "The tokenizer's chat template must render a user's string as it is between a fixed beginning and end; "
            f"it changes, repeats or drops {content[:80]!r} (rendered: {rendered[:160]!r}). Remove leading or "
            "trailing white space if the template strips it, or pass Z-Image's own tokenizer."
        )
    return rendered, len(parts[0]), len(parts[0]) + len(content)


def _encode(tokenizer: Any, text: str, max_length: int | None) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids, and the characters of the text that each covers."""
    cut: dict[str, Any] = {} if max_length is None else {"truncation": True, "max_length": max_length}
    with _tokenizer_lock:
        fast = _fast_tokenizer(tokenizer)
        encoded = fast(text, return_offsets_mapping=True, **cut)
        ids = list(encoded["input_ids"])
        if fast is not tokenizer and ids != list(tokenizer(text, **cut)["input_ids"]):
            raise ValueError(
                f"The slow tokenizer ({type(tokenizer).__name__}) and its fast conversion disagree on "
                f"{text[:80]!r}, so the places of its tokens are unknown. Load the tokenizer with "
                "transformers.AutoTokenizer, which gives a fast one."
            )
    return ids, [(int(first), int(last)) for first, last in encoded["offset_mapping"]]


def _fast_tokenizer(tokenizer: Any) -> Any:
    if getattr(tokenizer, "is_fast", False):
        return tokenizer
    if tokenizer not in _fast_tokenizers:
        try:
            backend = convert_slow_tokenizer(tokenizer)
        except Exception as error:
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer and transformers cannot make it one, so the "
                "places of its tokens are unknown. Load the tokenizer with transformers.AutoTokenizer."
            ) from error
        fast = PreTrainedTokenizerFast(tokenizer_object=backend)
        # The conversion carries the vocabulary alone: the tokens added to it, vision tokens included, come by
        # themselves.
        added = tokenizer.added_tokens_decoder
        fast.add_tokens([added[index] for index in sorted(added)])
        fast.truncation_side = tokenizer.truncation_side
        _fast_tokenizers[tokenizer] = fast
    return _fast_tokenizers[tokenizer]
