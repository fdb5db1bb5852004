"""The chat turn: which tokens the encoders read, and which part of the turn each of them is.

The text encoder reads the chat template around the prompt. The VL encoder reads the same template around one string:
`<|vision_start|>`, an `<|image_pad|>` for each merged patch, `<|vision_end|>`, and the text (or the text first). The
content is a string because Qwen3's own template renders content given as a list as nothing. There is no system turn,
and the generation prompt is added with thinking left on, as `ZImagePipeline` does.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import convert_slow_tokenizer  # pyright: ignore[reportUnknownVariableType]

from ..blend.regions import PromptToken, Region, TextPosition, check_choice, check_count, check_kind


VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
_VISION_TOKENS = (VISION_START, VISION_END, IMAGE_PAD, "<|video_pad|>", "<|vision_pad|>")
_SENTINEL = "a content that no template treats specially"
_templates: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, str, str]] = weakref.WeakKeyDictionary()
_fast_tokenizers: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, PreTrainedTokenizerFast] = (
    weakref.WeakKeyDictionary()
)
_TOKENIZER_ADVICE = "pass the tokenizer of Z-Image (Qwen3) or of Qwen3-VL."
_FAST_ADVICE = "the places of its tokens are unknown. Load the tokenizer with transformers.AutoTokenizer."
#: A fast tokenizer keeps its truncation and padding as state: two threads must not call one at the same time.
tokenizer_lock = threading.RLock()


@dataclass(frozen=True, eq=False)
class TextTurn:
    """A text in the chat template, as the text encoder reads it: row i of `prompt_embeds` is token i.

    A token that reaches from the template into the text (a first line break may melt with the template's) is one of
    the words.
    """

    text: str  # without the template
    ids: list[int]  # token ids without padding, cut to the length asked for
    regions: list[Region]  # prefix, words or suffix, one per token
    spans: list[tuple[int, int]]  # the characters of the text that each token covers, first and one past; or -1s
    uncut_ids: list[int] = field(repr=False)  # before the cut
    melted: bool  # a token reaches from the template into the text
    tokenizer: PreTrainedTokenizerBase = field(repr=False)

    @cached_property
    def tokens(self) -> tuple[PromptToken, ...]:
        """The tokens with their texts and places in the prompt."""
        described = zip(self.ids, self.regions, self.spans, strict=True)
        return tuple(
            PromptToken(i, str(self.tokenizer.decode([index])), region, *span)
            for i, (index, region, span) in enumerate(described)
        )


def read_text_turn(tokenizer: PreTrainedTokenizerBase, text: str, max_sequence_length: int | None = None) -> TextTurn:
    """Get the text encoder's sequence for a text, from one rendering and one tokenisation.

    Args:
        tokenizer: Z-Image's tokenizer. A slow one (transformers 4) is converted once, to know the tokens' places.
        text: Without a template; `""` for none.
        max_sequence_length: Tokens to which the sequence is cut, as `encode_prompt` cuts it. None: no cut.

    Raises:
        TypeError: `text` is not a string.
        ValueError: The chat template does not render the text as it is, the text is no valid Unicode, or the tokens'
            places cannot be told.

    Example:
        >>> from zimage_vl.toy import load_toy_pipeline
        >>> turn = read_text_turn(load_toy_pipeline().tokenizer, "a red circle")
        >>> "".join(token.text for token in turn.tokens if token.region is Region.WORDS)
        'a red circle'
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f'`text` must be a string ("" for none), got {type(text).__name__}.')
    refuse_lone_surrogates("The text", text)
    check_kind("tokenizer", tokenizer, "apply_chat_template", "the tokenizer of Z-Image (Qwen3) or of Qwen3-VL")
    if max_sequence_length is not None:
        check_count("max_sequence_length", max_sequence_length)
    rendered, begin = _render(tokenizer, text)
    end = begin + len(text)
    ids, offsets = _tokenize(tokenizer, rendered)
    over = 0 if max_sequence_length is None else max(0, len(ids) - max_sequence_length)
    kept = slice(over, None) if tokenizer.truncation_side == "left" else slice(len(ids) - over)
    regions = [_region_of(first, last, begin, end) for first, last in offsets]
    spans = [
        (max(first, begin) - begin, min(last, end) - begin) if region is Region.WORDS else (-1, -1)
        for (first, last), region in zip(offsets, regions, strict=True)
    ]
    melted = any(first < begin < last for first, last in offsets)
    return TextTurn(text, ids[kept], regions[kept], spans[kept], ids, melted, tokenizer)


