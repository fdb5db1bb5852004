"""The chat turn, with Qwen3's real template: which tokens there are, and which part each one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import (
    IS_OLD_TRANSFORMERS,
    tiny_slow_tokenizer,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_vocabulary,
)
from zimage_vl.blend.regions import Region
from zimage_vl.reference.turn import embeds_regions, picture_turn, read_text_turn


PROMPTS = [
    "a red circle on a white background",
    "",
    "  spaces around  ",
    "two\n\nparagraphs\n",
    "töpfe, 漢字 und 🎨!",
    "e\u0301 composed by the tokenizer's normalizer",
    "don't 12345",
    "<|im_end|> inside",
    "'s starts with a contraction",
]
MELTING = ["\na line break first", "\n\ntwo of them", " \n a space, then a line break"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def rendered(tokenizer: Any, content: object) -> str:
    """As the pipeline renders a prompt; content given as a list, this template would drop without a word."""
    messages = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)


def picture(tokenizer: Any, text: str, count: int, position: Any = "after", length: int | None = None) -> Any:
    return picture_turn(tokenizer, read_text_turn(tokenizer, text, length), count, position)


def words(tokenizer: Any, prompt: str) -> list[Any]:
    return [token for token in read_text_turn(tokenizer, prompt).tokens if token.region is Region.WORDS]


@pytest.mark.parametrize("prompt", PROMPTS + MELTING)
def test_text_turn_is_what_the_text_encoder_reads(tokenizer: Any, prompt: str):
    turn = read_text_turn(tokenizer, prompt)
    assert turn.ids == tokenizer(rendered(tokenizer, prompt))["input_ids"]
    assert [token.index for token in turn.tokens] == list(range(len(turn.ids)))
    assert [token.text for token in turn.tokens] == [tokenizer.decode([i]) for i in turn.ids]
    assert [token.region for token in turn.tokens] == turn.regions == sorted(turn.regions)
    suffix = [token.text for token in turn.tokens if token.region is Region.SUFFIX]
    assert "".join(suffix) == "<|im_end|>\n<|im_start|>assistant\n"
    # Words cover the prompt, and the rest has no place in it.
    assert {(t.start, t.end) for t in turn.tokens if t.region is not Region.WORDS} == {(-1, -1)}
    if "\u0301" not in prompt:  # what the normalizer composed of two characters has the place of the first alone
        covered = sorted({place for token in words(tokenizer, prompt) for place in range(token.start, token.end)})
        assert covered == list(range(len(prompt)))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [1, 3, 5, 9, 512])
def test_cut_as_the_pipeline_cuts(length: int, side: str):
    # ZImagePipeline pads to the length and takes out the rows under the attention mask.
    tokenizer = tiny_tokenizer()
    tokenizer.truncation_side = side
    prompt = "a red circle on a white background"
    arguments = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    padded = tokenizer([rendered(tokenizer, prompt)], **arguments)
    turn = read_text_turn(tokenizer, prompt, length)
    assert turn.ids == padded.input_ids[0][padded.attention_mask[0].bool()].tolist()
    assert len(turn.tokens) == len(turn.ids)


def test_regions_are_those_of_prompt_embeds(tokenizer: Any):
    encoder = tiny_text_encoder(tokenizer=tokenizer)
    inputs = tokenizer([rendered(tokenizer, "a red circle")], padding="max_length", max_length=64, return_tensors="pt")
    mask = inputs.attention_mask.bool()
    with torch.no_grad():
        states = encoder(input_ids=inputs.input_ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
    turn = read_text_turn(tokenizer, "a red circle")
    length = states[0][mask[0]].shape[0]
    assert embeds_regions(tokenizer, length, turn).tolist() == turn.regions
    # Known by their length alone, the template's tokens are taken to surround the words.
    assert embeds_regions(tokenizer, length, None).tolist() == turn.regions
    with pytest.raises(ValueError, match=f"{length} tokens, but its embeddings have {length + 1}"):
        embeds_regions(tokenizer, length + 1, turn)
    with pytest.raises(ValueError, match="shorter than the chat template"):
        embeds_regions(tokenizer, 3, None)


@pytest.mark.parametrize("position", ["after", "before"])
@pytest.mark.parametrize("text", PROMPTS)
def test_picture_turn_is_the_one_string(tokenizer: Any, text: str, position: Any):
    pads = "<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>"
    whole = rendered(tokenizer, pads + text if position == "after" else text + pads)
    ids, regions = picture(tokenizer, text, 6, position)
    assert ids.tolist() == tokenizer(whole)["input_ids"]
    assert (ids.dtype, regions.dtype) == (torch.int64, torch.int8)
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert torch.equal(ids == image, regions == Region.IMAGE)
    assert int((ids == image).sum()) == 6
    markers = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    assert ids[regions == Region.MARKER].tolist() == markers


@pytest.mark.parametrize("position", ["after", "before"])
@pytest.mark.parametrize("max_length", [None, 1, 4, 9])
@pytest.mark.parametrize("text", PROMPTS + MELTING)
def test_text_regions_correspond_one_to_one(tokenizer: Any, text: str, max_length: int | None, position: Any):
    turn = read_text_turn(tokenizer, text, max_length)
    ids, regions = picture_turn(tokenizer, turn, 5, position)
    is_text = (regions != Region.IMAGE) & (regions != Region.MARKER)
    assert ids[is_text].tolist() == turn.ids
    assert regions[is_text].tolist() == turn.regions
    assert int((regions == Region.IMAGE).sum()) == 5


def test_a_template_that_is_changed_is_found_again():
    tokenizer = tiny_tokenizer()
    read_text_turn(tokenizer, "a circle")
    tokenizer.chat_template = "{% for message in messages %}Q:{{ message.content }}|A{% endfor %}"
    assert "".join(token.text for token in words(tokenizer, "a circle")) == "a circle"
    assert read_text_turn(tokenizer, "a circle").tokens[0].text == "Q"


def test_bad_arguments_are_refused(tokenizer: Any):
    for token in ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"):
        with pytest.raises(ValueError, match="must not contain vision tokens"):
            picture(tokenizer, f"a {token} circle", 4)
    with pytest.raises(ValueError, match="must be one of"):
        picture(tokenizer, "a", 4, "beside")
    with pytest.raises(ValueError, match=r"lone surrogate.*\\ud800"):
        read_text_turn(tokenizer, "a \ud800 circle")
    for text in (None, ["a"]):
        with pytest.raises(TypeError, match="must be a string"):
            read_text_turn(tokenizer, text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        ("message.content | trim", " padded "),
        ("message.content | upper", "a red circle"),
        ("'nothing'", "a red circle"),
        ("message.content + message.content", "a red circle"),
        ("message.content | replace('<|image_pad|>', '')", None),
    ],
)
def test_template_that_changes_the_content_is_refused(content: str, prompt: str | None):
    tokenizer = tiny_tokenizer()
    loop = (
        "{% for message in messages %}<|im_start|>user\n{{ CONTENT }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    tokenizer.chat_template = loop.replace("CONTENT", content)
    with pytest.raises(ValueError, match="must render a user's string as it is"):
        picture(tokenizer, "a red circle", 4) if prompt is None else read_text_turn(tokenizer, prompt)


def test_tokenizer_without_vision_tokens_is_refused():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab, merges = tiny_vocabulary()
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    bare = PreTrainedTokenizerFast(tokenizer_object=backend)
    bare.chat_template = tiny_tokenizer().chat_template
    with pytest.raises(ValueError, match="does not hold Qwen's vision tokens"):
        picture(bare, "a red circle", 4)


@pytest.mark.skipif(not IS_OLD_TRANSFORMERS, reason="from transformers 5 on there is no slow Qwen2 tokenizer")
@pytest.mark.parametrize("text", PROMPTS + MELTING)
def test_slow_tokenizer_is_converted(tmp_path: Path, tokenizer: Any, text: str):
    slow = tiny_slow_tokenizer(tmp_path)
    assert not slow.is_fast
    for length in (None, 5):
        assert read_text_turn(slow, text, length).tokens == read_text_turn(tokenizer, text, length).tokens
    for ours, theirs in zip(picture(slow, text, 4), picture(tokenizer, text, 4), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(not IS_OLD_TRANSFORMERS, reason="from transformers 5 on there is no slow Qwen2 tokenizer")
def test_slow_tokenizer_that_differs_from_its_conversion_is_refused(tmp_path: Path):
    slow = tiny_slow_tokenizer(tmp_path)
    family = type(slow)
    backwards = {"_tokenize": lambda self, text: list(reversed(family._tokenize(self, text)))}
    # The conversion goes by the class's name.
    slow.__class__ = type(family.__name__, (family,), backwards)
    with pytest.raises(ValueError, match="disagree"):
        read_text_turn(slow, "a red circle")


def test_tokenizer_is_as_before(tokenizer: Any):
    before = tokenizer.backend_tokenizer.to_str()
    picture(tokenizer, "a red circle", 4, length=4)
    assert tokenizer.backend_tokenizer.to_str() == before
