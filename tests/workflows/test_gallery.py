"""What a sweep's folder shows: settings in plain words, sheets of a bounded size, a page that no word can break."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from zimage_vl.workflows import gallery as module
from zimage_vl.workflows.gallery import Gallery, write_page
from zimage_vl.workflows.manifest import Manifest, prepare_folder


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WICKED = '</script><script>document.title="broken"</script><img src=x onerror=alert(1)> & "quoted" \u2028'


def make_row(job: int, *, alpha: object = 0.3, layer: object = -6, seed: int = 0, **more: Any) -> dict[str, Any]:
    reference = {"option": "--reference", "name": "photo.png", "sha256": "ab" * 32}
    knobs = {"vl_alpha": alpha, "vl_hidden_layer": layer, "vl_exclude_sinks": False, "has_neutral_image": False}
    row: dict[str, Any] = {"job": job, "key": f"{job:04}", "status": "done", "file": f"pictures/{job:04}.png"}
    row |= {"prompt": "a circle", "negative_prompt": None, "recipe": None, "references": [reference], "seed": seed}
    row |= {"width": 64, "height": 48, "steps": 8, "guidance": 0.0, "model": "toy", "dtype": "float32"}
    return {**row, "error": None, "knobs": knobs, "report": [{"influence": 0.25}], **more}


def make_folder(folder: Path, rows: list[dict[str, Any]]) -> Path:
    prepare_folder(folder)
    for row in rows:
        Manifest(folder).append(row)
        if row["file"]:
            Image.new("RGB", (16, 16), (20 * row["job"] % 256, 80, 160)).save(folder / row["file"])
    Image.new("RGB", (16, 16)).save(folder / "references" / f"{'ab' * 10}.jpg")
    return folder


def make_grid(folder: Path) -> Path:
    settings = [(alpha, layer, seed) for seed in (0, 1) for layer in (-2, -6) for alpha in (0.7, 0.0, 0.3)]
    rows = [make_row(i, alpha=alpha, layer=layer, seed=seed) for i, (alpha, layer, seed) in enumerate(settings)]
    rows[4] = {**rows[4], "status": "failed", "file": None, "error": WICKED, "report": None}
    return make_folder(folder, rows)


def test_settings_are_told_in_plain_words(tmp_path: Path) -> None:
    gallery = Gallery.read(make_grid(tmp_path / "out"))
    assert gallery.axes == {"alpha": ["0", "0.3", "0.7"], "layer": ["-6", "-2"], "seed": ["0", "1"]}
    assert gallery.common["reference"] == "photo.png"
    assert (gallery.common["exclude sinks"], gallery.common["size"]) == ("no", "64 x 48")
    assert gallery.title == "a circle"
    assert gallery.remark.startswith("reference photo.png, size 64 x 48, steps 8")  # and no default
    shot = gallery.shots[0]
    assert (shot.remark, shot.thumbnail) == ("influence 0.25", f"references/{'ab' * 10}.jpg")
    assert gallery.shots[4].remark == WICKED


def test_places_and_pictures_of_one_name_are_told_apart(tmp_path: Path) -> None:
    other = {"option": "--reference", "name": "photo.png", "sha256": "cd" * 32}
    both = [*make_row(0)["references"], other]
    rows = [
        make_row(0, alpha={"prompt": 0.5, "suffix": 1.0}),
        make_row(1, references=[other]),
        make_row(2, references=both),
    ]
    axes = Gallery.read(make_folder(tmp_path / "out", rows)).axes
    assert axes["alpha"] == ["prompt: 0.5, suffix: 1", "0.3"]
    assert axes["reference"] == ["photo.png (ababab)", "photo.png (cdcdcd)", "photo.png (ababab) + photo.png (cdcdcd)"]


def test_sheets_have_alpha_across_and_the_rest_beside_and_down(tmp_path: Path) -> None:
    (sheet,) = Gallery.read(make_grid(tmp_path / "out")).sheets()
    assert sheet.titles == ["alpha 0", "alpha 0.3", "alpha 0.7"]
    assert sheet.headings == ["layer -6", "layer -2"]
    assert [label for label, _, _ in sheet.rows] == ["seed 0", "seed 1"]
    assert sheet.rows[0][2] == [
        [None, *(f"pictures/000{i}.png" for i in (5, 3))],
        [f"pictures/000{i}.png" for i in (1, 2, 0)],
    ]


def test_large_folders_are_paged_and_shown_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "out", [make_row(i, seed=i % 50, prompt=f"prompt {i // 50}") for i in range(100)])
    sheets = list(Gallery.read(folder).sheets())
    assert [len(sheet.titles) for sheet in sheets] == [24, 24, 2]
    assert all(len(sheet.rows) * len(sheet.titles) <= 240 for sheet in sheets)
    shown = [file for sheet in sheets for _, _, blocks in sheet.rows for block in blocks for file in block]
    assert sorted(shown) == [f"pictures/{i:04}.png" for i in range(100)]
    monkeypatch.setattr(module, "SHOWN", 10)
    gallery = Gallery.read(folder)
    assert (len(gallery.shots), gallery.total) == (10, 100)
    assert gallery.remark.startswith("the first 10 of 100 jobs")


@pytest.mark.parametrize(
    "rows", [[], [make_row(0, references=[], knobs=None, report=None)], [make_row(0, status="failed", file=None)]]
)
def test_little_to_show_is_no_error(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    gallery = Gallery.read(make_folder(tmp_path / "out", rows))
    assert len(list(gallery.sheets())) == sum(row["file"] is not None for row in rows)
    write_page(tmp_path / "out", gallery)


class Page(HTMLParser):
    """The scripts of a page, and all that it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts, self.loads, self._in_script = list[str](), list[str](), False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag == "script"
        self.scripts += [""] if self._in_script else []
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