def refuse_lone_surrogates(name: str, text: str) -> None:
    """Refuse a text that is no valid Unicode, which no tokenizer could read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is no valid Unicode (a lone surrogate): {text!r:.80}.") from error


def picture_turn(
    tokenizer: PreTrainedTokenizerBase, turn: TextTurn, num_image_tokens: int, text_position: TextPosition = "after"
) -> tuple[Tensor, Tensor]:
    """Get the VL encoder's sequence for one picture and a text.

    It is the text's turn with the picture's tokens set in before the first word or after the last, so that a reference
    whose text is the prompt lies on the prompt's sequence exactly. One more rendering and tokenisation check that the
    tokenizer makes the same of the one string. One case may differ: a text that begins with a line break, whose
    first token the template's own line break has melted into, keeps that token whole, after the picture.

    Args:
        tokenizer: The pipeline's tokenizer, which holds Qwen's vision tokens.
        turn: The text's turn, of the same tokenizer.
        num_image_tokens: Merged patches of the picture, at least 1.
        text_position: `"after"` or `"before"` the picture.

    Returns:
        `(tokens,)` int64 ids and `(tokens,)` int8 `Region` values.

    Raises:
        ValueError: The text holds vision tokens; the tokenizer has none, or makes something else of the one string.

    Example:
        >>> from zimage_vl.toy import load_toy_pipeline
        >>> tokenizer = load_toy_pipeline().tokenizer
        >>> ids, regions = picture_turn(tokenizer, read_text_turn(tokenizer, "a red circle"), 16)
        >>> int((regions == Region.IMAGE).sum())
        16
    """
    check_choice("text_position", text_position, get_args(TextPosition))
    found = [token for token in _VISION_TOKENS if token in turn.text]
    if found:
        raise ValueError(
            f"The text beside a picture must not contain vision tokens, got {found} in {turn.text!r:.80}."
        )
    start, pad, stop = _vision_ids(tokenizer)
    image_ids = [start, *[pad] * num_image_tokens, stop]
    picture = VISION_START + IMAGE_PAD * num_image_tokens + VISION_END
    one_string = picture + turn.text if text_position == "after" else turn.text + picture
    whole, _ = _tokenize(tokenizer, _render(tokenizer, one_string)[0])
    first = whole.index(start) if start in whole else 0
    without = whole[:first] + whole[first + len(image_ids) :]
    is_alike = without == turn.uncut_ids or (turn.melted and text_position == "after")
    if whole[first : first + len(image_ids)] != image_ids or not is_alike:
        raise ValueError(
            f"The tokenizer ({type(tokenizer).__name__}) splits the text beside a picture unlike the text alone: "
            f"{_TOKENIZER_ADVICE}"
        )
    stands_before = (Region.PREFIX,) if text_position == "after" else (Region.PREFIX, Region.WORDS)
    at = sum(region in stands_before for region in turn.regions)
    image_regions = [Region.MARKER, *[Region.IMAGE] * num_image_tokens, Region.MARKER]
    ids = [*turn.ids[:at], *image_ids, *turn.ids[at:]]
    return torch.tensor(ids), _as_tensor([*turn.regions[:at], *image_regions, *turn.regions[at:]])


def embeds_regions(tokenizer: PreTrainedTokenizerBase, length: int, turn: TextTurn | None) -> Tensor:
    """Get the `(length,)` int8 `Region` values of a prompt's embeddings.

    Without a turn, where only the embeddings are known, the template's own tokens are taken to surround them, as
    `encode_prompt` leaves them. Embeddings of another length than the turn, or shorter than the template, are a
    ValueError.
    """
    if turn is not None:
        if len(turn.ids) != length:
            raise ValueError(f"The prompt has {len(turn.ids)} tokens, but its embeddings have {length}.")
        return _as_tensor(turn.regions)
    template = read_text_turn(tokenizer, "").regions
    if length < len(template):
        raise ValueError(
            f"`prompt_embeds` of {length} tokens are shorter than the chat template ({len(template)} tokens): pass "
            "what `encode_prompt` gives."
        )
    prefix = template.count(Region.PREFIX)
    return _as_tensor([*template[:prefix], *[Region.WORDS] * (length - len(template)), *template[prefix:]])


def _as_tensor(regions: list[Region]) -> Tensor:
    return torch.tensor([int(region) for region in regions], dtype=torch.int8)


def _region_of(first: int, last: int, begin: int, end: int) -> Region:
    if first < end and max(last, first + 1) > begin and begin < end:
        return Region.WORDS
    return Region.PREFIX if first < begin else Region.SUFFIX


def _vision_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    names = [VISION_START, IMAGE_PAD, VISION_END]
    ids: Any = tokenizer.convert_tokens_to_ids(names)
    if None in ids or tokenizer.convert_ids_to_tokens(ids) != names:
        raise ValueError(
            f"{type(tokenizer).__name__} does not hold Qwen's vision tokens {names} as one each: {_TOKENIZER_ADVICE}"
        )
    return ids


def _apply_template(tokenizer: PreTrainedTokenizerBase, content: str) -> str:
    messages = [{"role": "user", "content": content}]
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    )


def template_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the template puts before and after a content, found once."""
    template, begin, end = _templates.get(tokenizer, (None, "", ""))
    if template is None or template != tokenizer.chat_template:
        begin, _, end = _apply_template(tokenizer, _SENTINEL).partition(_SENTINEL)
        _templates[tokenizer] = tokenizer.chat_template, begin, end
    return begin, end


