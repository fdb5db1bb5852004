"""`zimage-vl app`: a page in the browser on which a reference, a prompt and alpha can be played with.

The frame of the command line is `app.py`.
"""

from __future__ import annotations

import html
import importlib
import os
import secrets
import shlex
import signal
import socket
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from zimage_vl.blend.registry import KNOBS
from zimage_vl.recipes import RECIPES

from ._models import Model
from ._options import OffloadOption, option, with_options
from ._parsing import parse_size
from ._records import as_options, write_png
from ._terminal import is_mendable, one_line, say


# What --take takes, as the page puts it; the first is no recipe.
TAKES = {
    "everything": "Everything that the prompt leaves open",
    "colours": "Colours; the prompt's own words stay as they are",
    "layout": "Layout: where things stand, without the colours. Weak",
    "style": "Style: how things are drawn; the colours come along",
    "variation": "Variation: the same again; the prompt says what it shows",
}
STRIP = (0.0, 0.15, 0.3, 0.5, 0.7, 1.0)
_HISTORY, _WAITING, _AN_HOUR = 24, 32, 3600
_ABOUT = "# zimage-vl\nZ-Image that follows a reference picture as well as a prompt."
_TOY = (
    " The toy paints. It knows only coloured shapes, such as *a striped red circle on the left on a white "
    "background*; for more, start with `--model Tongyi-MAI/Z-Image-Turbo`."
)
_SCENES = (
    "cross blue gray hollow bottom",
    "square red black plain left",
    "circle yellow brown dotted middle",
    "triangle green white striped right",
    "square purple white hollow top",
)
_ALPHA = "How much the reference counts: 0 is the prompt alone, 1 the reference alone."
_NOISE = "The same seed starts from the same noise. Empty: another one each time."
_ROW = "Alphas side by side: click one to take it"
_PAST = "Painted so far: click one to take its settings"
_CSS = """
.gradio-container { max-width: 1080px !important; margin: auto !important }
.toy img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated }
.takes label { width: 100% }
.pictures .grid-wrap { padding-top: 2.5em; height: auto !important; min-height: 0; max-height: none }
.pictures .grid-container { grid-template-columns: repeat(auto-fill, minmax(145px, 1fr)) !important }
.pictures .thumbnail-item { height: auto; aspect-ratio: auto; overflow: visible; border: none }
.pictures .thumbnail-item img { height: auto; aspect-ratio: 1; object-fit: contain }
.pictures .caption-label { position: static; max-width: none; border: none; white-space: normal }
"""
_MISSING = 'The page needs gradio, which is not installed: pip install "gradio>=6.31".'
_HOST = "Address to listen on. The default is this machine alone; 0.0.0.0: whoever can reach it can paint."
_PORT = "Port. Default: the first free one from 7860."
_SHARE = "Also a public address through Gradio's servers, for a week: whoever knows it can paint."
_SIZE = "WIDTHxHEIGHT in pixels, multiples of 16. Default: 1024x1024; 64x64 with toy."


@with_options()
def page(
    model: Model,
    host: Annotated[str, option("--host", "NAME", _HOST)] = "127.0.0.1",
    port: Annotated[int | None, option("--port", "INT", _PORT, min=1, max=65535)] = None,
    share: Annotated[bool, option("--share", None, _SHARE)] = False,
    steps: Annotated[
        int | None, option("--steps", "INT", "Denoising steps. Default: 9; 8 with toy.", min=1, max=10_000)
    ] = None,
    guidance: Annotated[float, option("--guidance", "NUMBER", "Scale; 0 is off, for Turbo.", min=0)] = 0.0,
    size: Annotated[str | None, option("--size", "WxH", _SIZE)] = None,
    offload: OffloadOption = "none",
) -> None:
    """Open a page in the browser: a reference, a prompt, alpha, what to take, and what came of it.

    Its address is printed; Ctrl-C or SIGTERM ends it. Visitors wait for each other in a queue, and each sees only what
    is theirs: it lies in a temporary folder for a day, or until the end. Needs gradio: pip install "gradio>=6.31".
    """
    load_gradio()
    from zimage_vl.blend.knobs import DEFAULT_LAYERS

    if offload != "none" and model.device == "cpu":
        raise ValueError(f"--offload {offload} needs an accelerator, and this is the CPU.")
    try:
        socket.create_server((host, port or 0)).close()
    except OSError as error:
        raise ValueError(f"--host {host} --port {port or '(any)'} cannot be had: {one_line(error)}.") from error
    side, usual_steps = model.defaults
    width, height = parse_size(size, None, None, side)
    call = {"width": width, "height": height, "num_inference_steps": steps or usual_steps, "guidance_scale": guidance}
    pipe = model.load()
    model.check_reader(pipe, "qwen3-vl", (DEFAULT_LAYERS["qwen3-vl"],))
    pipe = model.place(pipe, offload)
    pipe.set_progress_bar_config(disable=True)
    typed = {**model.describe(), "device": None, "steps": steps, "guidance": guidance or None, "size": size}
    typed |= dict.fromkeys(("model", "dtype")) if model.is_toy else {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="zimage-vl-") as folder:
        blocks = build_page(Studio(pipe, Path(folder), call, typed), model.is_toy)
        say(launch(blocks, host, port, share))
        try:
            while True:
                time.sleep(3600)
        finally:
            blocks.close(verbose=False)


