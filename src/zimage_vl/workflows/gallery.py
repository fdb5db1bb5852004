"""What the folder of a sweep shows: the page index.html and the layout of contact sheets, both from its manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..blend.registry import KNOBS
from .files import whole_file
from .manifest import REFERENCES, Manifest


#: The most pictures that the page and the sheets of a folder show; its manifest may hold more.
SHOWN = 10_000
_OF_ROWS = ("prompt", "negative prompt", "reference")  # these label rows, never columns
_SHORT = {"vl_hidden_layer": "layer", "vl_token_selection": "tokens"}  # as the command line calls them
_MOST_COLUMNS, _MOST_ROWS, _MOST_CELLS = 24, 16, 240  # of a sheet
_MOST_LETTERS = 11  # of a title over a small picture


@dataclass(frozen=True)
class Shot:
    """A job as it is shown: its settings in plain words, and its picture or what was wrong."""

    words: Mapping[str, str]
    file: str | None
    thumbnail: str | None  # of the first reference
    remark: str


@dataclass(frozen=True)
class Sheet:
    """What stands on a contact sheet: for each row its label, its reference, and blocks of pictures."""

    title: str
    footnote: str
    headings: Sequence[str]  # one per block
    titles: Sequence[str]  # one per picture of a block
    rows: Sequence[tuple[str, str | None, Sequence[Sequence[str | None]]]]


@dataclass(frozen=True)
class Gallery:
    """The first `SHOWN` jobs of a folder, and how many it has."""

    shots: Sequence[Shot]
    total: int

    @classmethod
    def read(cls, folder: Path) -> Gallery:
        """Read a folder's manifest; a ValueError where it is that of something else."""
        manifest = Manifest(folder)
        hashes: dict[str, set[str]] = {}
        shots: list[Shot] = []
        for row in manifest.rows(SHOWN):
            with manifest.blaming(row):
                for source in row["references"]:
                    hashes.setdefault(source["name"], set()).add(str(source["sha256"])[:6])
        for row in manifest.rows(SHOWN):
            with manifest.blaming(row):
                shots.append(_make_shot(row, hashes, folder))
        return cls(shots, len(shots) if len(shots) < SHOWN else len(manifest.entries()))

    @cached_property
    def axes(self) -> dict[str, list[str]]:
        """The settings that differ, with their values: numbers in order, others as they come."""
        names = dict.fromkeys(name for shot in self.shots for name in shot.words)
        found = {name: list(dict.fromkeys(shot.words.get(name, "none") for shot in self.shots)) for name in names}
        return {name: _in_order(values) for name, values in found.items() if len(values) > 1}

    @cached_property
    def common(self) -> dict[str, str]:
        """The settings that are the same everywhere."""
        first = self.shots[0].words if self.shots else {}
        return {name: value for name, value in first.items() if name not in self.axes}

    @cached_property
    def columns(self) -> list[str]:
        """The axes that columns can stand for, the best first: those with short titles, and alpha of these."""
        usable = [name for name in self.axes if name not in _OF_ROWS]
        long = {name for name in usable if len(name) + max(map(len, self.axes[name])) > _MOST_LETTERS}
        return sorted(usable, key=lambda name: (name in long, name != "alpha", name == "seed"))

    @property
    def title(self) -> str:
        """The prompt, where there is but one."""
        return self.common.get("prompt", f"{sum(shot.file is not None for shot in self.shots)} pictures")

    @property
    def remark(self) -> str:
        """What is the same everywhere and no default, as a line."""
        usual = {(_word(name), _in_words(knob.default)) for name, knob in KNOBS.items()} | {("prompt", self.title)}
        more = [f"the first {len(self.shots)} of {self.total} jobs"] if self.total > len(self.shots) else []
        return ", ".join(more + [" ".join(pair) for pair in self.common.items() if pair not in usual])

    def sheets(self) -> Iterator[Sheet]:
        """Lay the pictures out on contact sheets of a bounded size, one after another."""
        across, *others = [*self.columns, ""]
        titles = self.axes.get(across, [""])
        room = _MOST_COLUMNS // len(titles)
        beside = next((name for name in others if name and len(self.axes[name]) <= room), "")
        headings = self.axes.get(beside, [""])
        down = [name for name in self.axes if name not in (across, beside)]
        rank = {name: {value: place for place, value in enumerate(values)} for name, values in self.axes.items()}
        rows: dict[tuple[str, ...], dict[tuple[str, str], Shot]] = {}
        for shot in (shot for shot in self.shots if shot.file is not None):
            own = tuple(_value(shot, name) for name in down)
            rows.setdefault(own, {})[_value(shot, beside), _value(shot, across)] = shot
        ordered = sorted(rows, key=lambda own: [rank[name][value] for name, value in zip(down, own, strict=True)])
        for some in _chunks(titles, _MOST_COLUMNS):
            for few in _chunks(ordered, min(_MOST_ROWS, _MOST_CELLS // (len(some) * len(headings)))):
                yield Sheet(
                    title=self.title,
                    footnote=self.remark,
                    headings=[f"{beside} {heading}".strip() for heading in headings],
                    titles=[f"{across} {title}".strip() for title in some],
                    rows=[_make_row(dict(zip(down, own, strict=True)), rows[own], headings, some) for own in few],
                )


def write_page(folder: Path, gallery: Gallery) -> None:
    """Write index.html: script, style and words in one file, which shows the pictures that lie beside it."""
    axes = list(gallery.axes.items())
    places = {name: {value: place for place, value in enumerate(values)} for name, values in axes}
    data = {
        "title": gallery.title,
        "total": gallery.total,
        "remark": gallery.remark,
        "common": gallery.common,
        "axes": axes,
        "columns": gallery.columns[:1],
        "shots": [
            [shot.file, shot.thumbnail, shot.remark, [places[name][_value(shot, name)] for name, _ in axes]]
            for shot in gallery.shots
        ],
    }
    text = json.dumps(data).replace("<", "\\u003c")  # so that no word in it can end the script
    template = files("zimage_vl.workflows").joinpath("gallery.html").read_text(encoding="utf-8")
    with whole_file(folder / "index.html") as file:
        file.write(template.replace("{{ data }}", text).encode())


def _make_shot(row: Mapping[str, Any], hashes: Mapping[str, set[str]], folder: Path) -> Shot:
    words: dict[str, Any] = {"prompt": row["prompt"], "negative prompt": row["negative_prompt"]}
    for source in row["references"]:
        kind = source["option"].removeprefix("--").replace("-", " ")
        alone = len(hashes[source["name"]]) == 1
        name = source["name"] if alone else f"{source['name']} ({str(source['sha256'])[:6]})"
        words[kind] = f"{words[kind]} + {name}" if kind in words else name
    words["recipe"] = row["recipe"]
    words |= {_word(name): value for name, value in (row["knobs"] or {}).items() if name in KNOBS}
    words |= {
        "size": f"{row['width']} x {row['height']}",
        **{name: row[name] for name in ("steps", "guidance", "seed")},
    }
    words |= {name: row[name] for name in ("model", "dtype") if name in row}
    first = next((s["sha256"] for s in row["references"] if s["option"] == "--reference" and s["sha256"]), None)
    thumbnail = f"{REFERENCES}/{first[:20]}.jpg" if first else None
    influence = (row["report"] or [{}])[0].get("influence")
    return Shot(
        {name: _in_words(value) for name, value in words.items() if value is not None},
        row["file"],
        thumbnail if thumbnail and (folder / thumbnail).is_file() else None,
        row["error"] or ("" if influence is None else f"influence {influence:.3g}"),
    )


def _make_row(
    own: Mapping[str, str], shots: Mapping[tuple[str, str], Shot], headings: Sequence[str], titles: Sequence[str]
) -> tuple[str, str | None, list[list[str | None]]]:
    thumbnail = next(iter(shots.values())).thumbnail
    shown = {name: value for name, value in own.items() if name != "reference" or not thumbnail or " + " in value}
    label = ", ".join(value if name == "prompt" else f"{name} {value}" for name, value in shown.items())
    missing = Shot({}, None, None, "")
    return label, thumbnail, [[shots.get((head, title), missing).file for title in titles] for head in headings]


def _word(knob: str) -> str:
    return _SHORT.get(knob, knob.removeprefix("vl_").replace("_", " "))


def _value(shot: Shot, name: str) -> str:
    return shot.words.get(name, "none") if name else ""


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_in_words(one)}" for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_in_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _in_order(values: list[str]) -> list[str]:
    try:
        return sorted(values, key=float)
    except ValueError:
        return values


def _chunks(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + most] for start in range(0, len(items), most))
