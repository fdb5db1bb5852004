"""`zimage-vl app`: what the page paints, that visitors keep to themselves, and the page itself in a browser."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from browser import CHROMIUM, Browser
from cli_calls import call, read_png
from command_line import environment
from zimage_vl.cli.page import STRIP, TAKES, Studio, build_page, choose_knobs, get_usual_alpha, launch
from zimage_vl.recipes import RECIPES, WISHES
from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline


CALL = {"width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 0.0}
SCENES = {"blue.png": Scene("square", "blue", "black"), "green.png": Scene("triangle", "green", "gray", "striped")}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return Studio(pipe, tmp_path_factory.mktemp("pictures"), CALL, {"steps": 2})


@pytest.fixture(scope="module")
def address(studio: Studio) -> Generator[str]:
    pytest.importorskip("gradio", reason="no gradio here: `make test-app` brings it")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY"):
            patch.setenv(name, "")  # and forgotten afterwards
        blocks = build_page(studio, is_toy=True)
        yield launch(blocks)
        blocks.close(verbose=False)


@pytest.fixture
def folder(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, within the page's own, with references and what is none."""
    folder = studio.folder / tmp_path.name
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name, scene in SCENES.items():
        draw_scene(scene).save(name)
    Path("broken.png").write_bytes(b"no picture <b>at all</b>")
    return folder


def pixels(file: str | Path) -> Any:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def paint_alone(pipe: Any, prompt: str, seed: int, **knobs: Any) -> Any:
    return np.asarray(pipe(prompt, generator=torch.Generator().manual_seed(seed), **CALL, **knobs).images[0])


# ---- What is painted ----


def test_it_takes_what_take_takes_with_its_own_alpha() -> None:
    assert tuple(TAKES) == ("everything", *WISHES)
    for wish in WISHES:
        usual = {"vl_alpha": get_usual_alpha(wish)}
        assert choose_knobs(wish, get_usual_alpha(wish)) == usual | dict(RECIPES[wish])
    assert choose_knobs("colours", 0.25)["vl_alpha"] == {"prefix": 0.25}
    assert choose_knobs("everything", get_usual_alpha("everything")) == {"vl_alpha": 0.3}


@pytest.mark.parametrize("take", TAKES)
def test_a_picture_is_the_pipelines_own_and_the_commands(
    take: str, studio: Studio, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = studio.paint("blue.png", "it's a circle", take, 0.6, 7)
    expected = paint_alone(studio.pipe, "it's a circle", 7, reference_image="blue.png", **choose_knobs(take, 0.6))
    np.testing.assert_array_equal(pixels(one.file), expected)
    monkeypatch.setattr("zimage_vl.load_toy_pipeline", lambda: studio.pipe)
    done = call(capsys, *shlex.split(one.command)[1:])
    assert done.code == 0, done.err
    np.testing.assert_array_equal(pixels("picture.png"), expected)
    assert read_png(Path(one.file))[1] == {"command": one.command}
    assert ("put into words" in one.report) == (take == "variation")
    assert ("It acted on" in one.report) == (take in ("colours", "layout", "style"))


def test_without_a_reference_it_is_the_prompts_picture(studio: Studio) -> None:
    one = studio.paint(None, "a circle", "colours", 0.5, None)
    np.testing.assert_array_equal(pixels(one.file), paint_alone(studio.pipe, "a circle", one.seed))
    assert "--take" not in one.command
    assert one.caption == f"no reference, seed {one.seed}, a circle"
    assert studio.paint(None, "a circle", "colours", 0.5, None).seed != one.seed


def test_a_strip_reads_its_reference_once(studio: Studio, folder: Path) -> None:
    runs: list[int] = []
    hook = studio.pipe.vl_encoder.model.visual.register_forward_hook(lambda *_: runs.append(1))
    try:
        *_, strip = studio.paint_strip("green.png", "a cross", "style", 3)
    finally:
        hook.remove()
    assert (len(runs), [one.alpha for one in strip]) == (1, list(STRIP))
    np.testing.assert_array_equal(pixels(strip[0].file), paint_alone(studio.pipe, "a cross", 3))
    assert strip[0].report.startswith("Alpha is 0")
    np.testing.assert_array_equal(
        pixels(strip[3].file), pixels(studio.paint("green.png", "a cross", "style", 0.5, 3).file)
    )


def test_what_is_missing_or_broken_is_refused(studio: Studio, folder: Path) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        studio.paint("blue.png", " ", "everything", 0.3, 0)
    with pytest.raises(ValueError, match=r"The reference broken\.png.* is in none of the formats"):
        studio.paint("broken.png", "a circle", "everything", 0.3, 0)
    with pytest.raises(ValueError, match="no reference to compare"):
        next(studio.paint_strip(None, "a circle", "everything", 0))


def test_only_files_of_the_page_are_read(studio: Studio, folder: Path, tmp_path: Path) -> None:
    """Of all others a visitor is not even told whether they are there."""
    secret = tmp_path / "secret.png"
    draw_scene(SCENES["blue.png"]).save(secret)
    Path("link.png").symlink_to(secret)
    Path("loop.png").symlink_to("loop.png")
    up = os.path.relpath(secret)
    for name in ("gone.png", str(secret), up, "link.png", "loop.png", ".", "", "a\0b", "x" * 5000, os.devnull):
        with pytest.raises(ValueError, match=r"^The reference is no longer here: choose or drop it again\.$"):
            studio.paint(name, "a circle", "everything", 0.3, 0)


# What a program can send, and no hand on the page.
ODD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "The prompt is empty"),
    ({"prompt": ["a circle"]}, "The prompt is empty"),
    ({"take": None}, "is one of everything, colours"),
    ({"take": ["style"]}, "is one of everything, colours"),
    ({"alpha": "x"}, "Alpha is a number from 0 to 1"),
    ({"alpha": float("nan")}, "Alpha is a number from 0 to 1"),
    ({"alpha": True}, "Alpha is a number from 0 to 1"),
    ({"alpha": 1.1}, "Alpha is a number from 0 to 1"),
    ({"seed": "x"}, "The seed is a whole number"),
    ({"seed": 1.5}, "The seed is a whole number"),
    ({"seed": -1}, "The seed is a whole number"),
]


