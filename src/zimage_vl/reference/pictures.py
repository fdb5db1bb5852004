"""Reference pictures as a user may hand them over, as PIL RGB and on the encoder's grid of patches.

A path, a URL, the bytes of a file, a PIL image in any mode, an array or a tensor all end as the picture a person would
see: turned as its EXIF says, in sRGB, transparent parts on white, 16 bits rescaled and never clipped. What is no
picture is refused with its name and the reason.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Union, cast

import numpy as np
import PIL.Image
import PIL.ImageFilter
import PIL.ImageOps
import requests
import torch
from PIL import ImageCms
from torch import Tensor

from ..blend.regions import check_choice, has_values


#: What `load_reference_image` reads.
ReferenceImage = Union[PIL.Image.Image, "np.ndarray[Any, Any]", Tensor, str, "os.PathLike[str]", bytes]

#: What `treat_picture` does; the registry of knobs names them too.
TREATMENTS = ("none", "palette", "blur", "greyscale")
Treatment = str | Callable[[PIL.Image.Image], ReferenceImage]
_PALETTE_PATCHES = 4  # along the longer side

MAX_ASPECT_RATIO = 200  # the image processor of Qwen3-VL takes no longer strips
# What is opened: of Pillow's other formats some start programs (EPS), and none is a photograph's.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "ICO", "PPM", "AVIF")
_MOST_BYTES = 256 * 2**20
_DOWNLOAD_SECONDS = 120.0
_PACKET_SECONDS = 30.0


def load_reference_image(image: ReferenceImage, name: str = "reference_image") -> PIL.Image.Image:
    """Get one picture, whatever it comes as, as a person would see it.

    Args:
        image: A PIL image in any mode; a path (`str` or `Path`) or the bytes of a file in PNG, JPEG, MPO, WebP, BMP,
            GIF, TIFF, ICO, PPM or, where Pillow has it, AVIF; an http or https URL of one (fetched with `requests`,
            in two minutes at most); a numpy array `(height, width, 1, 3 or 4)` or `(height, width)`; a torch tensor
            `(1, 3 or 4, height, width)` or `(height, width)`. Arrays and tensors hold uint8 in 0..255, floats in 0..1
            or bools. PIL images of mode "F" are read as 0..1 where no value is above 1 and as 0..255, Pillow's own
            convention, otherwise; mode "I" as 16 bits, unless it was made in memory and no value is above 255. A
            `UserWarning` says where all would be nearly black.
        name: What errors call the picture.

    Returns:
        A new RGB image: turned as its EXIF orientation says, its colour profile converted to sRGB, transparent parts
        composited on white, 16 bits rescaled to 8. Of an animation the first frame (of an opened one, the frame it
        stands at), with a `UserWarning`.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: The picture cannot be read, has sides over 200:1 or more pixels than Pillow's limit (refused before
            it is decoded), or an array's shape or values are none of the above; with the picture's name.
        TypeError: `image` is none of these kinds.

    Example:
        >>> load_reference_image(np.zeros((4, 6, 3), dtype=np.uint8)).size
        (6, 4)
        >>> load_reference_image(PIL.Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    if isinstance(image, PIL.Image.Image):
        return _finish_image(image, f"`{name}` ({getattr(image, 'filename', '') or f'the {image.mode} image'!r})")
    if isinstance(image, (np.ndarray, Tensor)):
        return _finish_image(_image_from_array(image, name), f"`{name}`")
    if isinstance(image, (str, os.PathLike)):
        label = _source_label(image, name)
        return _finish_image(_open_image(read_image_bytes(image, name), label), label)
    if not isinstance(image, (bytes, bytearray)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"`{name}` must be a PIL image, a path, an http(s) URL, the bytes of an image file, a numpy array "
            f"(height, width, channels) or a torch tensor (channels, height, width), got {type(image).__name__}."
        )
    label = f"`{name}` ({len(image)} bytes)"
    return _finish_image(_open_image(bytes(image), label), label)


def read_image_bytes(source: str | os.PathLike[str], name: str = "reference_image") -> bytes:
    """Get the bytes behind a path or an http(s) URL, for whoever also wants their hash; perhaps no picture's.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: A directory, a pipe, or what cannot be read or downloaded; one sentence with `name` says why.
    """
    label = _source_label(source, name)
    if _is_url(source):
        return _download(os.fspath(source), label)
    try:
        found = os.stat(source)
        if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device could wait for ever
            raise ValueError("it is no regular file (perhaps a directory): pass an image file")
        if found.st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES} bytes")
        return Path(source).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{label} does not exist.") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{label} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def load_reference_mask(mask: ReferenceImage, size: tuple[int, int]) -> PIL.Image.Image:
    """Get a greyscale mask, mode "L", that says which part of a picture counts: white counts, black does not.

    It comes as `load_reference_image` takes it, and is resized to its picture's `(width, height)`. A coloured, partly
    transparent or unreadable one, or one of other proportions, is a ValueError.

    Example:
        >>> load_reference_mask(np.eye(2, dtype=bool), (4, 4)).size
        (4, 4)
    """
    if isinstance(mask, (str, os.PathLike)):
        mask = _open_image(read_image_bytes(mask, "reference_mask"), _source_label(mask, "reference_mask"))
    image = load_reference_image(mask, "reference_mask")
    if isinstance(mask, PIL.Image.Image) and mask.has_transparency_data:
        layers = mask.convert("LA" if mask.mode == "La" else "RGBA")  # the one way from premultiplied grey
        if layers.getchannel("A").getextrema() != (255, 255):
            raise ValueError("`reference_mask` is transparent in places: make it greyscale, white where it counts.")
    channels = np.asarray(image).astype(np.int16)  # (height, width, 3)
    if int(np.ptp(channels, axis=-1).max()) > 16:  # some slack for the colour noise of JPEG
        raise ValueError("`reference_mask` must be greyscale (white counts, black does not), got a coloured image.")
    (width, height), (wide, high) = image.size, size
    # The slack is what a pixel more or less costs on each side when one of the two was scaled down.
    if abs(width * high - height * wide) > max(width + height, wide + high):
        raise ValueError(
            f"`reference_mask` must have its picture's proportions, {wide} x {high}, got {width} x {height}."
        )
    grey = image.convert("L")
    return grey if grey.size == size else grey.resize(size, PIL.Image.Resampling.BILINEAR)


