"""`zimage-vl recipes`: the ready settings by name, what each is for, what it did on the toy, and its options."""

from __future__ import annotations

from zimage_vl.recipes import RECIPES

from ._records import as_options
from ._terminal import FormatOption, OutputFormat, print_json, say


# What each is for; and the shares on the toy, with prompts that leave open what is wished for: kept of what the prompt
# names, followed of what it leaves open, from docs/evidence-tables.md. Without a reference the second is CHANCE.
ABOUT: dict[str, tuple[str, float, float]] = {
    "colours": ("the reference's colours, by the template's beginning alone; the prompt's words stay.", 0.96, 0.38),
    "layout": ("where things stand, from a picture without colours. Weak, and the prompt suffers.", 0.78, 0.25),
    "style": ("how things are drawn, by the prompt's words alone. The colours come along.", 0.82, 0.59),
    "variation": ("the same again: Qwen3-VL describes it first. The prompt should say what it shows.", 0.90, 0.97),
    "style-transfer": ("the guide's, for style. Add --text with the style in words: they do the work.", 0.90, 0.40),
    "image-variation": ("the guide's, to stay close. Add --text that describes it; a prompt that varies.", 0.94, 0.97),
    "composition": ("the guide's, for the picture's layout; on the toy it takes none.", 0.81, 0.20),
    "colour-palette": ("the guide's, a hint of colours; on the toy hardly any. Add --text about them.", 0.96, 0.28),
    "guide": ("the guide's defaults to the letter; text tokens alone hardly show the picture.", 1.00, 0.24),
    "all-tokens": ("what the guide's author corrected them to: all tokens, scaled to the text.", 0.94, 0.41),
    "calibrated": ("alpha means what it says: each token gets the size of the text's.", 0.98, 0.27),
}
CHANCE = 0.23


def recipes(output_format: FormatOption = OutputFormat.TEXT) -> None:
    """List what `generate --take` takes: four wishes in plain words, and recipes, with what each did on the toy.

    Nothing of it is measured on real weights.
    """
    if output_format is OutputFormat.JSON:
        names = ("about", "kept_on_toy", "followed_on_toy")
        print_json(
            {name: dict(zip(names, ABOUT[name], strict=True), knobs=dict(knobs)) for name, knobs in RECIPES.items()}
        )
        return
    for name, (about, kept, followed) in ABOUT.items():
        say(name)
        shares = f"kept {kept:.2f}, followed {followed:.2f} (chance {CHANCE:.2f})"
        say(f"    {about[0].upper()}{about[1:]} Toy{', with such words' * ('--text' in about)}: {shares}.")
        say(f"    {' '.join(as_options(RECIPES[name]))}")
