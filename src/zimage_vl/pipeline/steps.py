"""Between the denoising steps: in which of them a reference counts, and what the caller's own callback does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


#: `callback_on_step_end` as diffusers calls it: pipeline, step, timestep, tensors by name -> tensors by name.
UserCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


@dataclass(eq=False)
class StepCallback:
    """A `callback_on_step_end` that gives the next step the embeddings it needs, then calls the caller's own.

    A callback replaces `prompt_embeds` from the next step on, so that those of the first step are chosen before the
    call. The caller's callback sees the embeddings of the step to come; if it puts others in their place, those count
    until the window begins or ends. It also keeps the last latents, to trace a NaN to its model.
    """

    window: Sequence[bool]
    inside: Mapping[str, Sequence[Tensor]]
    outside: Mapping[str, Sequence[Tensor]]
    user_callback: UserCallback | None
    user_inputs: Sequence[str]
    repeats: int = 1
    latents: Tensor | None = field(default=None, init=False)

    @property
    def tensor_inputs(self) -> list[str]:
        """The tensors to ask diffusers for."""
        return list(dict.fromkeys(["latents", *(self.user_inputs if self.user_callback is not None else ())]))

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self.latents = latents = tensors["latents"]
        given = {name: tensors[name] for name in self.user_inputs if name in tensors}
        changed: dict[str, Any] = {}
        if len({*self.window[step : step + 2]}) == 2:
            side = self.outside if self.window[step] else self.inside
            # Each as often as the parent has it inside its loop.
            changed = {name: [one for one in x for _ in range(self.repeats)] for name, x in side.items()}
            given |= {name: x for name, x in changed.items() if name in given}
        if self.user_callback is None:
            return changed
        returned = self.user_callback(pipe, step, timestep, given)
        if not isinstance(returned, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                "`callback_on_step_end` must return the dict of tensors it was given (or an empty one), got "
                f"{type(returned).__name__}."
            )
        for name, value in returned.items():
            fits = name not in self.inside or (isinstance(value, list) and len(value) == len(tensors.get(name, value)))
            if name == "latents":
                fits = isinstance(value, Tensor) and value.shape == latents.shape
            if not fits:
                raise TypeError(
                    f"`callback_on_step_end` must return {name!r} of the kind it was given, or leave it out, got "
                    f"{tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}."
                )
        self.latents = returned.get("latents", self.latents)
        return changed | returned
