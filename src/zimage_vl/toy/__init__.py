"""The toy world: a trained miniature of all the models, and what draws and judges its pictures.

The names load on first use, so that asking for a size does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .judging import Verdict, judge
    from .loading import load_toy_pipeline
    from .world import ALL_SCENES, ATTRIBUTES, SIZE, STEPS, Scene, disagreeing_pairs, draw_scene

__all__ = [
    "ALL_SCENES",
    "ATTRIBUTES",
    "SIZE",
    "STEPS",
    "Scene",
    "Verdict",
    "disagreeing_pairs",
    "draw_scene",
    "judge",
    "load_toy_pipeline",
]

_HOMES = {"judging": ("Verdict", "judge"), "loading": ("load_toy_pipeline",)}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF.get(name, 'world')}"), name)


def __dir__() -> list[str]:
    return __all__
