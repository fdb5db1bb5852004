#!/usr/bin/env python
"""Train the toy world and pack it into the package.

    python tools/train_toy.py --out runs/toy                    # everything, over an hour on two CPU cores
    python tools/train_toy.py --out runs/toy --stage vae        # one stage; finished stages are not trained again
    python tools/train_toy.py --out runs/try --scale 0.01       # a rehearsal: every stage, a hundredth of its steps

Stages, each from the results of those before it: tokenizer, vae, text_encoder, vl_encoder, transformer, pack. An
interrupted stage continues from its last saved state. `vae` and `text_encoder` can run side by side, and so can
`vl_encoder` and `transformer`.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parent))

from toy_training.loop import Run


STAGES = {
    "tokenizer": ("tokenizer", "train_tokenizer"),
    "vae": ("vae", "train_vae"),
    "text_encoder": ("language", "train_text_encoder"),
    "vl_encoder": ("vision", "train_vl_encoder"),
    "transformer": ("denoiser", "train_transformer"),
    "pack": ("pack", "pack"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="working folder (default: %(default)s)")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: %(default)s)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on every number of steps (default: 1)")
    parser.add_argument("--compile", action="store_true", help="compile the transformer's training step")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run = Run(arguments.out, arguments.seed, arguments.device, arguments.scale, arguments.compile)
    for stage in STAGES if arguments.stage == "all" else [arguments.stage]:
        if run.is_done(stage) and stage != "pack":
            print(f"[{stage}] already done", flush=True)
            continue
        module, function = STAGES[stage]
        getattr(import_module(f"toy_training.{module}"), function)(run)


if __name__ == "__main__":
    main()
