"""The steps in which a reference counts, held by a callback between the denoising steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


def make_window_callback(
    inside: Sequence[bool],
    conditioned: Sequence[Tensor],
    text_only: Sequence[Tensor],
    user_callback: StepCallback | None,
) -> StepCallback:
    """A `callback_on_step_end` that conditions the next step by the reference or by the text alone.

    A callback replaces `prompt_embeds` from the next step on, so that the first step's embeddings are chosen before
    the call. The user's callback runs after and sees the embeddings of the step to come; if it puts others in their
    place, those are used.

    Args:
        inside: For each step, whether the reference counts.
        conditioned: Embeddings inside the window, one an image.
        text_only: Embeddings outside, one an image.
        user_callback: The caller's own, or None.
    """

    def callback(pipe: Any, step: int, timestep: Any, callback_kwargs: dict[str, Any]) -> dict[str, Any]:
        following = inside[step + 1] if step + 1 < len(inside) else inside[step]
        embeds = list(conditioned if following else text_only)
        if "prompt_embeds" in callback_kwargs:
            callback_kwargs["prompt_embeds"] = embeds
        if user_callback is None:
            return {"prompt_embeds": embeds}
        outputs = user_callback(pipe, step, timestep, callback_kwargs)
        if not isinstance(outputs, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                "`callback_on_step_end` must return the dict of tensors it was given (or an empty one), got "
                f"{type(outputs).__name__}."
            )
        return {"prompt_embeds": embeds, **outputs}

    return callback
