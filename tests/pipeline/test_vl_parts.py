"""The VL parts: loaded when needed, never when not, forgotten on request; what they say about a picture."""

from __future__ import annotations

import weakref

import pytest
import torch
from PIL import Image

from tiny_models import tiny_image_processor, tiny_pipeline, tiny_vl_encoder
from zimage_vl.reference.embeds import ReferenceEmbeds


PICTURE = Image.radial_gradient("L").resize((48, 32)).convert("RGB")


@pytest.fixture
def vl_folder(tmp_path):
    folder = tmp_path / "tiny-qwen3-vl"
    tiny_vl_encoder().save_pretrained(folder)
    tiny_image_processor().save_pretrained(folder)
    return str(folder)


def test_the_encoder_is_loaded_by_the_first_call_that_needs_it(vl_folder):
    pipe = tiny_pipeline(with_vl=False, vl_model_id=vl_folder)
    settings = {"height": 32, "width": 32, "num_inference_steps": 1, "guidance_scale": 0.0, "vl_hidden_layer": -2}
    pipe("a red circle", **settings)
    pipe("a red circle", reference_image=PICTURE, vl_alpha=0.0, **settings)
    assert pipe.vl_encoder is None
    pipe("a red circle", reference_image=PICTURE, **settings)
    assert pipe.vl_encoder is not None
    assert pipe.vl_encoder.dtype == pipe.text_encoder.dtype


def test_a_loaded_encoder_says_what_a_passed_one_does(vl_folder):
    loaded, passed = tiny_pipeline(with_vl=False, vl_model_id=vl_folder), tiny_pipeline()
    one, other = (pipe.encode_reference(PICTURE, "a red circle", (-2,)) for pipe in (loaded, passed))
    assert torch.equal(one.hidden_states[-2], other.hidden_states[-2])
    assert one.provenance.model_id == vl_folder


def test_an_unloaded_encoder_is_loaded_again(vl_folder):
    pipe = tiny_pipeline(with_vl=False)
    with pytest.raises(ValueError, match="vl_model_id"):
        pipe.encode_reference(PICTURE)
    pipe.load_vl_encoder(vl_folder)
    pipe.unload_vl_encoder()
    assert pipe.vl_encoder is None
    assert pipe.vl_processor is None
    assert pipe.config.vl_model_id == vl_folder
    assert isinstance(pipe.encode_reference(PICTURE, layers=(-2,)), ReferenceEmbeds)


def test_an_encoder_without_its_processor_is_refused():
    pipe = tiny_pipeline(with_vl=False, vl_encoder=tiny_vl_encoder())
    with pytest.raises(ValueError, match="AutoImageProcessor"):
        pipe.encode_reference(PICTURE, layers=(-2,))


def test_an_encoder_of_another_width_is_refused_at_once():
    with pytest.raises(ValueError, match="as wide as the text encoder"):
        tiny_pipeline(vl_encoder=tiny_vl_encoder(64))


def test_the_components_without_the_vl_parts_make_a_plain_pipeline():
    pipe = tiny_pipeline()
    assert set(pipe.components) - set(pipe.z_image_components) == {"vl_encoder", "vl_processor"}
    assert all(pipe.z_image_components[name] is part for name, part in pipe.components.items() if name[:3] != "vl_")


def test_tokens_of_a_prompt_are_the_rows_of_its_embeddings():
    pipe = tiny_pipeline()
    tokens = pipe.tokenize_prompt("a red circle")
    (embeds,), _ = pipe.encode_prompt("a red circle", do_classifier_free_guidance=False)
    assert [token.index for token in tokens] == list(range(len(embeds)))
    words = "".join(token.text for token in tokens if token.start >= 0)
    assert words == "a red circle"


def test_statistics_are_measured_once_an_encoder(monkeypatch):
    pipe, calls = tiny_pipeline(), []
    encode = pipe.text_encoder.forward
    monkeypatch.setattr(pipe.text_encoder, "forward", lambda *a, **k: calls.append(1) or encode(*a, **k))
    first = pipe.text_statistics()
    count = len(calls)
    assert count > 0
    assert pipe.text_statistics() is first
    assert len(calls) == count
    assert pipe.text_statistics(exclude_sinks=True).exclude_sinks


# ---- Only some blocks, and memory given back ----


def test_an_encoder_without_its_last_blocks_is_used_and_not_saved(vl_folder, tmp_path):
    pipe = tiny_pipeline(with_vl=False, vl_model_id=vl_folder)
    pipe.load_vl_encoder(layers=(-3, -5))
    assert len(pipe.vl_encoder.model.language_model.layers) == 4
    part = pipe.encode_reference(PICTURE, "a red circle", (-3, -5))
    whole = tiny_pipeline().encode_reference(PICTURE, "a red circle", (-3, -5))
    assert all(torch.equal(part.hidden_states[layer], whole.hidden_states[layer]) for layer in (-3, -5))
    assert part.provenance.num_hidden_layers == whole.provenance.num_hidden_layers == 6
    assert torch.equal(part.get_layer(4), whole.get_layer(-3))
    with pytest.raises(ValueError, match=r"load_vl_encoder\(layers=\(-2,\)\)"):
        pipe("a red circle", reference_image=PICTURE, vl_hidden_layer=-2)
    with pytest.raises(ValueError, match="cannot be saved"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    pipe.load_vl_encoder()
    assert pipe.encode_reference(PICTURE, layers=(-1,)).layers == (-1,)


def test_unloading_gives_the_memory_back_without_offload_too(vl_folder):
    pipe = tiny_pipeline(with_vl=False, vl_model_id=vl_folder)
    pipe("a red circle", reference_image=PICTURE, vl_hidden_layer=-2, height=32, width=32, num_inference_steps=1)
    encoder = weakref.ref(pipe.vl_encoder)
    weight = weakref.ref(pipe.vl_encoder.model.language_model.embed_tokens.weight)
    pipe.unload_vl_encoder()
    assert encoder() is None
    assert weight() is None