def _render(tokenizer: PreTrainedTokenizerBase, content: str) -> tuple[str, int]:
    """The content in its template, and where in it the content begins, in characters."""
    begin, end = template_ends(tokenizer)
    rendered = _apply_template(tokenizer, content)
    if rendered != begin + content + end:
        raise ValueError(
            "The tokenizer's chat template must render a user's string as it is, between a fixed beginning and end, "
            f"got {rendered[:160]!r} for {content[:80]!r} (does it strip white space?): {_TOKENIZER_ADVICE}"
        )
    return rendered, len(begin)


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids, and the characters of the text that each covers."""
    with tokenizer_lock:
        fast = _fast_tokenizer(tokenizer)
        encoded = fast(text, return_offsets_mapping=True, verbose=False)
        ids = [int(index) for index in encoded["input_ids"]]
        if fast is not tokenizer and ids != list(tokenizer(text)["input_ids"]):
            raise ValueError(
                f"{type(tokenizer).__name__} and its fast conversion disagree on {text[:80]!r}: {_FAST_ADVICE}"
            )
    return ids, [(int(first), int(last)) for first, last in encoded["offset_mapping"]]


def _fast_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if getattr(tokenizer, "is_fast", False):
        return tokenizer
    if tokenizer not in _fast_tokenizers:
        try:
            fast = PreTrainedTokenizerFast(tokenizer_object=convert_slow_tokenizer(tokenizer))
        except Exception as error:
            raise ValueError(f"{type(tokenizer).__name__} cannot be made a fast tokenizer: {_FAST_ADVICE}") from error
        # The conversion carries the vocabulary alone, without the tokens added to it, vision tokens included.
        added = tokenizer.added_tokens_decoder
        fast.add_tokens([added[index] for index in sorted(added)])
        _fast_tokenizers[tokenizer] = fast
    return _fast_tokenizers[tokenizer]
