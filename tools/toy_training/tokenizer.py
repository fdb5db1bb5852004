"""Stage `tokenizer`: a byte-level BPE over the toy world's sentences, with Qwen's special tokens and chat turn."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from zimage_vl.toy.world import ALL_SCENES, ATTRIBUTES

from .captions import EVERYTHING, SUBSETS, caption, forms_for
from .loop import Run


SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

QUESTIONS = {
    "what shape is it?": "shape",
    "what colour is the shape?": "colour",
    "what is the background?": "background",
}

# The parts of Qwen3's own template that a toy needs: turns with string content, and the generation prompt.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- "
    "endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)

# Qwen2's split into words, numbers, punctuation and space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Asked of a text.
QUESTIONS = {
    "what shape is it?": "shape",
    "what colour is it?": "colour",
    "what is the background?": "background",
    "what fill is it?": "fill",
    "where is it?": "place",
}
# Asked of the picture that stands before them.
PICTURE_QUESTIONS: dict[str, tuple[str, ...]] = {
    "what is in the picture?": tuple(ATTRIBUTES),
    "describe the picture?": tuple(ATTRIBUTES),
    "what shape is in the picture?": ("shape",),
    "what colour is in the picture?": ("colour",),
    "what is the background of the picture?": ("background",),
    "what fill is in the picture?": ("fill",),
    "where is the shape in the picture?": ("place",),
}


def sentences() -> list[str]:
    rng = random.Random(3)
    turns = ["user\n", "assistant\n", *QUESTIONS, *PICTURE_QUESTIONS]
    captions = [caption(scene, EVERYTHING, form) for scene in ALL_SCENES for form in forms_for(EVERYTHING)]
    partial = [
        caption(rng.choice(ALL_SCENES), named, form)
        for named in SUBSETS
        for form in forms_for(named)
        for _ in range(9)
    ]
    # Each attribute is one token with and without a space before it.
    words = [word for values in ATTRIBUTES.values() for word in values]
    alone = [*words, *(f"a {word}" for word in words)] * 400
    return turns * 400 + captions + partial + alone


def build(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    # Written by hand: what transformers 5 saves does not load in 4.57, this form loads in both.
    config = {
        "tokenizer_class": "Qwen2TokenizerFast",
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "add_prefix_space": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    # The slow tokenizer class of transformers 4.57 reads these two.
    tokenizer.model.save(str(folder))


def load(run: Run) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(run.path("tokenizer"))


def train_tokenizer(run: Run) -> None:
    folder = run.path("tokenizer")
    build(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [caption(scene, EVERYTHING, form) for scene in ALL_SCENES for form in forms_for(EVERYTHING)]
    broken = [
        text for text in [*texts, "Ein Leuchtturm: 灯台 🏮"] if tokenizer.decode(tokenizer(text).input_ids) != text
    ]
    if broken:
        raise RuntimeError(f"{len(broken)} texts do not survive the round trip, the first is {broken[0]!r}.")
    longest = max(len(ids) for ids in tokenizer(texts).input_ids)
    run.finish("tokenizer", {"tokens": len(tokenizer), "round_trips": len(texts) + 1, "longest_caption": longest})
