"""The tool that joins the package into one file: what it keeps, what it refuses, and that its output is fresh."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest


ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import build_pipeline  # noqa: E402
from bundling.joining import check_joined, join_modules, sources_digest  # noqa: E402
from bundling.modules import BundleError, collect_modules  # noqa: E402


INIT = '__all__ = ["TinyPipeline"]\n'
VERSION = '"""The version."""\n\n__version__ = "1.2.3"\n'
ENTRY = '''"""The pipeline."""

from __future__ import annotations

from diffusers import DiffusionPipeline

from .._version import __version__
from ..blend.tools import double
from .more import SINGLE_FILES


class TinyPipeline(DiffusionPipeline):
    """Doubles.

    Example:
        >>> from zimage_vl import TinyPipeline
        >>> TinyPipeline.answer
        42
    """

    answer = double(21)
    version = __version__
    files = SINGLE_FILES
'''
MORE = '"""More."""\n\nfrom pathlib import Path\n\n\nSINGLE_FILES = (\n    Path("elsewhere"),\n)\n'
TOOLS = '''"""Tools. And more of them."""

from __future__ import annotations

from math import floor


# Why it doubles.
def double(number: float) -> int:
    """Get it doubled.

    Args:
        number: To double.
    """
    return floor(2*number)  # rounded down
'''


def package(folder: Path, **modules: str) -> Path:
    """A package `zimage_vl` of two rooms with these modules: a small pipeline, and what it is made of."""
    root = folder / "zimage_vl"
    rooms = {"__init__": "", "_version": "", "entry": "pipeline", "more": "pipeline"}
    given = {"__init__": INIT, "_version": VERSION, "entry": ENTRY, "more": MORE, "tools": TOOLS}
    for name, source in {**given, **modules}.items():
        file = root / rooms.get(name, "blend") / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
    return root


def joined(folder: Path, **modules: str) -> str:
    return join_modules(collect_modules(package(folder, **modules), "pipeline.entry"), ["TinyPipeline"], "A note.")


def load(text: str, folder: Path) -> ModuleType:
    """The text as a module, loaded as diffusers loads it: registered before it runs."""
    module, file = ModuleType("joined_pipeline"), folder / "joined_pipeline.py"
    file.write_text(text, encoding="utf-8")
    module.__file__ = str(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        exec(compile(text, str(file), "exec"), module.__dict__)
    return module


def test_comments_and_order_are_kept_and_imports_are_one_block(tmp_path: Path) -> None:
    entry = ENTRY.replace('"""The pipeline."""', 'r"""A \\n that is no line break."""')
    typing = "from math import floor\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
    typing += "    from decimal import Decimal\n\n    from .._version import __version__\n"
    text = joined(tmp_path, entry=entry, tools=TOOLS.replace("from math import floor\n", typing))
    assert "# ---- blend/tools.py: Tools.\n\n\n# Why it doubles.\ndef double" in text
    assert "# rounded down" in text
    assert text.index("def double") < text.index("class TinyPipeline")
    tree = ast.parse(text)
    kinds = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body[1:]]
    assert kinds == sorted(kinds, reverse=True), "an import stands below other statements"
    assert ast.get_docstring(tree) == "A \\n that is no line break."
    assert "if TYPE_CHECKING:\n    from decimal import Decimal\n" in text
    assert not hasattr(load(text, tmp_path), "Decimal")


def test_functions_that_nothing_uses_are_left_out_with_what_only_they_use(tmp_path: Path) -> None:
    unused = "\n\n# Above it.\ndef _once(x):\n    return _once(x - 1)\n\n\ndef twice(x):\n    return _once(x)\n"
    text = joined(tmp_path, tools=TOOLS + unused)
    assert text == joined(tmp_path, tools=TOOLS).replace(
        sources_digest(collect_modules(package(tmp_path), "pipeline.entry")),
        sources_digest(collect_modules(package(tmp_path, tools=TOOLS + unused), "pipeline.entry")),
    )


def test_the_file_begins_with_where_it_is_from_and_a_digest_of_the_sources(tmp_path: Path) -> None:
    modules = collect_modules(package(tmp_path), "pipeline.entry")
    digest = sources_digest(modules)
    top = join_modules(modules, note="A note.").split('"""')[0]
    assert all(part in top for part in ("do not edit", "1.2.3", digest, "\n# A note.\n"))
    assert sources_digest(modules[::-1]) == digest
    modules[0].source += "# more\n"
    assert sources_digest(modules) != digest


