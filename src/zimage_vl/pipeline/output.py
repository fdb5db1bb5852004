"""What the pipeline gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from ..blend.report import ConditioningReport


@dataclass
class ZImageVLPipelineOutput(BaseOutput):
    """What a call gives.

    Attributes:
        images: PIL images, or an array or tensor as `output_type` asks for.
        conditioning: What the references did, one report a prompt; None where no reference was given.
    """

    images: Any
    conditioning: list[ConditioningReport] | None = None


@dataclass
class PromptConditioning(BaseOutput):
    """Embeddings for any Z-Image pipeline, as `encode_prompt_with_reference` gives them.

    Attributes:
        prompt_embeds: A `(tokens, dims)` tensor for each prompt.
        negative_prompt_embeds: The same for the negative prompts; empty without classifier-free guidance.
        reports: What the references did, one a prompt; empty where none was given.
    """

    prompt_embeds: list[torch.Tensor]
    negative_prompt_embeds: list[torch.Tensor]
    reports: list[ConditioningReport]
