"""Plan files and manifests that were changed anywhere: one readable line of ours, or what they say is done."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from cli_calls import Call, call
from tally import CHANGES, change, count, expect, fuzz
from zimage_vl.cli._axes import read_plan, read_values
from zimage_vl.toy import Scene, draw_scene


ROW = "plans and manifests"
# As a person writes them; TOML's is made of the same values.
PLAN: dict[str, Any] = {
    "prompt": ["a circle", "a square"], "reference": ["a.png", ["a.png", "b.png"]], "alpha": [0, 0.3, {"prompt": 0.7}],
    "layer": "-2,-6", "exclude-sinks": [True, False], "seed": "0..3", "size": "64x64", "steps": 2, "guidance": 0.0,
}  # fmt: skip
ODD: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, math.nan, math.inf, "", "x", "-6", "0..2", "1,,2", "a=1", "1:1", "64x", "é\u202e",
    "\x1b[2J", "\ud800", [], [None], [[]], {}, {"a": {"b": 1}}, {"prompt": 2}, {"-6": 1}, {"x": 1}, "nowhere.png",
    "../a.png", "pictures/../../a.png", "https://[", "[" * 300, "guide", "nan", "1e999", "٣",
]  # fmt: skip
NAMES = ["alpha", "vl_alpha", "recipe", "tokens", "mask", "text", "embeds", "max-pixels", "weights", "alpa", "", "job"]
EDITS = st.lists(
    st.tuples(st.sampled_from(["set", "set", "add", "delete"]), st.floats(0, 1), st.sampled_from(ODD)), max_size=2
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two references, the folder of a sweep, and one of `extract`."""
    folder = tmp_path_factory.mktemp("plans")
    for name, colour in {"a": "red", "b": "blue"}.items():
        draw_scene(Scene("circle", colour, "white")).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def runs(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Call]:
    """Runs commands there, and asserts that they end well or in one line."""
    monkeypatch.chdir(desk)

    def run(what: object, *words: str) -> Call:
        try:
            done = call(capsys, *words)
        except Exception as error:
            expect(ROW, False, f"{error!r} after {what}")
            raise
        last = (done.err.splitlines() or [""])[-1]
        ours = done.code in (0, 3) or (done.code == 2 and last.startswith("Error: ") and 25 < len(last) < 1000)
        expect(ROW, ours and "Traceback" not in done.err, f"{done.code} {done.err} after {what}")
        expect(ROW, (done.out + done.err).replace("\n", "").isprintable(), f"unescaped after {what}")
        return done

    return run


def edit(held: Any, how: str, share: float, value: Any) -> None:
    """Changes one of the values in something made of dicts and lists."""
    ways: list[tuple[Any, Any]] = []

    def walk(parent: Any) -> None:
        for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
            ways.append((parent, key))
            if isinstance(parent[key], (dict, list)):
                walk(parent[key])

    walk(held)
    if not ways:
        return
    parent, key = ways[int(share * (len(ways) - 1))]
    if how == "set":
        parent[key] = value
    elif how == "delete":
        del parent[key]
    elif isinstance(parent, dict):
        parent[NAMES[int(share * 997) % len(NAMES)]] = value
    else:
        parent.append(value)


def as_toml(plan: dict[str, Any]) -> str:
    def write(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(name)} = {write(one)}" for name, one in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(write, value)) + "]"
        return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")  # a null is none of TOML's

    return "".join(f"{json.dumps(name)} = {write(value)}\n" for name, value in plan.items())


def try_plan(path: Path, runs: Callable[..., Call], what: object) -> None:
    # Ranges of more than three digits are many jobs, which are counted one by one.
    assume(not re.search(rb"[0-9]{4}", path.read_bytes()))
    count(ROW)
    done = runs(what, "sweep", "--plan", path.name, "-o", "out", "--dry-run", "--format", "json")
    if done.code == 0:
        counts, axes = json.loads(done.out)["counts"], read_plan(path)
        values = [{repr(value) for value in read_values(name, given)} for name, given in axes.items()]
        jobs = math.prod(map(len, filter(None, values)))
        expect(ROW, sum(counts.values()) == jobs, f"{counts} jobs, not {jobs}, after {what}")
        expect(ROW, counts.keys() <= {"planned", "failed"}, f"{counts} after {what}")


