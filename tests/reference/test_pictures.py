"""Every way a reference picture may be handed over, and every way it may be wrong."""

from __future__ import annotations

import functools
import http.server
import io
import os
import random
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
    group_references,
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


def test_every_kind_of_input_gives_the_same_picture(tmp_path: Path) -> None:
    pixels = pixels_of()
    image = PIL.Image.fromarray(pixels)
    path = tmp_path / "picture.png"
    image.save(path)
    scaled = pixels.astype(np.float32) / 255
    inputs = [image, path, str(path), path.read_bytes(), bytearray(path.read_bytes()), pixels, scaled]
    inputs += [scaled.astype(np.float64), torch.from_numpy(pixels).permute(2, 0, 1)]
    inputs += [torch.from_numpy(scaled).permute(2, 0, 1).requires_grad_(), PIL.Image.open(path)]
    for given in inputs:
        assert same(load_reference_image(given), pixels), type(given)


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
    dark = PIL.Image.fromarray(np.full((8, 8), 200, dtype=np.uint16))  # nearly black, light grey if taken for 8 bits
    assert np.asarray(load_reference_image(encoded(dark, file_format))).max() <= 1


def test_transparent_parts_lie_on_white() -> None:
    pixels = pixels_of(channels=4)
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
    pixels = pixels_of()
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


def test_the_given_picture_is_not_the_returned_one() -> None:
    image = PIL.Image.fromarray(pixels_of())
    load_reference_image(image).paste((0, 0, 0), (0, 0, 8, 8))
    assert same(image, pixels_of())
    for size in ((1, 1), (1990, 10), (10, 2000), (4000, 3000)):
        assert load_reference_image(PIL.Image.new("RGB", size)).size == size
    pixels = pixels_of()
    load_reference_image(pixels).paste((0, 0, 0), (0, 0, 8, 8))
    assert np.array_equal(pixels, pixels_of())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    (tmp_path / "picture.png").write_bytes(encoded(PIL.Image.fromarray(pixels_of())))
    (tmp_path / "page.png").write_text("<!DOCTYPE html><html>Sign in to see the picture</html>")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_a_url_is_fetched_or_says_why_in_one_sentence(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert same(load_reference_image(f"{server}/picture.png?size=large"), pixels_of())
    with pytest.raises(ValueError, match=r"missing.png' could not be downloaded: HTTP 404\.$") as error:
        load_reference_image(f"{server}/missing.png?token=secret")
    assert "secret" not in str(error.value)
    with pytest.raises(ValueError, match="HTML page"):
        load_reference_image(f"{server}/page.png")
    with pytest.raises(ValueError, match="could not be downloaded: no answer, or no connection") as error:
        load_reference_image("http://127.0.0.1:9/picture.png?token=secret")
    assert "secret" not in str(error.value)
    monkeypatch.setattr(pictures, "_MOST_BYTES", 100)
    with pytest.raises(ValueError, match="it is larger than 100 bytes"):
        load_reference_image(f"{server}/picture.png")


class Dribbling(http.server.BaseHTTPRequestHandler):
    """A byte now and then, for ever: of the content, or of the headers already."""

    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"\r\n" if self.path == "/content" else b""))
        try:
            while True:
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.02)
        except OSError:
            return

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.mark.parametrize("part", ["content", "headers"])
def test_a_download_has_a_total_deadline(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_DOWNLOAD_SECONDS", 0.3)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dribbling) as listening:
        listening.daemon_threads = True
        listening.block_on_close = False
        threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
        begin = time.monotonic()
        with pytest.raises(ValueError, match=r"could not be downloaded: it took longer than 0\.3 seconds"):
            load_reference_image(f"http://127.0.0.1:{listening.server_port}/{part}")
        listening.shutdown()
    assert time.monotonic() - begin < 5


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def test_formats_that_start_programs_are_not_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def start(*arguments: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    (tmp_path / "picture.png").write_bytes(EPS)
    for given in (EPS, tmp_path / "picture.png"):
        with pytest.raises(ValueError, match="in none of the formats"):
            load_reference_image(given)
    for other in ("TGA", "PCX", "SGI", "JPEG2000"):
        with pytest.raises(ValueError, match="in none of the formats"):
            load_reference_image(encoded(PIL.Image.new("RGB", (8, 8)), other))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "ICO", "PPM", "AVIF", "MPO"])
