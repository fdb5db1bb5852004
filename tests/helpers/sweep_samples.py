"""What the tests of sweeps paint: a prompt, and two references."""

from __future__ import annotations

from zimage_vl.toy import Scene, draw_scene


PROMPT = "a red circle on a white background"


def draw_references() -> None:
    """Writes a.png and b.png into the working folder."""
    for name, scene in (("a.png", Scene("square", "blue", "black")), ("b.png", Scene("cross", "green", "gray"))):
        draw_scene(scene).save(name)
