"""Reference pictures as a user may hand them over, as PIL RGB and on the encoder's grid of patches.

A path, a URL, the bytes of a file, a PIL image in any mode, an array or a tensor all end as the picture a person would
see: turned as its EXIF says, in sRGB, transparent parts on white, 16 bits rescaled and never clipped. What is no
picture is refused with its name and the reason.
"""

from __future__ import annotations

import io
import math
import os
import stat
import threading
import time
import warnings
from collections.abc import Callable
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


#: What `load_reference_image` reads.
ReferenceImage = Union[PIL.Image.Image, "np.ndarray[Any, Any]", Tensor, str, "os.PathLike[str]", bytes]

#: What `treat_picture` does; the registry of knobs names them too.
TREATMENTS = ("none", "palette", "blur", "greyscale")
Treatment = str | Callable[[PIL.Image.Image], ReferenceImage]
_PALETTE_PATCHES = 4  # along the longer side

MAX_ASPECT_RATIO = 200  # the image processor of Qwen3-VL takes no longer strips
# What is opened: of Pillow's other formats some start programs (EPS), and none is a photograph's.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "ICO", "PPM", "AVIF")
_MAX_DOWNLOAD_BYTES = 256 * 2**20
_DOWNLOAD_SECONDS = 120.0
_PACKET_SECONDS = 30.0
_HALF_WHITE = 127.5  # of 255: below it a pixel or a patch of a mask is hidden


