#!/usr/bin/env python
"""Paint at the real sizes on the CPU, each way in a process of its own: python benchmarks/true_size.py

Writes random bfloat16 weights with the real shapes, in shards as they are published, Qwen3-VL's in its own folder:
29 GB on disk, in some minutes. Prints for each way of painting, at 256 px in one step, and for encoding prompt and
reference alone, how long it takes and the most memory that its process held: weights count once they have been read
from their file. `--folder` keeps them for another run. The ordinary call holds all models at once, and is left out
where the machine has too little memory for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from host_memory import read_peak
from performance.random_models import (
    SCHEDULER,
    count_parameters,
    empty_models,
    load_tokenizer,
    make_image_processor,
    make_picture,
    materialise,
)


SHARD = "2GB"
ORDINARY = 34  # GiB that the ordinary call needs


def save_folder(folder: Path, scale: int = 1, tell: Callable[[str], None] = print) -> None:
    """Write a pipeline of random weights, a model at a time; `scale` divides the widths."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from zimage_vl import ZImageVLPipeline

    tokenizer = load_tokenizer()
    parts = empty_models(scale, tokenizer)
    own = {name: part for name, part in parts.items() if name != "vl_encoder"}
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    pipe = ZImageVLPipeline(scheduler=scheduler, tokenizer=tokenizer, vl_model_id=str(folder / "qwen3-vl"), **own)
    pipe.save_config(folder)
    scheduler.save_pretrained(folder / "scheduler")
    tokenizer.save_pretrained(folder / "tokenizer")
    del pipe, own
    for seed, name in enumerate(list(parts)):
        model = materialise(parts.pop(name), torch.device("cpu"), torch.bfloat16, seed)
        model.save_pretrained(folder / name.replace("vl_encoder", "qwen3-vl"), max_shard_size=SHARD)
        tell(f"{name}: {count_parameters(model) / 1e9:.2f} B parameters")
    make_image_processor().save_pretrained(folder / "qwen3-vl")


def paint(way: str, folder: str) -> None:
    """In its own process: encode or paint, and print the seconds and the peak in GiB."""
    from zimage_vl import ZImageVLPipeline, generate_low_memory

    settings: dict[str, Any] = {"height": 256, "width": 256, "num_inference_steps": 1, "guidance_scale": 0.0}
    settings["generator"] = torch.Generator().manual_seed(0)
    reference = None if way.endswith("no reference") else make_picture(256)
    reader = {"vl_reader": "text_encoder"} if way.endswith("small reader") else {}
    begun = time.perf_counter()
    if way.startswith("ordinary"):
        pipe = ZImageVLPipeline.from_pretrained(folder, dtype=torch.bfloat16)
        pipe("a red circle", reference_image=reference, **settings, **reader)
    elif way.startswith("encoding"):
        pipe = ZImageVLPipeline.from_pretrained(folder, transformer=None, vae=None, dtype=torch.bfloat16)
        pipe.encode_prompt_with_reference("a red circle", reference, do_classifier_free_guidance=False, **reader)
    elif not way.startswith("imports"):
        generate_low_memory(folder, "a red circle", reference, torch_dtype=torch.bfloat16, **settings, **reader)
    print(json.dumps({"seconds": time.perf_counter() - begun, "peak": read_peak() / 2**10}))


WAYS = (
    "imports alone",
    "encoding alone, full reader",
    "encoding alone, small reader",
    "low memory, no reference",
    "low memory, full reader",
    "low memory, small reader",
    "ordinary, full reader",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="of the weights; kept")
    parser.add_argument("--scale", type=int, default=1, help="divides the widths, for a rehearsal")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        paint(options.way, str(options.folder))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "model_index.json").is_file():
            save_folder(folder, options.scale)
        print("\n| way | seconds | peak of resident memory |\n|---|---|---|")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        for way in WAYS:
            if way.startswith("ordinary") and options.scale == 1 and memory < ORDINARY:
                print(f"| {way} | - | not run: needs about {ORDINARY} GiB, there are {memory:.0f} |")
                continue
            command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{way} failed:\n{done.stderr}")
            result = json.loads(done.stdout.splitlines()[-1])
            print(f"| {way} | {result['seconds']:.0f} | {result['peak']:.1f} GiB |", flush=True)


if __name__ == "__main__":
    main()
