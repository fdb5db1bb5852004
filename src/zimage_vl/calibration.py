"""The text encoder's own statistics, measured with the encoder in use on prompts of ours.

"per_dim", "hybrid" and outlier masking compare a reference with what the text encoder usually says. The figures of the
Qwen3-VL conditioning guide belong to one model and one set of prompts, and a constant copied from there would be wrong
for any other: nothing is shipped but the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .statistics import EmbeddingStatistics


CALIBRATION_PROMPTS: tuple[str, ...] = (
    "lighthouse",
    "a cat",
    "red",
    "portrait of an old fisherman",
    "a red circle on a white background",
    "a bowl of oranges on a wooden table, morning light",
    "two children run along a beach at low tide, kites above them",
    "an empty street in the rain at night, neon signs mirrored in the puddles, a cyclist in a yellow coat far away",
    "macro photograph of a bee on lavender, shallow depth of field",
    "isometric drawing of a small workshop with tools on the walls",
    "a poster that says OPEN in thick blue letters",
    "watercolour of a village under snow, muted palette",
    "black and white photograph of a jazz trio on a narrow stage",
    "the interior of a glasshouse, ferns, dust in the light, a forgotten chair",
    "flat vector icon of a mountain and a sun",
    "oil painting of a storm over wheat fields, heavy strokes, dramatic sky",
    "a robot repairs a bicycle in front of a brick wall",
    "aerial view of a river delta in autumn colours",
    "a glass of water",
    "three wooden toys: a horse, a train and a duck, on a grey felt surface, soft studio light",
    "ein Leuchtturm in der Abenddämmerung, ruhige See",
    "eine alte Buchhandlung mit einer Katze im Schaufenster",
    "un marché couvert à midi, fruits et fleurs, lumière chaude",
    "un gato dormido sobre un tejado de tejas rojas",
    "una piazza vuota all'alba, ombre lunghe",
    "灯塔与晚霞",
    "一位穿着青色长袍的老人在竹林里喝茶,薄雾,清晨",
    "雨の夜の交差点、傘をさした人々、水たまりに映る光",
    "눈 덮인 산길을 걷는 여행자",
    "рыжая лиса в зимнем лесу, мягкий свет",
    "منارة على شاطئ البحر عند الغروب",
    "a minimalist living room with a low grey sofa, a round paper lamp, an oak floor and one large window that "
    "looks out "
    "on bare trees; the light is cold, the shadows are long, and nothing moves",
    "A wide photograph of a mountain lake before sunrise. The water is perfectly still and doubles the dark line "
    "of the "
    "firs; behind them three peaks catch the first pink light. In the foreground a wooden jetty leads a few steps "
    "into "
    "the water, and at its end lies an overturned blue rowing boat with peeling paint. A thin band of fog hangs "
    "between "
    "the trees. No people, no birds, high detail, natural colours, medium format, focal length 35 mm.",
    "Children's book illustration: a hedgehog in a knitted scarf waits at a tiny bus stop made of twigs while the "
    "first "
    "leaves fall; behind him a beetle sells acorn soup from a walnut shell, and a paper lantern glows above the "
    "timetable "
    "that nobody can read. Pencil and gouache, warm browns and ochres, plenty of white space around the scene.",
)


def measure_text_statistics(
    encode: Callable[[Sequence[str]], Sequence[Tensor]], exclude_sinks: bool = False, batch_size: int = 4
) -> EmbeddingStatistics:
    """Per-dimension mean and standard deviation of a text encoder over the calibration prompts.

    Args:
        encode: Prompts to their unpadded `(tokens, dims)` embeddings, such as a pipeline's `encode_prompt`.
        exclude_sinks: Leave attention sinks out: on Qwen3-4B one token a prompt gives nearly all of the variance.
        batch_size: Prompts a call of `encode`.

    Returns:
        The statistics over all tokens of all prompts, template included.

    Example:
        >>> from zimage_vl.toy import load_toy_pipeline
        >>> load_toy_pipeline().text_statistics().std.shape
        torch.Size([96])
    """
    embeddings: list[Tensor] = []
    for start in range(0, len(CALIBRATION_PROMPTS), batch_size):
        embeddings.extend(encode(CALIBRATION_PROMPTS[start : start + batch_size]))
    return EmbeddingStatistics.from_embeddings(embeddings, exclude_sinks)
