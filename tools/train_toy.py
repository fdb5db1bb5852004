#!/usr/bin/env python
"""Train the toy world and pack it.

    python tools/train_toy.py --state runs/toy --threads 1 --compile --half   # everything
    python tools/train_toy.py --state runs/toy --stage transformer ...        # one stage
    python tools/train_toy.py --state runs/try --scale 0.01                      # a hundredth of all steps

Stages, each from the results of those before it: tokenizer, vae, text_encoder, vl_encoder, transformer, pack. The same
command resumes: finished stages are not trained again, an interrupted one goes on from its last saved state, every few
minutes of work. `vae` and `text_encoder` can run side by side, and so can `vl_encoder` and `transformer`; `pack` works
on an unfinished transformer too and writes the folder `packed`, which `load_toy_pipeline(Path("runs/toy/packed"))`
loads and `benchmarks/toy_quality.py --checkpoint` and `benchmarks/toy_fidelity.py --checkpoint` measure. With
`--install` it also takes the place of the package's own checkpoint.

`--compile` (needs a C compiler) and `--half` together make the transformer's steps twice as quick on a CPU with
bfloat16 arithmetic. One thread per process: two stall beside other work.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from importlib import import_module
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parent))

from toy_training.loop import Run
from zimage_vl.toy.loading import CHECKPOINT


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
    parser.add_argument(
        "--state", type=Path, default=Path("runs/toy"), help="working folder, of results and of what is resumed"
    )
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: %(default)s)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on every number of steps (default: 1)")
    parser.add_argument("--compile", action="store_true", help="compile the transformer's training step")
    parser.add_argument("--half", action="store_true", help="train the transformer in bfloat16")
    parser.add_argument("--install", action="store_true", help="after packing, replace the package's checkpoint")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run = Run(arguments.state, arguments.seed, arguments.device, arguments.scale, arguments.compile, arguments.half)
    for stage in STAGES if arguments.stage == "all" else [arguments.stage]:
        if run.is_done(stage) and stage != "pack":
            print(f"[{stage}] already done", flush=True)
            continue
        module, function = STAGES[stage]
        getattr(import_module(f"toy_training.{module}"), function)(run)
    if arguments.install:
        shutil.rmtree(CHECKPOINT)
        shutil.copytree(run.path("packed"), CHECKPOINT)


if __name__ == "__main__":
    main()
