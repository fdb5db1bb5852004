"""Reference pictures as a user may hand them over, brought to what the encoder reads: PIL in RGB.

A path, a URL, the bytes of a file, a PIL image in any mode, an array or a tensor all end as the picture a person would
see: turned as its EXIF says, transparent parts on white, 16 bits rescaled and never clipped. What is no picture is
refused with its name and the reason.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any, Union, cast

import numpy as np
import PIL.Image
import PIL.ImageOps
import requests
from torch import Tensor


#: What `load_reference_image` reads.
ReferenceImage = Union[PIL.Image.Image, "np.ndarray[Any, Any]", Tensor, str, "os.PathLike[str]", bytes]

MAX_ASPECT_RATIO = 200  # the image processor of Qwen3-VL takes no longer strips
_MAX_DOWNLOAD_BYTES = 256 * 2**20
_DOWNLOAD_TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between two packets
_ACCEPTED = (
    "a PIL image, a path, an http(s) URL, the bytes of an image file, a numpy array (height, width, channels) "
    "or a torch tensor (channels, height, width)"
)


def load_reference_image(image: ReferenceImage, name: str = "reference_image") -> PIL.Image.Image:
    """One picture, whatever it comes as, as a person would see it.

    Args:
        image: A PIL image in any mode; a path (`str` or `Path`); an http or https URL (fetched with `requests`, which
            diffusers depends on); the bytes of an image file; a numpy array `(height, width, 1, 3 or 4)` or
            `(height, width)`; a torch tensor `(1, 3 or 4, height, width)` or `(height, width)`. Arrays and tensors
            hold uint8 in 0..255, floats in 0..1 or bools. PIL images of mode "F" are read as 0..1 where no value is
            above 1 and as 0..255, Pillow's own convention, otherwise; mode "I" as 16 bits, unless it was made in
            memory and no value is above 255.
        name: What errors call the picture.

    Returns:
        A new RGB image: turned as its EXIF orientation says, transparent parts composited on white, CMYK converted,
        16 bits rescaled to 8. Of an animation the first frame (of an opened one, the frame it stands at), with a
        `UserWarning`.

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
        source = getattr(image, "filename", "") or f"the {image.mode} image"
        return _finish_image(image, f"`{name}` ({source})")
    if isinstance(image, (np.ndarray, Tensor)):
        return _finish_image(_image_from_array(image, name), f"`{name}`")
    if isinstance(image, (str, os.PathLike)):
        return _image_from_bytes(read_image_bytes(image, name), _source_label(image, name))
    data = _given_bytes(image, name)
    return _image_from_bytes(data, f"`{name}` ({len(data)} bytes)")


def read_image_bytes(source: str | os.PathLike[str], name: str = "reference_image") -> bytes:
    """The bytes behind a path or an http(s) URL, for whoever also wants their hash; not yet known to be a picture.

    Args:
        source: A path, or a URL (fetched with `requests`).
        name: What errors call it.

    Returns:
        The file's content.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: A directory, or what cannot be read or downloaded; one sentence says why.
    """
    label = _source_label(source, name)
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        return _download(source, label)
    return _read_image_file(Path(source), label)


