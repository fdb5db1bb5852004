"""Every way a reference picture may be handed over, and every way it may be wrong."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import struct
import subprocess
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import ImageCms

from tiny_models import noise, white_box
from zimage_vl.reference import pictures
from zimage_vl.reference.pictures import (
    fill_hidden,
    grid_size,
    load_reference_image,
    load_reference_mask,
    read_image_bytes,
    treat_picture,
    visible_tokens,
)


def encoded(image: PIL.Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels_of(width: int = 24, height: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def same(image: PIL.Image.Image, pixels: np.ndarray) -> bool:
    return image.mode == "RGB" and np.array_equal(np.asarray(image), pixels)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises any size: decoding it would need that much memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_every_kind_of_input_gives_the_same_picture_and_stays_as_it_is(tmp_path: Path) -> None:
    pixels = pixels_of()
    image = PIL.Image.fromarray(pixels)
    path = tmp_path / "picture.png"
    image.save(path)
    scaled = pixels.astype(np.float32) / 255
    inputs = [image, path, str(path), path.read_bytes(), bytearray(path.read_bytes()), pixels, scaled]
    inputs += [scaled.astype(np.float64), torch.from_numpy(pixels).permute(2, 0, 1)]
    inputs += [torch.from_numpy(scaled).permute(2, 0, 1).requires_grad_(), PIL.Image.open(path)]
    for given in inputs:
        for _ in "twice":  # the second time it is what it was, whatever is done to what was returned
            loaded = load_reference_image(given)
            assert same(loaded, pixels_of()), type(given)
            loaded.paste((0, 0, 0), (0, 0, 8, 8))


def test_grey_arrays_bools_and_half_precision() -> None:
    threefold = np.repeat(grey := pixels_of(channels=1), 3, axis=-1)
    for given in (grey, grey[..., 0], torch.from_numpy(grey[..., 0]), torch.from_numpy(grey[..., 0])[None]):
        assert same(load_reference_image(given), threefold)
    assert same(load_reference_image(grey > 127), np.where(threefold > 127, 255, 0).astype(np.uint8))
    assert same(load_reference_image(np.full((2, 2, 3), 1.0000002)), np.full((2, 2, 3), 255, dtype=np.uint8))
    half = torch.from_numpy(pixels_of().astype(np.float32) / 255).permute(2, 0, 1).to(torch.bfloat16)
    assert np.abs(np.asarray(load_reference_image(half)).astype(int) - pixels_of()).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX", "I", "F", "RGBA", "LA", "PA"])
def test_every_mode_of_pillow_keeps_what_is_seen(mode: str) -> None:
    # A colour that all of them can hold: white on the left, black on the right.
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, :4] = 255
    image = PIL.Image.fromarray(pixels)
    image = image.convert("L").convert(mode) if mode in ("I", "F", "LA", "PA") else image.convert(mode)
    assert same(load_reference_image(image), pixels)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_deep_greyscale_is_rescaled_and_not_clipped(mode: str) -> None:
    values = np.linspace(0, 65535, 64).reshape(8, 8).round()
    deep = values.astype({"I;16": "<u2", "I;16B": ">u2", "I": "i4", "F": "f4"}[mode])
    image = PIL.Image.fromarray(deep if mode != "F" else deep / np.float32(65535))
    assert image.mode == mode
    read = np.asarray(load_reference_image(image))[..., 0].astype(float)
    assert np.abs(read - values / 257).max() <= 0.51


def test_a_transparent_colour_of_a_file_is_white() -> None:
    grey = PIL.Image.new("L", (4, 4), 7)
    deep = PIL.Image.fromarray(np.full((4, 4), 700, dtype=np.uint16))
    palette = PIL.Image.new("RGB", (4, 4), (7, 8, 9)).quantize(2)
    index = int(np.asarray(palette)[0, 0])
    rgb = encoded(PIL.Image.new("RGB", (4, 4), (7, 8, 9)), transparency=(7, 8, 9))
    files = [encoded(grey, transparency=7), encoded(deep, transparency=700), encoded(palette, transparency=index), rgb]
    for data in files:
        assert load_reference_image(data).getcolors() == [(16, (255, 255, 255))]


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_one_frame_and_one_warning(file_format: str) -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    with pytest.warns(UserWarning, match="animated: frame 1") as caught:
        image = load_reference_image(data)
    assert len(caught) == 1
    assert image.getcolors() == [(64, (255, 0, 0))]
    opened = PIL.Image.open(io.BytesIO(data))
    opened.seek(2)
    with pytest.warns(UserWarning, match="frame 3"):
        assert load_reference_image(opened).getpixel((0, 0)) == (0, 0, 255)
    assert opened.tell() == 2


class Answers(http.server.BaseHTTPRequestHandler):
    """A picture, a page, nothing; or a byte now and then, for ever: of the content, or of the headers already."""

    def do_GET(self) -> None:
        page = b"<!DOCTYPE html><html>Sign in to see the picture</html>"
        files = {"/picture.png": encoded(PIL.Image.fromarray(pixels_of())), "/page.png": page}
        path = self.path.partition("?")[0]
        if path in ("/content", "/headers"):
            self.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"\r\n" if path == "/content" else b""))
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.02)
        self.send_response(200 if path in files else 404)
        self.end_headers()
        self.wfile.write(files.get(path, b""))

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as listening:
        listening.daemon_threads, listening.block_on_close = True, False
        threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def assert_not_downloaded(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        load_reference_image(f"{url.replace('://', '://me:secret@')}?token=secret")
    assert "secret" not in str(error.value)


def test_a_url_is_fetched_or_says_why_in_one_sentence(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert same(load_reference_image(f"{server}/picture.png?size=large"), pixels_of())
    assert_not_downloaded(f"{server}/missing.png", r"missing.png' could not be downloaded: HTTP 404\.$")
    assert_not_downloaded(f"{server}/page.png", "HTML page")
    assert_not_downloaded("http://127.0.0.1:9/a.png", "could not be downloaded: no answer, or no connection")
    monkeypatch.setattr(pictures, "_MOST_BYTES", 100)
    assert_not_downloaded(f"{server}/picture.png", "it is larger than 100 bytes")


def test_a_download_has_a_total_deadline(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_DOWNLOAD_SECONDS", 0.3)
    begin = time.monotonic()
    for part in ("content", "headers"):
        assert_not_downloaded(f"{server}/{part}", r"could not be downloaded: it took longer than 0\.3 seconds")
    assert time.monotonic() - begin < 10


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def test_formats_that_start_programs_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(ValueError, match="in none of the formats"):
        load_reference_image(EPS)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "ICO", "PPM", "AVIF", "MPO"])
def test_formats_that_are_named_are_opened(file_format: str) -> None:
    PIL.Image.init()
    if file_format not in PIL.Image.SAVE:
        pytest.skip("Pillow was built without it")
    image = load_reference_image(encoded(PIL.Image.new("RGB", (16, 16), (200, 30, 40)), file_format))
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 40)).max() <= 6


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for path in (tmp_path / "pipe", Path(os.devnull)):
        for load in (load_reference_image, read_image_bytes):
            with pytest.raises(ValueError, match=f"{path.name}' cannot be read: it is no regular file"):
                load(path)
    for path, reason in (("a\0b", "cannot be read"), ("x" * 5000, "cannot be read"), (tmp_path, "directory")):
        with pytest.raises(ValueError, match=rf"`reference_image` '.*{reason}"):
            load_reference_image(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        load_reference_image(str(tmp_path / "nowhere.png"))


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# The same with red and green exchanged.
SWAPPED = SRGB[:400].replace(b"rXYZ", b"@@@@").replace(b"gXYZ", b"rXYZ").replace(b"@@@@", b"gXYZ") + SRGB[400:]


def test_a_colour_profile_is_converted_to_srgb_once() -> None:
    read = load_reference_image(encoded(PIL.Image.fromarray(pixels_of()), icc_profile=SWAPPED))
    assert np.abs(np.asarray(read).astype(int) - pixels_of()[..., [1, 0, 2]]).max() <= 1
    assert not read.info  # or it would be converted once more
    palette = encoded(PIL.Image.new("RGB", (4, 4), (200, 30, 40)).quantize(4), icc_profile=SWAPPED)
    assert load_reference_image(PIL.Image.open(io.BytesIO(palette))).getpixel((0, 0))[1] > 190


def linear_grey_profile() -> bytes:
    """The least that is a grey profile: linear light, white as in the header's D50."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv" + bytes(8)
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, len(white), b"kTRC", 176, len(curve))
    header = bytearray(128)
    header[8:24] = b"\x02\x40\0\0mntrGRAYXYZ "
    header[36:40], header[68:80] = b"acsp", white[8:]
    profile = bytes(header) + tags + white + curve
    return struct.pack(">I", len(profile)) + profile[4:]


