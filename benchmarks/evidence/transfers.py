"""The guide's lists "may transfer", "unreliable or fails" and "does not work": what the toy can and cannot say."""

from __future__ import annotations

from collections.abc import Callable

from zimage_vl.toy.measuring import ATTRIBUTES

from .outcomes import PROMPT, REFERENCE
from .prose import ALPHAS, form, is_structure, is_style, join, stray
from .reading import NotMeasured, Reader, get_leader, is_above_chance, mean_share
from .tables import Table
from .wishes import find_candidates


_NO_COUNTERPART = "nothing: the toy has no counterpart of it"


def tabulate_transfers(read: Reader) -> Table:
    """A row for each entry of the three lists.

    Args:
        read: The measurements; an entry that needs what is not measured says so.
    """
    entries = (
        ("may transfer", "colour palette", _tell_palette),
        ("may transfer", "visual style (cartoon or realistic)", _say(_NO_COUNTERPART)),
        ("may transfer", "mood (bright, dark, warm, cool)", _tell_mood),
        ("may transfer", "basic composition", _tell_composition),
        ("unreliable", "clean style transfer", _tell_style),
        ("unreliable", "specific subjects", _tell_subject),
        ("unreliable", "precise composition", _say(f"{_NO_COUNTERPART}: place and size are not judged")),
        ("unreliable", "fine details", _say(_NO_COUNTERPART)),
        ("unreliable", "consistent results", _tell_consistency),
        ("does not work", "generation free of artifacts", _tell_clean),
        ("does not work", "production quality", _say(f"{_NO_COUNTERPART}; a trained adapter is not compared")),
        ("does not work", "text and writing", _say(_NO_COUNTERPART)),
    )
    rows = tuple((kind, entry, _tell(tell, read)) for kind, entry, tell in entries)
    return Table("", ("the guide's list", "entry", "the toy says"), rows)


def _say(words: str) -> Callable[[Reader], str]:
    return lambda read: words


def _tell(tell: Callable[[Reader], str], read: Reader) -> str:
    try:
        return tell(read)
    except NotMeasured as missing:
        return f"not measured yet ({missing})"


def _tell_palette(read: Reader) -> str:
    full = read.get("alpha", "alpha 1")
    above = [name for name in ("colour", "background") if is_above_chance(full, name)]
    return (
        f"at alpha 1 the reference's {join(above)} above chance ({full.share('colour', REFERENCE):.2f} and "
        f"{full.share('background', REFERENCE):.2f}); what it costs the prompt is in the tables"
    )


def _tell_mood(read: Reader) -> str:
    share = read.reference("alpha", "alpha 0.7", "background")
    return f"of mood nothing; a bright or dark background passes at alpha 0.7 in {share:.2f} of the pictures"


def _tell_composition(read: Reader) -> str:
    full = read.get("alpha", "alpha 1")
    return (
        f"of layout nothing; the reference's shape passes at alpha 1 in {full.share('shape', REFERENCE):.2f} of the "
        f"pictures ({'above' if is_above_chance(full, 'shape') else 'not above'} chance)"
    )


def _tell_style(read: Reader) -> str:
    candidates = list(find_candidates(read))
    style = sum(is_style(outcome) for _, outcome in candidates)
    structure = sum(is_structure(outcome) for _, outcome in candidates)
    return (
        f"{style} of {len(candidates)} settings give the prompt's shape in the reference's colours, {structure} the "
        "reverse; on the toy colours are the only style"
    )


def _tell_subject(read: Reader) -> str:
    rows = [(alpha, read.get("alpha", f"alpha {alpha:g}")) for alpha in ALPHAS]
    lost = [alpha for alpha, row in rows if get_leader(row, "shape") != PROMPT]
    return (
        f"the prompt's shape leads at every alpha below {min(lost):g}" if lost else "the prompt's shape always leads"
    )


def _tell_consistency(read: Reader) -> str:
    rows = [(alpha, read.get("alpha", f"alpha {alpha:g}")) for alpha in ALPHAS]
    mixed = [f"{alpha:g}" for alpha, row in rows if any(get_leader(row, name) is None for name in ATTRIBUTES)]
    return f"the same setting gives now one, now the other at alpha {join(mixed)}; elsewhere the outcome is steady"


def _tell_clean(read: Reader) -> str:
    plain, full = read.get("alpha", "alpha 0"), read.get("alpha", "alpha 1")
    clean = stray(full) < stray(plain) + 0.005 and form(full) > form(plain) - 0.02
    return (
        f"a reference at alpha 1 ({mean_share(full, REFERENCE):.2f} of its attributes) leaves {stray(full):.3f} stray "
        f"pixels and a form of {form(full):.2f}, the prompt alone {stray(plain):.3f} and {form(plain):.2f}: "
        f"{'no artifacts that the judge sees' if clean else 'artifacts'}; the toy's own pictures are coarse"
    )
