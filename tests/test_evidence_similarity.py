"""Measures between pictures: identities, known values, the right order on toy pictures, and a second computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from zimage_vl.evidence.similarity import (
    PictureReader,
    convert_to_lab,
    describe_picture,
    describe_structure,
    get_colour_distance,
    get_colour_similarity,
    get_cosine,
    get_semantic_similarity,
    get_structure_similarity,
    read_pixels,
)
from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline


SIMILARITIES = [get_colour_similarity, get_structure_similarity]
RED_CIRCLE = draw_scene(Scene("circle", "red", "white"))
RED_SQUARE = draw_scene(Scene("square", "red", "white"))
BLUE_CIRCLE = draw_scene(Scene("circle", "blue", "white"))


def make_noise(seed: int = 0, size: tuple[int, int] = (48, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def reader() -> PictureReader:
    return PictureReader(load_toy_pipeline(), size=64)


@pytest.mark.parametrize("measure", SIMILARITIES)
@pytest.mark.parametrize("picture", [RED_CIRCLE, make_noise(), Image.new("RGB", (20, 30), "teal")])
def test_a_picture_is_like_itself(measure, picture) -> None:
    assert measure(picture, picture) == pytest.approx(1, abs=1e-9)
    assert measure(picture, np.asarray(picture)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("measure", SIMILARITIES)
def test_measures_are_symmetric_and_tell_pictures_apart(measure) -> None:
    for other in (RED_SQUARE, BLUE_CIRCLE, make_noise(1)):
        assert measure(RED_CIRCLE, other) == measure(other, RED_CIRCLE)
    assert measure(RED_CIRCLE, make_noise()) < 0.85


def test_colour_does_not_know_where() -> None:
    pixels = np.asarray(RED_CIRCLE)
    shuffled = np.random.default_rng(0).permutation(pixels.reshape(-1, 3)).reshape(pixels.shape)
    for other in (pixels[:, ::-1], pixels[::-1], pixels.transpose(1, 0, 2), shuffled):
        assert get_colour_distance(pixels, other) == pytest.approx(0, abs=1e-9)
    assert get_colour_distance(pixels, np.repeat(np.repeat(pixels, 2, 0), 3, 1)) == pytest.approx(0, abs=1e-9)


def test_structure_does_not_know_colour() -> None:
    pixels = np.asarray(RED_CIRCLE.convert("L"))
    for changed in (pixels // 2, pixels // 2 + 90, 255 - pixels):
        assert get_structure_similarity(pixels, changed) > 0.97
    curve = (255 * (pixels / 255) ** 2).astype(np.uint8)  # monotone, and no straight line
    assert get_structure_similarity(pixels, curve) > 0.97
    assert get_structure_similarity(pixels, pixels[:, ::-1]) < 0.97  # the circle is not in the middle


@pytest.mark.parametrize("background", ["white", "black", "gray", "brown"])
def test_toy_pictures_are_in_the_right_order(background: str) -> None:
    circle, square, blue = (
        draw_scene(Scene(shape, colour, background), seed=4)
        for shape, colour in (("circle", "red"), ("square", "red"), ("circle", "blue"))
    )
    assert get_colour_similarity(circle, square) > get_colour_similarity(circle, blue)
    assert get_structure_similarity(circle, blue) > get_structure_similarity(circle, square)


def test_known_colours() -> None:
    """CIELAB under D65 as published for the corners of sRGB (Lindbloom)."""
    corners = {
        (255, 255, 255): (100, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (255, 0, 0): (53.241, 80.092, 67.203),
        (0, 255, 0): (87.735, -86.183, 83.179),
        (0, 0, 255): (32.297, 79.188, -107.860),
        (119, 119, 119): (50.034, 0, 0),
    }
    for rgb, lab in corners.items():
        assert convert_to_lab(np.array(rgb, dtype=np.uint8)) == pytest.approx(lab, abs=0.01)


def test_the_distance_of_flat_pictures_is_that_of_their_colours() -> None:
    first, second = (200, 40, 60), (30, 90, 200)
    flat = [Image.new("RGB", (6, 6), colour) for colour in (first, second)]
    lab = [convert_to_lab(np.array(colour, dtype=np.uint8)) for colour in (first, second)]
    assert get_colour_distance(*flat) == pytest.approx(math.dist(*lab), rel=0.03)


def test_the_distance_again_with_other_directions() -> None:
    """The sliced Wasserstein distance by its definition: random directions, every pixel, no quantiles."""
    pictures = [make_noise(1, (24, 24)), draw_scene(Scene("cross", "green", "black")).resize((24, 24))]
    clouds = [convert_to_lab(np.asarray(picture)).reshape(-1, 3) for picture in pictures]
    rng, distances = np.random.default_rng(5), []
    for _ in range(4000):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        first, second = (sorted(cloud @ direction) for cloud in clouds)
        distances.append(np.mean([abs(a - b) for a, b in zip(first, second, strict=True)]))
    assert get_colour_distance(*pictures) == pytest.approx(2 * np.mean(distances), rel=0.03)


def test_structure_sees_an_edge_where_it_is() -> None:
    """Counted by hand: a vertical edge between columns 31 and 32 of the grid has horizontal gradients, bin 0, only
    in the two columns of cells beside it."""
    pixels = np.zeros((64, 64), dtype=np.uint8)
    pixels[:, 32:] = 255
    blocks = describe_structure(pixels).reshape(7, 7, 9, 2, 2)
    rows, columns, bins, _, cell_columns = np.nonzero(blocks)
    assert set(bins.tolist()) == {0}
    assert {c + w for c, w in zip(columns.tolist(), cell_columns.tolist(), strict=True)} == {3, 4}
    assert set(rows.tolist()) == set(range(7))
    # Block 3 has the edge in both its columns of cells, four equal cells: each 1/2 of the length, less the floor.
    full = blocks[0, 3, 0]
    assert full == pytest.approx(np.full((2, 2), full[0, 0]))
    assert 0.49 < full[0, 0] < 0.5


def test_flat_pictures_have_no_structure() -> None:
    flat, other = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (70, 90), "navy")
    assert get_structure_similarity(flat, other) == 1
    assert get_structure_similarity(flat, RED_CIRCLE) == 0


def test_noise_has_the_structure_of_nothing() -> None:
    assert abs(get_structure_similarity(make_noise(3, (64, 64)), RED_CIRCLE)) < 0.15


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(TypeError, match="array of float64"):
        read_pixels(np.zeros((4, 4, 3)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="got str"):
        get_colour_distance("a.png", RED_CIRCLE)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"got \(2, 2, 4\)"):
        read_pixels(np.zeros((2, 2, 4), dtype=np.uint8))


def test_the_encoder_knows_its_own(reader: PictureReader) -> None:
    assert get_semantic_similarity(reader, RED_CIRCLE, RED_CIRCLE) == pytest.approx(1, abs=1e-6)
    there, back = (
        get_semantic_similarity(reader, *pair) for pair in ((RED_CIRCLE, BLUE_CIRCLE), (BLUE_CIRCLE, RED_CIRCLE))
    )
    assert there == pytest.approx(back, abs=1e-9)
    assert get_semantic_similarity(reader, Image.new("RGB", (64, 64), (128, 128, 128)), RED_CIRCLE) == 0


def test_the_encoder_finds_what_a_picture_shares(reader: PictureReader) -> None:
    same = draw_scene(Scene("circle", "red", "white"), seed=9)
    other = draw_scene(Scene("triangle", "cyan", "black"), seed=9)
    for near in (same, RED_SQUARE, BLUE_CIRCLE):
        assert get_semantic_similarity(reader, RED_CIRCLE, near) > get_semantic_similarity(reader, RED_CIRCLE, other)
    assert get_semantic_similarity(reader, RED_CIRCLE, same) > get_semantic_similarity(reader, RED_CIRCLE, BLUE_CIRCLE)


def test_a_feature_is_the_mean_state_less_that_of_grey(reader: PictureReader) -> None:
    layer = reader.layer
    assert layer == -2  # the toy's layer at .86 of the depth
    pair = [
        reader.pipe.encode_reference(image, "", (layer,))
        for image in (RED_CIRCLE, Image.new("RGB", (64, 64), "#808080"))
    ]
    means = [e.hidden_states[layer][e.regions == 2].double().mean(0).numpy() for e in pair]
    assert reader.read(RED_CIRCLE) == pytest.approx(means[0] - means[1], abs=1e-9)


def test_cosine_of_nothing() -> None:
    assert get_cosine(np.zeros(3), np.ones(3)) == 0
    assert get_cosine(np.zeros(3), np.zeros(3)) == 1
    assert get_cosine(np.ones(3), -np.ones(3)) == -1


def test_features_compare_as_the_measures_do(reader: PictureReader) -> None:
    first, second = (describe_picture(reader, picture) for picture in (RED_CIRCLE, RED_SQUARE))
    assert first.compare(second) == {
        "colour": get_colour_similarity(RED_CIRCLE, RED_SQUARE),
        "structure": get_structure_similarity(RED_CIRCLE, RED_SQUARE),
        "semantics": pytest.approx(get_semantic_similarity(reader, RED_CIRCLE, RED_SQUARE)),
    }


def test_large_pictures_are_measured_on_a_grid() -> None:
    large = RED_CIRCLE.resize((640, 640), Image.Resampling.NEAREST)
    assert get_colour_distance(large, RED_CIRCLE) < 1
    assert get_colour_distance(large, large.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) < 0.1
