"""The table at the end: which measured setting serves a wish best. Picked from the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zimage_vl.toy.measuring import ATTRIBUTES

from .experiments_more import EXPERIMENTS
from .outcomes import PROMPT, REFERENCE, Outcome
from .reading import Reader, format_share
from .tables import Table


_HINT_FLOOR = 0.85  # the prompt counts as left alone where it keeps this share of each attribute


@dataclass(frozen=True)
class Wish:
    """What somebody may want of a reference.

    Attributes:
        name: In words.
        sides: Whose shape, colour and background.
    """

    name: str
    sides: tuple[str, str, str]


WISHES = (
    Wish("the reference's colours and background, the prompt's shape (style)", (PROMPT, REFERENCE, REFERENCE)),
    Wish("the reference's shape in the prompt's colours (structure)", (REFERENCE, PROMPT, PROMPT)),
    Wish("the reference's colour alone", (PROMPT, REFERENCE, PROMPT)),
    Wish("the reference's background alone", (PROMPT, PROMPT, REFERENCE)),
    Wish("near-reproduction of the reference", (REFERENCE, REFERENCE, REFERENCE)),
)


def find_candidates(reader: Reader) -> Iterator[tuple[str, Outcome]]:
    """The measured rows that speak for a setting: a real reference, alone, with no words that give it away."""
    seen: set[str] = set()
    for experiment in EXPERIMENTS.values():
        for setting in experiment.settings:
            plain = setting.reference == "scene" and setting.text in (None, "") and not setting.second
            if plain and setting.rounds == 1 and setting.key not in seen and reader.rounds(setting):
                seen.add(setting.key)
                yield f"{experiment.title}: {setting.label}", reader.rounds(setting)[0]


def score(outcome: Outcome, sides: tuple[str, ...]) -> tuple[float, str]:
    """The weakest of the wished shares, and its attribute.

    Example:
        >>> score(Outcome("pppp", "rrrp", "pprr", [90] * 4, [0] * 4, 0.5, 0.1, 0.0), ("p", "r", "p"))
        (0.5, 'background')
    """
    return min((outcome.share(name, side), name) for name, side in zip(ATTRIBUTES, sides, strict=True))


def tabulate_wishes(reader: Reader) -> list[str]:
    """The table and what to know about it, as markdown blocks."""
    candidates = list(find_candidates(reader))
    if not candidates:
        return ["Not measured yet."]
    rows = [_grant(wish, candidates) for wish in WISHES]
    rows.append(_grant_hint(candidates))
    table = Table(
        "", ("wish", "best measured setting", *(f"{name}, as wished" for name in ATTRIBUTES), "reached"), tuple(rows)
    )
    return [
        table.to_markdown().split("\n", 2)[2],
        f"Picked by the numbers from {len(candidates)} measured settings whose reference is a picture alone, without "
        "words that describe it: the setting whose weakest wished share is largest. *Reached* means that this share "
        "is above one half by two standard errors. The best of many is a little flattered by chance, and all of it "
        "is the toy's: on the real models take the row as the first thing to try, not as an answer.",
        "Until somebody has measured the real models, we would start there with token_rms and sinks excluded (then "
        "alpha means what it says, by the arithmetic of the report and not by the toy), the guide's layer -6, all "
        "tokens, anchored, and try alpha from 0.2 to 0.8; and turn to a style delta where only a part of the "
        "reference is wanted and a neutral picture can be had.",
    ]


def _grant(wish: Wish, candidates: list[tuple[str, Outcome]]) -> tuple[str, ...]:
    label, best = max(candidates, key=lambda candidate: score(candidate[1], wish.sides)[0])
    shares = [format_share(best, name, side) for name, side in zip(ATTRIBUTES, wish.sides, strict=True)]
    worst, name = score(best, wish.sides)
    side = wish.sides[ATTRIBUTES.index(name)]
    return (wish.name, label, *shares, "yes" if worst - 2 * best.error(name, side) > 0.5 else "no")


def _grant_hint(candidates: list[tuple[str, Outcome]]) -> tuple[str, ...]:
    prompt = (PROMPT, PROMPT, PROMPT)
    kept = [candidate for candidate in candidates if score(candidate[1], prompt)[0] >= _HINT_FLOOR]
    name = f"as much of the reference in the embeddings as leaves the prompt {_HINT_FLOOR:g} of each attribute"
    if not kept:
        return (name, "none of those measured", "-", "-", "-", "no")
    label, best = max(kept, key=lambda candidate: candidate[1].influence)
    shares = [format_share(best, attribute, PROMPT) for attribute in ATTRIBUTES]
    return (name, f"{label} (influence {best.influence:.2f})", *shares, "yes")