REFUSED = {
    "a name bound twice": ({"tools": TOOLS + "\n_x = 1\n", "_version": VERSION + "_x = 2\n"}, "'_x' is also bound in"),
    "a builtin": ({"tools": TOOLS + "\n\ndef sorted(x): return x\n"}, "'sorted' would replace Python's own"),
    "an import against a name": ({"tools": TOOLS + "\nDiffusionPipeline = 1\n"}, "imports 'DiffusionPipeline'"),
    "two imports of one name": (
        {"_version": 'from operator import floordiv as floor\n__version__ = "1"\n'},
        "import different things as 'floor'",
    ),
    "an alias": ({"entry": ENTRY.replace("import double", "import double as twice")}, "no second one"),
    "a package import": ({"tools": TOOLS + "\nimport zimage_vl.entry\n"}, "must not import the package by name"),
    "a lazy import": ({"tools": TOOLS + "\n\ndef f():\n    from .entry import g\n"}, "at the top of the module"),
    "a whole module": ({"tools": TOOLS + "\nfrom ..pipeline import entry\n"}, "there is no module"),
    "a circle": (
        {"tools": TOOLS + "\nfrom ..pipeline.entry import TinyPipeline\n"},
        "in a circle: pipeline.entry -> blend.tools -> pipeline.entry",
    ),
    "a missing module": ({"tools": TOOLS + "\nfrom .nowhere import x\n"}, "there is no module"),
    "no pipeline": ({"entry": ENTRY.replace("(DiffusionPipeline)", "")}, "exactly one pipeline class"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_stand_in_one_file_is_refused(case: str, tmp_path: Path) -> None:
    modules, message = REFUSED[case]
    with pytest.raises(BundleError, match=re.escape(message)):
        joined(tmp_path, **modules)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("    from .regions import Region", "relative import"),
        ("import .regions", "relative import"),
        ("    >>> import zimage_vl", "imports zimage_vl"),
        ("    from nowhere import it", "'nowhere'"),
    ],
)
def test_lines_that_diffusers_takes_for_imports_are_refused_in_docstrings_too(line: str, message: str) -> None:
    text = "from diffusers import DiffusionPipeline\n\nclass TinyPipeline(DiffusionPipeline):\n    pass\n"
    check_joined(f'"""A file.\n\n  from time onwards import it\n"""\n{text}')
    with pytest.raises(BundleError, match=message):
        check_joined(f'"""A file.\n\n{line}\n"""\n{text}')


def target(folder: Path, note: str = "") -> build_pipeline.Target:
    (folder / "map.txt").write_text(note, encoding="utf-8")
    return build_pipeline.Target("pipeline.entry", folder / "out" / "pipeline.py", folder / "map.txt")


def test_the_output_is_formatted_and_check_tells_missing_stale_and_fresh(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, output = package(tmp_path), target(tmp_path).output

    def main(*arguments: str, note: str = "") -> int:
        return build_pipeline.main(arguments, root, [target(tmp_path, note)])

    assert main("--check") == 1
    assert "is missing: run `make bundle`" in capsys.readouterr().out
    assert not output.exists()
    assert main() == main("--check") == 0
    text = output.read_text(encoding="utf-8")
    assert "floor(2 * number)" in text
    assert text == build_pipeline.format_source(text)
    assert main("--check", note="Disk: `double`\n") == 1
    printed = capsys.readouterr().out
    assert f"{output} is stale" in printed
    assert "the map's 'Disk' names `double`, which does no such thing" in printed


def test_the_committed_files_are_what_the_sources_give_and_their_maps_are_true() -> None:
    assert build_pipeline.main(["--check"]) == 0


def test_the_committed_file_is_small_needs_nothing_of_the_package_and_begins_with_its_map() -> None:
    target, lines = build_pipeline.PIPELINE, 4930
    text = target.output.read_text(encoding="utf-8")
    check_joined(text)
    assert not re.search(r"importlib\.resources|pkgutil|__package__", text)
    assert len(text.splitlines()) <= lines
    assert len(text.encode("utf-8")) <= 52 * lines
    note = target.note.splitlines()
    assert len(note) <= 12
    assert [f"# {line}".rstrip() for line in note] == text.splitlines()[5 : 5 + len(note)]


def test_the_block_needs_the_pipeline_beside_it_and_refuses_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = build_pipeline.BLOCK.output
    text = block.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    assert "zimage_vl" not in text.replace("zimage_vl.toy", "")
    assert block.with_name("pipeline.py").read_bytes() == build_pipeline.PIPELINE.output.read_bytes()
    module = load(build_pipeline.PIPELINE.output.read_text(encoding="utf-8"), tmp_path)
    monkeypatch.setitem(sys.modules, "local", ModuleType("local"))
    monkeypatch.setitem(sys.modules, "local.pipeline", module)
    code, names = compile(text, "block.py", "exec"), {"__name__": "local.block", "__package__": "local"}
    exec(code, dict(names))
    monkeypatch.setattr(module, "SINGLE_FILE_DIGEST", "another")
    with pytest.raises(ImportError, match=r"pipeline.py is not the one that belongs to this file"):
        exec(code, dict(names))