def test_formats_that_are_named_are_opened(file_format: str) -> None:
    PIL.Image.init()
    if file_format not in PIL.Image.SAVE:
        pytest.skip("Pillow was built without it")
    image = load_reference_image(encoded(PIL.Image.new("RGB", (16, 16), (200, 30, 40)), file_format))
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 40)).max() <= 6


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for path in (tmp_path / "pipe", Path(os.devnull)):
        for load in (load_reference_image, read_image_bytes):
            with pytest.raises(ValueError, match=f"{path.name}' cannot be read: it is no regular file"):
                load(path)
    for path in ("a\0b", "x" * 5000):
        with pytest.raises(ValueError, match=r"`reference_image` '.* cannot be read"):
            load_reference_image(path)


def swapped_profile() -> bytes:
    """An RGB profile that is not sRGB: its green primary is sRGB's red, and the other way round."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for at in range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12):
        name = bytes(profile[at : at + 4])
        profile[at : at + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(name, name)
    return bytes(profile)


def test_colour_profiles_are_converted_to_srgb() -> None:
    rng = pixels_of()
    red = PIL.Image.fromarray(rng)
    swapped, plain = swapped_profile(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert same(load_reference_image(encoded(red, icc_profile=plain)), rng)
    read = load_reference_image(encoded(red, icc_profile=swapped))
    assert np.abs(np.asarray(read).astype(int) - rng[..., [1, 0, 2]]).max() <= 1
    assert not read.info  # or it would be converted once more
    assert same(load_reference_image(read), np.asarray(read))
    # With transparency, in a palette, and opened beforehand.
    clear = pixels_of(channels=4)
    clear[..., 3] = 255
    clear[0, 0, 3] = 0
    got = np.asarray(load_reference_image(encoded(PIL.Image.fromarray(clear), icc_profile=swapped))).astype(int)
    assert got[0, 0].tolist() == [255, 255, 255]
    assert np.abs(got - clear[..., [1, 0, 2]])[1:].max() <= 1
    palette = encoded(PIL.Image.new("RGB", (4, 4), (200, 30, 40)).quantize(4), icc_profile=swapped)
    for given in (palette, PIL.Image.open(io.BytesIO(palette))):
        assert load_reference_image(given).getpixel((0, 0))[1] > 190


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
    for other, given in ((PIL.Image.new("RGB", (4, 4), "red"), profile), (pixels_cmyk(), swapped_profile())):
        with pytest.warns(UserWarning, match="its colour profile is ignored: it is made for"):
            image = load_reference_image(encoded(other, "TIFF", icc_profile=given))
        assert image.getpixel((0, 0)) == (255, 0, 0)


def pixels_cmyk() -> PIL.Image.Image:
    return PIL.Image.new("CMYK", (4, 4), (0, 255, 255, 0))


@pytest.mark.parametrize("profile", [b"", b"nonsense", b"\0" * 200])
def test_a_broken_profile_is_ignored_with_a_warning(profile: bytes) -> None:
    data = encoded(PIL.Image.fromarray(pixels_of()), icc_profile=profile)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert same(load_reference_image(data), pixels_of())
    assert len(caught) == bool(profile)
    assert all("its colour profile is ignored" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "ICO", "PPM"])
def test_broken_files_are_value_errors_with_the_name(file_format: str, tmp_path: Path) -> None:
    whole = encoded(PIL.Image.fromarray(pixels_of()), file_format)
    numbers, path, refusals = random.Random(0), tmp_path / f"broken.{file_format}", []
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(numbers.randrange(1, 6)):
            broken[numbers.randrange(len(broken) if numbers.random() < 0.5 else 64) % len(broken)] = numbers.randrange(
                256
            )
        path.write_bytes(bytes(broken[: numbers.choice([len(broken), numbers.randrange(1, len(broken))])]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert load_reference_image(path).mode == "RGB"
            except ValueError as error:
                refusals.append(str(error))
    assert all("broken." in refusal for refusal in refusals)


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
    with pytest.raises(ValueError, match=reason):
        load_reference_image(data)


def test_pictures_opened_before_missing_files_and_directories(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(encoded(PIL.Image.fromarray(pixels_of(96, 96)))[:4000])
    with PIL.Image.open(path) as opened, pytest.raises(ValueError, match=r"broken\.png.*truncated"):
        load_reference_image(opened)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        load_reference_image(str(tmp_path / "nowhere.png"))
    with pytest.raises(ValueError, match="directory"):
        load_reference_image(tmp_path)


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
    ("array", "reason"),
    [
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\), expected"),
        (np.zeros((4, 4, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((3, 8, 9), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"a batch as list\(batch\)"),
        (np.zeros(4, np.uint8), "expected"),
        (np.full((4, 4, 3), np.nan), "from nan to nan, expected 0..1"),
        (np.full((4, 4, 3), np.inf), "from inf to inf"),
        (np.full((4, 4, 3), 1.5), "from 1.5 to 1.5, expected 0..1"),
        (np.full((4, 4, 3), -0.5), r"x / 2 \+ 0\.5"),
        (np.zeros((4, 4, 3), np.int64), "type int64: pass uint8"),
        (torch.zeros(9, 8, 3), r"permute\(2, 0, 1\)"),
        (torch.zeros(3, 0, 8), r"shape \(3, 0, 8\), expected"),
        (torch.full((3, 4, 4), 255.0), "from 255 to 255"),
        (torch.full((3, 4, 4), float("nan"), dtype=torch.bfloat16), "from nan"),
    ],
)
def test_arrays_that_are_no_picture(array: np.ndarray | torch.Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_reference_image(array)


@pytest.mark.parametrize("given", [None, 3, {"image": 1}, [np.zeros((2, 2, 3))]])
def test_other_kinds_are_refused(given: object) -> None:
    with pytest.raises(TypeError, match="`neutral_image` must be a PIL image, a path"):
        load_reference_image(given, "neutral_image")


@pytest.mark.parametrize("values", [np.int32(-1), np.int32(70000), np.float32("nan")])
def test_deep_values_out_of_range_are_refused(values: np.generic) -> None:
    with pytest.raises(ValueError, match="expected 0 to"):
        load_reference_image(PIL.Image.fromarray(np.full((4, 4), values)))


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
    with pytest.raises(
        ValueError, match=r"`vl_treatment` must be one of \['none', 'palette'.*or a function, got 'sepia'"
    ):
        treat_picture(picture, "sepia")


@pytest.mark.parametrize(
    ("treatment", "reason"),
    [
        (lambda picture: 1 / 0, "ZeroDivisionError"),
        (lambda picture: None, "its result.*got NoneType"),
        (lambda picture: picture.resize((8, 8)), r"its result has the size \(8, 8\)"),
        (lambda: None, "TypeError"),
    ],
)
def test_a_function_that_is_no_treatment_is_told_so(treatment: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"`vl_treatment` must be a function from a picture.*{reason}"):
        treat_picture(noise((64, 48)), treatment)


def test_one_reference_serves_all_prompts() -> None:
    item = object()
    assert group_references(item, 3) == [[item], [item], [item]]
    assert group_references([item], 3) == [[item], [item], [item]]
    assert group_references([[item, "b"]], 2) == [[item, "b"], [item, "b"]]
    pixels, tensor = pixels_of(), torch.zeros(3, 4, 4)  # which are single items
    groups = group_references([pixels, tensor], 2)
    assert groups[0][0] is pixels
    assert groups[1][0] is tensor


def test_a_list_is_one_per_prompt_and_a_list_inside_it_several() -> None:
    assert group_references(["a", "b"], 2) == [["a"], ["b"]]
    assert group_references([["a", "b"], "c"], 2) == [["a", "b"], ["c"]]
    assert group_references(("a", ("b", "c")), 2) == [["a"], ["b", "c"]]


def test_grouping_copies_the_lists() -> None:
    inner = ["a", "b"]
    given: list[object] = [inner, "c"]
    group_references(given, 2)[0].append("d")
    shared = group_references([inner], 2)
    shared[0].append("d")
    assert (given, inner, shared[1]) == ([inner, "c"], ["a", "b"], ["a", "b"])


@pytest.mark.parametrize(
    ("reference", "batch_size", "reason"),
    [
        ([], 1, "empty list"),
        ([[]], 1, "empty list"),
        (["a", []], 2, "empty list"),
        ([[["a"]]], 1, "nested too deep"),
        (["a", "b"], 3, "2 entries for 3 prompts"),
        (["a", "b"], 1, r"2 entries for 1 prompt: .*=\[\[first, second\]\]"),
        (["a", "b", "c"], 2, "3 entries for 2 prompts"),
    ],
)
def test_nesting_that_is_not_clear_is_refused(reference: object, batch_size: int, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"`reference_embeds`.*{reason}"):
        group_references(reference, batch_size, "reference_embeds")


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


def test_strips_and_bounds_without_room_are_refused():
    for size in ((4000, 10), (10, 4000), (201, 1)):
        with pytest.raises(ValueError, match=f"{size[0]} x {size[1]}: sides over 200:1"):
            grid_size(size, 32, 1024 * 1024)
    with pytest.raises(
        ValueError, match="`max_pixels` 1023 leaves no room for one image token of 32x32: raise it to 1024"
    ):
        grid_size((64, 64), 32, 1023)


def test_patches_white_by_half_are_left():
    mask = white_box((64, 32), (0, 0, 24, 32))  # the second patch of a row is white by exactly half
    assert visible_tokens(mask, 4, 2).tolist() == [True, True, False, False] * 2
    assert visible_tokens(white_box((64, 32), (0, 0, 23, 32)), 4, 2).tolist() == [True, False, False, False] * 2
    assert visible_tokens(white_box((64, 32), (32, 16, 64, 32)), 4, 2).tolist() == [False] * 6 + [True] * 2
    large = white_box((640, 320), (0, 0, 320, 320))
    for mask in (large, white_box((2, 1), (0, 0, 1, 1)), large.convert("1")):
        assert visible_tokens(mask, 4, 2).tolist() == [True, True, False, False] * 2
    with pytest.raises(ValueError, match="hides the whole picture"):
        visible_tokens(PIL.Image.new("L", (8, 8)), 2, 2)
    for wrong in (PIL.Image.new("RGB", (8, 8)), np.zeros((8, 8))):
        with pytest.raises(TypeError, match='A mask must be a PIL image of mode "L"'):
            visible_tokens(wrong, 2, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(64, 32), (61, 35), (200, 90)])
def test_hidden_pixels_are_gone_before_the_resize(size: tuple[int, int]):
    mask = white_box((100, 100), (0, 20, 57, 100))
    hidden = np.array(mask.resize(size, PIL.Image.Resampling.BOX)) < 128
    first, second = np.array(noise(size, 0)), np.array(noise(size, 1))
    second[~hidden] = first[~hidden]
    assert (first != second).any()
    filled = [
        fill_hidden(PIL.Image.fromarray(pixels), mask, visible_tokens(mask, 4, 2).reshape(2, 4))
        for pixels in (first, second)
    ]
    resized = [image.resize((64, 32), PIL.Image.Resampling.BICUBIC) for image in filled]
    assert resized[0].tobytes() == resized[1].tobytes()


def test_removed_patches_are_filled_and_the_rest_is_kept():
    # White by a third of a patch only: the patch is removed, and its white pixels with it.
    image, mask = noise((64, 32)), white_box((64, 32), (0, 0, 21, 32))
    filled, pixels = np.array(fill_hidden(image, mask, visible_tokens(mask, 4, 2).reshape(2, 4))), np.array(image)
    assert (filled[:, :16] == pixels[:, :16]).all()
    mean = np.rint(pixels[:, :16].reshape(-1, 3).mean(axis=0))
    assert (filled[:, 16:] == mean).all()
    assert np.array(noise((64, 32))).tobytes() == np.array(image).tobytes()  # the caller's picture is as before
    assert fill_hidden(image, PIL.Image.new("L", (7, 5), 255), torch.ones(2, 4, dtype=torch.bool)) is image
