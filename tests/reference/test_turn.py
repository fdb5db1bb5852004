"""The chat turn, with Qwen3's real template: which tokens there are, and which part each one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import IS_OLD_TRANSFORMERS, tiny_slow_tokenizer, tiny_text_encoder, tiny_tokenizer
from zimage_vl.blend.regions import Region
from zimage_vl.reference.turn import prompt_turn, reference_turn


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
    messages = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)


def test_template_drops_list_content(tokenizer: Any):
    # Why the turn is one string: with a list, picture and text would vanish without a word.
    parts = [{"type": "image"}, {"type": "text", "text": "a red circle"}]
    assert rendered(tokenizer, parts) == rendered(tokenizer, "")
    assert rendered(tokenizer, "x") == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("prompt", PROMPTS + MELTING)
def test_prompt_turn_is_what_the_text_encoder_reads(tokenizer: Any, prompt: str):
    ids, tokens = prompt_turn(tokenizer, prompt)
    assert ids.tolist() == tokenizer(rendered(tokenizer, prompt))["input_ids"]
    assert [token.index for token in tokens] == list(range(len(ids)))
    assert [token.text for token in tokens] == [tokenizer.decode([i]) for i in ids.tolist()]
    regions = [token.region for token in tokens]
    assert regions == sorted(regions)  # prefix, then words, then suffix
    suffix = [token.text for token in tokens if token.region is Region.SUFFIX]
    assert "".join(suffix) == "<|im_end|>\n<|im_start|>assistant\n"


# A character that the normalizer composed from two is given the place of the first alone.
@pytest.mark.parametrize("prompt", [prompt for prompt in PROMPTS + MELTING if "\u0301" not in prompt])
def test_words_cover_the_prompt_and_the_rest_has_no_place(tokenizer: Any, prompt: str):
    _, tokens = prompt_turn(tokenizer, prompt)
    words = [token for token in tokens if token.region is Region.WORDS]
    covered = sorted({place for token in words for place in range(token.start, token.end)})
    assert covered == list(range(len(prompt)))
    assert all((token.start, token.end) == (-1, -1) for token in tokens if token.region is not Region.WORDS)


def test_offsets_name_the_words(tokenizer: Any):
    prompt = "a red circle"
    _, tokens = prompt_turn(tokenizer, prompt)
    words = [token for token in tokens if token.region is Region.WORDS]
    assert [token.text for token in words] == [prompt[token.start : token.end] for token in words]


@pytest.mark.parametrize("length", [1, 3, 5, 9, 512])
def test_cut_as_the_pipeline_cuts(tokenizer: Any, length: int):
    # ZImagePipeline pads to the length and takes out the rows under the attention mask.
    prompt = "a red circle on a white background"
    arguments = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    padded = tokenizer([rendered(tokenizer, prompt)], **arguments)
    expected = padded.input_ids[0][padded.attention_mask[0].bool()]
    ids, tokens = prompt_turn(tokenizer, prompt, length)
    assert torch.equal(ids, expected)
    assert len(tokens) == len(ids)


def test_regions_are_those_of_prompt_embeds(tokenizer: Any):
    encoder = tiny_text_encoder(tokenizer=tokenizer)
    inputs = tokenizer([rendered(tokenizer, "a red circle")], padding="max_length", max_length=64, return_tensors="pt")
    mask = inputs.attention_mask.bool()
    with torch.no_grad():
        states = encoder(input_ids=inputs.input_ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
    ids, tokens = prompt_turn(tokenizer, "a red circle")
    assert states[0][mask[0]].shape[0] == len(tokens)
    assert torch.equal(inputs.input_ids[0][mask[0]], ids)


@pytest.mark.parametrize("position", ["after", "before"])
@pytest.mark.parametrize("text", PROMPTS)
def test_reference_turn_is_the_one_string(tokenizer: Any, text: str, position: Any):
    picture = "<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>"
    whole = rendered(tokenizer, picture + text if position == "after" else text + picture)
    ids, regions = reference_turn(tokenizer, text, 6, position)
    assert ids.tolist() == tokenizer(whole)["input_ids"]
    assert regions.dtype == torch.int8
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert torch.equal(ids == image, regions == Region.IMAGE)
    assert int((ids == image).sum()) == 6
    markers = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    assert ids[regions == Region.MARKER].tolist() == markers


@pytest.mark.parametrize("position", ["after", "before"])
@pytest.mark.parametrize("max_length", [None, 4, 9])
@pytest.mark.parametrize("text", PROMPTS + MELTING)
def test_text_regions_correspond_one_to_one(tokenizer: Any, text: str, max_length: int | None, position: Any):
    prompt_ids, tokens = prompt_turn(tokenizer, text, max_length)
    ids, regions = reference_turn(tokenizer, text, 5, position, max_length)
    is_text = (regions != Region.IMAGE) & (regions != Region.MARKER)
    assert torch.equal(ids[is_text], prompt_ids)
    assert regions[is_text].tolist() == [token.region for token in tokens]


def test_order_of_regions(tokenizer: Any):
    def order(position: Any, text: str = "a red circle") -> list[int]:
        return reference_turn(tokenizer, text, 3, position)[1].unique_consecutive().tolist()

    picture = [Region.MARKER, Region.IMAGE, Region.MARKER]
    assert order("after") == [Region.PREFIX, *picture, Region.WORDS, Region.SUFFIX]
    assert order("before") == [Region.PREFIX, Region.WORDS, *picture, Region.SUFFIX]
    assert order("after", "") == order("before", "") == [Region.PREFIX, *picture, Region.SUFFIX]


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"])
def test_vision_tokens_in_the_text_are_refused(tokenizer: Any, token: str):
    with pytest.raises(ValueError, match="must not contain vision tokens"):
        reference_turn(tokenizer, f"a {token} circle", 4)


def test_other_bad_arguments(tokenizer: Any):
    with pytest.raises(ValueError, match="must be one of"):
        reference_turn(tokenizer, "a", 4, "beside")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one image token"):
        reference_turn(tokenizer, "a", 0)
    for turn in (lambda: prompt_turn(tokenizer, None), lambda: reference_turn(tokenizer, ["a"], 4)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="must be a string"):
            turn()


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
        reference_turn(tokenizer, "a red circle", 4) if prompt is None else prompt_turn(tokenizer, prompt)


def test_template_that_keeps_the_content_is_accepted():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}Q:{{ message.content }}|A{% endfor %}"
    _, tokens = prompt_turn(tokenizer, "a circle")
    assert "".join(token.text for token in tokens if token.region is Region.WORDS) == "a circle"


def test_tokenizer_without_vision_tokens_is_refused():
    from transformers import PreTrainedTokenizerFast

    tokenizer = tiny_tokenizer()
    bare = PreTrainedTokenizerFast(tokenizer_object=plain_backend())
    bare.chat_template = tokenizer.chat_template
    with pytest.raises(ValueError, match="does not hold Qwen's vision tokens"):
        reference_turn(bare, "a red circle", 4)


def plain_backend() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from tiny_models import tiny_vocabulary

    vocab, merges = tiny_vocabulary()
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


@pytest.mark.skipif(not IS_OLD_TRANSFORMERS, reason="from transformers 5 on there is no slow Qwen2 tokenizer")
@pytest.mark.parametrize("text", PROMPTS + MELTING)
def test_slow_tokenizer_is_converted(tmp_path: Path, tokenizer: Any, text: str):
    slow = tiny_slow_tokenizer(tmp_path)
    assert not slow.is_fast
    assert prompt_turn(slow, text)[1] == prompt_turn(tokenizer, text)[1]
    assert prompt_turn(slow, text, 5)[1] == prompt_turn(tokenizer, text, 5)[1]
    for ours, theirs in zip(reference_turn(slow, text, 4), reference_turn(tokenizer, text, 4), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(not IS_OLD_TRANSFORMERS, reason="from transformers 5 on there is no slow Qwen2 tokenizer")
def test_slow_tokenizer_that_differs_from_its_conversion_is_refused(tmp_path: Path):
    slow = tiny_slow_tokenizer(tmp_path)
    family = type(slow)
    backwards = {"_tokenize": lambda self, text: list(reversed(family._tokenize(self, text)))}
    # The conversion goes by the class's name.
    slow.__class__ = type(family.__name__, (family,), backwards)
    with pytest.raises(ValueError, match="disagree"):
        prompt_turn(slow, "a red circle")


def test_tokenizer_is_as_before(tokenizer: Any):
    before = tokenizer.backend_tokenizer.to_str()
    prompt_turn(tokenizer, "a red circle", 4)
    reference_turn(tokenizer, "a red circle", 4)
    assert tokenizer.backend_tokenizer.to_str() == before
