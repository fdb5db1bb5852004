"""Words for the terminal: escaped, in its encoding, as lines for people or as one JSON object for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, cast

import typer

from zimage_vl.workflows.errors import is_out_of_memory


_MOST_ITEMS, _LONGEST_GROUP = 8, 100  # of a list, and characters of a line, for people; JSON has it all


class OutputFormat(str, Enum):
    """How a command prints its result."""

    TEXT = "text"
    JSON = "json"


FormatOption = Annotated[
    OutputFormat,
    typer.Option("--format", metavar="CHOICE", help="text for people, json for programs: one object on stdout."),
]


def escape(text: str) -> str:
    r"""Get a text that is safe to show: what moves a terminal's cursor, or is no Unicode, as `\x1b` or `\udcff`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str, err: bool = False) -> None:
    """Print a line, escaped, in the terminal's encoding whatever that is."""
    stream = sys.stderr if err else sys.stdout  # None where the caller closed it, and then nothing is shown
    encoding = getattr(stream, "encoding", None) or "utf-8"
    typer.echo(escape(text).encode(encoding, "backslashreplace").decode(encoding), err=err)


def note(text: str) -> None:
    """Print a remark for the person, on stderr, so that stdout stays the result."""
    say(text, err=True)


def print_json(value: object) -> None:
    """Print one JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2))


def print_facts(facts: Mapping[str, Any], output_format: OutputFormat) -> None:
    """Print plain values by name, as JSON or a fact per line."""
    if output_format is OutputFormat.JSON:
        print_json(facts)
        return
    for line in fact_lines(facts):
        say(line)


def fact_lines(facts: Mapping[str, Any], indent: int = 0) -> Iterator[str]:
    """Get the lines of plain values by name: a short group is one line, what is in a longer one is indented."""
    for name, value in facts.items():
        if isinstance(value, list) and len(cast("list[Any]", value)) == 1:
            (value,) = cast("list[Any]", value)
        head, words = f"{' ' * indent}{name.replace('_', ' '):<{17 - indent}}", _in_words(value)
        if isinstance(value, Mapping) and len(words) > _LONGEST_GROUP:
            yield head.rstrip()
            yield from fact_lines(cast("Mapping[str, Any]", value), indent + 2)
        elif value is not None:
            yield f"{head} {words}"


def one_line(error: BaseException) -> str:
    """Get an error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def is_mendable(error: BaseException) -> bool:
    """Check that something in the call or around it has to change, and nothing in the code.

    Bad input, files and networks, what does not exist yet, too little memory.
    """
    return isinstance(error, (ValueError, OSError, NotImplementedError)) or is_out_of_memory(error)


def count_of(count: int, thing: str) -> str:
    """Get a number of things in words, as "1 reference"."""
    return f"{count} {thing}{'s' * (count != 1)}"


def _in_words(value: Any, between: str = ", ") -> str:
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        words = between.join(f"{key.replace('_', ' ')} {_in_words(item)}" for key, item in items if item is not None)
        return words or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        values = cast("Sequence[Any]", value)
        words = ", ".join(_in_words(item, " ") for item in values[:_MOST_ITEMS])
        return f"{words or 'none'}{f' and {len(values) - _MOST_ITEMS} more' if len(values) > _MOST_ITEMS else ''}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value) or "''"
