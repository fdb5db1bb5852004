"""What of a docstring goes into the single file."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Collection, Iterator


Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
# A formula is a code span with an operator that has spaces around it.
_FORMULA = re.compile(r"`[^`]* (?:=|[-+*/·^]) [^`]*`")
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)\.(?=\s|$)")
_SECTION = re.compile(r"^(?:Args|Attributes|Example|Examples|Note|Raises|Returns|Yields):$", re.MULTILINE)
_EXAMPLES = re.compile(r"\n*^Examples?:\n(?:[ \t]+.*\n?|\n)*", re.MULTILINE)


def first_sentence(docstring: str) -> str:
    """Get the first sentence of a docstring, on one line."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    end = _SENTENCE_END.search(paragraph)
    return paragraph[: end.end()] if end else paragraph


def shorten_docstrings(tree: ast.Module, public: Collection[str]) -> dict[tuple[int, int], str]:
    """Get the docstrings of a module that are shorter in the single file.

    Args:
        tree: The module.
        public: Names at its top whose docstrings, and those of their public methods, lose their examples alone. All
            others keep their first sentence and the sentences with a formula.

    Returns:
        First and last line (from 1) of each such docstring, to what takes their place.
    """
    shortened: dict[tuple[int, int], str] = {}
    for node, is_public in _walk(tree.body, public, False):
        docstring = ast.get_docstring(node)
        if docstring is None:
            continue
        statement = node.body[0]
        indent = statement.col_offset
        kept = _drop_examples(docstring) if is_public else _keep_summary(docstring, 119 - indent)
        if kept != docstring:
            shortened[statement.lineno, statement.end_lineno or statement.lineno] = _write(kept, indent)
    return shortened


def _walk(body: list[ast.stmt], public: Collection[str] | None, in_public: bool) -> Iterator[tuple[Documented, bool]]:
    """Every class and function, and if it is public: at the top by `public`, in a class by its own name."""
    for node in body:
        if isinstance(node, Documented):
            own_name = not node.name.startswith("_") or node.name in ("__init__", "__call__")
            is_public = node.name in public if public is not None else in_public and own_name
            yield node, is_public
            yield from _walk(node.body, None, is_public and isinstance(node, ast.ClassDef))
        elif inner := getattr(node, "body", None):  # a function under an `if` or a `with`
            yield from _walk(inner, public, in_public)


def _drop_examples(docstring: str) -> str:
    return _EXAMPLES.sub("\n\n", docstring).strip()


def _keep_summary(docstring: str, width: int) -> str:
    """The first sentence, and those before the sections that have a formula."""
    prose = _SECTION.split(docstring)[0]
    summary = first_sentence(prose)
    rest = " ".join(prose.split())[len(summary) :]
    formulas = [part.strip() for part in re.split(r"(?<=[.:])\s+(?=[A-Z`])", rest) if _FORMULA.search(part)]
    paragraphs = [textwrap.fill(summary, width - 6), textwrap.fill(" ".join(formulas), width)]
    return "\n\n".join(paragraphs).strip()


def _write(docstring: str, indent: int) -> str:
    start = 'r"""' if "\\" in docstring else '"""'
    end = "\n" if "\n" in docstring else ""
    return textwrap.indent(f'{start}{docstring}{end}"""', " " * indent)
