"""What we now think of each knob: what is left, and the list of all."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from zimage_vl.toy.measuring import ATTRIBUTES

from .experiments_more import EXPERIMENTS
from .outcomes import PROMPT, REFERENCE, SECOND, Outcome
from .prose import (
    all_led_by,
    find_differences,
    form,
    is_structure,
    is_style,
    join,
    stray,
    tell_alpha,
    tell_difference,
    tell_layers,
    tell_text,
    tell_tokens,
)
from .prose_more import tell_blend, tell_masking, tell_normalization, tell_positions, tell_recipes
from .reading import Reader, differ, get_leader, is_above_chance, mean_share, tell_outcome


def tell_references(read: Reader) -> list[str]:
    """Section "Several references"."""
    even, first, second = (read.get("references", f"weights {w}, alpha 1") for w in ("1:1", "3:1", "1:3"))
    told = (
        f"At alpha 1 the weights 3:1 give: {tell_outcome(first)}; 1:3: {tell_outcome(second)}; equal weights: "
        f"{tell_outcome(even)}, with {mean_share(even, REFERENCE):.2f} of the attributes the first's and "
        f"{mean_share(even, SECOND):.2f} the second's. "
    )
    told += (
        "The weights decide as alpha does: the heavier takes nearly all"
        if mean_share(first, REFERENCE) > 0.7 and mean_share(second, SECOND) > 0.7
        else "The weights shift the picture towards the heavier"
    )
    told += (
        f"; between equals the picture suffers ({stray(even):.3f} stray pixels, form {form(even):.2f}; with 3:1 "
        f"{stray(first):.3f} and {form(first):.2f})."
        if stray(even) > stray(first) + 0.005
        else ", and equal weights cost no quality."
    )
    return [told]


def tell_layer_mixes(read: Reader) -> list[str]:
    """Section "Layer mixes"."""
    single = {a: read.get("layers", f"layer -2, alpha {a:g}") for a in (0.5, 1.0)}
    names = ("-1 and -2", "-2 and -4", "-2 and -6", "-2, -4, -6 and -8")
    lines = [
        f"{name} {tell_difference(single[a], read.get('layer-mixes', f'{name}, alpha {a:g}'))} (alpha {a:g})"
        for a in (0.5, 1.0)
        for name in names
        if find_differences(single[a], read.get("layer-mixes", f"{name}, alpha {a:g}"))
    ]
    told = f"Mixes that differ from layer -2 alone: {'; '.join(lines) if lines else 'none'}. "
    better = [
        name for name in names if mean_share(read.get("layer-mixes", f"{name}, alpha 1"), REFERENCE)
        > mean_share(single[1.0], REFERENCE) + 0.03
    ]  # fmt: skip
    told += (
        f"Better than the single layer at alpha 1: {join(better)}."
        if better
        else "No mix is better than the best single layer: there is no reason here to mix."
    )
    return [told]


def says_more(first: Outcome, second: Outcome, name: str) -> bool:
    """Whether the first row shows more of the reference's value than the second, beyond the error."""
    return differ(first, second, name, REFERENCE) and first.share(name, REFERENCE) > second.share(name, REFERENCE)


def tell_masks(read: Reader) -> list[str]:
    """Section "Masks on the reference"."""
    whole, middle, border = (
        read.get("masks", f"{name}, alpha 1")
        for name in ("the whole reference", "its middle alone", "its border alone")
    )
    told = (
        f"At alpha 1 the whole reference gives: {tell_outcome(whole)}; its middle alone: {tell_outcome(middle)}; its "
        f"border alone: {tell_outcome(border)}. Of the reference's shape, colour and background the middle brings "
        f"{join(f'{middle.share(name, REFERENCE):.2f}' for name in ATTRIBUTES)}, the border "
        f"{join(f'{border.share(name, REFERENCE):.2f}' for name in ATTRIBUTES)}. "
    )
    more = {
        place: [name for name in ATTRIBUTES if says_more(first, second, name)]
        for place, first, second in (("middle", middle, border), ("border", border, middle))
    }
    told += f"The middle says more of {join(more['middle'])}, the border more of {join(more['border'])}. "
    kept = [
        name
        for name in ATTRIBUTES
        if any(row.share(name, PROMPT) > whole.share(name, PROMPT) + 0.1 for row in (middle, border))
    ]
    told += (
        f"Where something is hidden the prompt gets a little of its {join(kept)} back, but it leads in nothing."
        if kept and not any(get_leader(row, name) == PROMPT for row in (middle, border) for name in ATTRIBUTES)
        else "What is hidden leaves room for the prompt."
        if kept
        else "The prompt does not come back in the place of what is hidden."
    )
    split = any(is_style(row) or is_structure(row) for row in (middle, border))
    told += (
        " A mask can divide shape from colour here."
        if split
        else " A mask shifts what the reference says; it is no knife between its shape and its colours."
    )
    return [told]


def tell_refinement(read: Reader) -> list[str]:
    """Section "Iterative refinement"."""
    parts: list[str] = []
    for alpha in (0.3, 0.5, 0.7):
        rounds = [read.get("refinement", f"alpha {alpha:g}", number) for number in range(3)]
        shares = join(f"{mean_share(row, REFERENCE):.2f}" for row in rounds)
        parts.append(f"at {alpha:g} {shares} (stray {stray(rounds[0]):.3f} to {stray(rounds[-1]):.3f})")
    first, last = (read.get("refinement", "alpha 0.5", number) for number in (0, 2))
    fading = mean_share(last, REFERENCE) < mean_share(first, REFERENCE) - 0.03
    told = f"The first reference's share, mean over the attributes, in rounds 1 to 3: {'; '.join(parts)}. "
    told += (
        "Each round mixes the prompt in again, so that the reference fades: iterating is a slow way to a smaller "
        "alpha. "
        if fading
        else "The rounds do not lead back to the prompt. "
    )
    told += (
        "It does clean up what the first round left undecided."
        if stray(last) < stray(first) - 0.005
        else "It does not clean the pictures up."
    )
    return [told]