@pytest.mark.parametrize(("odd", "reason"), ODD)
def test_values_that_no_page_sends_are_refused(odd: dict[str, Any], reason: str, studio: Studio) -> None:
    usual: dict[str, Any] = {"reference": None, "prompt": "a circle", "take": "style", "alpha": 0.3, "seed": 0}
    with pytest.raises(ValueError, match=reason):
        studio.paint(**usual | odd)


# ---- The command ----


def test_a_missing_gradio_is_one_line(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    call(capsys, "app").refused('pip install "gradio>=6.31"')


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--port {taken}", "--host 127.0.0.1 --port {taken} cannot be had"),
        ("--host no.such.host.invalid", "--host no.such.host.invalid"),
        ("--size 63x64", "--size must be multiples of 16"),
        ("--device cpu --offload model", "--offload model needs an accelerator"),
    ],
)
def test_what_can_be_known_before_is_refused(options: str, reason: str, capsys: Any) -> None:
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        call(capsys, "app", *options.format(taken=taken).split()).refused(reason.format(taken=taken))


@pytest.mark.skipif(os.name != "posix", reason="signals are posix's")
def test_a_termination_leaves_no_folder(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "zimage_vl", "app"]
    with subprocess.Popen(command, env=environment(TMPDIR=str(tmp_path)), stdout=subprocess.PIPE, text=True) as page:
        assert page.stdout is not None
        assert page.stdout.readline().startswith("http")
        assert list(tmp_path.glob("zimage-vl-*"))
        page.terminate()
        assert page.wait(60) == 130
    assert not list(tmp_path.glob("zimage-vl-*"))


# ---- Visitors ----


def test_a_program_gets_our_refusals_and_no_file(address: str, folder: Path, tmp_path: Path, capfd: Any) -> None:
    """A reference without gradio's mark is one that gradio itself does not look at."""
    draw_scene(SCENES["blue.png"]).save(tmp_path / "secret.png")

    def ask(*given: Any) -> str:
        body, url = json.dumps({"data": given}).encode(), f"{address}gradio_api/call/paint"
        with urlopen(Request(url, body, {"Content-Type": "application/json"})) as answer:
            event = json.load(answer)["event_id"]
        with urlopen(f"{url}/{event}") as answer:
            return answer.read().decode()

    for name in ("secret.png", "gone.png"):
        answer = ask({"path": str(tmp_path / name)}, "a circle", "everything", 0.9, 0)
        assert "The reference is no longer here: choose or drop it again." in answer
    for odd in ("gone.png", 5, [], [1], {}, {"path": 5}, {"path": []}, {"url": "x"}, {"path": "\0"}, True):
        assert "The reference is no longer here: choose or drop it again." in ask(odd, "a circle", "style", 0.3, 0)
    usual = {"prompt": "a circle", "take": "style", "alpha": 0.3, "seed": 0}
    for odd, reason in ODD:
        assert reason in ask(None, *{**usual, **odd}.values())
    assert "Traceback" not in capfd.readouterr().err