def load_gradio() -> Any:
    """Get gradio, with its telemetry off; a ValueError where it is missing."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
    try:
        return importlib.import_module("gradio")
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError(_MISSING) from error


def choose_knobs(take: str, alpha: float) -> dict[str, Any]:
    """Get the arguments of a wish, with alpha at the places where the wish has its own."""
    recipe = RECIPES.get(take, {})
    usual = recipe.get("vl_alpha")
    return {**recipe, "vl_alpha": dict.fromkeys(usual, alpha) if isinstance(usual, Mapping) else alpha}


def get_usual_alpha(take: str) -> float:
    """Get the alpha that a wish has of its own, or the call's default."""
    usual = RECIPES.get(take, {}).get("vl_alpha", KNOBS["vl_alpha"].default)
    return float(max(usual.values()) if isinstance(usual, Mapping) else usual)


@dataclass(frozen=True)
class Painted:
    """A picture in its file, and how it was made."""

    reference: str | None  # the visitor's file
    prompt: str
    take: str
    alpha: float
    seed: int
    file: str
    report: str  # in Markdown
    command: str  # that paints the same

    @property
    def caption(self) -> str:
        """The settings in a line."""
        acting = [f"alpha {self.alpha:g}", self.take] if self.reference else ["no reference"]
        return ", ".join([*acting, f"seed {self.seed}", self.prompt])


@dataclass(frozen=True)
class Studio:
    """What the page paints with: the pipeline, a folder for the pictures, and what every call has in common."""

    pipe: Any
    folder: Path
    call: Mapping[str, Any]
    typed: Mapping[str, Any]  # options of `zimage-vl generate` for the same

    def paint(self, reference: str | None, prompt: str, take: str, alpha: float, seed: int | None) -> Painted:
        """Paint one picture; without a seed, with a random one. All that came is checked: programs send anything."""
        import torch

        from zimage_vl.reference.pictures import load_reference_image

        if type(prompt) is not str or not prompt.strip():
            raise ValueError("The prompt is empty: say what to paint.")
        if take not in tuple(TAKES):
            raise ValueError(f"What to take of the reference is one of {', '.join(TAKES)}, got {take!r:.80}.")
        if type(alpha) not in (int, float) or not 0 <= alpha <= 1:
            raise ValueError(f"Alpha is a number from 0 to 1, got {alpha!r:.80}.")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**32):
            raise ValueError(f"The seed is a whole number from 0 to {2**32 - 1}, or empty, got {seed!r:.80}.")
        seed = secrets.randbelow(2**32) if seed is None else seed
        knobs, typed = dict[str, Any](), list[str]()
        if reference is not None:
            file = self._find(reference)
            picture = load_reference_image(file.read_bytes(), f"The reference {file.name}")
            knobs = {"reference_image": picture, **choose_knobs(take, alpha)}
            typed = as_options({"reference_image": file.name, "vl_alpha": knobs["vl_alpha"]})
        # On the CPU on every machine: the same seed starts from the same noise.
        output = self.pipe(prompt, generator=[torch.Generator("cpu").manual_seed(seed)], **self.call, **knobs)
        given = {"prompt": prompt, "take": take if knobs and take in RECIPES else None, "seed": seed, **self.typed}
        options = [(f"--{name.replace('_', '-')}", str(value)) for name, value in given.items() if value is not None]
        command = " ".join(["zimage-vl generate", *map(shlex.join, options), *typed, "--output picture.png"])
        report = tell_report(alpha, output.conditioning, described=bool(knobs.get("vl_describe")))
        file = self.folder / secrets.token_hex(16) / "picture.png"
        file.parent.mkdir()
        write_png(output.images[0], file, {"command": command})
        return Painted(reference, prompt, take, alpha, seed, str(file), report, command)

    def _find(self, reference: str) -> Path:
        """A visitor's file: one in the page's folder, whatever the name says; of others not even that they exist."""
        with suppress(OSError, ValueError, TypeError):
            file = Path(os.path.realpath(reference))
            if file.is_relative_to(os.path.realpath(self.folder)) and file.is_file():
                return file
        raise ValueError("The reference is no longer here: choose or drop it again.")

    def paint_strip(self, reference: str | None, prompt: str, take: str, seed: int | None) -> Iterator[list[Painted]]:
        """Paint some alphas over one noise, with one reading of the reference; yield what there is after each."""
        if reference is None:
            raise ValueError("There is no reference to compare alphas of: choose or drop one.")
        strip, seed = list[Painted](), secrets.randbelow(2**32) if seed is None else seed
        for alpha in STRIP:
            strip.append(self.paint(reference, prompt, take, alpha, seed))
            yield [*strip]