def treat_picture(picture: PIL.Image.Image, treatment: Treatment) -> PIL.Image.Image:
    """Get a picture with less in it, so that less can be taken from it.

    Args:
        picture: An RGB image.
        treatment: "palette" averages it to a few patches (colours without shapes), "blur" blurs it by a fifth of its
            shorter side, "greyscale" takes the colours (shapes without colours), "none" leaves it; or a function from
            picture to picture of the same size, whose result is read as `load_reference_image` reads any.

    Raises:
        ValueError: Another word; a function that fails, or gives something else than a picture of that size.

    Example:
        >>> treat_picture(PIL.Image.new("RGB", (64, 48), (255, 0, 0)), "greyscale").getpixel((0, 0))
        (76, 76, 76)
    """
    if callable(treatment):
        try:
            treated = load_reference_image(treatment(picture.copy()), "vl_treatment(picture)")
            if treated.size != picture.size:
                raise ValueError(f"its result has the size {treated.size}, the picture {picture.size}")
        except Exception as error:
            raise ValueError(
                f"`vl_treatment` must be a function from a picture to one of the same size; it failed: {error!r:.300}."
            ) from error
        return treated
    check_choice("vl_treatment", treatment, TREATMENTS)
    if treatment == "palette":
        scale = _PALETTE_PATCHES / max(picture.size)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        few = picture.resize((width, height), PIL.Image.Resampling.BOX)
        return few.resize(picture.size, PIL.Image.Resampling.BICUBIC)
    if treatment == "blur":
        return picture.filter(PIL.ImageFilter.GaussianBlur(min(picture.size) / 5))
    if treatment == "greyscale":
        return picture.convert("L").convert("RGB")
    return picture


def group_references(reference: object, batch_size: int, name: str = "reference_image") -> list[list[Any]]:
    """Get the references of each prompt, `batch_size` new lists of at least one, by the nesting that the caller gave.

    One reference alone, or a list of one entry, serves all prompts; a list or an array of pictures is one per prompt;
    a list inside it is several for one prompt. An empty list, one nested too deep, or numbers that do not match, are a
    ValueError.

    Example:
        >>> group_references("a.png", 2)
        [['a.png'], ['a.png']]
        >>> group_references(["a.png", ["b.png", "c.png"]], 2)
        [['a.png'], ['b.png', 'c.png']]
    """
    entries = [_as_list(entry) for entry in _as_list(reference)]
    if not entries or not all(entries):
        raise ValueError(f"`{name}` has an empty list in it: every prompt needs at least one, or leave it out.")
    if any(isinstance(item, (list, tuple)) for entry in entries for item in entry):
        raise ValueError(
            f"`{name}` is nested too deep: a list is one per prompt, a list inside it several for one prompt."
        )
    if len(entries) == 1:
        return [list(entries[0]) for _ in range(batch_size)]
    if len(entries) != batch_size:
        raise ValueError(
            f"`{name}` has {len(entries)} entries for {batch_size} prompt{'s' * (batch_size > 1)}: pass one for all, "
            f"or one per prompt; several for one prompt go into a list of their own, {name}=[[first, second]]."
        )
    return entries


