"""A picture is read as it was painted, whatever file it comes in; a broken file is refused by its name, or read as
Pillow reads it."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageCms

from tally import CHANGES, change, count, expect, fuzz, is_ours
from zimage_vl.reference.pictures import load_reference_image


ROW = "pictures"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# The same with red and green exchanged.
SWAPPED = SRGB[:400].replace(b"rXYZ", b"@@@@").replace(b"gXYZ", b"rXYZ").replace(b"@@@@", b"gXYZ") + SRGB[400:]
# What holds which modes without loss; "16" and "float" are deep greyscale.
HOLDS = {
    "PNG": ("RGB", "RGBA", "L", "LA", "1", "P", "16"),
    "TIFF": ("RGB", "RGBA", "L", "LA", "1", "CMYK", "16", "float"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("RGB", "L", "1"),
    "PPM": ("RGB", "L", "1", "16"),
    "GIF": ("L", "1", "P"),
    "JPEG": ("L",),  # of one even grey
    "ICO": ("RGBA",),
    "memory": ("RGB", "RGBA", "L", "LA", "1", "CMYK", "16", "float"),
    "array": ("RGB", "RGBA", "L", "1", "float"),
}
KINDS = st.sampled_from([(name, mode) for name, modes in HOLDS.items() for mode in modes])
SIDES = st.integers(1, 9)
# How a camera that was held so writes what it sees, by EXIF orientation.
TURNS = [
    lambda x: x, lambda x: x[:, ::-1], lambda x: np.rot90(x, 2), lambda x: x[::-1], lambda x: x.swapaxes(0, 1),
    lambda x: np.rot90(x), lambda x: np.rot90(x.swapaxes(0, 1), 2), lambda x: np.rot90(x, -1),
]  # fmt: skip
PALETTE = np.random.default_rng(7).integers(0, 256, (8, 3), dtype=np.uint8)
Pixels = np.ndarray[Any, Any]


def paint(mode: str, size: tuple[int, int], seed: int) -> tuple[Pixels, Pixels]:
    """Random pixels of a mode, and what a person sees of them on white paper: (height, width, 3)."""
    numbers = np.random.default_rng(seed)
    x = numbers.integers(0, 256, (*size, 4), dtype=np.uint8)
    deep = numbers.integers(0, 65536, size, dtype=np.uint16)
    white, index = x[..., 0] > 127, x[..., 0] % 8
    pixels = {
        "RGB": x[..., :3], "RGBA": x, "L": x[..., 0], "LA": x[..., [0, 3]], "1": white, "P": index, "16": deep,
        "CMYK": x * np.uint8([1, 1, 1, 0]), "float": (deep / np.float32(65535)).astype(np.float32),
    }[mode]  # fmt: skip
    grey = {"1": white * 255, "16": deep / 257, "float": deep / 257}.get(mode, x[..., 0])
    greys = np.repeat(grey[..., None], 3, axis=-1)
    coloured = {"RGB": x[..., :3], "RGBA": x[..., :3], "P": PALETTE[index], "CMYK": 255 - x[..., :3]}
    share = x[..., 3:] / 255 if mode in ("RGBA", "LA") else 1.0
    return pixels, np.rint(coloured.get(mode, greys) * share + 255 * (1 - share))


def make(kind: tuple[str, str], size: tuple[int, int], seed: int, profile: str, turn: int, more: bool) -> Any:
    """A picture as it may come, as far as its kind can hold what is asked for, and what is seen of it."""
    (name, mode), options = kind, dict[str, Any]()
    pixels, seen = paint(mode, size, seed)
    if name == "JPEG":
        pixels, seen = np.full_like(pixels, pixels[0, 0]), np.full_like(seen, seen[0, 0])
    if name in ("PNG", "TIFF", "WEBP", "JPEG") and turn:
        pixels, options["exif"] = TURNS[turn](pixels), PIL.Image.Exif()
        options["exif"][0x0112] = turn + 1
    if name == "array":
        return np.ascontiguousarray(pixels), seen
    if name in ("PNG", "TIFF", "WEBP") and mode in ("RGB", "RGBA", "P") and profile != "none":
        options["icc_profile"] = SWAPPED if profile == "swapped" else SRGB
        seen = seen[..., [1, 0, 2]] if profile == "swapped" else seen
    image = PIL.Image.fromarray(np.ascontiguousarray(pixels), mode if mode in ("P", "CMYK") else None)
    if mode == "P":
        image.putpalette(PALETTE.tobytes())
    if name == "memory":
        return image, seen
    if name in ("PNG", "TIFF", "WEBP") and mode in ("RGB", "RGBA") and more:
        options |= {"save_all": True, "append_images": [PIL.Image.new(mode, image.size, "lime")]}
    options |= {"WEBP": {"lossless": True, "exact": True}, "ICO": {"sizes": [image.size]}}.get(name, {})
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue(), seen


PROFILES = st.sampled_from(["none", "sRGB", "swapped"])


@fuzz(150)
@given(st.tuples(KINDS, st.tuples(SIDES, SIDES), SIDES, PROFILES, st.integers(0, 7), st.booleans()))
def test_a_picture_is_seen_as_it_was_painted(spec: tuple[Any, ...]) -> None:
    count(ROW)
    given, seen = make(*spec)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*is animated")
        read = np.asarray(load_reference_image(given)).astype(float)
    expect(ROW, read.shape == seen.shape, f"{read.shape} for {seen.shape}: {spec}")
    expect(ROW, np.abs(read - seen).max() <= 1, f"{np.abs(read - seen).max()} off: {spec}")


@fuzz(100)
@given(KINDS.filter(lambda kind: kind[0] not in ("memory", "array")), st.tuples(SIDES, SIDES), SIDES, CHANGES)
def test_a_broken_file_is_refused_by_name_or_read_as_pillow_reads_it(
    tmp_path_factory: pytest.TempPathFactory, kind: tuple[str, str], size: tuple[int, int], seed: int, changes: Any
) -> None:
    count(ROW)
    path = tmp_path_factory.getbasetemp() / "broken picture"
    path.write_bytes(change(make(kind, size, seed, "none", 0, False)[0], changes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read = load_reference_image(path)
        except Exception as error:
            own = type(error) is ValueError and is_ours(error) and "broken picture" in str(error)
            expect(ROW, own, f"{error!r}: {kind} {size} {seed} {changes}")
            return
        with PIL.Image.open(path) as image:
            trusted = np.asarray(image.convert("RGB"))
            plain = image.mode in ("RGB", "L", "1") and not image.has_transparency_data
            plain = plain and image.getexif().get(0x0112, 1) == 1 and "icc_profile" not in image.info
    expect(ROW, not plain or np.array_equal(np.asarray(read), trusted), f"another: {kind} {size} {seed} {changes}")


def test_formats_that_are_not_named_are_refused(tmp_path: Path) -> None:
    for name in sorted(set(PIL.Image.SAVE) - {*HOLDS, "MPO", "AVIF"}):
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                PIL.Image.new("RGB", (8, 8), "red").save(buffer, name)
            except Exception:  # Pillow was built without it, or it holds no such picture
                continue
        count(ROW)
        (tmp_path / "another.png").write_bytes(buffer.getvalue())
        with pytest.raises(ValueError, match=r"another\.png' is in none of the formats"):
            load_reference_image(tmp_path / "another.png")
