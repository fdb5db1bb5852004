"""The frame of the command line: the list of commands, and how their errors end."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from zimage_vl._version import __version__

from .demo import demo
from .env import env
from .evidence import evidence
from .extract import extract
from .generate import generate
from .inspect import inspect
from .statistics import statistics


_INTERRUPTED = 130  # what shells report for Ctrl-C
_MENDABLE = 2  # as for a wrong option: something in the call has to change


class _Commands(TyperGroup):
    """Ends errors that the user can mend as one clear line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None
        except BrokenPipeError:  # the reader of our output went away: not an error of ours
            raise
        except Exception as error:
            if ctx.params.get("debug") or not _is_mendable(error):
                raise
            typer.echo(f"Error: {_error_line(error)}", err=True)
            raise typer.Exit(_MENDABLE) from None


def _is_mendable(error: Exception) -> bool:
    """Bad input, files and networks, settings that do not exist yet, too little memory."""
    # torch's own name, so that torch need not be imported to compare
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return out_of_memory or isinstance(error, (ValueError, OSError, NotImplementedError))


def _error_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__


app = typer.Typer(
    name="zimage-vl",
    cls=_Commands,
    help="Let Z-Image follow a reference picture as well as a prompt, with no training.",
    no_args_is_help=True,
    add_completion=False,
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
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="ZIMAGE_VL_DEBUG", help="Show the traceback of every error."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Let Z-Image follow a reference picture as well as a prompt, with no training."""


app.command("demo")(demo)
app.command("generate")(generate)
app.command("extract")(extract)
app.command("inspect")(inspect)
app.command("statistics")(statistics)
app.command("evidence")(evidence)
app.command("env")(env)


def main() -> None:
    """The `zimage-vl` console script.

    Exit codes: 0 done; 2 something in the call has to change (one line on stderr says what); 3 done but for some of
    many inputs, which stderr names; 1 any other failure, with its traceback; 130 interrupted.
    """
    try:
        app(prog_name="zimage-vl")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