def _as_list(value: object) -> list[Any]:
    several = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 4  # an array or a tensor of pictures
    return list(cast("Sequence[Any]", value)) if several else [value]


# ---- The grid of patches ----


def grid_size(size: tuple[int, int], multiple: int, max_pixels: int) -> tuple[int, int]:
    """Get width and height on the grid: the aspect kept, sides the nearest multiples (at least one).

    Args:
        size: Width and height of the picture, in pixels.
        multiple: Pixels along a side of one image token (patch size x merge size; 32 in Qwen3-VL).
        max_pixels: Bound on width x height, at least multiple x multiple. Where it bites, sides are rounded down.

    Raises:
        ValueError: A side is more than 200 times the other, or the bound has no room for one token.

    Example:
        >>> grid_size((640, 360), 32, 1024 * 1024)
        (640, 352)
        >>> grid_size((1990, 10), 32, 1024 * 1024)
        (1984, 32)
    """
    width, height = size
    _check_image_size(size, "A reference picture")
    if max_pixels < multiple * multiple:
        raise ValueError(
            f"`max_pixels` {max_pixels} leaves no room for one image token of {multiple}x{multiple}: raise it to "
            f"{multiple * multiple} at least."
        )
    columns, rows = (max(1, round(side / multiple)) for side in size)
    most = max_pixels // (multiple * multiple)
    if columns * rows > most:
        shrink = math.sqrt(max_pixels / (width * height)) / multiple
        columns, rows = max(1, math.floor(width * shrink)), max(1, math.floor(height * shrink))
        # A thin picture keeps its one row or column and gives up length instead.
        columns = min(columns, max(1, most // rows))
        rows = min(rows, most // columns)
    return columns * multiple, rows * multiple


def visible_tokens(mask: PIL.Image.Image, columns: int, rows: int) -> Tensor:
    """Get the image tokens that a mask leaves, `(rows * columns,)` bool: those whose patch is white by half or more.

    The mask is a greyscale PIL image (mode "L" or "1"; else a TypeError) of any size, laid over the whole picture. One
    that leaves no token is a ValueError.

    Example:
        >>> mask = PIL.Image.new("L", (64, 32))
        >>> mask.paste(255, (0, 0, 32, 32))
        >>> visible_tokens(mask, 4, 2).tolist()
        [True, True, False, False, True, True, False, False]
    """
    if getattr(mask, "mode", None) not in ("L", "1"):
        raise TypeError(f'A mask must be a PIL image of mode "L" or "1", got {mask!r:.80}. Use mask.convert("L").')
    visible = torch.from_numpy(_is_white(mask, (columns, rows))).flatten()
    if not bool(visible.any()):
        patches = f"{columns} x {rows} patches"
        raise ValueError(f"The mask hides the whole picture: none of {patches} is white by half. Is it inverted?")
    return visible


def fill_hidden(image: PIL.Image.Image, mask: PIL.Image.Image, visible: Tensor) -> PIL.Image.Image:
    """Get the picture with every pixel that a mask hides in the mean colour of the others.

    Resampling mixes neighbours; a hidden pixel that is gone before it cannot reach a patch that counts. Hidden are
    the pixels where the mask is nearer to black, and those that lie within removed patches as a whole.

    `visible` is `(rows, columns)` bool, the tokens that `visible_tokens` leaves. Where nothing is hidden, `image`
    itself comes back.
    """
    hidden = ~_is_white(mask, image.size)  # (height, width)
    width, height = image.size
    rows, columns = visible.shape
    for row, column in np.argwhere(~visible.numpy()):
        # Pixels that lie across the edge to another patch stay: they belong to that one too.
        top, bottom = math.ceil(row * height / rows), math.floor((row + 1) * height / rows)
        left, right = math.ceil(column * width / columns), math.floor((column + 1) * width / columns)
        hidden[top:bottom, left:right] = True
    if not hidden.any():
        return image
    pixels = np.array(image)
    pixels[hidden] = np.rint(pixels[~hidden].mean(axis=0))
    return PIL.Image.fromarray(pixels)


def _is_white(mask: PIL.Image.Image, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """(rows, columns): the mask is white by half over that cell of a grid of `size`."""
    # In floats: eight bits would round 127.4 up to 127.5's side.
    return np.array(mask.convert("L").convert("F").resize(size, PIL.Image.Resampling.BOX)) >= 127.5


# ---- Reading, decoding, converting ----


def _is_url(source: str | os.PathLike[str]) -> bool:
    return os.fspath(source).lower().startswith(("http://", "https://"))


def _source_label(source: str | os.PathLike[str], name: str) -> str:
    text = os.fspath(source)
    return f"`{name}` {hide_secrets(text)!r}"


def hide_secrets(source: str) -> str:
    """Get an address without user, password and what follows the question mark; a path as it is."""
    return re.sub(r"^(https?://)[^/?#]*@", r"\1", source.partition("?")[0]) if _is_url(source) else source


def _download(url: str, label: str) -> bytes:
    """The bytes behind a URL, in a thread of its own: no timeout of a socket ends what a server dribbles for ever."""
    outcome: list[bytes | Exception] = []
    thread = threading.Thread(target=_fetch, args=(url, outcome), daemon=True)
    thread.start()
    thread.join(_DOWNLOAD_SECONDS)
    found = outcome[0] if outcome else TimeoutError(f"it took longer than {_DOWNLOAD_SECONDS:g} seconds")
    if isinstance(found, bytes):
        return found
    reason = f"no answer, or no connection ({type(found).__name__})"  # the library's own words hold the whole URL
    if type(found) in (ValueError, TimeoutError):
        reason = str(found)
    raise ValueError(f"{label} could not be downloaded: {reason}.") from found


def _fetch(url: str, outcome: list[bytes | Exception]) -> None:
    try:
        end, content = time.monotonic() + _DOWNLOAD_SECONDS, bytearray()
        with requests.get(url, stream=True, timeout=_PACKET_SECONDS) as response:
            if not response.ok:
                raise ValueError(f"HTTP {response.status_code}")
            for chunk in response.iter_content(2**14):
                content += chunk
                if len(content) > _MOST_BYTES:
                    raise ValueError(f"it is larger than {_MOST_BYTES} bytes")
                if time.monotonic() > end:
                    return  # nobody waits any more
        outcome.append(bytes(content))
    except Exception as error:
        outcome.append(error)


def _open_image(data: bytes, label: str) -> PIL.Image.Image:
    PIL.Image.init()
    formats = [name for name in _FORMATS if name in PIL.Image.OPEN]
    try:
        return PIL.Image.open(io.BytesIO(data), formats=formats)
    except PIL.UnidentifiedImageError as error:
        is_page = data.lstrip()[:64].lower().startswith((b"<!doctype html", b"<html"))
        kind = "an HTML page, perhaps with the image on it" if is_page else f"in none of the formats {formats}"
        raise ValueError(f"{label} is {kind}: pass the image itself, such as a PNG or JPEG file.") from error
    except Exception as error:  # a decompression bomb, or a broken header, which Pillow reports as any of a dozen
        raise ValueError(f"{label} cannot be read: {error}.") from error


def _check_image_size(size: tuple[int, int], label: str) -> None:
    width, height = size
    limit = 2 * (PIL.Image.MAX_IMAGE_PIXELS or math.inf)  # where Pillow itself refuses to open a file
    if not 1 <= width * height <= limit:
        raise ValueError(f"{label} has {width * height} pixels, expected 1 to {limit}: scale it first.")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise ValueError(
            f"{label} is {width} x {height}: sides over {MAX_ASPECT_RATIO}:1 are not read. Crop it first."
        )


def _finish_image(image: PIL.Image.Image, label: str) -> PIL.Image.Image:
    """A new RGB image: its size is checked before anything is decoded, then it is turned, converted and composited."""
    _check_image_size(image.size, label)
    file_format = image.format
    try:
        # The second picture of an MPO file is a camera's preview or depth map, not a frame.
        frame = image.tell() + 1 if getattr(image, "is_animated", False) and file_format != "MPO" else None
        image = PIL.ImageOps.exif_transpose(image)
    except Exception as error:  # as for headers
        raise ValueError(f"{label} cannot be decoded: {error}.") from error
    if frame is not None:
        warnings.warn(f"{label} is animated: frame {frame} alone is used.", UserWarning, stacklevel=4)
    profile = image.info.get("icc_profile")
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _grey_from_deep(image, file_format, label)
    if image.mode == "La":
        image = image.convert("LA")  # Pillow knows no direct way from premultiplied grey to RGB
    space = {"1": "GRAY", "L": "GRAY", "LA": "GRAY", "CMYK": "CMYK"}.get(image.mode, "RGB")
    alpha = None
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            alpha = image.getchannel("A")
        colours = _to_srgb(image, profile, space, label) if profile else image.convert("RGB")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{label} cannot be converted from the mode {image.mode!r} to RGB: {error}.") from error
    finished = PIL.Image.new("RGB", image.size, "white")
    finished.paste(colours, mask=alpha)
    return finished


def _to_srgb(image: PIL.Image.Image, profile: bytes, space: str, label: str) -> PIL.Image.Image:
    try:
        given: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        wanted = given.profile.xcolor_space.strip()
        if wanted == space or (wanted, space) == ("RGB", "GRAY"):
            plain, srgb = image.convert("L" if wanted == "GRAY" else wanted), ImageCms.createProfile("sRGB")
            return cast("PIL.Image.Image", ImageCms.profileToProfile(plain, given, srgb, outputMode="RGB"))
        reason = f"it is made for {wanted}, the picture is {space}"
    except (ImageCms.PyCMSError, OSError, ImportError) as error:
        reason = str(error)
    warnings.warn(f"{label}: its colour profile is ignored: {reason}.", UserWarning, stacklevel=5)
    return image.convert("RGB")


def _grey_from_deep(image: PIL.Image.Image, file_format: str | None, label: str) -> PIL.Image.Image:
    """Greyscale of more than 8 bits, rescaled; Pillow's own conversion would clip it to white."""
    values = np.asarray(image).astype(np.float64)
    least, most = values.min(), values.max()
    if image.mode == "F":
        white = 1.0 if np.rint(most * 255.0) <= 255 else 255.0  # 1.0001 is white too
    else:
        # Older Pillow opens 16-bit PNG files in mode "I"; made in memory, "I" may hold 8 bits.
        white = 255.0 if image.mode == "I" and file_format is None and most <= 255 else 65535.0
    if not (least >= 0 and np.rint(most * 255.0 / white) <= 255):  # nor NaN
        raise ValueError(f"{label} has values {least:g} to {most:g}, expected 0 to {white:g}: rescale it first.")
    if white > 1 and most * 16 < white:
        warnings.warn(f"{label} has values up to {most:g}: read as 0..{white:g}, they are nearly black.", stacklevel=5)
    grey = PIL.Image.fromarray(np.rint(values * (255.0 / white)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # the 16-bit value that a PNG declares transparent
        grey.putalpha(PIL.Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _image_from_array(array: np.ndarray[Any, Any] | Tensor, name: str) -> PIL.Image.Image:
    """uint8, float in 0..1 or bool, (height, width[, channels]) or, as a tensor, ([channels,] height, width)."""
    is_tensor, shape = isinstance(array, Tensor), tuple(array.shape)
    kind = f"`{name}` is {'a tensor' if is_tensor else 'an array'} of shape {shape}"
    channels = 1 if len(shape) == 2 else shape[0 if is_tensor else -1] if len(shape) == 3 else None
    if channels not in (1, 3, 4) or 0 in shape:
        layout = "(channels, height, width)" if is_tensor else "(height, width, channels)"
        hint = "; pass a batch as list(batch)" * (len(shape) == 4)
        raise ValueError(f"{kind}, expected {layout} with 1, 3 or 4 channels, or (height, width){hint}.")
    height, width = shape[-2:] if is_tensor else shape[:2]
    _check_image_size((width, height), f"`{name}`")  # before it is copied
    if isinstance(array, Tensor):
        if not has_values(array):
            raise ValueError(f"{kind}, {array.dtype}, {array.layout}, on {array.device}: pass a dense one in memory.")
        plain = array.detach().cpu().resolve_neg()
        array = (plain.float() if plain.is_floating_point() else plain).numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    pixels = np.ascontiguousarray(_pixels_8_bit(array, kind))
    return PIL.Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and channels == 1 else pixels)


def _pixels_8_bit(values: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{kind} and type {values.dtype}: pass uint8 in 0..255 or floats in 0..1.")
    scaled = np.rint(values.astype(np.float64) * 255.0)  # range is judged after rounding: 1.0000001 is white
    if not (scaled.min() >= 0 and scaled.max() <= 255):  # nor NaN
        raise ValueError(
            f"{kind} with floats from {values.min():g} to {values.max():g}, expected 0..1: divide 0..255 by 255, "
            "bring -1..1 there by x / 2 + 0.5."
        )
    return scaled.astype(np.uint8)
