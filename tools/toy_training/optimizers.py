"""Muon for the matrices inside the blocks, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix of a stack near 1 (Muon's Newton-Schulz iteration)."""
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.mT if tall else stack  # in float32: bfloat16 is ten times as slow on a CPU without instructions for it
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).to(stack.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with its matrices stacked by shape, a fraction of the cost of one by one; steps sized as AdamW's."""

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(tuple(parameter.shape), []).append(parameter)
            for shape, parameters in shapes.items():
                updates = []
                for parameter in parameters:
                    kept = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                    kept.lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(torch.lerp(parameter.grad, kept, group["momentum"]))
                size = 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(torch.stack(updates)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * size)


class MuonAndAdamW:
    """Two optimizers that are stepped, saved and loaded together, with one learning rate."""

    def __init__(self, module: nn.Module, lr: float) -> None:
        inner, outer = [], []
        for name, parameter in module.named_parameters():
            in_block = any(part in name for part in ("layers.", "refiner.")) and "adaLN" not in name
            (inner if in_block and parameter.ndim == 2 else outer).append(parameter)
        self.parts = (
            Muon(inner, lr=lr),
            torch.optim.AdamW(outer, lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
