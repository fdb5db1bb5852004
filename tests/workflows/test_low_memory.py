"""One model at a time: the bits of the ordinary call, and each model gone before the next is loaded."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageTransformer2DModel
from PIL import Image
from transformers import Qwen3Model, Qwen3VLForConditionalGeneration

from pipeline_samples import KNOBS, OTHER_PROMPT, PROMPT, SMALL, in_dtype, make_picture, quiet, save_vl_parts, seeded
from tiny_models import tiny_pipeline
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
from zimage_vl.workflows.low_memory import generate_low_memory


PICTURE, OTHER = make_picture(0), make_picture(1)
MASK = Image.new("L", (48, 32), 255)
MASK.paste(0, (0, 0, 16, 32))
F32: dict[str, Any] = {"torch_dtype": torch.float32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(path)
    return path


def settings(**kwargs: Any) -> dict[str, Any]:
    return {**SMALL, "generator": seeded(), "output_type": "np", **kwargs}


CALLS: dict[str, dict[str, Any]] = {
    "no reference": {},
    "a reference": {"reference_image": PICTURE, **KNOBS},
    "alpha 0": {"reference_image": PICTURE, "vl_alpha": 0.0},
    "guidance": {
        "reference_image": PICTURE,
        **KNOBS,
        "guidance_scale": 3.0,
        "negative_prompt": "blue",
        "vl_alignment": "concat",
    },
    "several references and layers": {
        "reference_image": [[PICTURE, OTHER]],
        "reference_weights": (1, 3),
        "vl_alpha": 0.6,
        "vl_hidden_layer": {-2: 1, 3: 2},
    },
    "a mask": {"reference_image": PICTURE, **KNOBS, "reference_mask": MASK, "vl_max_pixels": 1024},
    "a style": {"reference_image": PICTURE, "neutral_image": OTHER, **KNOBS, "vl_blend_mode": "style_delta"},
    "a window": {
        "reference_image": PICTURE,
        **KNOBS,
        "vl_start": 0.5,
        "num_images_per_prompt": 2,
        "vl_normalization": "per_dim",
    },
    "a text and places": {
        "reference_image": PICTURE,
        **KNOBS,
        "vl_text": "a dot",
        "vl_text_position": "before",
        "vl_alpha": {"red": 0.2, "default": 0.9},
    },
    "a batch": {
        "prompt": [PROMPT, OTHER_PROMPT],
        "reference_image": [PICTURE, OTHER],
        **KNOBS,
        "vl_alpha": [0.5, 0.0],
    },
    "a batch with and without": {"prompt": [PROMPT, OTHER_PROMPT], "reference_image": [None, OTHER], **KNOBS},
}


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    return quiet(ZImageVLPipeline.from_pretrained(folder, **in_dtype(torch.float32)))


@pytest.mark.parametrize("name", CALLS)
def test_the_bits_are_the_ordinary_calls(name: str, folder: Path, pipe: Any) -> None:
    arguments = {"prompt": PROMPT, **CALLS[name]}
    expected = pipe(**settings(**arguments))
    ours: Any = generate_low_memory(folder, **F32, **settings(**arguments))
    np.testing.assert_array_equal(ours.images, expected.images)
    if expected.conditioning is None:
        assert ours.conditioning is None
    else:
        assert [report.to_dict() for report in ours.conditioning] == [r.to_dict() for r in expected.conditioning]


def test_ready_embeddings_and_the_plain_tuple(folder: Path, pipe: Any) -> None:
    embeds = pipe.encode_reference(PICTURE, PROMPT, (-2,))
    arguments = settings(reference_embeds=embeds, **KNOBS)
    (ours,) = generate_low_memory(folder, PROMPT, **F32, **arguments, return_dict=False)
    np.testing.assert_array_equal(ours, pipe(PROMPT, **settings(reference_image=PICTURE, **KNOBS)).images)


class Watch:
    """Notes each load of a model's weights, with what is alive of the others at that moment."""

    def __init__(self) -> None:
        self.models: list[tuple[str, weakref.ref[Any]]] = []
        self.alive: list[list[str]] = []

    def wrap(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            gc.collect()
            self.alive.append([name for name, model in self.models if model() is not None])
            made = load(*args, **kwargs)
            model = made[0] if isinstance(made, tuple) else made
            self.models.append((type(model).__name__, weakref.ref(model)))
            return made

        return watched


@pytest.mark.parametrize("name", ["a window", "no reference"])
def test_each_model_is_gone_before_the_next_is_loaded(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch()
    for model in (Qwen3VLForConditionalGeneration, Qwen3Model, ZImageTransformer2DModel):
        monkeypatch.setattr(model, "from_pretrained", watch.wrap(model.from_pretrained))
    generate_low_memory(folder, PROMPT, **F32, **settings(**CALLS[name]))
    names = ["Qwen3VLForConditionalGeneration", "Qwen3Model", "ZImageTransformer2DModel"]
    assert [name for name, _ in watch.models] == names[1 if name == "no reference" else 0 :]
    assert watch.alive == [[] for _ in watch.models]
    gc.collect()
    assert [name for name, model in watch.models if model() is not None] == []


def test_a_vl_encoder_from_elsewhere_and_none_at_all(folder: Path, pipe: Any, tmp_path: Path) -> None:
    plain, vl = tmp_path / "plain", save_vl_parts(tmp_path / "vl")
    tiny_pipeline(with_vl=False).save_pretrained(plain)
    arguments = settings(reference_image=PICTURE, **KNOBS)
    ours: Any = generate_low_memory(plain, PROMPT, vl_model_id=vl, **F32, **arguments)
    expected = pipe(PROMPT, **settings(reference_image=PICTURE, **KNOBS)).images
    np.testing.assert_array_equal(ours.images, expected)
    with pytest.raises(ValueError, match=r"names none.*pass `vl_model_id`"):
        generate_low_memory(plain, PROMPT, **F32, **arguments)
    generate_low_memory(plain, PROMPT, **F32, **settings())


REFUSED: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "takes no `prompt_embeds`", {"prompt_embeds": []}),
    (TypeError, "no argument `vl_aplha` here. Did you mean vl_alpha", {"vl_aplha": 0.5}),
    (TypeError, "vl_token_selection", {"text_tokens_only": True}),
    (ValueError, "`guidance_scale`", {"guidance_scale": float("nan")}),
    (ValueError, "`output_type`", {"output_type": "png"}),
    (TypeError, "`callback_on_step_end`", {"callback_on_step_end": 7}),
    (ValueError, "`vl_alpha`", {"vl_alpha": 1.5}),
    (ValueError, "`height`", {"height": 33}),
    (ValueError, "`latents`", {"latents": torch.zeros(1, 4, 8, 8)}),
    (ValueError, "needs a reference", {"reference_image": None, "reference_mask": MASK}),
    (ValueError, "lighthouse", {"vl_alpha": {"lighthouse": 0.5}}),
    (ValueError, "Layer -9 is out of range", {"vl_hidden_layer": -9}),
    (ValueError, "generator", {"generator": [seeded(), seeded()]}),
    (TypeError, "`dtype` must be one such as", {"torch_dtype": torch.int32}),
    (ValueError, "`device` must be one such as 'cpu'", {"device": "meta"}),
    (TypeError, "`vl_model_id` must be a Hub id", {"vl_model_id": ["x"]}),
    (TypeError, "`model` must be a Hub id", {"model": 3}),
]


@pytest.mark.parametrize(("error", "reason", "arguments"), REFUSED)
def test_what_is_refused_is_refused_before_weights_are_read(
    error: type[Exception], reason: str, arguments: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were read")

    for model in (Qwen3VLForConditionalGeneration, Qwen3Model, ZImageTransformer2DModel):
        monkeypatch.setattr(model, "from_pretrained", never)
    given = {"model": folder, "prompt": PROMPT, **F32, **settings(reference_image=PICTURE), **arguments}
    with pytest.raises(error, match=reason):
        generate_low_memory(**given)


def test_nan_is_found_and_names_its_stage(pipe: Any, tmp_path: Path) -> None:
    broken = tiny_pipeline()
    with torch.no_grad():
        broken.transformer.layers[0].attention.to_q.weight.fill_(float("nan"))
    broken.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"NaN.*the transformer"):
        generate_low_memory(tmp_path, PROMPT, **F32, **settings(output_type="pil"))


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        generate_low_memory(tmp_path / "nowhere", PROMPT, **settings())
    with pytest.raises(TypeError, match="Did you mean vl_alpha"):  # which needs no model to be told
        generate_low_memory(tmp_path / "nowhere", PROMPT, **settings(vl_aplha=0.5))
