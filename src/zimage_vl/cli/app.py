"""The frame of the command line: the list of commands, and how their errors end."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from zimage_vl._version import __version__

from ._options import PanelledCommand, name_options, option
from ._terminal import escape, is_mendable, note, one_line
from .demo import demo
from .env import env
from .evidence import evidence
from .extract import extract
from .generate import generate
from .inspect import inspect
from .page import page
from .recipes import recipes
from .statistics import statistics
from .sweep import merge, sweep


_MENDABLE = 2  # as for a wrong option: something in the call has to change
_DEBUG, _VERSION = "ZIMAGE_VL_DEBUG", "Print the version and stop."
_PACKAGE = str(Path(__file__).parents[1])


class _Commands(TyperGroup):
    """Ends errors that the user can mend as one clear line, in the words of the command line, without a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except UnicodeEncodeError as error:  # of a message about an argument that this terminal cannot show
            note(f"Error: {one_line(error)}")
            sys.exit(_MENDABLE)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["typed"] = list(args)
        if "--debug" in args:  # behind the command too
            args = ["--debug", *(word for word in args if word != "--debug")]
        with _safe_to_show():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _safe_to_show(), _told_as_notes(ctx.meta["typed"]):
                return super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output went away: not an error of ours
            raise
        except Exception as error:
            if ctx.params.get("debug") or not is_mendable(error):
                raise
            line = one_line(error)
            if isinstance(error, OSError) and error.strerror and error.filename:
                line = f"{error.filename}: {error.strerror}."
            note(f"Error: {name_options(line, ctx.meta['typed'])}")
            raise typer.Exit(_MENDABLE) from None


@contextmanager
def _safe_to_show() -> Generator[None]:
    """Within it, what the parser of the options complains about is escaped: it quotes what was typed."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and isinstance(message := getattr(error, "message", None), str):
            setattr(error, "message", escape(message))  # noqa: B010 - its class is typer's own or click's
        raise


@contextmanager
def _told_as_notes(typed: list[str]) -> Generator[None]:
    """Within it, the package's warnings are notes in the words of the command line."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(name_options(record.getMessage(), typed))

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if filename.startswith(_PACKAGE):
            note(name_options(str(message), typed))
        else:
            shown(message, category, filename, *rest)

    handler, logger = Notes(logging.WARNING), logging.getLogger("zimage_vl")
    with warnings.catch_warnings():
        shown, warnings.showwarning = warnings.showwarning, show
        logger.addHandler(handler)
        propagated, logger.propagate = logger.propagate, False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagated


app = typer.Typer(
    name="zimage-vl",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut long names off at 80 columns
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zimage-vl {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(  # pyright: ignore[reportUnusedFunction]
    debug: Annotated[bool, option("--debug", None, "Show the traceback of every error.", envvar=_DEBUG)] = False,
    version: Annotated[bool, option("--version", None, _VERSION, callback=_print_version, is_eager=True)] = False,
) -> None:
    """Let Z-Image follow a reference picture as well as a prompt, with no training."""


for command in (demo, generate, page, sweep, merge, recipes, extract, inspect, statistics, evidence, env):
    app.command("app" if command is page else command.__name__, cls=PanelledCommand)(command)