def test_a_grey_profile_is_converted_where_the_picture_is_grey() -> None:
    profile = linear_grey_profile()
    expected = round(255 * (1.055 * (128 / 255) ** (1 / 2.4) - 0.055))  # linear light, as sRGB writes it
    for mode in ("L", "LA"):
        read = load_reference_image(encoded(PIL.Image.new("L", (4, 4), 128).convert(mode), icc_profile=profile))
        assert np.abs(np.asarray(read).astype(int) - expected).max() <= 1
    for other, given in (
        (PIL.Image.new("RGB", (4, 4), "red"), profile),
        (PIL.Image.new("CMYK", (4, 4), (0, 255, 255, 0)), SWAPPED),
    ):
        with pytest.warns(UserWarning, match="its colour profile is ignored: it is made for"):
            image = load_reference_image(encoded(other, "TIFF", icc_profile=given))
        assert image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("profile", [b"", b"nonsense", b"\0" * 200])
def test_a_broken_profile_is_ignored_with_a_warning(profile: bytes) -> None:
    data = encoded(PIL.Image.fromarray(pixels_of()), icc_profile=profile)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert same(load_reference_image(data), pixels_of())
    assert len(caught) == bool(profile)
    assert all("its colour profile is ignored" in str(warning.message) for warning in caught)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "in none of the formats"),
        (b"  <!DOCTYPE html>\n<html></html>", "HTML page"),
        (b"hello", "in none of the formats"),
        (encoded(PIL.Image.fromarray(pixels_of(96, 96)))[:4000], "truncated"),
        (encoded(PIL.Image.fromarray(pixels_of(96, 96)), "JPEG")[:1500], "truncated"),
    ],
    ids=["empty", "html", "text", "png", "jpeg"],
)
def test_files_that_are_no_picture(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"broken\.png.*{reason}"):
        load_reference_image(path)
    if reason == "truncated":
        with PIL.Image.open(path) as opened, pytest.raises(ValueError, match=r"broken\.png.*truncated"):
            load_reference_image(opened)


