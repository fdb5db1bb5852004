"""encode_reference: picture and text in, states and regions out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_patch_grid import noise, white_box
from test_vl_forward import library_states

from tiny_models import IS_OLD_TRANSFORMERS, tiny_image_processor, tiny_text_encoder, tiny_tokenizer, tiny_vl_encoder
from zimage_vl.blend.regions import Region
from zimage_vl.reference.embeds import ReferenceEmbeds
from zimage_vl.reference.readers import VLInputs
from zimage_vl.reference.reading import _find_grid, encode_reference
from zimage_vl.reference.turn import prompt_turn, reference_turn


TEXT = "a red circle"
TOKENIZER = tiny_tokenizer()
PROCESSOR = tiny_image_processor()
MODEL = tiny_vl_encoder(tokenizer=TOKENIZER)


def encode(image: Any = None, text: Any = TEXT, layers: Any = (-2,), **kwargs: Any) -> ReferenceEmbeds:
    image = noise((64, 48)) if image is None else image
    return encode_reference(MODEL, PROCESSOR, TOKENIZER, image, text, layers, **kwargs)


def assert_equal_states(first: ReferenceEmbeds, second: ReferenceEmbeds) -> None:
    assert first.layers == second.layers
    assert torch.equal(first.regions, second.regions)
    for layer in first.layers:
        assert torch.equal(first.hidden_states[layer], second.hidden_states[layer])


def differ(first: ReferenceEmbeds, second: ReferenceEmbeds, *regions: Region) -> bool:
    """By more than rounding, which depends on the length of the whole sequence and on the processor."""

    def part(embeds: ReferenceEmbeds) -> torch.Tensor:
        return embeds.hidden_states[-2][torch.isin(embeds.regions, torch.tensor(regions))]

    return not torch.allclose(part(first), part(second), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", ["after", "before"])
def test_states_are_the_librarys(position: Any):
    image = noise((64, 48))
    embeds = encode(image, layers=(-1, -2, 4), text_position=position)
    features = PROCESSOR(images=[image], do_resize=False, return_tensors="pt")
    ids, regions = reference_turn(TOKENIZER, TEXT, 12, position)
    expected = library_states(MODEL, VLInputs(ids, features["pixel_values"], features["image_grid_thw"]))
    assert embeds.layers == (-1, -2, 4)
    for layer in embeds.layers:
        assert torch.equal(embeds.hidden_states[layer], expected[layer])
    assert torch.equal(embeds.regions, regions)
    assert embeds.num_image_tokens == 12


def test_text_regions_lie_on_the_prompts():
    for text in (TEXT, "", "\nmelts", "two\n\nlines "):
        embeds = encode(text=text)
        regions = embeds.regions[(embeds.regions != Region.IMAGE) & (embeds.regions != Region.MARKER)]
        assert regions.tolist() == [token.region for token in prompt_turn(TOKENIZER, text)[1]]
    cut = encode(text="a red circle on a white background", max_sequence_length=7)
    assert cut.num_tokens == 7 + 12 + 2


def test_picture_text_and_position_matter():
    base = encode()
    assert differ(base, encode(noise((64, 48), 1)), Region.IMAGE)
    assert differ(base, encode(noise((64, 48), 1)), Region.WORDS, Region.SUFFIX)
    assert differ(base, encode(text="a blue square"), Region.SUFFIX)
    # Attention is causal: text after the picture cannot change it, text before it does.
    assert not differ(base, encode(text="a blue square"), Region.PREFIX, Region.MARKER, Region.IMAGE)
    before = encode(text_position="before")
    assert differ(before, encode(text="a blue square", text_position="before"), Region.IMAGE)


@pytest.mark.parametrize(
    ("size", "grid"), [((1, 1), (1, 1)), ((64, 48), (3, 4)), ((70, 20), (1, 4)), ((1990, 10), (1, 124))]
)
def test_picture_is_brought_to_the_grid(size: tuple[int, int], grid: tuple[int, int]):
    embeds = encode(noise(size))
    rows, columns = grid
    assert embeds.provenance.image_grid == grid
    assert embeds.provenance.image_size == size
    assert embeds.provenance.encoded_size == (columns * 16, rows * 16)
    assert embeds.num_image_tokens == rows * columns


def test_bounds_on_pixels():
    assert encode(noise((320, 320)), max_pixels=64 * 64).num_image_tokens == 16
    narrow = tiny_image_processor(max_pixels=48 * 48)
    embeds = encode_reference(MODEL, narrow, TOKENIZER, noise((320, 320)), TEXT, (-2,))
    assert embeds.num_image_tokens == 9
    assert encode_reference(MODEL, narrow, TOKENIZER, noise((320, 320)), TEXT, max_pixels=1024).num_image_tokens == 4
    # A default that is the library's, not the model's, is no bound.
    assert tiny_image_processor().size["longest_edge"] == 28 * 28 * 1280
    assert _find_grid(tiny_image_processor(), noise((1024, 1024)), 1024 * 1024) == (1024 * 1024, 64, 64)
    with pytest.raises(ValueError, match="at most 200 times"):
        encode(noise((4000, 10)))


def test_full_processor_serves_too():
    full = SimpleNamespace(image_processor=PROCESSOR, tokenizer=TOKENIZER)
    assert_equal_states(encode(), encode_reference(MODEL, full, TOKENIZER, noise((64, 48)), TEXT, (-2,)))


def test_caller_keeps_its_things():
    image, mask = noise((61, 50)), white_box((61, 50), (0, 0, 30, 50))
    before = image.tobytes(), mask.tobytes(), dict(vars(PROCESSOR))
    layers = [-2, -3]
    encode(image, layers=layers, mask=mask)
    assert (image.tobytes(), mask.tobytes(), dict(vars(PROCESSOR))) == before
    assert layers == [-2, -3]


@pytest.mark.parametrize("size", [(64, 48), (61, 50), (150, 100)])
@pytest.mark.parametrize("position", ["after", "before"])
def test_hidden_pixels_change_nothing(position: Any, size: tuple[int, int]):
    mask = white_box((97, 89), (20, 0, 97, 60))
    hidden = np.array(mask.resize(size, Image.Resampling.BOX)) < 128
    first, second = np.array(noise(size, 0)), np.array(noise(size, 1))
    second[~hidden] = first[~hidden]
    images = [Image.fromarray(first), Image.fromarray(second)]
    arguments: dict[str, Any] = {"layers": (-1, -2, 3, 0), "text_position": position}
    ours, theirs = (encode(image, mask=mask, **arguments) for image in images)
    assert_equal_states(ours, theirs)
    assert ours.provenance.mask_sha256 == theirs.provenance.mask_sha256
    assert ours.provenance.image_sha256 != theirs.provenance.image_sha256
    # Without the mask these pixels do count, and with it the others do.
    assert differ(encode(images[0]), encode(images[1]), Region.IMAGE)
    second[hidden] = first[hidden]
    second[~hidden] ^= 255
    assert differ(ours, encode(Image.fromarray(second), mask=mask, **arguments), Region.IMAGE)


def test_hidden_tokens_are_dropped():
    embeds, whole = encode(mask=white_box((64, 48), (0, 0, 32, 48))), encode()
    assert embeds.num_image_tokens == 6
    assert embeds.num_tokens == whole.num_tokens - 6
    assert embeds.provenance.image_grid == (3, 4)
    for region in set(Region) - {Region.IMAGE}:
        assert (embeds.regions == region).sum() == (whole.regions == region).sum()


def test_mask_that_hides_nothing_is_no_mask():
    assert_equal_states(encode(), encode(mask=Image.new("L", (5, 9), 255)))
    assert_equal_states(encode(), encode(mask=Image.new("1", (64, 48), 1)))


def test_mask_that_hides_everything_is_refused():
    with pytest.raises(ValueError, match="hides the whole picture"):
        encode(mask=Image.new("L", (64, 48)))


def test_provenance_tells_where_it_is_from():
    embeds = encode(layers=(-2,), model_id="a/model", revision="main", max_pixels=10_000)
    given = embeds.provenance
    assert (given.model_id, given.revision, given.num_hidden_layers, given.text) == ("a/model", "main", 6, TEXT)
    assert (given.text_position, given.max_pixels, given.dtype, given.mask_sha256) == (
        "after",
        10_000,
        "float32",
        None,
    )
    assert set(given.versions) >= {"zimage_vl", "torch", "transformers"}
    # By content: the same pixels from anywhere have the same hash, others have another.
    assert encode(noise((64, 48)).copy()).provenance.image_sha256 == given.image_sha256
    assert encode(noise((48, 64))).provenance.image_sha256 != given.image_sha256


def test_file_round_trip(tmp_path: Path):
    embeds = encode(layers=(-2, -4), mask=white_box((64, 48), (0, 0, 32, 48)), model_id="a/model")
    embeds.save(tmp_path / "a.safetensors")
    loaded = ReferenceEmbeds.load(tmp_path / "a.safetensors")
    assert_equal_states(embeds, loaded)
    assert loaded.provenance == embeds.provenance


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": np.zeros((8, 8, 3))}, TypeError, "must be a PIL image, got ndarray"),
        ({"image": Image.new("RGBA", (8, 8))}, ValueError, "must be an RGB image, got mode 'RGBA'"),
        ({"layers": (-9,)}, ValueError, r"Layer -9 is out of range.*-7 \.\. 6"),
        ({"layers": -2}, TypeError, "sequence of integers"),
        ({"text": None}, TypeError, "must be a string"),
        ({"text": "two <|image_pad|>"}, ValueError, "must not contain vision tokens"),
        ({"text_position": "beside"}, ValueError, "must be one of"),
        ({"max_pixels": 10}, ValueError, "room for one image token"),
        ({"mask": np.zeros((8, 8))}, TypeError, "must be a greyscale PIL image"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_runs(arguments: dict[str, Any], error: Any, message: str):
    ran: list[Any] = []
    handle = MODEL.model.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        with pytest.raises(error, match=message):
            encode(**arguments)
    finally:
        handle.remove()
    assert not ran


def test_parts_that_do_not_fit_are_refused():
    image = noise((64, 48))
    with pytest.raises(TypeError, match="got Qwen3Model"):
        encode_reference(tiny_text_encoder(tokenizer=TOKENIZER), PROCESSOR, TOKENIZER, image, TEXT)
    with pytest.raises(ValueError, match="expected patch_size 8, got 16"):
        encode_reference(MODEL, tiny_image_processor(patch_size=16), TOKENIZER, image, TEXT, (-2,))
    with pytest.raises(TypeError, match="got Qwen2Tokenizer"):
        encode_reference(MODEL, TOKENIZER, TOKENIZER, image, TEXT, (-2,))
    other = tiny_vl_encoder(tokenizer=TOKENIZER)
    other.config.image_token_id = 7
    with pytest.raises(ValueError, match=r"not the image token of `vl_encoder` \(id 7\)"):
        encode_reference(other, PROCESSOR, TOKENIZER, image, TEXT, (-2,))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_states_that_are_not_finite_are_named(value: float):
    broken = tiny_vl_encoder(tokenizer=TOKENIZER)
    with torch.no_grad():
        broken.model.language_model.layers[3].mlp.down_proj.weight.fill_(value)
    with pytest.raises(ValueError, match="Qwen3-VL hidden states at layer -2 contain NaN or infinity"):
        encode_reference(broken, PROCESSOR, TOKENIZER, noise((64, 48)), TEXT, (-2,))
    encode_reference(broken, PROCESSOR, TOKENIZER, noise((64, 48)), TEXT, (3,))


@pytest.mark.skipif(not IS_OLD_TRANSFORMERS, reason="the slow tokenizer is gone from transformers 5 on")
def test_slow_tokenizer_serves(tmp_path: Path):
    from tiny_models import tiny_slow_tokenizer

    slow = tiny_slow_tokenizer(tmp_path)
    assert_equal_states(encode(), encode_reference(MODEL, PROCESSOR, slow, noise((64, 48)), TEXT, (-2,)))