def load_reference_mask(mask: ReferenceImage, size: tuple[int, int]) -> PIL.Image.Image:
    """A greyscale mask that says which part of a picture counts: white counts, black does not.

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
    if isinstance(mask, PIL.Image.Image) and mask.has_transparency_data:
        alpha = mask.convert("RGBA").getchannel("A").getextrema()
        if alpha != (255, 255):
            raise ValueError(
                "`reference_mask` is transparent in places, and it is unclear whether they count: make it greyscale."
            )
    image = load_reference_image(mask, "reference_mask")
    channels = np.asarray(image).astype(np.int16)
    if int(np.ptp(channels, axis=-1).max()) > 16:  # some slack for the colour noise of JPEG
        raise ValueError("`reference_mask` must be greyscale (white counts, black does not), got a coloured image.")
    width, height = image.size
    # The slack is what a pixel more or less costs on each side when one of the two was scaled down.
    if abs(width * size[1] - height * size[0]) > max(width + height, sum(size)):
        wanted = f"{size[0]} x {size[1]}"
        raise ValueError(f"`reference_mask` must have its picture's proportions, {wanted}, got {width} x {height}.")
    grey = image.convert("L")
    if grey.getextrema()[1] == 0:
        raise ValueError(
            "`reference_mask` is black all over, so nothing of the picture would count: paint white what counts."
        )
    return grey if grey.size == size else grey.resize(size, PIL.Image.Resampling.BILINEAR)


def group_references(reference: object, batch_size: int, name: str = "reference_image") -> list[list[Any]]:
    """The references of each prompt, by the nesting that the caller gave.

    One reference alone serves all prompts; a list is one per prompt; a list inside it is several for one prompt. A
    list of one entry serves all prompts too. What the references are is not looked at: `ReferenceEmbeds` group as
    images do.

    Args:
        reference: One reference, a list of them, or a list with lists in it. It is not modified.
        batch_size: Number of prompts.
        name: The parameter's name, for errors.

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
    if not isinstance(reference, (list, tuple)):
        return [[_checked_item(reference, name)] for _ in range(batch_size)]
    entries = [_entry_items(entry, name) for entry in cast("list[object]", reference)]
    if not entries:
        raise ValueError(f"`{name}` is an empty list: pass one for all prompts or one per prompt, or leave it out.")
    if len(entries) == 1:
        return [list(entries[0]) for _ in range(batch_size)]
    if len(entries) != batch_size:
        prompts = "1 prompt" if batch_size == 1 else f"{batch_size} prompts"
        advice = "pass one for all prompts or one per prompt."
        if batch_size == 1:
            advice = f"several for one prompt go into a list of their own, {name}=[[first, second]]."
        raise ValueError(f"`{name}` has {len(entries)} entries for {prompts}: {advice}")
    return entries


def _entry_items(entry: object, name: str) -> list[Any]:
    """What one prompt gets: an item, or the items of a list."""
    if not isinstance(entry, (list, tuple)):
        return [_checked_item(entry, name)]
    items = list(cast("list[object]", entry))
    if not items:
        raise ValueError(f"`{name}` has an empty list in it: every prompt needs at least one.")
    if any(isinstance(item, (list, tuple)) for item in items):
        raise ValueError(
            f"`{name}` is nested too deep: a list is one per prompt, a list inside it several for one prompt."
        )
    return [_checked_item(item, name) for item in items]


def _checked_item(item: object, name: str) -> object:
    """Refuses what is clearly several references, or none, in the place of one."""
    if item is None:
        raise ValueError(f"`{name}` has None in the place of a reference: every prompt needs one.")
    if isinstance(item, (np.ndarray, Tensor)):
        shape: tuple[int, ...] = tuple(cast(Any, item).shape)
        if len(shape) > 3:
            raise ValueError(f"`{name}` has a batch of shape {shape}: pass list(batch), one image (3-D) per prompt.")
    return cast(object, item)


def _given_bytes(image: object, name: str) -> bytes:
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    raise TypeError(f"`{name}` must be {_ACCEPTED}, got {type(image).__name__}.")


def _source_label(source: str | os.PathLike[str], name: str) -> str:
    text = os.fspath(source)
    is_url = text.lower().startswith(("http://", "https://"))
    return f"`{name}` {(text.split('?')[0] if is_url else text)!r}"  # after the question mark may stand a signature


def _read_image_file(path: Path, label: str) -> bytes:
    if not path.exists():
        raise FileNotFoundError(f"{label} does not exist.")
    if path.is_dir():
        raise ValueError(f"{label} is a directory: pass the path of an image file.")
    if not path.is_file():  # reading a pipe or a device could wait for ever
        raise ValueError(f"{label} is not a regular file.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{label} cannot be read: {error.strerror or error}.") from error


