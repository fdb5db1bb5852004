"""What we now think of each knob: normalization, masking, blend modes, recipes, alpha per token."""

from __future__ import annotations

from itertools import pairwise

from .experiments_more import EXPERIMENTS
from .outcomes import PROMPT, REFERENCE, Outcome
from .prose import (
    all_led_by,
    find_differences,
    is_structure,
    is_style,
    join,
    tell_difference,
)
from .reading import Reader, get_leader, is_above_chance, mean_share, tell_outcome
from .settings import NEUTRALS


def tell_normalization(read: Reader) -> list[str]:
    """Section "Normalization"."""
    modes = ("none", "global", "per_dim", "hybrid", "token_rms")
    half = {mode: read.get("normalization", f"{mode}, layer -2, alpha 0.5") for mode in modes}
    doses = sorted((row.effective_alpha or 0.0, mode) for mode, row in half.items())
    shares = [mean_share(half[mode], PROMPT) for _, mode in doses]
    ordered = all(first >= second - 0.03 for first, second in pairwise(shares))
    told = (
        "At a nominal 0.5 the normalizations blend "
        + join(f"{dose:.2f} ({mode})" for dose, mode in doses)
        + ", and the prompt keeps on the mean over the attributes "
        + join(f"{share:.2f}" for share in shares)
        + ", in the same order. "
    )
    told += (
        "What a normalization does to the picture is, on the toy, what it does to the dose: the prompt gives way as "
        "the effective alpha grows, whichever knob makes it grow. "
        if ordered
        else "The dose alone does not explain it: the order of the shares is another. "
    )
    plain = read.get("normalization", "none, layer -2, alpha 1")
    alike = [m for m in modes[1:] if not find_differences(plain, read.get("normalization", f"{m}, layer -2, alpha 1"))]
    turned = [mode for mode in modes[1:] if mode not in alike]
    told += (
        f"At alpha 1, where the transformer's RMSNorm takes sizes away, {join(alike)} differ from none in nothing "
        "that the judge reads"
    )
    told += f"; {join(turned)} do: they turn tokens and do not only scale them." if turned else "."
    harmed = [m for m in turned if not all_led_by(read.get("normalization", f"{m}, layer -2, alpha 1"), REFERENCE)]
    if harmed:
        full = {mode: read.get("normalization", f"{mode}, layer -2, alpha 1") for mode in harmed}
        told += " At alpha 1 " + "; ".join(f"{mode} gives: {tell_outcome(row)}" for mode, row in full.items())
        told += (
            ". Against the other normalizations it loses what the reference says, without any sink: it subtracts the "
            "mean over the reference's own tokens, and so, we take it, what they have in common."
        )
    image = {mode: read.get("normalization", f"{mode}, image tokens, pool, alpha 0.5") for mode in modes}
    gentle = max(modes, key=lambda mode: mean_share(image[mode], PROMPT))
    least = min(modes, key=lambda mode: image[mode].effective_alpha or 0.0)
    needs = (
        f"For image tokens the prompt is kept best by {gentle}"
        + (", which also blends the smallest dose" if gentle == least else f"; the smallest dose is that of {least}")
        + ". Choose token_rms, by which alpha means what it says, and move alpha instead of the normalization. On the "
        "real text encoder a sink decides what global and per_dim do: see the synthetic tables."
    )
    return [told, needs]