def tell_report(alpha: float, reports: Any, described: bool) -> str:
    """Get in plain words, as Markdown, what a reference did."""
    from zimage_vl.blend.report import measure_dose

    if not reports:
        return "No reference: this is the prompt's own picture."
    if not (report := reports[0]).references:
        return "Alpha is 0: the reference was not read, and this is the prompt's own picture."
    effective, acted = measure_dose(report) or (0.0, 0)
    why = f"as the reference's embeddings are {'larger' if effective > alpha else 'smaller'} than the prompt's"
    why = "as was asked for" if abs(effective - alpha) < 0.02 else why
    told = [
        f"**Effective alpha {effective:.2f}**: what alpha {alpha:g} came to, {why}.",
        f"**Influence {report.influence:.2f}**: how far the prompt's embeddings turned; 0 is not at all.",
    ]
    if acted < report.text_tokens:
        told.append(f"It acted on {acted} of {report.text_tokens} tokens of the prompt and its template.")
    if described:
        told.append(f"The reference was put into words as *{html.escape(report.references[0].text)}*")
    return "  \n".join(told)


def launch(blocks: Any, host: str = "127.0.0.1", port: int | None = None, share: bool = False) -> str:
    """Serve a page in threads of this process; get its address."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    look = {"theme": load_gradio().themes.Default(primary_hue="blue", **fonts), "css": _CSS, "footer_links": []}
    at = {"server_name": host, "server_port": port, "share": share, "max_file_size": "50mb"}
    queued = blocks.queue(max_size=_WAITING, default_concurrency_limit=1)
    _, local, public = queued.launch(prevent_thread_lock=True, quiet=True, **at, **look)
    return public or local


def build_page(studio: Studio, is_toy: bool) -> Any:
    """Get the page as Gradio Blocks; what a visitor has painted is kept in the visitor's own session."""
    os.environ["GRADIO_TEMP_DIR"] = str(studio.folder)
    gr = load_gradio()
    examples = draw_examples(studio.folder) if is_toy else []
    pixels = ["toy"] if is_toy else []
    with gr.Blocks(title="zimage-vl", analytics_enabled=False, delete_cache=(_AN_HOUR, 24 * _AN_HOUR)) as blocks:
        gr.Markdown(_ABOUT + _TOY * is_toy)
        with gr.Row():
            with gr.Column():
                upload = {"sources": ["upload", "clipboard"], "buttons": ["fullscreen"], "elem_classes": pixels}
                shown = {"value": examples[0] if is_toy else None, "type": "filepath", "image_mode": None}
                reference = gr.Image(label="Reference", height=260, **shown, **upload)
                if is_toy:
                    gr.Examples(examples, reference, label="Pictures of the toy world")
                like = "a circle in the middle" if is_toy else "a lighthouse at dusk"
                prompt = gr.Textbox(like if is_toy else "", label="Prompt", placeholder=like, max_lines=6)
                choices = [(text, name) for name, text in TAKES.items()]
                take = gr.Radio(
                    choices, value=choices[0][1], label="What to take of the reference", elem_classes=["takes"]
                )
                usual = get_usual_alpha(choices[0][1])
                alpha = gr.Slider(0, 1, usual, step=0.05, label="Alpha", info=_ALPHA, buttons=[])
                seed = gr.Number(0, label="Seed", info=_NOISE, precision=0, minimum=0, maximum=2**32 - 1)
            with gr.Column():
                with gr.Row():
                    paint, compare = gr.Button("Paint", variant="primary"), gr.Button("Compare alphas")
                download = {"buttons": ["download", "fullscreen"], "elem_classes": pixels}
                picture = gr.Image(label="Picture", type="filepath", interactive=False, height=400, **download)
                report = gr.Markdown()
                command = gr.Textbox(
                    label="The same on the command line, in the reference's folder", buttons=["copy"], visible=False
                )
        row, past = (
            gr.Gallery(label=label, visible=False, allow_preview=False, buttons=[], elem_classes=["pictures", *pixels])
            for label in (_ROW, _PAST)
        )
        strip, history = gr.State([]), gr.State([])
        # The studio checks what came, and says what is wrong with it.
        unchecked = {"model_validate": staticmethod(_get_value)}  # gradio's own check ends with no word to the visitor
        reference.data_model = type("Unchecked", (reference.data_model,), unchecked)
        reference.preprocess = _get_path
        for one in (prompt, take, alpha, seed):
            one.preprocess = _get_value
        settings, result = [reference, prompt, take, alpha, seed], [picture, report, command]

        def show(one: Painted) -> list[Any]:
            return [one.file, one.report, gr.update(value=one.command, visible=True)]

        def on_paint(kept: list[Painted], *given: Any) -> list[Any]:
            with _errors_on_the_page(gr):
                kept = [studio.paint(*given), *kept][:_HISTORY]
            return [*show(kept[0]), kept, gr.update(value=[(one.file, one.caption) for one in kept], visible=True)]

        def on_compare(*given: Any) -> Iterator[list[Any]]:
            with _errors_on_the_page(gr):
                for kept in studio.paint_strip(*given):
                    yield [kept, gr.update(value=[(one.file, f"{one.alpha:g}") for one in kept], visible=True)]

        def on_click(kept: list[Painted], click: Any) -> list[Any]:
            one = kept[click.index]
            return [one.reference, one.prompt, one.take, one.alpha, one.seed, *show(one)]

        on_click.__annotations__["click"] = gr.SelectData  # by which gradio knows what to pass
        one_at_a_time = {"concurrency_id": "pipeline", "concurrency_limit": 1}
        aside = {"api_visibility": "private", "show_progress": "hidden"}
        painting = {"api_name": "paint", "show_progress_on": picture, **one_at_a_time}
        gr.on([paint.click, prompt.submit], on_paint, [history, *settings], [*result, history, past], **painting)
        compare.click(on_compare, [reference, prompt, take, seed], [strip, row], api_name="compare", **one_at_a_time)
        take.input(get_usual_alpha, take, alpha, **aside)
        row.select(on_click, strip, [*settings, *result], **aside)
        past.select(on_click, history, [*settings, *result], **aside)
    return blocks


def draw_examples(folder: Path) -> list[str]:
    """Draw some references of the toy world into files that are named as what they show."""
    from zimage_vl.toy.world import Scene, draw_scene

    scenes = [Scene(*words.split()) for words in _SCENES]
    files = [folder / f"{scene.caption()}.png" for scene in scenes]
    for scene, file in zip(scenes, files, strict=True):
        draw_scene(scene).save(file)
    return [str(file) for file in files]


def _get_path(given: Any) -> Any:
    return given.get("path") or "" if isinstance(given, dict) else given  # without one it is no reference of ours


def _get_value(given: Any, **_: Any) -> Any:
    return given


@contextmanager
def _errors_on_the_page(gr: Any) -> Generator[None]:
    """Within it, what a visitor can mend becomes a message on the page."""
    try:
        yield
    except Exception as error:
        if not is_mendable(error):
            raise
        message = html.escape(one_line(error).replace("`", ""), quote=False)
        raise gr.Error(message, print_exception=False) from error