def load_reference_image(image: ReferenceImage, name: str = "reference_image") -> PIL.Image.Image:
    """Get one picture, whatever it comes as, as a person would see it.

    Args:
        image: A PIL image in any mode; a path (`str` or `Path`) or the bytes of a file in PNG, JPEG, MPO, WebP, BMP,
            GIF, TIFF, ICO, PPM or, where Pillow has it, AVIF; an http or https URL of one (fetched with `requests`,
            in two minutes at most); a numpy array `(height, width, 1, 3 or 4)` or `(height, width)`; a torch tensor
            `(1, 3 or 4, height, width)` or `(height, width)`. Arrays and tensors hold uint8 in 0..255, floats in 0..1
            or bools. PIL images of mode "F" are read as 0..1 where no value is above 1 and as 0..255, Pillow's own
            convention, otherwise; mode "I" as 16 bits, unless it was made in memory and no value is above 255.
        name: What errors call the picture.

    Returns:
        A new RGB image: turned as its EXIF orientation says, its colour profile converted to sRGB, transparent parts
        composited on white, 16 bits rescaled to 8. Of an animation the first frame (of an opened one, the frame it
        stands at), with a `UserWarning`.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: The picture cannot be read, holds more pixels than Pillow's limit (refused before it is decoded),
            has sides over 200:1, no pixels at all, or an array's shape or values are none of the above. The message
            has the picture's name and the reason.
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
        return _image_from_bytes(read_image_bytes(image, name), _source_label(image, name))
    if not isinstance(image, (bytes, bytearray)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"`{name}` must be a PIL image, a path, an http(s) URL, the bytes of an image file, a numpy array "
            f"(height, width, channels) or a torch tensor (channels, height, width), got {type(image).__name__}."
        )
    return _image_from_bytes(bytes(image), f"`{name}` ({len(image)} bytes)")


def read_image_bytes(source: str | os.PathLike[str], name: str = "reference_image") -> bytes:
    """Get the bytes behind a path or an http(s) URL, for whoever also wants their hash; perhaps no picture's.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: A directory, a pipe, or what cannot be read or downloaded; one sentence with `name` says why.
    """
    label = _source_label(source, name)
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        return _download(source, label)
    try:
        found = os.stat(source)
        mode = found.st_mode
        if found.st_size > _MAX_DOWNLOAD_BYTES:
            raise ValueError(f"it is larger than {_MAX_DOWNLOAD_BYTES} bytes")
        if stat.S_ISREG(mode):  # reading a pipe or a device could wait for ever
            return Path(source).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{label} does not exist.") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{label} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    raise ValueError(f"{label} is {'a directory' if stat.S_ISDIR(mode) else 'no regular file'}: pass an image file.")


def load_reference_mask(mask: ReferenceImage, size: tuple[int, int]) -> PIL.Image.Image:
    """Get a greyscale mask that says which part of a picture counts: white counts, black does not.

    Args:
        mask: As `load_reference_image` takes it; its channels must agree (greyscale) and nothing may be transparent.
        size: `(width, height)` of the picture it belongs to. A mask of another size but the same proportions is
            resized.

    Returns:
        The mask in mode "L" at `size`.

    Raises:
        ValueError: The mask is coloured, partly transparent, black all over, of other proportions than the picture, or
            unreadable (see `load_reference_image`).

    Example:
        >>> load_reference_mask(np.eye(2, dtype=bool), (4, 4)).size
        (4, 4)
    """
    if isinstance(mask, PIL.Image.Image) and mask.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise ValueError(
            "`reference_mask` is transparent in places, and it is unclear whether they count: make it greyscale."
        )
    image = load_reference_image(mask, "reference_mask")
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
    if grey.getextrema()[1] == 0:
        raise ValueError(
            "`reference_mask` is black all over, so nothing of the picture would count: paint white what counts."
        )
    return grey if grey.size == size else grey.resize(size, PIL.Image.Resampling.BILINEAR)


def treat_picture(picture: PIL.Image.Image, treatment: Treatment) -> PIL.Image.Image:
    """Get a picture with less in it, so that less can be taken from it.

    Args:
        picture: An RGB image.
        treatment: "palette" averages it to a few patches (colours without shapes), "blur" blurs it by a fifth of its
            shorter side, "greyscale" takes the colours (shapes without colours), "none" leaves it; or a function from
            picture to picture, whose result is read as `load_reference_image` reads any.

    Raises:
        TypeError: Neither one of these words nor a function.
        ValueError: Another word; a function that gives no picture.

    Example:
        >>> treat_picture(PIL.Image.new("RGB", (64, 48), (255, 0, 0)), "greyscale").getpixel((0, 0))
        (76, 76, 76)
    """
    if callable(treatment):
        return load_reference_image(treatment(picture.copy()), "vl_treatment's picture")
    if treatment == "palette":
        width, height = picture.size
        scale = _PALETTE_PATCHES / max(width, height)
        few = (max(1, round(width * scale)), max(1, round(height * scale)))
        return picture.resize(few, PIL.Image.Resampling.BOX).resize(picture.size, PIL.Image.Resampling.BICUBIC)
    if treatment == "blur":
        return picture.filter(PIL.ImageFilter.GaussianBlur(min(picture.size) / 5))
    if treatment == "greyscale":
        return picture.convert("L").convert("RGB")
    if treatment == "none":
        return picture
    raise ValueError(f"`vl_treatment` must be one of {list(TREATMENTS)} or a function, got {treatment!r}.")


def group_references(reference: object, batch_size: int, name: str = "reference_image") -> list[list[Any]]:
    """Get the references of each prompt, by the nesting that the caller gave.

    One reference alone, or a list of one entry, serves all prompts; a list is one per prompt; a list inside it is
    several for one prompt. `ReferenceEmbeds` group as images do.

    Returns:
        `batch_size` new lists of at least one reference each.

    Raises:
        ValueError: An empty list, a list nested too deep, a None in it, a 4-D array or tensor, or numbers that do not
            match.

    Example:
        >>> group_references("a.png", 2)
        [['a.png'], ['a.png']]
        >>> group_references(["a.png", ["b.png", "c.png"]], 2)
        [['a.png'], ['b.png', 'c.png']]
    """
    is_list = isinstance(reference, (list, tuple))
    entries = [_entry_items(entry, name) for entry in (cast("list[object]", reference) if is_list else [reference])]
    if not entries:
        raise ValueError(f"`{name}` is an empty list: pass one for all prompts or one per prompt, or leave it out.")
    if len(entries) == 1:
        return [list(entries[0]) for _ in range(batch_size)]
    if len(entries) != batch_size:
        if batch_size == 1:
            advice = f"1 prompt: several for one prompt go into a list of their own, {name}=[[first, second]]."
        else:
            advice = f"{batch_size} prompts: pass one for all prompts or one per prompt."
        raise ValueError(f"`{name}` has {len(entries)} entries for {advice}")
    return entries


def _entry_items(entry: object, name: str) -> list[Any]:
    """What one prompt gets: an item, or the items of a list."""
    items = list(cast("list[object]", entry)) if isinstance(entry, (list, tuple)) else [entry]
    if not items:
        raise ValueError(f"`{name}` has an empty list in it: every prompt needs at least one.")
    for item in items:
        if isinstance(item, (list, tuple)):
            raise ValueError(
                f"`{name}` is nested too deep: a list is one per prompt, a list inside it several for one prompt."
            )
        if item is None:
            raise ValueError(
                f"`{name}` has None in the place of a reference. A prompt that shall have no effect of one gets any, "
                "and alpha 0: vl_alpha=[0.0, 0.3]."
            )
        shape = tuple(cast("Tensor", item).shape) if isinstance(item, (np.ndarray, Tensor)) else ()
        if len(shape) > 3:
            raise ValueError(f"`{name}` has a batch of shape {shape}: pass list(batch), one image (3-D) per prompt.")
    return items


# ---- The grid of patches ----


def grid_size(size: tuple[int, int], multiple: int, max_pixels: int) -> tuple[int, int]:
    """Get width and height on the grid: the aspect kept, sides the nearest multiples (at least one).

    Args:
        size: Width and height of the picture, in pixels.
        multiple: Pixels along a side of one image token (patch size x merge size; 32 in Qwen3-VL).
        max_pixels: Bound on width x height, at least multiple x multiple. Where it bites, sides are rounded down.

    Raises:
        ValueError: A side is more than 200 times the other, or `max_pixels` has no room for one token.

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
            f"`max_pixels` must leave room for one image token of {multiple}x{multiple} = {multiple * multiple} "
            f"pixels, got {max_pixels}."
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
    """Get the image tokens that a mask leaves: those whose patch is white by half or more.

    Args:
        mask: Greyscale PIL image (mode "L" or "1") of any size, laid over the whole picture; white counts.
        columns: Image tokens in a row of the grid.
        rows: Rows of image tokens.

    Returns:
        `(rows * columns,)` bool tensor, row by row.

    Raises:
        TypeError: `mask` is not a PIL image.
        ValueError: It is not greyscale, or it leaves no token.

    Example:
        >>> mask = PIL.Image.new("L", (64, 32))
        >>> mask.paste(255, (0, 0, 32, 32))
        >>> visible_tokens(mask, 4, 2).tolist()
        [True, True, False, False, True, True, False, False]
    """
    if not isinstance(mask, PIL.Image.Image):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"`mask` must be a greyscale PIL image, got {type(mask).__name__}.")
    if mask.mode not in ("L", "1"):
        raise ValueError(f'`mask` must be greyscale (mode "L" or "1"), got mode {mask.mode!r}. Use mask.convert("L").')
    visible = torch.from_numpy(_is_white(mask, (columns, rows))).flatten()
    if not bool(visible.any()):
        raise ValueError(
            f"The reference mask hides the whole picture: none of its {columns} x {rows} patches is white by half. "
            "White marks what counts; is the mask inverted?"
        )
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
    return np.array(mask.convert("L").convert("F").resize(size, PIL.Image.Resampling.BOX)) >= _HALF_WHITE


