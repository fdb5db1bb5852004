"""Every way a reference picture may be handed over, and every way it may be wrong."""

from __future__ import annotations

import functools
import http.server
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from zimage_vl.reference.pictures import group_references, load_reference_image, load_reference_mask


def encoded(image: PIL.Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(width: int = 24, height: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def same(image: PIL.Image.Image, pixels: np.ndarray) -> bool:
    return image.mode == "RGB" and np.array_equal(np.asarray(image), pixels)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises any size: decoding it would need that much memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_every_kind_of_input_gives_the_same_picture(tmp_path: Path) -> None:
    pixels = noise()
    image = PIL.Image.fromarray(pixels)
    path = tmp_path / "picture.png"
    image.save(path)
    scaled = pixels.astype(np.float32) / 255
    inputs = [image, path, str(path), path.read_bytes(), bytearray(path.read_bytes()), pixels, scaled]
    inputs += [scaled.astype(np.float64), torch.from_numpy(pixels).permute(2, 0, 1)]
    inputs += [torch.from_numpy(scaled).permute(2, 0, 1).requires_grad_(), PIL.Image.open(path)]
    for given in inputs:
        assert same(load_reference_image(given), pixels), type(given)


def test_half_precision_is_as_near_as_it_can_be() -> None:
    pixels = noise()
    half = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1).to(torch.bfloat16)
    read = np.asarray(load_reference_image(half)).astype(int)
    assert np.abs(read - pixels).max() <= 1


def test_grey_arrays_and_bools() -> None:
    threefold = np.repeat(grey := noise(channels=1), 3, axis=-1)
    for given in (grey, grey[..., 0], torch.from_numpy(grey[..., 0]), torch.from_numpy(grey[..., 0])[None]):
        assert same(load_reference_image(given), threefold)
    assert same(load_reference_image(grey > 127), np.where(threefold > 127, 255, 0).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX", "I", "F", "RGBA", "LA", "PA"])
def test_every_mode_of_pillow_keeps_what_is_seen(mode: str) -> None:
    # A colour that all of them can hold: white on the left, black on the right.
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, :4] = 255
    image = PIL.Image.fromarray(pixels)
    image = image.convert("L").convert(mode) if mode in ("I", "F", "LA", "PA") else image.convert(mode)
    assert same(load_reference_image(image), pixels)


def test_cmyk_and_palette_keep_their_colours() -> None:
    red = PIL.Image.new("RGB", (4, 4), (200, 30, 40))
    for image in (red.convert("CMYK"), red.quantize(4)):
        assert np.abs(np.asarray(load_reference_image(image)).astype(int) - (200, 30, 40)).max() <= 1


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_deep_greyscale_is_rescaled_and_not_clipped(mode: str) -> None:
    values = np.linspace(0, 65535, 64).reshape(8, 8).round()
    deep = values.astype({"I;16": "<u2", "I;16B": ">u2", "I": "i4", "F": "f4"}[mode])
    image = PIL.Image.fromarray(deep if mode != "F" else deep / np.float32(65535))
    assert image.mode == mode
    read = np.asarray(load_reference_image(image))[..., 0].astype(float)
    assert np.abs(read - values / 257).max() <= 0.51


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_deep_files_are_rescaled(file_format: str) -> None:
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    read = np.asarray(load_reference_image(encoded(PIL.Image.fromarray(values), file_format)))
    assert np.abs(read[..., 0] - values / 257).max() <= 0.51


def test_a_dark_deep_file_stays_dark() -> None:
    values = np.full((8, 8), 200, dtype=np.uint16)  # nearly black of 65535, light grey if taken for 8 bits
    assert np.asarray(load_reference_image(encoded(PIL.Image.fromarray(values)))).max() <= 1


def test_transparent_parts_lie_on_white() -> None:
    pixels = noise(channels=4)
    image = PIL.Image.fromarray(pixels, "RGBA")
    alpha = pixels[..., 3:].astype(float) / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for given in (image, encoded(image), pixels, pixels.astype(np.float32) / 255, tensor):
        assert np.abs(np.asarray(load_reference_image(given)) - expected).max() <= 1


def test_a_transparent_colour_of_a_file_is_white() -> None:
    grey = PIL.Image.new("L", (4, 4), 7)
    deep = PIL.Image.fromarray(np.full((4, 4), 700, dtype=np.uint16))
    palette = PIL.Image.new("RGB", (4, 4), (7, 8, 9)).quantize(2)
    index = int(np.asarray(palette)[0, 0])
    rgb = encoded(PIL.Image.new("RGB", (4, 4), (7, 8, 9)), transparency=(7, 8, 9))
    files = [encoded(grey, transparency=7), encoded(deep, transparency=700), encoded(palette, transparency=index), rgb]
    for data in files:
        assert load_reference_image(data).getcolors() == [(16, (255, 255, 255))]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    pixels = noise()
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    assert same(load_reference_image(encoded(PIL.Image.fromarray(pixels), exif=exif)), turned)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame_and_one_warning(file_format: str) -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    with pytest.warns(UserWarning, match="animated: frame 1") as caught:
        image = load_reference_image(data)
    assert len(caught) == 1
    assert image.getcolors() == [(64, (255, 0, 0))]


def test_an_opened_animation_gives_the_frame_it_stands_at_and_stays_there() -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    opened = PIL.Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    opened.seek(2)
    with pytest.warns(UserWarning, match="frame 3"):
        assert load_reference_image(opened).getpixel((0, 0)) == (0, 0, 255)
    assert opened.tell() == 2


def test_the_given_picture_is_not_the_returned_one() -> None:
    image = PIL.Image.fromarray(noise())
    load_reference_image(image).paste((0, 0, 0), (0, 0, 8, 8))
    assert same(image, noise())
    pixels = noise()
    load_reference_image(pixels).paste((0, 0, 0), (0, 0, 8, 8))
    assert np.array_equal(pixels, noise())


@pytest.mark.parametrize("size", [(1, 1), (1990, 10), (10, 2000), (4000, 3000)])
def test_small_long_and_large_pictures_are_read(size: tuple[int, int]) -> None:
    assert load_reference_image(PIL.Image.new("RGB", size)).size == size


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    (tmp_path / "picture.png").write_bytes(encoded(PIL.Image.fromarray(noise())))
    (tmp_path / "page.png").write_text("<!DOCTYPE html><html>Sign in to see the picture</html>")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_a_url_is_fetched(server: str) -> None:
    assert same(load_reference_image(f"{server}/picture.png?size=large"), noise())


def test_a_failing_url_says_why_in_one_sentence(server: str) -> None:
    with pytest.raises(ValueError, match=r"missing.png' could not be downloaded: HTTP 404 File not found\.$") as error:
        load_reference_image(f"{server}/missing.png?token=secret")
    assert "secret" not in str(error.value)
    with pytest.raises(ValueError, match="HTML page"):
        load_reference_image(f"{server}/page.png")


def test_a_url_that_nobody_serves() -> None:
    with pytest.raises(ValueError, match="could not be downloaded: no connection"):
        load_reference_image("http://127.0.0.1:9/picture.png")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"  <!DOCTYPE html>\n<html></html>", "HTML page"),
        (b"hello", "no image format"),
        (encoded(PIL.Image.fromarray(noise(96, 96)))[:4000], "truncated"),
        (encoded(PIL.Image.fromarray(noise(96, 96)), "JPEG")[:1500], "truncated"),
    ],
    ids=["empty", "html", "text", "png", "jpeg"],
)
def test_files_that_are_no_picture(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"broken\.png.*{reason}"):
        load_reference_image(path)
    with pytest.raises(ValueError, match=reason):
        load_reference_image(data)


