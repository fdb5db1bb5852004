"""The recipes: keyword arguments that a call takes, as the guide has them."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from tiny_models import tiny_pipeline
from zimage_vl import recipes
from zimage_vl.blend.knobs import VLConditioning
from zimage_vl.cli._options import RecipeChoice
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
from zimage_vl.recipes import RECIPES


NAMES = sorted(RECIPES)


def conditioning(recipe: dict[str, Any]) -> VLConditioning:
    return VLConditioning(**{name: value for name, value in recipe.items() if name != "vl_text"})


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_valid_set_of_knobs(name: str) -> None:
    made = conditioning(RECIPES[name])
    assert not made.is_inert
    assert set(RECIPES[name]) <= set(inspect.signature(ZImageVLPipeline.__call__).parameters)


def test_the_names_are_those_of_the_module_and_of_the_command_line() -> None:
    constants = {name.lower().replace("_", "-") for name in vars(recipes) if name.isupper() and name != "RECIPES"}
    assert constants == set(RECIPES) == {choice.value for choice in RecipeChoice}
    for name, recipe in RECIPES.items():
        assert recipe is getattr(recipes, name.upper().replace("-", "_"))


def test_no_two_are_the_same() -> None:
    made = [conditioning(recipe) for recipe in RECIPES.values()]
    assert all(one != other for i, one in enumerate(made) for other in made[:i])


def test_the_guides_alphas_and_layer() -> None:
    alphas = {"style-transfer": 0.5, "image-variation": 0.5, "composition": 0.2, "colour-palette": 0.15, "guide": 0.3}
    assert {name: conditioning(RECIPES[name]).vl_alpha for name in alphas} == alphas
    assert {conditioning(RECIPES[name]).vl_hidden_layer for name in alphas} == {-6}


def test_the_guides_defaults_to_the_letter() -> None:
    made = conditioning(recipes.GUIDE)
    assert (made.vl_token_selection, made.vl_normalization, made.vl_target_std) == ("text", "global", 70.0)
    assert (made.vl_outlier_masking, made.vl_outlier_threshold) == ("none", 10.0)


def test_composition_reads_the_picture_without_words() -> None:
    assert recipes.COMPOSITION["vl_text"] == ""
    assert [name for name, recipe in RECIPES.items() if "vl_text" in recipe] == ["composition"]
    assert conditioning(recipes.COMPOSITION).needs_text_statistics


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_that_is_changed_changes_nothing(name: str) -> None:
    before = json.dumps(RECIPES)
    unpacked = {**RECIPES[name]}
    unpacked["vl_alpha"] = 0.9
    deep = copy.deepcopy(RECIPES[name])
    deep["vl_alpha"] = deep["vl_hidden_layer"] = None
    assert json.dumps(RECIPES) == before


@pytest.mark.parametrize("recipe", [recipes.GUIDE, recipes.APPEARANCE["vl_alpha"], {**recipes.STRUCTURE}["vl_alpha"]])
@pytest.mark.parametrize(
    "change",
    [
        lambda recipe: recipe.__setitem__("vl_alpha", 1.0),
        lambda recipe: recipe.update(vl_alpha=1.0),
        lambda recipe: recipe.__ior__({"vl_alpha": 1.0}),
        lambda recipe: recipe.setdefault("vl_start", 0.5),
        lambda recipe: recipe.pop(next(iter(recipe))),
        lambda recipe: recipe.popitem(),
        lambda recipe: recipe.__delitem__(next(iter(recipe))),
        lambda recipe: recipe.clear(),
    ],
)
def test_what_calls_share_cannot_be_changed(recipe: dict[str, Any], change: Callable[[Any], Any]) -> None:
    before = dict(recipe)
    with pytest.raises(TypeError, match="Take a copy"):
        change(recipe)
    assert recipe == before


def test_deep_copies_are_plain_dicts_all_through() -> None:
    for copied in (copy.deepcopy(recipes.APPEARANCE), pickle.loads(pickle.dumps(recipes.APPEARANCE))):
        assert (type(copied), type(copied["vl_alpha"])) == (dict, dict)
        copied["vl_alpha"]["suffix"] = 0.5
    assert type(recipes.APPEARANCE.copy()) is dict
    assert recipes.APPEARANCE["vl_alpha"] == {"prefix": 0.0, "prompt": 0.0, "suffix": 1.0}


def test_a_call_leaves_the_recipes_as_they_are() -> None:
    import PIL.Image

    before = json.dumps(RECIPES)
    photo = PIL.Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    settings = {"height": 32, "width": 32, "num_inference_steps": 1, "guidance_scale": 0.0}
    for recipe in (recipes.APPEARANCE, recipes.COMPOSITION):
        _pipeline()("a red circle", reference_image=photo, **settings, **recipe)
    assert json.dumps(RECIPES) == before


@pytest.mark.parametrize("name", NAMES)
def test_each_changes_the_embeddings(name: str) -> None:
    import PIL.Image

    pipe, photo = _pipeline(), PIL.Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    plain = pipe.encode_prompt_with_reference("a red circle", do_classifier_free_guidance=False)
    made = pipe.encode_prompt_with_reference("a red circle", photo, do_classifier_free_guidance=False, **RECIPES[name])
    assert not plain.prompt_embeds[0].equal(made.prompt_embeds[0])


def test_appearance_touches_the_tail_and_structure_the_words() -> None:
    import PIL.Image

    from zimage_vl.blend.regions import Region

    pipe, photo = _pipeline(), PIL.Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    prompt = "a red circle"
    plain = pipe.encode_prompt_with_reference(prompt, do_classifier_free_guidance=False).prompt_embeds[0]
    regions = [token.region for token in pipe.tokenize_prompt(prompt)]
    for recipe, touched in ((recipes.APPEARANCE, Region.SUFFIX), (recipes.STRUCTURE, Region.WORDS)):
        ready = pipe.encode_prompt_with_reference(prompt, photo, do_classifier_free_guidance=False, **recipe)
        changed = (ready.prompt_embeds[0] != plain).any(dim=1).tolist()
        assert changed == [region == touched for region in regions]


_made: list[Any] = []


def _pipeline() -> Any:
    if not _made:
        _made.append(tiny_pipeline())
    return _made[0]