# ---- Reading, decoding, converting ----


def _source_label(source: str | os.PathLike[str], name: str) -> str:
    text = os.fspath(source)
    is_url = text.lower().startswith(("http://", "https://"))
    return f"`{name}` {(text.split('?')[0] if is_url else text)!r}"  # after the question mark may stand a signature


def _download(url: str, label: str) -> bytes:
    """The bytes behind a URL, in a thread of its own: no timeout of a socket ends what a server dribbles for ever."""
    outcome: list[bytes | Exception] = []
    thread = threading.Thread(target=_fetch, args=(url, outcome), daemon=True)
    thread.start()
    thread.join(_DOWNLOAD_SECONDS)
    result = outcome[0] if outcome else TimeoutError(f"it took longer than {_DOWNLOAD_SECONDS:g} seconds")
    if isinstance(result, bytes):
        return result
    reason = str(result) if type(result) in (ValueError, TimeoutError) else type(result).__name__
    if isinstance(result, requests.exceptions.Timeout):
        reason = "the server did not answer in time"
    elif isinstance(result, requests.exceptions.ConnectionError):
        reason = "no connection to the server, or it was cut"
    raise ValueError(f"{label} could not be downloaded: {reason}.") from result


def _fetch(url: str, outcome: list[bytes | Exception]) -> None:
    try:
        end, content = time.monotonic() + _DOWNLOAD_SECONDS, bytearray()
        with requests.get(url, stream=True, timeout=_PACKET_SECONDS) as response:
            if not response.ok:
                raise ValueError(f"HTTP {response.status_code}")
            for chunk in response.iter_content(2**14):
                content += chunk
                if len(content) > _MAX_DOWNLOAD_BYTES:
                    raise ValueError(f"it is larger than {_MAX_DOWNLOAD_BYTES} bytes")
                if time.monotonic() > end:
                    return  # nobody waits any more
        outcome.append(bytes(content))
    except Exception as error:
        outcome.append(error)


