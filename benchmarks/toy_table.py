#!/usr/bin/env python
"""Print what a reference does to the toy world's pictures, as the README shows it: python benchmarks/toy_table.py

Pairs of prompt and reference that disagree in shape, colour and background; layer -2, token_rms, anchored. Each cell
is the share of pictures that show the prompt's / the reference's value. Ends with exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import sys

from tqdm import tqdm

from zimage_vl.toy import load_toy_pipeline
from zimage_vl.toy.measuring import ATTRIBUTES, Matches, PairBench, chance_bound


SETTINGS = {"vl_hidden_layer": -2, "vl_normalization": "token_rms", "vl_alignment": "anchored"}
ROWS = [("all", alpha) for alpha in (0.0, 0.15, 0.3, 0.5, 0.7, 1.0)] + [("text", a) for a in (0.3, 0.7, 1.0)]
# (tokens, alpha, side, attribute, least share)
TARGETS = [
    ("all", 0.0, "prompt", "shape", 0.95),
    ("all", 0.0, "prompt", "colour", 0.99),
    ("all", 0.0, "prompt", "background", 0.99),
    ("all", 0.15, "prompt", "colour", 0.95),
    ("all", 0.15, "prompt", "background", 0.95),
    ("all", 0.7, "reference", "colour", 0.87),
    ("all", 0.7, "reference", "background", 0.82),
    ("all", 1.0, "reference", "shape", 0.65),
    ("all", 1.0, "reference", "colour", 0.92),
    ("all", 1.0, "reference", "background", 0.90),
    ("text", 0.3, "prompt", "colour", 0.95),
    ("text", 0.7, "reference", "colour", 0.87),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    arguments = parser.parse_args()
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    bench = PairBench(pipe, arguments.pairs, arguments.seed)
    results: dict[tuple[str, float], Matches] = {}
    for tokens, alpha in tqdm(ROWS, desc="settings"):
        results[tokens, alpha] = bench.measure(vl_token_selection=tokens, vl_alpha=alpha, **SETTINGS)
    print(f"{arguments.pairs} pairs, seed {arguments.seed}; share of the prompt's value / of the reference's\n")
    print("| tokens | alpha | " + " | ".join(ATTRIBUTES) + " |\n|---|---|---|---|---|")
    for (tokens, alpha), m in results.items():
        cells = [f"{m.prompt[name]:.2f} / {m.reference[name]:.2f}" for name in ATTRIBUTES]
        print(f"| {tokens} | {alpha} | " + " | ".join(cells) + " |")
    missed = [
        f"{tokens} {alpha} {side} {name}: {getattr(results[tokens, alpha], side)[name]:.3f} < {least}"
        for tokens, alpha, side, name, least in TARGETS
        if getattr(results[tokens, alpha], side)[name] < least
    ]
    print("\nControls: references that show nothing, all tokens at alpha 1; share of the pair's own reference value, "
          "and the most that chance explains\n")  # fmt: skip
    print("| reference | " + " | ".join(ATTRIBUTES) + " |\n|---|---|---|---|")
    for kind in tqdm(("grey", "noise"), desc="controls"):
        control = PairBench(pipe, arguments.pairs, arguments.seed, kind=kind)
        cells, shown = [], control.measure(vl_alpha=1.0, **SETTINGS)
        # A grey picture does have a background: gray.
        other = (
            control.measure(lambda s: s.background != "gray", vl_alpha=1.0, **SETTINGS) if kind == "grey" else shown
        )
        for name in ATTRIBUTES:
            m = other if name == "background" else shown
            bound = chance_bound(name, m.count)
            cells.append(f"{m.reference[name]:.2f} (<= {bound:.2f})")
            if m.reference[name] > bound:
                missed.append(f"{kind} {name}: {m.reference[name]:.3f} > {bound:.3f}")
        print(f"| {kind} | " + " | ".join(cells) + " |")
    print("\nAll targets reached." if not missed else "\nMissed:\n" + "\n".join(missed))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
