"""The text encoder's own statistics, measured with the encoder in use on prompts of ours.

"per_dim", "hybrid" and outlier masking compare a reference with what the text encoder usually says. The figures of the
Qwen3-VL conditioning guide belong to one model and one set of prompts, and a constant copied from there would be wrong
for any other: nothing is shipped but the prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..blend.embedding_statistics import EmbeddingStatistics


# Image prompts as people write them: one word to about 100, plain lists of tags and whole sentences, ten languages in
# six scripts. Any change changes `calibration_prompts_sha256`, and with it the files that are told apart by it.
CALIBRATION_PROMPTS: tuple[str, ...] = (
    "lighthouse",
    "red",
    "a cat",
    "a glass of water",
    "portrait of an old fisherman",
    "a red circle on a white background",
    "flat vector icon of a mountain and a sun",
    "a poster that says OPEN in thick blue letters",
    "watercolour of a village under snow, muted palette",
    "aerial view of a river delta in autumn colours",
    "a robot repairs a bicycle in front of a brick wall",
    "black and white photograph of a jazz trio on a narrow stage",
    "a bowl of oranges on a wooden table, morning light",
    "isometric drawing of a small workshop with tools on the walls",
    "macro photograph of a bee on lavender, shallow depth of field",
    "two children run along a beach at low tide, kites above them",
    "oil painting of a storm over wheat fields, heavy strokes, dramatic sky",
    "the interior of a glasshouse, ferns, dust in the light, a forgotten chair",
    "three wooden toys: a horse, a train and a duck, on a grey felt surface, soft studio light",
    "pixel art, side view, a knight with a green cape in front of a castle gate, 16 colours, no gradients",
    "an empty street in the rain at night, neon signs mirrored in the puddles, a cyclist in a yellow coat far away",
    "cinematic still, woman in a red raincoat on a ferry, overcast, 35 mm, film grain, looking out of the frame",
    "ein Leuchtturm in der Abenddämmerung, ruhige See",
    "eine alte Buchhandlung mit einer Katze im Schaufenster",
    "un marché couvert à midi, fruits et fleurs, lumière chaude",
    "un gato dormido sobre un tejado de tejas rojas",
    "una piazza vuota all'alba, ombre lunghe",
    "um barco de pesca azul na areia, gaivotas, céu nublado",
    "灯塔与晚霞",
    "一位穿着青色长袍的老人在竹林里喝茶,薄雾,清晨",
    "极简风格的客厅,低矮的灰色沙发,纸灯,橡木地板",
    "雨の夜の交差点、傘をさした人々、水たまりに映る光",
    "눈 덮인 산길을 걷는 여행자",
    "рыжая лиса в зимнем лесу, мягкий свет",
    "منارة على شاطئ البحر عند الغروب",
    "a minimalist living room with a low grey sofa, a round paper lamp, an oak floor and one large window that looks "
    "out on bare trees; the light is cold, the shadows are long, and nothing moves",
    "Product photograph of a ceramic teapot with a cracked turquoise glaze, standing on wet slate. A single lamp from "
    "the left draws a bright line along the spout, steam rises behind the handle, the background falls off to black.",
    "Children's book illustration: a hedgehog in a knitted scarf waits at a tiny bus stop made of twigs while the "
    "first leaves fall; behind him a beetle sells acorn soup from a walnut shell, and a paper lantern glows above the "
    "timetable that nobody can read. Pencil and gouache, warm browns and ochres, plenty of white space around the "
    "scene.",
    "A wide photograph of a mountain lake before sunrise. The water is perfectly still and doubles the dark line of "
    "the firs; behind them three peaks catch the first pink light. In the foreground a wooden jetty leads a few steps "
    "into the water, and at its end lies an overturned blue rowing boat with peeling paint. A thin band of fog hangs "
    "between the trees, and on the far shore one window of a stone house is lit. No people, no birds, high detail, "
    "natural colours, medium format, focal length 35 mm, a little noise in the shadows, calm and slightly melancholy.",
    "Eine weite, menschenleere Bahnhofshalle aus Stahl und Glas am frühen Morgen: Sonnenstrahlen fallen schräg durch "
    "den Staub, auf Gleis drei steht ein grüner Zug mit offenen Türen, und eine vergessene rote Reisetasche wirft "
    "einen langen Schatten auf den hellen Stein.",
)


def calibration_prompts_sha256() -> str:
    """Which prompts were measured, for a file of statistics: the SHA-256 of their JSON list in UTF-8.

    Example:
        >>> len(calibration_prompts_sha256())
        64
    """
    return hashlib.sha256(json.dumps(CALIBRATION_PROMPTS, ensure_ascii=False).encode("utf-8")).hexdigest()


def measure_text_statistics(
    encode: Callable[[list[str]], Sequence[Tensor]], exclude_sinks: bool = False, batch_size: int = 4
) -> EmbeddingStatistics:
    """Per-dimension mean and standard deviation of a text encoder over the calibration prompts.

    Over all tokens of all prompts, the template's included, as the Qwen3-VL conditioning guide has its reference
    statistics for Qwen3-4B (its sections 5 and 6).

    Args:
        encode: Prompts to their unpadded `(tokens, dims)` embeddings, such as a pipeline's `encode_prompt`. It runs
            without gradients and gets a list of its own each time.
        exclude_sinks: Leave attention sinks out: on Qwen3-4B one token a prompt gives nearly all of the variance.
        batch_size: Prompts a call of `encode`, at least 1.

    Returns:
        The statistics, on the device of the embeddings.

    Raises:
        ValueError: `batch_size` below 1; `encode` gives another number of embeddings than of prompts, NaN or infinity.

    Example:
        >>> measured = measure_text_statistics(lambda prompts: [torch.eye(3)[: len(text)] for text in prompts])
        >>> measured.std.shape, measured.count
        (torch.Size([3]), 120)
    """
    if isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"`batch_size` must be a whole number of at least 1, got {batch_size!r}.")
    embeddings: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(CALIBRATION_PROMPTS), batch_size):
            prompts = list(CALIBRATION_PROMPTS[start : start + batch_size])
            given = encode(list(prompts))
            if len(given) != len(prompts):
                raise ValueError(
                    f"`encode` must give one tensor a prompt, got {len(given)} for {len(prompts)} prompts."
                )
            embeddings.extend(given)
        return EmbeddingStatistics.from_embeddings(embeddings, exclude_sinks)
