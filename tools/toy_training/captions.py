"""The toy world's sentences: fifteen forms, each for any subset of a scene's attributes."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Collection

from zimage_vl.toy.world import ATTRIBUTES, PLACE_PHRASES, Scene


# Fields: {s} shape, {c} colour, {b} background, {f} fill, {p} place as a phrase, {w} place as a word. What stands in
# brackets is left out where the field in it is not named; a shape that is not named is "shape".
FORMS: tuple[str, ...] = (
    "a [{f} ][{c} ]{s}[ {p}][ on a {b} background]",
    "[{f} ][{c} ]{s}[, {p}][, {b} background]",
    "[a {b} background with ]a [{f} ][{c} ]{s}[ {p}]",
    "there is a [{f} ][{c} ]{s}[ {p}][ on a {b} background]",
    "[{c} ][{f} ]{s}[, {w}][, on {b}]",
    "[{p}, ]a [{f} ][{c} ]{s}[ on {b}]",
    "a {s}[, {f}][, {c}][, {p}][, {b} background]",
    "a picture of a [{f} ]{s}[ in {c}][ {p}][ on a {b} background]",
    "an image of a [{c} ][{f} ]{s}[ {p}][ on {b}]",
    "[{b} background, ][{f} ][{c} ]{s}[ {p}]",
    "one [{f} ][{c} ]{s}[ {p}][ in front of a {b} wall]",
    "a [{f} ][{c} ]{s}[ {p}][ of a {b} background]",
    "[{f} ][{c} ]{s}[ {p}][ on {b}]",
    "[the background is {b}, ]a [{f} ][{c} ]{s}[ {p}]",
    "a [{f} ][{c} ]{s}[ {p}][, {b} background]",
)
OF = FORMS[11]  # "on the left of a white background": needs both

FIELDS = {"s": "shape", "c": "colour", "b": "background", "f": "fill", "p": "place", "w": "place"}
EVERYTHING = frozenset(ATTRIBUTES)

# Further forms of what is mostly said shorter.
SHORT_FORMS: dict[frozenset[str], tuple[str, ...]] = {
    frozenset({"shape"}): ("{s}",),
    frozenset({"colour"}): ("{c}",),
    frozenset({"fill"}): ("{f}",),
    frozenset({"place"}): ("{w}", "{p}"),
    frozenset({"background"}): ("a {b} background", "an image on {b}", "on {b}"),
    frozenset({"place", "background"}): ("{p} on a {b} background",),
}

SUBSETS: tuple[frozenset[str], ...] = tuple(
    frozenset(names) for count in range(1, len(ATTRIBUTES)) for names in itertools.combinations(ATTRIBUTES, count)
)
"""Every choice of one to four attributes."""


def forms_for(named: Collection[str]) -> tuple[str, ...]:
    """Get the forms that name exactly these attributes, without those that come out the same as another."""
    names = frozenset(named)
    usable = [form for form in FORMS if form != OF or {"place", "background"} <= names]
    return (*usable, *SHORT_FORMS.get(names, ()))


def caption(scene: Scene, named: Collection[str] = EVERYTHING, form: str = FORMS[0]) -> str:
    """Say these attributes of a scene.

    Example:
        >>> caption(Scene("circle", "red", "white", "striped", "left"))
        'a striped red circle on the left on a white background'
        >>> caption(Scene("circle", "red", "white", "striped", "left"), {"colour", "place"}, FORMS[4])
        'red shape, left'
    """
    words = {"s": scene.shape if "shape" in named else "shape", "c": scene.colour, "b": scene.background}
    words |= {"f": scene.fill, "p": PLACE_PHRASES[scene.place], "w": scene.place}

    def group(match: re.Match[str]) -> str:
        field = re.search(r"{(\w)}", match[1])
        return match[1] if field and FIELDS[field[1]] in named else ""

    return re.sub(r"\[([^]]*)\]", group, form).format(**words)


def random_caption(scene: Scene, named: Collection[str], rng: random.Random) -> str:
    """Say these attributes in one of the forms."""
    return caption(scene, named, rng.choice(forms_for(named)))


def long_caption(scene: Scene, named: Collection[str], words: int, rng: random.Random) -> str:
    """Say these attributes in many sentences, each about some of them, until there are `words` words."""
    names, sentences = sorted(named), [random_caption(scene, named, rng)]
    while sum(len(sentence.split()) for sentence in sentences) < words:
        some = rng.sample(names, rng.randint(1, len(names)))
        sentences.append(random_caption(scene, some, rng))
    rng.shuffle(sentences)
    return ", ".join(sentences)