def tell_alignment(read: Reader) -> list[str]:
    """Section "Alignment"."""
    modes = ("anchored", "pool", "interpolate", "truncate", "concat")
    full = {mode: read.get("alignment", f"{mode}, alpha 1") for mode in modes}
    half = {mode: read.get("alignment", f"{mode}, alpha 0.5") for mode in modes}
    small = {mode: read.get("alignment", f"{mode}, alpha 0.3") for mode in modes}
    good = [mode for mode, row in full.items() if all_led_by(row, REFERENCE)]
    poor = "; ".join(f"{mode}: {tell_outcome(row)}" for mode, row in full.items() if mode not in good)
    told = f"At alpha 1 {join(good)} give the reference in everything{'' if not poor else f'; {poor}'}. "
    keeps = max(modes, key=lambda mode: mean_share(small[mode], PROMPT))
    told += (
        f"At 0.3 the prompt is kept best by {keeps} ({mean_share(small[keeps], PROMPT):.2f} of the attributes; "
        f"anchored {mean_share(small['anchored'], PROMPT):.2f}, pool {mean_share(small['pool'], PROMPT):.2f}). "
    )
    other = [mode for mode in modes[1:] if find_differences(half["anchored"], half[mode])]
    ends = (
        f"At 0.5 {join(other)} differ from anchored in something: there "
        if other
        else "At 0.5 none differs from anchored in anything that the judge reads: there "
    )
    ends += "the prompt keeps " + join(f"{mean_share(row, PROMPT):.2f} ({mode})" for mode, row in half.items())
    return [
        told + ends + ".",
        "Anchored stays the default: it lays each part of the turn on its own part of the prompt, which an alpha by "
        "place needs. concat alone keeps the prompt's own tokens whole beside the reference's.",
    ]


def tell_steps(read: Reader) -> list[str]:
    """Section "Start and end"."""
    rows = {setting.label: read.get("steps", setting.label) for setting in EXPERIMENTS["steps"].settings}
    told = "At alpha 1, by window: " + "; ".join(f"{label}: {tell_outcome(row)}" for label, row in rows.items()) + ". "
    style = [label for label, row in rows.items() if is_style(row)]
    structure = [label for label, row in rows.items() if is_structure(row)]
    told += (
        f"The prompt's shape with the reference's colours comes from: {join(style)}; the reference's shape with the "
        f"prompt's colours from: {join(structure)}. "
    )
    told += (
        "When the reference counts decides what it decides: this knob divides structure from appearance."
        if style or structure
        else "No window divides structure from appearance."
    )
    worst = max(rows, key=lambda label: stray(rows[label]))
    whole = stray(read.get("alpha", "alpha 1"))
    told += (
        f" A change of mind costs quality: up to {stray(rows[worst]):.3f} stray pixels ({worst}), {whole:.3f} without "
        "a window."
        if stray(rows[worst]) > whole + 0.01
        else ""
    )
    return [told]


def tell_controls(read: Reader) -> list[str]:
    """Section "Controls"."""
    rows = {setting.label: read.get("controls", setting.label) for setting in EXPERIMENTS["controls"].settings}
    above = [f"{label}, {name}" for label, row in rows.items() for name in ATTRIBUTES if is_above_chance(row, name)]
    plain = read.get("alpha", "alpha 0")
    lost = {label: find_differences(plain, row) for label, row in rows.items() if label.endswith("alpha 0.3")}
    harmed = [label for label, names in lost.items() if names]
    half = {kind: mean_share(rows[f"{kind}, all, alpha 0.5"], PROMPT) for kind in ("noise", "grey")}
    scene = mean_share(read.get("alpha", "alpha 0.5"), PROMPT)
    return [
        (
            f"Above chance by three standard errors: {join(above)}. "
            if above
            else "No control matches the pair's reference above chance: what the tables call the reference's is "
            "the reference's. "
        )
        + (
            f"At 0.3 the prompt loses something to {join(harmed)}: disruption, not transfer. Its shape is kept in "
            f"{rows['noise, all, alpha 0.3'].share('shape', PROMPT):.2f} beside noise, "
            f"{rows['grey, all, alpha 0.3'].share('shape', PROMPT):.2f} beside grey and "
            f"{read.prompt('alpha', 'alpha 0.3', 'shape'):.2f} beside a scene. "
            if harmed
            else "At 0.3 a reference that shows nothing costs the prompt nothing. "
        )
        + f"At 0.5 the prompt keeps {half['noise']:.2f} of the attributes beside noise, {half['grey']:.2f} beside "
        f"grey and {scene:.2f} beside a scene: "
        + (
            "part of what it loses there is disruption."
            if fmean(half.values()) < 0.8
            else "what it loses there is lost to what the scene shows."
        )
    ]


PARAGRAPHS: dict[str, Callable[[Reader], list[str]]] = {
    "alpha": tell_alpha,
    "layers": tell_layers,
    "tokens": tell_tokens,
    "text": tell_text,
    "normalization": tell_normalization,
    "masking": tell_masking,
    "blend": tell_blend,
    "recipes": tell_recipes,
    "positions": tell_positions,
    "references": tell_references,
    "layer-mixes": tell_layer_mixes,
    "masks": tell_masks,
    "refinement": tell_refinement,
    "alignment": tell_alignment,
    "steps": tell_steps,
    "controls": tell_controls,
}
"""By the name of the experiment."""
