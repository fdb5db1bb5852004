"""What we now think of each knob, in words that follow from the numbers: the first half.

Where a sentence hangs on what was measured, the code picks it; what stands fixed is true of any run.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from zimage_vl.toy.measuring import ATTRIBUTES

from .outcomes import PROMPT, REFERENCE, Outcome
from .reading import Reader, differ, get_leader, is_above_chance, tell_outcome


ALPHAS = (0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)


def join(names: Iterable[object]) -> str:
    """Names for running text.

    Example:
        >>> join(["a", "b", "c"]), join([])
        ('a, b and c', 'none')
    """
    words = [str(name) for name in names]
    if len(words) < 2:
        return words[0] if words else "none"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def all_led_by(outcome: Outcome, side: str) -> bool:
    """Whether a side leads in shape, colour and background."""
    return all(get_leader(outcome, name) == side for name in ATTRIBUTES)


def is_style(outcome: Outcome) -> bool:
    """The prompt's shape in the reference's colours."""
    leaders = [get_leader(outcome, name) for name in ATTRIBUTES]
    return leaders == [PROMPT, REFERENCE, REFERENCE]


def is_structure(outcome: Outcome) -> bool:
    """The reference's shape in the prompt's colours."""
    leaders = [get_leader(outcome, name) for name in ATTRIBUTES]
    return leaders == [REFERENCE, PROMPT, PROMPT]


def find_differences(first: Outcome, second: Outcome) -> list[str]:
    """The attributes in which the share of the prompt's or of the reference's value differs."""
    return [name for name in ATTRIBUTES if any(differ(first, second, name, side) for side in (PROMPT, REFERENCE))]


def tell_difference(first: Outcome, second: Outcome) -> str:
    """The same in words.

    Example:
        >>> same = Outcome("pppp", "rrrr", "pprr", [90] * 4, [0] * 4, 0.5, 0.1, 0.0)
        >>> tell_difference(same, same)
        'in nothing that the judge reads'
    """
    names = find_differences(first, second)
    return f"in {join(names)}" if names else "in nothing that the judge reads"


def stray(outcome: Outcome) -> float:
    """Mean share of stray pixels, 0..1."""
    return fmean(outcome.stray) / 1000


def form(outcome: Outcome) -> float:
    """Mean form, 0..1."""
    return fmean(outcome.iou) / 100


def tell_alpha(read: Reader) -> list[str]:
    """Section "Alpha"."""
    rows = {alpha: read.get("alpha", f"alpha {alpha:g}") for alpha in ALPHAS}
    kept = [alpha for alpha, row in rows.items() if all_led_by(row, PROMPT)]
    taken = [alpha for alpha, row in rows.items() if all_led_by(row, REFERENCE)]
    told = "No alpha leaves the prompt, or gives the reference, in everything."
    if kept and taken:
        sort = "a switch rather than a dial" if min(taken) - max(kept) < 0.35 else "a dial"
        told = (
            f"On the toy alpha is {sort}: up to {max(kept):g} the prompt leads in everything, from {min(taken):g} on "
            "the reference does."
        )
    worst = max(rows, key=lambda alpha: stray(rows[alpha]))
    told += (
        f" The most stray pixels are at {worst:g} ({stray(rows[worst]):.3f} of the picture; {stray(rows[0.0]):.3f} at "
        f"0 and {stray(rows[1.0]):.3f} at 1): half-way between two scenes the toy has no picture to paint."
    )
    over = all_led_by(rows[0.6], REFERENCE)
    hints = find_differences(rows[0.0], rows[0.15])
    guide = (
        "That above 0.5 the reference dominates is what the toy shows too. "
        if over
        else "That above 0.5 the reference dominates is not what the toy shows. "
    )
    guide += f"A hint at 0.15 shows {tell_difference(rows[0.0], rows[0.15])}" + (
        ". " if hints else ": there is no half-strength of an attribute to be had by a small alpha. "
    )
    default = read.get("alpha", "the call's defaults, alpha 0.5")
    if default.effective_alpha is not None:
        guide += (
            f"The call's defaults scale by one global factor and blend {default.effective_alpha:.2f} where 0.50 is "
            "asked for, so that they change over earlier: what counts is the effective alpha, which the report holds."
        )
    return [told, guide]


def tell_layers(read: Reader) -> list[str]:
    """Section "Hidden layer"."""
    full = {k: read.get("layers", f"layer {k}, alpha 1") for k in range(-1, -9, -1)}
    good = [k for k, row in full.items() if all_led_by(row, REFERENCE)]
    poor = [k for k in full if k not in good]
    last = "As the guide says, the last layer, which alone comes after the final norm, is a poor one. "
    told = (
        f"At alpha 1 the layers {join(good)} give the reference in everything, {join(poor)} "
        f"{'does' if len(poor) == 1 else 'do'} not. "
    )
    told += last if -1 in poor else "The last layer is no worse here, against the guide. "
    told += (
        "The toy's -2, the counterpart of the guide's -6, is among the good ones. "
        if -2 in good
        else "The toy's -2, the counterpart of the guide's -6, is not among the good ones. "
    )
    if {-4, -6} <= set(good):
        told += (
            "That artifacts grow from there towards the middle (the guide's -16 and -24) is not seen: the toy's "
            "vision was trained to sit in the word space at several layers, and the real model, as far as is known, "
            "was not."
        )
    plain = {k: read.get("layers", f"layer {k}, alpha 0.5, not normalised").effective_alpha for k in (-2, -4, -6, -8)}
    sizes = join(f"{value:.2f} at {k}" for k, value in plain.items() if value is not None)
    return [
        told,
        f"Without normalization a layer also decides how much of it there is: at a nominal 0.5 the effective alpha is "
        f"{sizes}. Two layers can only be compared with their tokens made equally large (token_rms), else the smaller "
        "one looks gentler; the guide's comparison does scale, but by a std that a sink decides.",
    ]


def tell_tokens(read: Reader) -> list[str]:
    """Section "Token selection"."""
    everything, text = read.get("tokens", "all, alpha 0.5"), read.get("tokens", "text, alpha 0.5")
    full, image = read.get("tokens", "text, alpha 1"), read.get("tokens", "image, alpha 1")
    pooled = read.get("tokens", "image, pool, alpha 1")
    told = (
        "The toy's text tokens carry the whole picture: alone, at alpha 1, they give the reference in everything"
        if all_led_by(full, REFERENCE)
        else f"Text tokens alone at alpha 1: {tell_outcome(full)}"
    )
    told += (
        f"; at 0.5 they differ from all tokens {tell_difference(everything, text)}. The author of the guide found the "
        "real model's text tokens next to inert at 0.3. At 0.3 the toy's are "
    )
    small = read.get("tokens", "text, alpha 0.3")
    told += (
        "inert too, but so is every selection, so that this says nothing about text tokens."
        if all_led_by(small, PROMPT) and all_led_by(read.get("tokens", "all, alpha 0.3"), PROMPT)
        else "not inert."
    )
    lies = (
        f"Image tokens act by where they are laid. Anchored they lie on the prompt's words alone, and at alpha 1 the "
        f"picture is: {tell_outcome(image)}. Pooled over the whole sequence they give at alpha 1: "
        f"{tell_outcome(pooled)}, with a form of {form(pooled):.2f} and {stray(pooled):.3f} stray pixels beside "
        f"{form(full):.2f} and {stray(full):.3f} of the text tokens. "
    )
    lies += (
        "That image tokens give more severe artifacts does not show here; but the toy's image tokens were trained to "
        "lie in the word space, which flatters them."
        if form(pooled) > form(full) - 0.03 and stray(pooled) < stray(full) + 0.005
        else "That image tokens give more artifacts shows here too."
    )
    per_dim = read.get("tokens", "image, pool, per_dim, alpha 0.5")
    scaled = read.get("tokens", "image, pool, global, alpha 0.5")
    needs = ""
    if per_dim.effective_alpha is not None and scaled.effective_alpha is not None:
        needs = (
            f"That image tokens need per_dim: at a nominal 0.5 per_dim blends {per_dim.effective_alpha:.2f}, global "
            f"{scaled.effective_alpha:.2f}. What looks like fewer artifacts is, on the toy, a smaller dose."
        )
    return [told, lies, *([needs] if needs else [])]


def tell_text(read: Reader) -> list[str]:
    """Section "Text with the image"."""
    plain = read.get("text", "the prompt, alpha 0.5")
    matching, empty = read.get("text", "matching description, alpha 0.5"), read.get("text", "no text, alpha 0.5")
    control = read.get("text", "control: matching description, noise as the picture, alpha 0.5")
    before = read.get("text", "the prompt before the picture, alpha 0.5")
    named = [name for name in ATTRIBUTES if is_above_chance(control, name)]
    told = (
        f"At 0.5, where the toy is undecided and a nudge would show, a matching description differs from the prompt "
        f"{tell_difference(plain, matching)}, no text {tell_difference(plain, empty)}. Form and stray pixels: "
        f"{form(matching):.2f} and {stray(matching):.3f} with the matching description, {form(plain):.2f} and "
        f"{stray(plain):.3f} with the prompt. "
    )
    told += (
        "That a matching description improves the quality significantly is not seen. "
        if form(matching) < form(plain) + 0.03 and stray(matching) > stray(plain) - 0.005
        else "A matching description does improve the pictures. "
    )
    told += (
        f"The control, the same words beside noise, shows the reference's {join(named)} above chance: part of what a "
        "description brings is the description."
        if named
        else "The control, the same words beside noise, shows nothing of the reference above chance: the words "
        "alone do not carry it at this alpha."
    )
    order = (
        f"The place matters more than the words: with the prompt before the picture, at 0.5, the outcome is "
        f"{tell_outcome(before)}, with it behind, {tell_outcome(plain)}. Text behind the image sees the image; with "
        "the text before it, the image's tokens and the template after it see the prompt first. Leave "
        '`vl_text_position` at "after" unless the reference is to count less.'
        if find_differences(plain, before)
        else "Whether the text stands before or after the picture makes no difference here."
    )
    return [told, order]
