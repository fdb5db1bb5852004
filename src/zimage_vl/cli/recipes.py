"""`zimage-vl recipes`: the ready settings by name, what each is for, what it did on the toy, and its options."""

from __future__ import annotations

from zimage_vl.recipes import RECIPES

from ._records import as_options
from ._terminal import FormatOption, OutputFormat, print_json, say


# Nothing of it is measured on real weights.
ABOUT = {
    "colours": "the reference's colours, by the template's beginning alone; the rest of the prompt stays.",
    "layout": "where things stand, from a picture without colours. Weak, and it costs some of the prompt.",
    "style": "how things are drawn, by the prompt's words alone. The colours come along.",
    "variation": "the same again: Qwen3-VL describes the picture first. The prompt should say what it shows.",
    "style-transfer": "the guide's, for style. Add --text with the style in words: they do the work, not the picture.",
    "image-variation": "the guide's, to stay close. Add --text with a description, and a prompt that varies it.",
    "composition": "the guide's, for the picture's layout; on the toy it takes none.",
    "colour-palette": "the guide's, a hint of the colours; on the toy hardly any. Add --text with words about them.",
    "guide": "the guide's defaults to the letter; text tokens alone hardly show the picture.",
    "all-tokens": "what the guide's author corrected them to: all tokens, scaled to the text.",
    "calibrated": "alpha means what it says: each token gets the size of the text's.",
}
# Shares on the toy, with prompts that leave open what is wished for: kept of what the prompt names, followed of what
# it leaves open. Without a reference the second is CHANCE. From docs/evidence-tables.md.
CHANCE = 0.23
MEASURED = {
    "colours": (0.96, 0.38),
    "layout": (0.78, 0.25),
    "style": (0.82, 0.59),
    "variation": (0.90, 0.97),
    "style-transfer": (0.90, 0.40),
    "image-variation": (0.94, 0.97),
    "composition": (0.81, 0.20),
    "colour-palette": (0.96, 0.28),
    "guide": (1.00, 0.24),
    "all-tokens": (0.94, 0.41),
    "calibrated": (0.98, 0.27),
}


def recipes(output_format: FormatOption = OutputFormat.TEXT) -> None:
    """List what `generate --take` takes: four wishes in plain words, and recipes, with what each did on the toy."""
    if output_format is OutputFormat.JSON:
        measured = {name: {"kept": kept, "followed": followed} for name, (kept, followed) in MEASURED.items()}
        print_json(
            {name: {"about": ABOUT[name], "toy": measured[name], "knobs": knobs} for name, knobs in RECIPES.items()}
        )
        return
    for name, about in ABOUT.items():
        kept, followed = MEASURED[name]
        say(name)
        say(f"    {about[0].upper()}{about[1:]} Toy: kept {kept:.2f}, followed {followed:.2f} (chance {CHANCE:.2f}).")
        say(f"    {' '.join(as_options(RECIPES[name]))}")