def test_two_visitors_at_once_get_their_own_pictures(address: str, studio: Studio, folder: Path) -> None:
    from gradio_client import Client, handle_file

    wishes = [("blue.png", "a circle", "everything", 0.5, 1), ("green.png", "a cross", "colours", 1.0, 2)]
    expected = [
        paint_alone(studio.pipe, prompt, seed, reference_image=name, **choose_knobs(take, alpha))
        for name, prompt, take, alpha, seed in wishes
    ]
    clients = [
        Client(address, verbose=False, download_files=str(folder), httpx_kwargs={"timeout": 120}) for _ in wishes
    ]

    def visit(client: Client, wish: tuple[Any, ...]) -> list[Any]:
        name, *others = wish
        return [client.predict(handle_file(name), *others, api_name="/paint") for _ in range(2)]

    with ThreadPoolExecutor() as threads:
        visits = list(threads.map(visit, clients, wishes))
    for (first, second), picture, (_, prompt, *_) in zip(visits, expected, wishes, strict=True):
        np.testing.assert_array_equal(pixels(first[0]), picture)
        assert [len(answer[-1]["value"]) for answer in (first, second)] == [1, 2]
        for kept in second[-1]["value"]:  # the history, in which nothing is of the other one
            np.testing.assert_array_equal(pixels(kept["image"]), picture)
            assert kept["caption"].endswith(prompt)


# ---- In a browser ----


@pytest.fixture
def browser(tmp_path: Path) -> Generator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


def press(browser: Browser, label: str) -> None:
    browser.ask(f"[...document.querySelectorAll('button')].find(one => one.textContent.trim() == '{label}').click()")


def choose(browser: Browser, wish: str) -> None:
    browser.ask(f"document.querySelector('input[value={wish}]').click()")


CHOSEN = "document.querySelector('input[type=radio]:checked').value"
ALPHA = "document.querySelector('input[type=range]').value"
READY = "[...document.querySelectorAll('button')].some(one => one.textContent.trim() == 'Paint')"
ROWS = "[...document.querySelectorAll('.pictures')].map(row => row.querySelectorAll('img').length).join()"
TEXT = "document.body.innerText"


def test_the_page_is_clicked_through(address: str, studio: Studio, browser: Browser, folder: Path) -> None:
    browser.open(address, 1280, 900)
    browser.wait(READY)
    assert (browser.ask(CHOSEN), browser.ask(ALPHA)) == ("everything", "0.3")
    assert "The toy paints. It knows only coloured shapes" in browser.ask(TEXT)
    press(browser, "Paint")
    browser.wait(f"{ROWS} == '1'")
    assert "Effective alpha" in browser.ask(TEXT)
    assert "Influence" in browser.ask(TEXT)
    choose(browser, "colours")
    browser.wait(f"{ALPHA} == '1'")
    press(browser, "Paint")
    browser.wait(f"{ROWS} == '2'")
    assert "alpha 1, colours, seed 0, a circle in the middle" in browser.ask(TEXT)
    assert "It acted on" in browser.ask(TEXT)
    press(browser, "Compare alphas")
    browser.wait(f"{ROWS} == '{len(STRIP)},2'")
    browser.ask("document.querySelectorAll('.pictures')[0].querySelectorAll('button')[2].click()")
    browser.wait(f"{ALPHA} == '{STRIP[2]}'")
    assert browser.ask(CHOSEN) == "colours"
    browser.ask("document.querySelectorAll('.pictures')[1].querySelectorAll('button')[1].click()")
    browser.wait(f"{CHOSEN} == 'everything'")
    assert browser.ask(ALPHA) == "0.3"
    browser.upload("input[type=file]", [folder / "broken.png"])
    browser.wait("document.querySelector('img[src*=broken]')")
    press(browser, "Paint")
    browser.wait(f"{TEXT}.includes('The reference broken.png (24 bytes) is in none of the formats')")
    assert browser.ask(ROWS) == f"{len(STRIP)},2"
    # Another visitor, with a telephone.
    browser.open(address, 390, 844)
    browser.wait(f"document.readyState == 'complete' && {READY}")
    assert browser.ask(ROWS) == ""
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    assert browser.errors == []
    assert [one for one in browser.requests if not one.startswith((address, "data:", "blob:"))] == []