def test_bombs_and_strips_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"cannot be read.*900000000 pixels.*178956970"):
        load_reference_image(png_that_claims(30_000, 30_000))
    with pytest.raises(ValueError, match="4000 x 10: sides over 200:1"):
        load_reference_image(png_that_claims(4000, 10))
    opened = PIL.Image.open(io.BytesIO(png_that_claims(3000, 1000)))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(ValueError, match="3000000 pixels, expected 1 to 2000000"):
        load_reference_image(opened)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\), expected"),
        (np.zeros((4, 4, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((3, 8, 9), np.uint8), r"expected \(height, width, channels\) with"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"a batch as list\(batch\)"),
        (np.zeros(4, np.uint8), "expected"),
        (np.full((4, 4, 3), np.nan), "from nan to nan, expected 0..1"),
        (np.full((4, 4, 3), np.inf), "from inf to inf"),
        (np.full((4, 4, 3), 1.5), "from 1.5 to 1.5, expected 0..1"),
        (np.full((4, 4, 3), -0.5), r"x / 2 \+ 0\.5"),
        (np.zeros((4, 4, 3), np.int64), "type int64: pass uint8"),
        (torch.zeros(9, 8, 3), r"expected \(channels, height, width\) with"),
        (torch.zeros(3, 0, 8), r"shape \(3, 0, 8\), expected"),
        (torch.full((3, 4, 4), 255.0), "from 255 to 255"),
        (torch.full((3, 4, 4), float("nan"), dtype=torch.bfloat16), "from nan"),
        (PIL.Image.fromarray(np.full((4, 4), np.int32(-1))), "expected 0 to"),
        (PIL.Image.fromarray(np.full((4, 4), np.int32(70000))), "expected 0 to"),
        (PIL.Image.fromarray(np.full((4, 4), np.float32("nan"))), "expected 0 to"),
        (None, "`neutral_image` must be a PIL image, a path"),
        ({"image": 1}, "`neutral_image` must be a PIL image, a path"),
        ([np.zeros((2, 2, 3))], "`neutral_image` must be a PIL image, a path"),
    ],
)
def test_what_is_no_picture_is_refused_with_what_is_expected(given: object, reason: str) -> None:
    with pytest.raises(TypeError if reason.startswith("`") else ValueError, match=reason):
        load_reference_image(given, "neutral_image")


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
    # Scaled down with rounding it still fits.
    assert load_reference_mask(PIL.Image.new("L", (333, 187), 255), (1000, 562)).size == (1000, 562)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (PIL.Image.new("RGB", (8, 4), "red"), "greyscale"),
        (PIL.Image.new("LA", (8, 4), (255, 0)), "transparent"),
        (PIL.Image.new("L", (8, 8), 255), "proportions.*8 x 4, got 8 x 8"),
        (np.full((4, 8), np.nan), "`reference_mask`.*nan"),
    ],
)
def test_masks_that_say_nothing_clear(mask: PIL.Image.Image | np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_reference_mask(mask, (8, 4))


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA"])
def test_a_mask_is_not_transparent_as_a_picture_or_a_file(mode: str, tmp_path: Path) -> None:
    for alpha, taken in ((255, True), (100, False)):
        mask = PIL.Image.merge("LA", [PIL.Image.new("L", (8, 4), value) for value in (200, alpha)])
        mask.save(tmp_path / "mask.png")
        for given in (mask.convert(mode), tmp_path / "mask.png"):
            if taken:
                assert load_reference_mask(given, (8, 4)).getpixel((0, 0)) == 200
            else:
                with pytest.raises(ValueError, match="transparent in places"):
                    load_reference_mask(given, (8, 4))


def test_floats_that_are_nearly_white_are_white_and_nearly_black_pictures_are_said() -> None:
    pixels = np.linspace(0, 1.0001, 32, dtype=np.float32).reshape(4, 8)
    read = np.asarray(load_reference_image(PIL.Image.fromarray(pixels)))[..., 0]
    assert np.array_equal(read, np.rint(pixels * 255).astype(np.uint8))
    with pytest.warns(UserWarning, match=r"up to 3.*0\.\.255, they are nearly black"):
        load_reference_image(PIL.Image.fromarray(3 * pixels))
    deep = io.BytesIO()  # 8 bits in a file of 32
    PIL.Image.fromarray(np.full((4, 4), 255, dtype=np.int32)).save(deep, format="TIFF")
    with pytest.warns(UserWarning, match=r"up to 255.*0\.\.65535, they are nearly black"):
        load_reference_image(deep.getvalue())


def swap_colours(picture: PIL.Image.Image) -> PIL.Image.Image:
    return PIL.Image.merge("RGB", picture.split()[::-1])


def test_treatments_leave_less_of_a_picture() -> None:
    picture = noise((64, 48))
    before = picture.tobytes()
    assert treat_picture(picture, "none") is picture
    grey = np.asarray(treat_picture(picture, "greyscale"))
    assert (grey == grey[..., :1]).all()
    for treatment in ("palette", "blur"):
        assert np.asarray(treat_picture(picture, treatment)).std() < 0.5 * np.asarray(picture).std()
    assert np.array_equal(np.asarray(treat_picture(picture, swap_colours)), np.asarray(picture)[..., ::-1])
    assert treat_picture(picture, lambda given: np.asarray(given)).tobytes() == picture.tobytes() == before
    with pytest.raises(ValueError, match=r"`vl_treatment` must be one of \['none', 'palette'.*, got 'sepia'"):
        treat_picture(picture, "sepia")


@pytest.mark.parametrize(
    ("treatment", "reason"),
    [
        (lambda picture: 1 / 0, "ZeroDivisionError"),
        (lambda picture: None, "picture\\).*got NoneType"),
        (lambda picture: picture.resize((8, 8)), r"its result has the size \(8, 8\)"),
        (lambda: None, "TypeError"),
    ],
)
def test_a_function_that_is_no_treatment_is_told_so(treatment: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"`vl_treatment` must be a function from a picture.*{reason}"):
        treat_picture(noise((64, 48)), treatment)


# ---- The grid of patches ----


@pytest.mark.parametrize("multiple", [16, 32])
@pytest.mark.parametrize("max_pixels", [32 * 32, 64 * 64, 1000 * 100, 1024 * 1024])
@pytest.mark.parametrize("size", [(1, 1), (31, 33), (1990, 10), (10, 1990), (4000, 3000), (200, 1), (3000, 500)])
def test_sides_are_multiples_within_the_bound(size: tuple[int, int], max_pixels: int, multiple: int):
    width, height = grid_size(size, multiple, max_pixels)
    assert width % multiple == height % multiple == 0
    assert min(width, height) >= multiple
    assert width * height <= max_pixels
    if min(width, height) > multiple:  # aspect is kept to a token, and the bound used but for a row and a column
        scale = (width * height / (size[0] * size[1])) ** 0.5
        assert abs(width - size[0] * scale) < multiple
        assert abs(height - size[1] * scale) < multiple
        assert (width + multiple) * (height + multiple) > min(max_pixels, size[0] * size[1])


@pytest.mark.parametrize(
    ("mask", "visible"),
    [
        (white_box((64, 32), (0, 0, 24, 32)), [True, True, False, False] * 2),  # the second by exactly half
        (white_box((64, 32), (0, 0, 23, 32)), [True, False, False, False] * 2),
        (white_box((64, 32), (32, 16, 64, 32)), [False] * 6 + [True] * 2),
        (white_box((640, 320), (0, 0, 320, 320)), [True, True, False, False] * 2),
        (white_box((640, 320), (0, 0, 320, 320)).convert("1"), [True, True, False, False] * 2),
        (white_box((2, 1), (0, 0, 1, 1)), [True, True, False, False] * 2),
    ],
)
def test_patches_white_by_half_are_left(mask: PIL.Image.Image, visible: list[bool]):
    assert visible_tokens(mask, 4, 2).tolist() == visible


def test_removed_patches_are_filled_and_the_rest_is_kept():
    # White by a third of a patch only: the patch is removed, and its white pixels with it.
    image, mask = noise((64, 32)), white_box((64, 32), (0, 0, 21, 32))
    filled, pixels = np.array(fill_hidden(image, mask, visible_tokens(mask, 4, 2).reshape(2, 4))), np.array(image)
    assert (filled[:, :16] == pixels[:, :16]).all()
    mean = np.rint(pixels[:, :16].reshape(-1, 3).mean(axis=0))
    assert (filled[:, 16:] == mean).all()
    assert np.array(noise((64, 32))).tobytes() == np.array(image).tobytes()  # the caller's picture is as before
    assert fill_hidden(image, PIL.Image.new("L", (7, 5), 255), torch.ones(2, 4, dtype=torch.bool)) is image