def test_a_lazily_opened_truncated_picture(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(encoded(PIL.Image.fromarray(noise(96, 96)))[:4000])
    with PIL.Image.open(path) as opened, pytest.raises(ValueError, match=r"broken\.png.*truncated"):
        load_reference_image(opened)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        load_reference_image(str(tmp_path / "nowhere.png"))
    with pytest.raises(ValueError, match="directory"):
        load_reference_image(tmp_path)


def test_a_decompression_bomb_is_refused_before_decoding() -> None:
    with pytest.raises(ValueError, match=r"refused before decoding.*900000000 pixels.*178956970"):
        load_reference_image(png_that_claims(30_000, 30_000))


def test_a_bomb_that_was_opened_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = PIL.Image.open(io.BytesIO(png_that_claims(3000, 1000)))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(ValueError, match="3000000 pixels, over the limit of 2000000"):
        load_reference_image(opened)


def test_sides_over_200_to_1_are_refused_before_decoding() -> None:
    with pytest.raises(ValueError, match="4000 x 10: sides over 200:1"):
        load_reference_image(png_that_claims(4000, 10))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4, 2), np.uint8), "got 2"),
        (np.zeros((3, 8, 9), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "a batch: pass list"),
        (np.zeros(4, np.uint8), "expected"),
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.full((4, 4, 3), np.inf), "infinite"),
        (np.full((4, 4, 3), 1.5), "from 1.5 to 1.5, expected 0..1"),
        (np.full((4, 4, 3), -0.5), r"x / 2 \+ 0\.5"),
        (np.zeros((4, 4, 3), np.int64), "type int64: pass uint8"),
        (torch.zeros(9, 8, 3), r"permute\(2, 0, 1\)"),
        (torch.zeros(2, 3, 8, 8), "a batch: pass list"),
        (torch.zeros(3, 0, 8), "no pixels"),
        (torch.full((3, 4, 4), 255.0), "from 255 to 255"),
        (torch.full((3, 4, 4), float("nan"), dtype=torch.bfloat16), "NaN"),
    ],
)
def test_arrays_that_are_no_picture(array: np.ndarray | torch.Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_reference_image(array)


def test_a_rounding_error_above_one_is_white() -> None:
    assert same(load_reference_image(np.full((2, 2, 3), 1.0000002)), np.full((2, 2, 3), 255, dtype=np.uint8))


@pytest.mark.parametrize("given", [None, 3, {"image": 1}, [np.zeros((2, 2, 3))]])
def test_other_kinds_are_refused(given: object) -> None:
    with pytest.raises(TypeError, match="`neutral_image` must be a PIL image, a path"):
        load_reference_image(given, "neutral_image")


@pytest.mark.parametrize("values", [np.full((4, 4), -1, np.int32), np.full((4, 4), 70000, np.int32)])
def test_deep_values_out_of_range_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected 0 to"):
        load_reference_image(PIL.Image.fromarray(values))


def test_a_mask_is_greyscale_at_the_size_of_its_picture() -> None:
    half = np.zeros((4, 8), dtype=bool)
    half[:, :4] = True
    mask = load_reference_mask(half, (8, 4))
    assert mask.mode == "L"
    assert np.array_equal(np.asarray(mask) == 255, half)
    larger = np.asarray(load_reference_mask(PIL.Image.fromarray(half), (80, 40)))
    assert larger.shape == (40, 80)
    assert larger[:, :30].min() == 255
    assert larger[:, 50:].max() == 0


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (PIL.Image.new("RGB", (8, 4), "red"), "greyscale"),
        (PIL.Image.new("LA", (8, 4), (255, 0)), "transparent"),
        (PIL.Image.new("L", (8, 4), 0), "black all over"),
        (PIL.Image.new("L", (8, 8), 255), "proportions.*8 x 4, got 8 x 8"),
        (np.full((4, 8), np.nan), "`reference_mask`.*NaN"),
    ],
)
def test_masks_that_say_nothing_clear(mask: PIL.Image.Image | np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_reference_mask(mask, (8, 4))


def test_a_mask_scaled_down_with_rounding_still_fits() -> None:
    assert load_reference_mask(PIL.Image.new("L", (333, 187), 255), (1000, 562)).size == (1000, 562)


def test_one_reference_serves_all_prompts() -> None:
    item = object()
    assert group_references(item, 3) == [[item], [item], [item]]
    assert group_references([item], 3) == [[item], [item], [item]]
    assert group_references([[item, "b"]], 2) == [[item, "b"], [item, "b"]]


def test_a_list_is_one_per_prompt_and_a_list_inside_it_several() -> None:
    assert group_references(["a", "b"], 2) == [["a"], ["b"]]
    assert group_references([["a", "b"], "c"], 2) == [["a", "b"], ["c"]]
    assert group_references(("a", ("b", "c")), 2) == [["a"], ["b", "c"]]


def test_grouping_copies_the_lists() -> None:
    inner = ["a", "b"]
    given: list[object] = [inner, "c"]
    groups = group_references(given, 2)
    groups[0].append("d")
    groups.append(["e"])
    assert given == [inner, "c"]
    assert inner == ["a", "b"]
    shared = group_references([inner], 2)
    shared[0].append("d")
    assert shared[1] == ["a", "b"]


def test_arrays_and_tensors_are_single_items() -> None:
    pixels, tensor = noise(), torch.zeros(3, 4, 4)
    groups = group_references([pixels, tensor], 2)
    assert groups[0][0] is pixels
    assert groups[1][0] is tensor


@pytest.mark.parametrize(
    ("reference", "batch_size", "reason"),
    [
        ([], 1, "empty list"),
        ([[]], 1, "empty list in it"),
        (["a", []], 2, "empty list in it"),
        ([[["a"]]], 1, "nested too deep"),
        (["a", "b"], 3, "2 entries for 3 prompts"),
        (["a", "b"], 1, r"2 entries for 1 prompt: several.*=\[\[first, second\]\]"),
        (["a", "b", "c"], 2, "3 entries for 2 prompts"),
        (["a", None], 2, "None"),
        (None, 2, "None"),
        (np.zeros((2, 4, 4, 3)), 2, r"\(2, 4, 4, 3\): pass list\(batch\)"),
        ([torch.zeros(2, 3, 4, 4)], 2, r"\(2, 3, 4, 4\): pass list\(batch\)"),
    ],
)
def test_nesting_that_is_not_clear_is_refused(reference: object, batch_size: int, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"`reference_embeds`.*{reason}"):
        group_references(reference, batch_size, "reference_embeds")