def _image_from_bytes(data: bytes, label: str) -> PIL.Image.Image:
    if not data:
        raise ValueError(f"{label} is empty.")
    PIL.Image.init()
    formats = [name for name in _FORMATS if name in PIL.Image.OPEN]
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=formats)
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{label} was refused before decoding: {error} Scale it down first.") from error
    except PIL.UnidentifiedImageError as error:
        if data.lstrip()[:64].lower().startswith((b"<!doctype html", b"<html")):
            raise ValueError(
                f"{label} is an HTML page, not an image: is it the address of a page with one?"
            ) from error
        raise ValueError(f"{label} is in none of the formats {formats}: convert it to PNG or JPEG.") from error
    except Exception as error:  # Pillow reports broken headers as any of a dozen
        raise ValueError(f"{label} cannot be read: {error}.") from error
    return _finish_image(image, label)


def _check_image_size(size: tuple[int, int], label: str) -> None:
    width, height = size
    limit = 2 * (PIL.Image.MAX_IMAGE_PIXELS or math.inf)  # where Pillow itself refuses to open a file
    if width < 1 or height < 1:
        raise ValueError(f"{label} has no pixels: it is {width} x {height}.")
    if width * height > limit:
        raise ValueError(f"{label} has {width * height} pixels, over the limit of {limit}: scale it down first.")
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
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    try:
        colours = _to_srgb(image, profile, space, label) if profile else image.convert("RGB")
    except ValueError as error:
        raise ValueError(
            f"{label} has the mode {image.mode!r}, which Pillow cannot convert to RGB: convert it first."
        ) from error
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
    if not np.isfinite(values).all():
        raise ValueError(f"{label} holds NaN or infinite values.")
    if image.mode == "F":
        white = 1.0 if values.max() <= 1 else 255.0
    else:
        # Older Pillow opens 16-bit PNG files in mode "I"; made in memory, "I" may hold 8 bits.
        white = 255.0 if image.mode == "I" and file_format is None and values.max() <= 255 else 65535.0
    if values.min() < 0 or values.max() > white:
        raise ValueError(
            f"{label} has values {values.min():g} to {values.max():g}, expected 0 to {white:g}: rescale it first."
        )
    grey = PIL.Image.fromarray(np.rint(values * (255.0 / white)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # the 16-bit value that a PNG declares transparent
        grey.putalpha(PIL.Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _image_from_array(array: np.ndarray[Any, Any] | Tensor, name: str) -> PIL.Image.Image:
    """uint8, float in 0..1 or bool, (height, width[, channels]) or, as a tensor, ([channels,] height, width)."""
    is_tensor = isinstance(array, Tensor)
    shape, layout = tuple(array.shape), "(channels, height, width)" if is_tensor else "(height, width, channels)"
    kind = f"`{name}` is {'a tensor' if is_tensor else 'an array'} of shape {shape}"
    if len(shape) == 4:
        raise ValueError(f"{kind}, a batch: pass list(batch), one image {layout} per prompt.")
    if len(shape) not in (2, 3):
        raise ValueError(f"{kind}, expected {layout} or (height, width).")
    at, other_end = (0, -1) if is_tensor else (-1, 0)
    channels = 1 if len(shape) == 2 else shape[at]
    if channels not in (1, 3, 4):
        turn = "permute(2, 0, 1)" if is_tensor else "transpose(1, 2, 0)"
        hint = f" Its channels seem to lie elsewhere: pass it as .{turn}." if shape[other_end] in (1, 3, 4) else ""
        raise ValueError(f"{kind}, expected {layout} with 1, 3 or 4 channels, got {channels}.{hint}")
    if 0 in shape:
        raise ValueError(f"{kind}: it has no pixels.")
    if isinstance(array, Tensor):
        plain = array.detach().cpu()
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
    if not np.isfinite(values).all():
        raise ValueError(f"{kind} with NaN or infinite values.")
    scaled = np.rint(values.astype(np.float64) * 255.0)  # range is judged after rounding: 1.0000001 is white
    if scaled.min() < 0 or scaled.max() > 255:
        raise ValueError(
            f"{kind} with floats from {values.min():g} to {values.max():g}, expected 0..1: divide 0..255 by 255, "
            "bring -1..1 there by x / 2 + 0.5."
        )
    return scaled.astype(np.uint8)
