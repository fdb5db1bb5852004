"""The training loop that every stage shares: seeded by step, resumable, logged."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Run:
    """Where a stage works and how: folder, seed, device, a factor on its number of steps (for rehearsals), and
    whether the transformer's training is compiled (quicker on a CPU; needs a C compiler) or runs in bfloat16."""

    folder: Path
    seed: int = 0
    device: str = "cpu"
    scale: float = 1.0
    compile: bool = False
    half: bool = False

    def steps(self, full: int) -> int:
        return max(2, round(full * self.scale))

    def path(self, name: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def generator(self, *salt: int) -> torch.Generator:
        """A CPU generator for each place that draws numbers, so that a resumed run repeats a straight one."""
        return torch.Generator().manual_seed(hash((self.seed, *salt)) % 2**31)

    def is_done(self, stage: str) -> bool:
        return self.path(f"{stage}.json").exists()

    def finish(self, stage: str, record: dict[str, object]) -> None:
        write_atomically(self.path(f"{stage}.json"), json.dumps(record, indent=2).encode())
        print(f"[{stage}] done: {record}", flush=True)


def write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def save_atomically(path: Path, state: object) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def cosine(step: int, steps: int, warmup: int = 50, floor: float = 0.02) -> float:
    """Linear warm-up to 1, then a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Average:
    """Exponential moving average of a module's floating-point state."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.shadow[name].lerp_(value, 1 - decay)


def train(
    run: Run,
    stage: str,
    module: nn.Module,
    loss_at: Callable[[int], dict[str, Tensor]],
    *,
    steps: int,
    lr: float,
    rate: Callable[[int, int], float] = cosine,
    betas: tuple[float, float] = (0.9, 0.98),
    weight_decay: float = 0.01,
    decay: float | None = None,
    parameters: Iterable[nn.Parameter] | None = None,
    log_every: int = 50,
    save_every: int = 250,
    optimizer: Callable[[list[nn.Parameter]], Any] | None = None,
    watch: Callable[[int, Average | None], None] | None = None,
    watch_every: int = 1000,
) -> list[dict[str, float]]:
    """Train `module` for `steps`; `loss_at(step)` returns named losses whose sum is minimised.

    Leaves the averaged weights (where `decay` is given) in `module` and returns the log. An interrupted run continues
    from its last saved state. `optimizer` makes another one than AdamW; `watch` is shown the averaged weights every
    `watch_every` steps.
    """
    trained = [p for p in (parameters or module.parameters()) if p.requires_grad]
    adam = torch.optim.AdamW
    optim = optimizer(trained) if optimizer else adam(trained, lr=lr, betas=betas, weight_decay=weight_decay)
    average = Average(module, decay) if decay else None
    state_file, first, log = run.path(f"{stage}.state.pt"), 0, []
    if state_file.exists():
        state = torch.load(state_file, weights_only=False)
        module.load_state_dict(state["module"])
        optim.load_state_dict(state["optimizer"])
        first, log = state["step"], state["log"]
        if average:
            average.shadow = state["average"]
        print(f"[{stage}] continues at step {first}", flush=True)
    module.train()
    started = time.monotonic()
    for step in range(first, steps):
        for group in optim.param_groups:
            group["lr"] = lr * rate(step, steps)
        losses = loss_at(step)
        optim.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optim.step()
        if average:
            average.update(module, step)
        if step % log_every == 0 or step == steps - 1:
            entry = {"step": float(step), **{k: round(v.item(), 5) for k, v in losses.items()}}
            log.append(entry)
            pace = (time.monotonic() - started) / (step - first + 1)
            print(f"[{stage}] {entry} {pace:.3f} s/step, {pace * (steps - step) / 60:.1f} min left", flush=True)
        if (step + 1) % save_every == 0 or step == steps - 1:
            save_atomically(
                state_file,
                {
                    "module": module.state_dict(),
                    "optimizer": optim.state_dict(),
                    "average": average.shadow if average else None,
                    "step": step + 1,
                    "log": log,
                },
            )
        if watch and (step + 1) % watch_every == 0:
            watch(step + 1, average)
    if average:
        module.load_state_dict(average.shadow)
    module.eval()
    return log