def test_no_word_breaks_the_page_and_it_loads_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "out", [make_row(0, prompt=WICKED), make_row(1, prompt="b")])
    write_page(folder, Gallery.read(folder))
    text = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert (len(page.scripts), page.loads) == (2, [])
    assert "://" not in text
    assert "innerHTML" not in text
    data = json.loads(page.scripts[0])
    assert data["axes"][0] == ["prompt", [WICKED, "b"]]
    assert data["shots"][1] == ["pictures/0001.png", f"references/{'ab' * 10}.jpg", "influence 0.25", [1]]


CLICKS = """
const all = selector => [...document.querySelectorAll(selector)], said = [];
const say = (...words) => said.push(words.join(" "));
addEventListener("load", () => setTimeout(() => {
  say("cells", all(".shot").length, "drawn", all(".shot img").filter(one => one.naturalWidth === 16).length);
  say("heads", all(".head").map(one => one.textContent).join());
  say("errors", all(".error").map(one => one.textContent.length).join());
  all(".shot")[0].dispatchEvent(new MouseEvent("mousemove", {clientX: 9, clientY: 9}));
  say("tip", document.querySelector("#tip").hidden, document.querySelector("#tip dd").textContent);
  all(".pick")[0].click();
  all(".pick")[1].click();
  say("pair", document.querySelector("dialog").open, all("figure").length, all("figure .differs").length);
  document.querySelector("figure > div").click();
  say("zoomed", document.querySelector("#pair").className);
  document.querySelector("#close").click();
  all(".axis button")[0].click();
  say("filtered", document.querySelector("#count").textContent);
  document.querySelector("#columns").value = "none";
  document.querySelector("#columns").onchange();
  say("flow", all(".head").length, all(".shot").length);
  all(".shot > button")[0].click();
  document.querySelector("#beside").click();
  dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
  say("turned", all("figure img")[0].getAttribute("src"), document.title);
  document.body.textContent = "SAID " + said.join("; ") + " END";
}, 1000));  // lazy pictures come later
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_page_works_in_a_browser(tmp_path: Path) -> None:
    folder = make_grid(tmp_path / "out")
    write_page(folder, Gallery.read(folder))
    text = (folder / "index.html").read_text(encoding="utf-8")
    (folder / "tried.html").write_text(text.replace("</body>", f"<script>{CLICKS}</script></body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [str(BROWSER), *options, "--virtual-time-budget=5000", "--dump-dom", (folder / "tried.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r"SAID (.*) END", done.stdout)
    assert found is not None, done.stderr[-2000:]
    assert found[1].split("; ") == [
        "cells 12 drawn 11",
        "heads alpha 0,alpha 0.3,alpha 0.7",
        f"errors {len(WICKED)}",
        "tip false 0",
        "pair true 2 2",
        "zoomed zoomed",
        "filtered 8 of 12 shown",
        "flow 0 8",
        "turned pictures/0002.png a circle",
    ]