def tell_masking(read: Reader) -> list[str]:
    """Section "Outlier masking"."""
    ten = [read.get("masking", f"{mode}, threshold 10, {where}") for mode in ("zero", "clamp", "scale") for where in
           ("all tokens, alpha 0.5", "image tokens, alpha 1")]  # fmt: skip
    found = max(row.masked_dimensions for row in ten)
    told = (
        f"At the guide's threshold of 10 the toy has next to no outlier dimension ({found:.2f} a reference on the "
        "mean), so that it can say nothing for or against masking there. "
        if found < 0.5
        else f"At the guide's threshold of 10 up to {found:.1f} dimensions a reference are masked. "
    )
    none = read.get("masking", "none, threshold 10, image tokens, alpha 1")
    zero = read.get("masking", "zero, threshold 1.5, image tokens, alpha 1")
    told += (
        f"With the threshold at 1.5, zero takes {zero.masked_dimensions:.0f} of the 96 dimensions out of the image "
        f"tokens, and the picture at alpha 1 differs from that without a mask {tell_difference(none, zero)}. "
    )
    told += (
        "So much may go without harm: what the picture says is spread over the dimensions."
        if not find_differences(none, zero)
        else "The masked dimensions did carry something."
    )
    return [
        told,
        "The guide's 617x and 42x are deficits: the image tokens lack the text's sink, so that there is no excess in "
        "them to mask (see the synthetic tables, where both come out). We leave masking off and exclude sinks "
        "instead.",
    ]


def tell_blend(read: Reader) -> list[str]:
    """Section "Blend modes"."""
    alone, adain = read.get("alpha", "alpha 0"), read.get("blend", "adain, alpha 1")
    told = (
        "AdaIN per token is inert, as the guide says: even at alpha 1 it differs from the prompt alone in nothing "
        "that the judge reads. It only rescales tokens, and the transformer's RMSNorm takes that away. "
        if not find_differences(alone, adain)
        else f"AdaIN per token is not inert: it differs from the prompt alone {tell_difference(alone, adain)}. "
    )
    linear, slerp = read.get("blend", "linear, alpha 0.5"), read.get("blend", "slerp, alpha 0.5")
    told += f"slerp differs from linear at 0.5 {tell_difference(linear, slerp)}. "
    dims = {alpha: read.get("blend", f"adain_per_dim, alpha {alpha:g}") for alpha in (0.3, 0.5, 1.0)}
    told += f"AdaIN per dimension at alpha 1: {tell_outcome(dims[1.0])}. " + (
        "That it transfers colours and corrupts the subject is not seen. "
        if not any(is_above_chance(dims[1.0], name) for name in ("colour", "background"))
        else "Colours do pass, as the guide says, "
        + ("and the shape with them. " if is_above_chance(dims[1.0], "shape") else "without the shape. ")
    )
    told += f"At 0.5 it gives: {tell_outcome(dims[0.5])}."
    return [told, *_tell_deltas(read, alone)]


def _tell_deltas(read: Reader, alone: Outcome) -> list[str]:
    kinds = NEUTRALS[1:]
    rows = {
        (kind, alpha): read.get("blend", f"style_delta, neutral {kind}, alpha {alpha:g}")
        for kind in kinds
        for alpha in (0.3, 0.5, 1.0)
    }
    hurt = [kind for kind in kinds if not all_led_by(rows[kind, 0.3], PROMPT)]
    told = (
        "Style delta at 0.3, scaled to the ordinary token and not to a std that a sink decides, leaves the prompt in "
        f"the lead {'with every neutral picture' if not hurt else f'but with {join(hurt)} as neutral picture'}; the "
        "guide's failed test had some eight times the dose. At alpha 1 it gives, by neutral picture: "
    )
    told += "; ".join(f"{kind}: {tell_outcome(rows[kind, 1.0])}" for kind in kinds)
    style = [kind for kind in kinds if any(is_style(rows[kind, alpha]) for alpha in (0.3, 0.5, 1.0))]
    structure = [kind for kind in kinds if any(is_structure(rows[kind, alpha]) for alpha in (0.3, 0.5, 1.0))]
    split = (
        f"The prompt's shape in the reference's colours comes with: {join(style)}; the reference's shape in the "
        f"prompt's colours with: {join(structure)}. "
    )
    split += (
        "So the trade between visible style and kept content, which the guide calls fundamental, is not so on the "
        "toy: a difference of two pictures transfers that in which they differ, and takes away what the neutral one "
        "shows. "
        if style or structure
        else "No neutral picture divides style from content here."
    )
    if style and not {"grey", "desaturated", "other colours"} & {*style, *structure}:
        split += (
            "The neutral picture has to be the reference with the prompt's own attribute in it: grey, black and white "
            "or any other colours do not do. That is much to ask of a user with a photograph, but of all that is "
            "measured here it is the first thing we would try on the real models."
        )
    return [told + ".", split]


