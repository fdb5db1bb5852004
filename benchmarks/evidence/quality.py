"""How clean a picture of the toy world is, whatever it shows."""

from __future__ import annotations

import numpy as np
from PIL import Image

from zimage_vl.toy.judging import BORDER, DIFFERENT
from zimage_vl.toy.world import SIZE


def get_stray_share(image: Image.Image) -> float:
    """The share of pixels that are neither of the background's colour nor of the shape's.

    Both colours are read as the judge reads them; a pixel is astray if it is further than 40 (Euclidean, 0..255 RGB)
    from both and from the straight line between them, on which the smooth edges lie.

    Args:
        image: A 64 x 64 picture.

    Returns:
        0..1; a drawn scene has 0.

    Example:
        >>> from zimage_vl.toy import Scene, draw_scene
        >>> get_stray_share(draw_scene(Scene("cross", "cyan", "black")))
        0.0
    """
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    border = np.ones(pixels.shape[:2], dtype=bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    outer = np.median(pixels[border], axis=0)
    middle = pixels[SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4].reshape(-1, 3)
    different = middle[np.linalg.norm(middle - outer, axis=-1) > DIFFERENT]
    inner = np.median(different, axis=0) if len(different) else outer
    line, offset = inner - outer, pixels - outer
    along = np.clip(offset @ line / max(float(line @ line), 1.0), 0.0, 1.0)
    distance = np.linalg.norm(offset - along[..., None] * line, axis=-1)
    return float((distance > DIFFERENT).mean())
