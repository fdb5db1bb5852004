"""Model offload without an accelerator: a table says who is where, in place of accelerate's device look-up."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from accelerate.hooks import CpuOffload

from pipeline_samples import get_models


class Table:
    """Which models are on the accelerator, and the most that ever were at a time."""

    def __init__(self) -> None:
        self.resident: dict[int, Any] = {}
        self.most = 0
        self.visits: list[str] = []

    def enter(self, model: Any) -> None:
        self.resident[id(model)] = model
        self.most = max(self.most, len(self.resident))
        self.visits.append(type(model).__name__)

    def leave(self, model: Any) -> None:
        self.resident.pop(id(model), None)


def install_table(monkeypatch: pytest.MonkeyPatch) -> Table:
    """The table, from now on in place of the device look-up of accelerate's hooks."""
    table = Table()

    def init_hook(_: CpuOffload, module: Any) -> Any:
        table.leave(module)
        return module

    def pre_forward(hook: CpuOffload, module: Any, *args: Any, **kwargs: Any) -> Any:
        before = hook.prev_module_hook
        if before is not None and id(before.model) in table.resident:
            before.offload()
        if id(module) not in table.resident:
            table.enter(module)
        return args, kwargs

    monkeypatch.setattr(CpuOffload, "init_hook", init_hook)
    monkeypatch.setattr(CpuOffload, "pre_forward", pre_forward)
    return table


@contextmanager
def run_where_resident(pipe: Any, table: Table) -> Generator[None]:
    """Within it, a model that runs without being on the accelerator fails the test."""
    handles: list[Any] = []
    for name, part in get_models(pipe).items():
        whole = getattr(pipe, name)

        def check(*_: Any, name: str = name, whole: Any = whole) -> None:
            assert id(whole) in table.resident, f"{name} ran while it was away"

        handles.append(part.register_forward_hook(check))  # after it: accelerate's hooks act within the call
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hooks_of(pipe: Any) -> dict[str, Any]:
    parts = {name: part for name, part in pipe.components.items() if hasattr(part, "parameters")}
    return {name: type(getattr(part, "_hf_hook", None)) for name, part in parts.items()}