def _download(url: str, label: str) -> bytes:
    """The bytes behind a URL; one sentence says why they could not be had."""
    chunks: list[bytes] = []
    received = 0
    try:
        with requests.get(url, stream=True, timeout=_DOWNLOAD_TIMEOUT) as response:
            if not response.ok:
                raise ValueError(f"{label} could not be downloaded: HTTP {response.status_code} {response.reason}.")
            for chunk in response.iter_content(2**16):
                received += len(chunk)
                if received > _MAX_DOWNLOAD_BYTES:
                    raise ValueError(
                        f"{label} was not downloaded to its end: it is larger than {_MAX_DOWNLOAD_BYTES} bytes."
                    )
                chunks.append(chunk)
    except requests.exceptions.Timeout as error:
        raise ValueError(f"{label} could not be downloaded: the server did not answer in time.") from error
    except requests.exceptions.ConnectionError as error:
        raise ValueError(f"{label} could not be downloaded: no connection to the server, or it was cut.") from error
    except requests.exceptions.RequestException as error:
        raise ValueError(f"{label} could not be downloaded: {type(error).__name__}.") from error
    return b"".join(chunks)


def _image_from_bytes(data: bytes, label: str) -> PIL.Image.Image:
    if not data:
        raise ValueError(f"{label} is empty.")
    try:
        return _finish_image(PIL.Image.open(io.BytesIO(data)), label)
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{label} was refused before decoding: {error} Scale it down first.") from error
    except PIL.UnidentifiedImageError as error:
        if data.lstrip()[:64].lower().startswith((b"<!doctype html", b"<html")):
            raise ValueError(
                f"{label} is an HTML page, not an image: is it the address of a page that shows one?"
            ) from error
        raise ValueError(f"{label} is in no image format that Pillow reads: convert it to PNG or JPEG.") from error
    except (OSError, SyntaxError, EOFError) as error:  # Pillow reports broken headers as SyntaxError
        raise ValueError(f"{label} cannot be read: {error}.") from error


def _finish_image(image: PIL.Image.Image, label: str) -> PIL.Image.Image:
    """Checks the size before anything is decoded, then turns, composites and converts."""
    _check_image_size(image.size, label)
    try:
        # The second picture of an MPO file is a camera's preview or depth map, not a frame.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            note = f"{label} is animated: frame {image.tell() + 1} alone is used."
            warnings.warn(note, UserWarning, stacklevel=4)
        return _to_rgb(PIL.ImageOps.exif_transpose(image), image.format, label)
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{label} cannot be decoded: {error}.") from error


def _check_image_size(size: tuple[int, int], label: str) -> None:
    width, height = size
    if width == 0 or height == 0:
        raise ValueError(f"{label} has no pixels: it is {width} x {height}.")
    if PIL.Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * PIL.Image.MAX_IMAGE_PIXELS:
        limit = 2 * PIL.Image.MAX_IMAGE_PIXELS  # where Pillow itself refuses to open a file
        raise ValueError(f"{label} has {width * height} pixels, over the limit of {limit}: scale it down first.")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise ValueError(
            f"{label} is {width} x {height}: sides over {MAX_ASPECT_RATIO}:1 are not read. Crop it first."
        )


def _to_rgb(image: PIL.Image.Image, file_format: str | None, label: str) -> PIL.Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _grey_from_deep(image, file_format, label)
    if image.mode == "La":
        image = image.convert("LA")  # Pillow knows no direct way from premultiplied grey to RGB
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(
            f"{label} has the mode {image.mode!r}, which Pillow cannot convert to RGB: convert it first."
        ) from error


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
    channels = 1 if len(shape) == 2 else shape[0 if is_tensor else -1]
    if channels not in (1, 3, 4):
        other = shape[-1 if is_tensor else 0]
        turn = "permute(2, 0, 1)" if is_tensor else "transpose(1, 2, 0)"
        hint = f" Its channels seem to lie elsewhere: pass it as .{turn}." if other in (1, 3, 4) else ""
        raise ValueError(f"{kind}, expected {layout} with 1, 3 or 4 channels, got {channels}.{hint}")
    if 0 in shape:
        raise ValueError(f"{kind}: it has no pixels.")
    if isinstance(array, Tensor):
        plain = array.detach().cpu()
        values = (plain.float() if plain.is_floating_point() else plain).numpy()
        values = np.moveaxis(values, 0, -1) if values.ndim == 3 else values
    else:
        values = array
    pixels = np.ascontiguousarray(_pixels_8_bit(values, kind))
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
