"""`zimage-vl recipes`: the ready settings by name, what each is for, and the options that it stands for."""

from __future__ import annotations

from zimage_vl.recipes import RECIPES, WISHES

from ._records import as_options
from ._terminal import FormatOption, OutputFormat, print_json, say


# Nothing of it is measured on real weights; the toy's figures stand in docs/evidence.md.
ABOUT = {
    "style-transfer": 'the guide\'s, for style; "expect artifacts". Add --text with the style in words.',
    "image-variation": "the guide's, to stay close. Add --text with a description, and a prompt that varies it.",
    "composition": "the guide's, \"experimental\": the picture's layout, the prompt's content.",
    "colour-palette": "the guide's: a hint of the colours. Add --text with words about them.",
    "guide": "the guide's defaults to the letter; text tokens alone hardly show the picture.",
    "all-tokens": "what the guide's author corrected them to: all tokens, scaled to the text.",
    "calibrated": "alpha means what it says: each token gets the size of the text's.",
    "appearance": "an idea: colours and background through the template's tail. On the toy they do not come apart.",
    "structure": "an idea: the shape through the prompt's words. On the toy it does not do so.",
}


def recipes(output_format: FormatOption = OutputFormat.TEXT) -> None:
    """List what `generate --take` takes: wishes in plain words, and the recipes by their own names."""
    wishes = {name: [wish for wish, meant in WISHES.items() if meant == name] for name in ABOUT}
    if output_format is OutputFormat.JSON:
        print_json({name: {"about": ABOUT[name], "wishes": wishes[name], "knobs": RECIPES[name]} for name in ABOUT})
        return
    for name, about in ABOUT.items():
        say(", ".join([*wishes[name], name]))
        say(f"    {about[0].upper()}{about[1:]}")
        say(f"    {' '.join(as_options(RECIPES[name]))}")
