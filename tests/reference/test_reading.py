"""Readings: all that is known of a read before a model runs, and every mistake refused there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_models import noise, tiny_image_processor, tiny_tokenizer, tiny_vl_encoder, white_box
from zimage_vl.blend.regions import Region
from zimage_vl.reference.pictures import fill_hidden
from zimage_vl.reference.readers import find_reader_source
from zimage_vl.reference.reading import Reading, build_reading, resolve_layers, sha256_of_pixels
from zimage_vl.reference.turn import picture_turn, read_text_turn


TEXT = "a red circle"
TOKENIZER = tiny_tokenizer()
PROCESSOR = tiny_image_processor()
CONFIG = tiny_vl_encoder(tokenizer=TOKENIZER).config
SOURCE = find_reader_source("qwen3-vl", None, CONFIG, PROCESSOR)


def read(
    image: Any = None, text: str = TEXT, layers: Any = (-2,), *, processor: Any = PROCESSOR, **kw: Any
) -> Reading:
    image, turn = image or noise((64, 48)), read_text_turn(TOKENIZER, text)
    names = {name: kw.pop(name, None) for name in ("model_id", "revision")}
    source = find_reader_source("qwen3-vl", None, CONFIG, processor, **names)
    return build_reading(source, TOKENIZER, image, turn, layers, **kw)


@pytest.mark.parametrize("position", ["after", "before"])
def test_it_holds_the_turn_and_the_picture(position: Any) -> None:
    reading = read(layers=(-1, -2, 4), text_position=position)
    ids, regions = picture_turn(TOKENIZER, read_text_turn(TOKENIZER, TEXT), 12, position)
    assert torch.equal(reading.ids, ids)
    assert torch.equal(reading.regions, regions)
    assert reading.layers == {-1: 6, -2: 5, 4: 4}
    assert (reading.grid, reading.visible) == ((3, 4), None)
    assert reading.picture.tobytes() == noise((64, 48)).tobytes()


@pytest.mark.parametrize(
    ("size", "grid"), [((1, 1), (1, 1)), ((64, 48), (3, 4)), ((70, 20), (1, 4)), ((1990, 10), (1, 124))]
)
def test_the_picture_is_brought_to_the_grid(size: tuple[int, int], grid: tuple[int, int]) -> None:
    reading, (rows, columns) = read(noise(size)), grid
    assert reading.grid == reading.provenance.image_grid == grid
    assert reading.picture.size == reading.provenance.encoded_size == (columns * 16, rows * 16)
    assert reading.provenance.image_size == size
    assert int((reading.regions == Region.IMAGE).sum()) == rows * columns
    expected = noise(size).resize(reading.picture.size, Image.Resampling.BICUBIC)
    assert reading.picture.tobytes() == expected.tobytes()


def test_the_smaller_bound_on_pixels_holds() -> None:
    assert read(noise((320, 320)), max_pixels=64 * 64).grid == (4, 4)
    narrow = tiny_image_processor(max_pixels=48 * 48)
    assert read(noise((320, 320)), processor=narrow).grid == (3, 3)
    assert read(noise((320, 320)), processor=narrow, max_pixels=1024).grid == (2, 2)
    # A default that is the library's, not the model's, is no bound.
    assert tiny_image_processor().size["longest_edge"] == 28 * 28 * 1280
    assert read(noise((1024, 1024))).grid == (64, 64)
    for size in (None, {}, SimpleNamespace(), {"longest_edge": None}):
        unbounded = SimpleNamespace(patch_size=8, merge_size=2, temporal_patch_size=2, size=size)
        assert read(noise((320, 320)), processor=unbounded).grid == (20, 20)


def test_a_mask_fills_what_it_hides_and_removes_its_tokens() -> None:
    image, mask = noise((64, 48)), white_box((640, 480), (0, 0, 320, 480))
    reading = read(image, mask=mask)
    assert reading.visible is not None
    assert reading.visible.tolist() == [True, True, False, False] * 3
    assert reading.picture.tobytes() == fill_hidden(image, mask, reading.visible.reshape(3, 4)).tobytes()
    assert int((reading.regions == Region.IMAGE).sum()) == 12  # the sequence keeps its places
    # White by more than half everywhere: no token is removed, the hidden pixels are filled all the same.
    partly = white_box((64, 48), (0, 0, 64, 42))
    assert read(image, mask=partly).visible is None
    assert read(image, mask=partly).picture.tobytes() != image.tobytes()
    assert read(image, mask=Image.new("1", (5, 9), 1)).picture.tobytes() == image.tobytes()


def test_what_is_given_stays_as_it_is() -> None:
    image, mask, layers = noise((61, 50)), white_box((61, 50), (0, 0, 30, 50)), [-2, -3]
    before = image.tobytes(), mask.tobytes(), dict(vars(PROCESSOR))
    read(image, layers=layers, mask=mask)
    assert (image.tobytes(), mask.tobytes(), dict(vars(PROCESSOR))) == before
    assert layers == [-2, -3]


def test_provenance_tells_what_is_known_without_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = white_box((64, 48), (0, 0, 32, 48))
    given = read(mask=mask, model_id="a/model", revision="main", max_pixels=10_000).provenance
    assert (given.model_id, given.revision, given.num_hidden_layers, given.text) == ("a/model", "main", 6, TEXT)
    assert (given.text_position, given.max_pixels, given.dtype, given.vl_fingerprint) == ("after", 10_000, None, None)
    assert given.mask_sha256 == sha256_of_pixels(mask)
    assert set(given.versions) == {"zimage_vl", "torch", "transformers", "pillow"}
    # By content: the same pixels from anywhere have the same hash, others have another.
    assert sha256_of_pixels(noise((64, 48)).copy()) == given.image_sha256 != sha256_of_pixels(noise((48, 64)))
    # A folder by its full path: what looks like a Hub id is one.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "model").mkdir(parents=True)
    assert read(model_id="a/model").provenance.model_id == str(tmp_path / "a" / "model")


def test_the_key_tells_readings_apart() -> None:
    base, mask = read(), white_box((64, 48), (0, 0, 32, 48))
    assert hash(base.key) == hash(read(noise((64, 48)).copy()).key)
    assert base.key == read().key == read(processor=SimpleNamespace(image_processor=PROCESSOR)).key
    variants: list[dict[str, Any]] = [
        {"image": noise((64, 48), 1)},
        {"text": "a blue square"},
        {"layers": (-3,)},
        {"layers": (5,)},
        {"layers": (-2, -3)},
        {"text_position": "before"},
        {"max_pixels": 1024},
        {"mask": mask},
        {"mask": Image.new("L", (64, 48), 255)},
        {"model_id": "a/model"},
        {"revision": "main"},
    ]
    keys = [read(**variant).key for variant in variants]
    assert len({base.key, *keys}) == len(variants) + 1
    cut = build_reading(SOURCE, TOKENIZER, noise((64, 48)), read_text_turn(TOKENIZER, TEXT, 7), (-2,))
    assert cut.key != base.key


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": np.ones((8, 8, 3)).tolist()}, TypeError, "must be a PIL image of mode .*, got "),
        ({"image": Image.new("RGBA", (8, 8))}, TypeError, "must be a PIL image of mode .*RGBA"),
        ({"layers": -2}, TypeError, "sequence of integers"),
        ({"mask": np.zeros((8, 8))}, TypeError, "A mask must be a PIL image"),
        ({"processor": TOKENIZER}, TypeError, "got None of a Qwen2Tokenizer"),
    ],
)
def test_mistakes_are_refused(arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        read(**arguments)


def test_a_tokenizer_of_other_models_is_refused() -> None:
    other = SOURCE._replace(image_token_id=7)
    with pytest.raises(ValueError, match=r"not the image token of `vl_encoder` \(id 7\)"):
        build_reading(other, TOKENIZER, noise((64, 48)), read_text_turn(TOKENIZER, TEXT), (-2,))


def test_layers_are_resolved() -> None:
    assert resolve_layers([-1, -7, 0, 6, -6], 6) == {-1: 6, -7: 0, 0: 0, 6: 6, -6: 1}
    for layer in (7, -8, 100):
        with pytest.raises(ValueError, match=rf"Layer {layer} is out of range.*-7 \.\. 6"):
            resolve_layers([layer], 6)
    for layers in (-6, "12", [1.5], [True], None, []):
        with pytest.raises(TypeError, match="integers"):
            resolve_layers(layers, 6)  # type: ignore[arg-type]