def tell_recipes(read: Reader) -> list[str]:
    """Section "Recipes"."""
    rows = {setting.label: read.get("recipes", setting.label) for setting in EXPERIMENTS["recipes"].settings}
    style = [label for label, row in rows.items() if is_style(row)]
    structure = [label for label, row in rows.items() if is_structure(row)]
    letter, measured = rows["style-transfer, the prompt beside"], rows["style-transfer, target std the text's"]
    constant = (
        f"The guide's target std of 70 is Qwen3's and has no meaning elsewhere: on the toy, whose text has a far "
        f"smaller one, STYLE_TRANSFER blends {letter.effective_alpha or 0:.2f} where 0.50 is asked for "
        f"({tell_outcome(letter)}), and with the text's own std {measured.effective_alpha or 0:.2f} "
        f"({tell_outcome(measured)}). Use the recipes with vl_target_std=None wherever the text encoder is another."
    )
    appearance, fixed = rows["appearance"], rows["structure"]
    names = (
        f"Prompt's shape with the reference's colours: {join(style)}. The reference's shape with the prompt's "
        f"colours: {join(structure)}. APPEARANCE gives: {tell_outcome(appearance)}; STRUCTURE: {tell_outcome(fixed)}. "
    )
    names += (
        "So neither does here what it is named for: the toy's language model gathers everything about the picture in "
        "the template after the prompt, and the words carry next to nothing. They stay as ideas for the real models."
        if not is_style(appearance) and not is_structure(fixed)
        else "At least one of them does what it is named for."
    )
    calibrated, composition = rows["calibrated"], rows["composition"]
    palette = rows["colour-palette, the prompt beside"]
    return [
        constant,
        names,
        f"CALIBRATED blends {calibrated.effective_alpha or 0:.2f} where 0.30 is asked for: "
        f"{tell_outcome(calibrated)}. COMPOSITION: {tell_outcome(composition)}; COLOUR_PALETTE without the colours in "
        f"words: {tell_outcome(palette)}. Recipes below the toy's threshold show nothing on it, and that is no "
        "evidence against them.",
    ]


def tell_positions(read: Reader) -> list[str]:
    """Section "Alpha per token"."""
    rows = {setting.label: read.get("positions", setting.label) for setting in EXPERIMENTS["positions"].settings}
    tail, words = rows["all: the template after the prompt"], rows["all: the prompt's own words"]
    before, whole = rows["all: the template before the prompt"], rows["all: everywhere"]
    told = (
        f"The template after the prompt gives at alpha 1: {tell_outcome(tail)}; the prompt's own words: "
        f"{tell_outcome(words)}; the template before: {tell_outcome(before)}. "
    )
    told += (
        "On this toy the tail carries everything, structure and appearance alike, and the words next to nothing: the "
        "prototype's division is not found again. That it was found in one training of the toy and not in the next "
        "says how little it says about the real models. "
        if all_led_by(tail, REFERENCE) and all_led_by(words, PROMPT)
        else "Places do divide what is transferred. "
    )
    saved = [
        tokens
        for tokens in ("text", "all")
        if get_leader(rows[f"{tokens}: everywhere but the shape's word"], "shape") == PROMPT
    ]
    told += (
        f"Keeping the shape's word keeps the shape with {join(saved)} tokens."
        if saved
        else "Keeping the shape's own word does not keep the shape."
    )
    style = [label for label, row in rows.items() if is_style(row)]
    structure = [label for label, row in rows.items() if is_structure(row)]
    told += (
        f" Rows with the prompt's shape and the reference's colours: {join(style)}; the other way: {join(structure)}."
    )
    pooled = rows["all, pool: the template after the prompt"]
    return [
        told,
        f"The tail alone differs from everywhere {tell_difference(tail, whole)}, and pooled it gives: "
        f"{tell_outcome(pooled)}. An alpha by place can choose what is transferred only where places carry different "
        "things; whether those of the real models do has to be tried on them.",
    ]