@fuzz(25)
@given(st.booleans(), EDITS)
def test_an_edited_plan(
    desk: Path, runs: Callable[..., Call], toml: bool, edits: list[tuple[str, float, Any]]
) -> None:
    plan = json.loads(json.dumps(PLAN))
    for one in edits:
        edit(plan, *one)
    path = desk / ("plan.toml" if toml else "plan.yaml")
    text = as_toml(plan) if toml else yaml.safe_dump(plan, allow_unicode=True)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try_plan(path, runs, edits)


@fuzz(25)
@given(st.booleans(), CHANGES)
def test_a_plan_with_changed_bytes(
    desk: Path, runs: Callable[..., Call], toml: bool, changes: list[tuple[str, float, int]]
) -> None:
    path = desk / ("plan.toml" if toml else "plan.yaml")
    text = as_toml(PLAN) if toml else yaml.safe_dump(PLAN)
    path.write_bytes(change(text.encode(), changes))
    try_plan(path, runs, changes)


@pytest.fixture
def folders(desk: Path, runs: Callable[..., Call]) -> dict[str, bytes]:
    """The manifests of two folders."""
    if not (desk / "sweep").exists():
        sweep = ("sweep", "-p", "x", "-r", "a.png", "-r", "none.png", "--alpha", "0,0.5", "--steps", "1")
        assert runs("", *sweep, "-o", "sweep").code == 3
        assert runs("", "extract", "a.png", "b.png", "none.png", "-o", "extract", "--layers=-2").code == 3
        for name in ("sweep", "extract"):
            (desk / f"{name}.jsonl").write_bytes((desk / name / "manifest.jsonl").read_bytes())
    return {name: (desk / f"{name}.jsonl").read_bytes() for name in ("sweep", "extract")}


def try_manifest(desk: Path, runs: Callable[..., Call], name: str, content: bytes, what: object) -> None:
    count(ROW)
    (desk / name / "manifest.jsonl").write_bytes(content)
    before = {path for path in desk.parent.rglob("*") if "merged" not in path.parts}
    shutil.rmtree(desk / "merged", ignore_errors=True)
    runs(what, "merge", name, "-o", "merged")
    if name == "sweep":
        runs(what, "sweep", "-p", "x", "-r", "a.png", "--alpha", "0,0.5", "--steps", "1", "-o", "sweep", "--dry-run")
    after = {path for path in desk.parent.rglob("*") if "merged" not in path.parts}
    expect(ROW, after == before, f"{after ^ before} after {what}", "files lost")


@fuzz(30)
@given(st.sampled_from(["sweep", "extract"]), st.floats(0, 1), EDITS)
def test_an_edited_manifest(
    desk: Path,
    runs: Callable[..., Call],
    folders: dict[str, bytes],
    name: str,
    place: float,
    edits: list[tuple[str, float, Any]],
) -> None:
    lines = [json.loads(line) for line in folders[name].splitlines()]
    for one in edits:
        edit(lines[int(place * (len(lines) - 1))], *one)
    try_manifest(desk, runs, name, "".join(json.dumps(line) + "\n" for line in lines).encode(), (name, place, edits))


@fuzz(25)
@given(st.sampled_from(["sweep", "extract"]), CHANGES)
def test_a_manifest_with_changed_bytes(
    desk: Path, runs: Callable[..., Call], folders: dict[str, bytes], name: str, changes: list[tuple[str, float, int]]
) -> None:
    try_manifest(desk, runs, name, change(folders[name], changes), (name, changes))
