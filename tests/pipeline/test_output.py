"""The output classes behave as diffusers' outputs do."""

from __future__ import annotations

import torch

from zimage_vl.pipeline.output import PromptConditioning, ZImageVLPipelineOutput


def test_images_come_by_name_by_key_and_by_place():
    output = ZImageVLPipelineOutput(["picture"], None)
    assert output.images == output["images"] == output[0] == ["picture"]
    assert output.to_tuple() == (["picture"],)


def test_conditioning_is_there_where_a_reference_was():
    assert ZImageVLPipelineOutput([], ["report"]).to_tuple() == ([], ["report"])
    assert ZImageVLPipelineOutput([]).conditioning is None


def test_prompt_conditioning_names_what_other_pipelines_take():
    embeds = [torch.zeros(3, 4)]
    ready = PromptConditioning(embeds, [], [])
    assert ready.prompt_embeds is embeds
    assert list(ready.keys()) == ["prompt_embeds", "negative_prompt_embeds", "reports"]
