"""The tool that joins the package into one file: what it keeps, what it refuses, and that its output is fresh."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import build_pipeline  # noqa: E402
from bundling.joining import check_joined, join_modules, sources_digest  # noqa: E402
from bundling.modules import BundleError, collect_modules  # noqa: E402


HAS_RUFF = Path(sys.executable).with_name("ruff").exists() or shutil.which("ruff") is not None
needs_ruff = pytest.mark.skipif(not HAS_RUFF, reason="ruff formats the file, and is not installed here")

VERSION = '"""The version."""\n\n__version__ = "1.2.3"\n'
ENTRY = '''"""The pipeline."""

from __future__ import annotations

from diffusers import DiffusionPipeline

from ._version import __version__
from .tools import double


class TinyPipeline(DiffusionPipeline):
    """Doubles.

    Example:
        >>> from zimage_vl import TinyPipeline
        >>> TinyPipeline.answer
        42
    """

    answer = double(21)
    version = __version__
'''
TOOLS = '''"""Tools."""

from __future__ import annotations

from math import floor


# Why it doubles.
def double(number: float) -> int:
    return floor(2 * number)  # rounded down
'''


def package(folder: Path, **modules: str) -> Path:
    """A package `zimage_vl` with these modules beside the small pipeline above."""
    root = folder / "zimage_vl"
    root.mkdir()
    files = {"_version": VERSION, "entry": ENTRY, "tools": TOOLS, **modules}
    for name, source in files.items():
        (root / f"{name}.py").write_text(source, encoding="utf-8")
    return root


def joined(folder: Path, **modules: str) -> str:
    return join_modules(collect_modules(package(folder, **modules), "entry"))


def load(text: str, folder: Path) -> ModuleType:
    """The text as a module, loaded as diffusers loads it: registered before it runs."""
    file = folder / "joined_pipeline.py"
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("joined_pipeline", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["joined_pipeline"] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["joined_pipeline"]
    return module


def test_the_joined_file_does_what_the_package_does(tmp_path: Path) -> None:
    module = load(joined(tmp_path), tmp_path)
    assert module.TinyPipeline.answer == 42
    assert module.TinyPipeline.version == module.__version__ == "1.2.3"


def test_comments_and_order_are_kept_and_imports_are_one_block(tmp_path: Path) -> None:
    text = joined(tmp_path)
    assert "# Why it doubles.\ndef double" in text
    assert "# rounded down" in text
    assert text.index("def double") < text.index("class TinyPipeline")
    assert text.count("from __future__ import annotations") == 1
    tree = ast.parse(text)
    kinds = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body[1:]]
    assert kinds == sorted(kinds, reverse=True), "an import stands below other statements"
    assert ast.get_docstring(tree) == "The pipeline."


def test_the_banner_says_not_to_edit_and_names_the_sources(tmp_path: Path) -> None:
    modules = collect_modules(package(tmp_path), "entry")
    banner = join_modules(modules).split('"""')[0]
    assert "do not edit" in banner
    assert "1.2.3" in banner
    assert sources_digest(modules) in banner
    assert sources_digest(modules) == sources_digest(modules[::-1])


def test_the_digest_tells_every_change_of_the_sources(tmp_path: Path) -> None:
    root = package(tmp_path)
    before = sources_digest(collect_modules(root, "entry"))
    (root / "tools.py").write_text(TOOLS.replace("rounded", "Rounded"), encoding="utf-8")
    assert sources_digest(collect_modules(root, "entry")) != before


def test_examples_that_import_the_package_are_left_out_and_others_stay(tmp_path: Path) -> None:
    kept = TOOLS.replace(
        "    return floor",
        '    """Doubles.\n\n    Example:\n        >>> double(2)\n        4\n    """\n    return floor',
    )
    text = joined(tmp_path, tools=kept)
    assert ">>> double(2)" in text
    assert "zimage_vl import" not in text
    assert "Doubles." in text
    assert '"""\n\n    answer' in text


def test_a_docstring_with_backslashes_survives(tmp_path: Path) -> None:
    entry = ENTRY.replace('"""The pipeline."""', 'r"""A \\n that is no line break."""')
    assert ast.get_docstring(ast.parse(joined(tmp_path, entry=entry))) == "A \\n that is no line break."


def test_imports_for_type_checkers_stay_apart(tmp_path: Path) -> None:
    tools = TOOLS.replace(
        "from math import floor\n",
        "from math import floor\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
        "    from decimal import Decimal\n\n    from ._version import __version__\n",
    )
    text = joined(tmp_path, tools=tools.replace("number: float", "number: float | Decimal"))
    assert "if TYPE_CHECKING:\n    from decimal import Decimal\n" in text
    assert not hasattr(load(text, tmp_path), "Decimal")


def test_annotations_of_the_pipeline_are_classes_although_the_file_postpones_them(tmp_path: Path) -> None:
    entry = ENTRY.replace("from __future__ import annotations\n\n", "").replace(
        "    version = __version__\n",
        "    version = __version__\n\n    def __init__(self, size: int, name: str | None = None) -> None:\n"
        "        super().__init__()\n",
    )
    pipeline: Any = load(joined(tmp_path, entry=entry), tmp_path).TinyPipeline
    assert pipeline.__init__.__annotations__["size"] is int
    assert pipeline._get_signature_types()["size"] == (int,)


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
    "a deep import": ({"tools": TOOLS + "\nfrom ..a import b\n"}, "one level deep"),
    "a whole module": ({"tools": TOOLS + "\nfrom . import entry\n"}, "one level deep"),
    "a star": ({"tools": TOOLS + "\nfrom math import *\n"}, "hides which names"),
    "a circle": ({"tools": TOOLS + "\nfrom .entry import TinyPipeline\n"}, "in a circle: entry -> tools -> entry"),
    "a missing module": ({"tools": TOOLS + "\nfrom .nowhere import x\n"}, "there is no module"),
    "typing alone": (
        {"tools": TOOLS + "\nif TYPE_CHECKING:\n    from .other import y\n", "other": "y = 1\n"},
        "for type checkers",
    ),
    "package data": ({"tools": TOOLS + "\n\ndef f():\n    return __package__\n"}, "means something else"),
    "no pipeline": ({"entry": ENTRY.replace("(DiffusionPipeline)", "")}, "exactly one pipeline class"),
    "two pipelines": (
        {"entry": ENTRY + "\n\nclass OtherPipeline(DiffusionPipeline):\n    pass\n"},
        "exactly one pipeline class",
    ),
    "no version": ({"_version": "__version__ = str(1)\n"}, "no module binds __version__"),
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
        ("  from . import Region", "relative import"),
        ("import .regions", "relative import"),
        ("    >>> import zimage_vl", "imports zimage_vl"),
        ("  from time onwards import it", None),
        ("    from nowhere import it", "'nowhere'"),
    ],
)
def test_lines_that_diffusers_takes_for_imports_are_refused_in_docstrings_too(line: str, message: str | None) -> None:
    text = f'"""A file.\n\n{line}\n"""\nfrom diffusers import DiffusionPipeline\n\n'
    text += "class TinyPipeline(DiffusionPipeline):\n    pass\n"
    if message is None:
        check_joined(text)
    else:
        with pytest.raises(BundleError, match=message):
            check_joined(text)


@needs_ruff
def test_the_output_is_formatted_and_building_twice_gives_the_same(tmp_path: Path) -> None:
    root = package(tmp_path, tools=TOOLS.replace("2 * number", "2*number"))
    text = build_pipeline.build(root, "entry")
    assert "floor(2 * number)" in text
    assert text == build_pipeline.build(root, "entry") == build_pipeline.format_source(text)


@needs_ruff
def test_stale_and_missing_outputs_are_told_apart(tmp_path: Path) -> None:
    fresh, stale, missing = tmp_path / "fresh.py", tmp_path / "stale.py", tmp_path / "missing.py"
    fresh.write_text("a\n", encoding="utf-8")
    stale.write_text("b\n", encoding="utf-8")
    sentences = build_pipeline.stale_outputs("a\n", [fresh, stale, missing])
    assert len(sentences) == 2
    assert f"{stale} is stale" in sentences[0]
    assert f"{missing} is missing" in sentences[1]
    assert all("make bundle" in sentence for sentence in sentences)


@needs_ruff
def test_check_exits_with_1_and_a_sentence_when_the_file_is_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, output = package(tmp_path), tmp_path / "out" / "pipeline.py"

    def main(*arguments: str) -> int:
        return build_pipeline.main(arguments, root, "entry", [output])

    assert main("--check") == 1
    assert "is missing: run `make bundle`" in capsys.readouterr().out
    assert not output.exists()
    assert main() == main("--check") == 0
    (root / "tools.py").write_text(TOOLS.replace("2 *", "3 *"), encoding="utf-8")
    assert main("--check") == 1
    assert f"{output} is stale" in capsys.readouterr().out


def test_a_package_that_cannot_be_joined_ends_with_1_and_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = package(tmp_path, tools="import zimage_vl\n")
    assert build_pipeline.main([], root, "entry", [tmp_path / "pipeline.py"]) == 1
    assert "cannot be built: tools.py, line 1: `import zimage_vl`" in capsys.readouterr().err


@needs_ruff
def test_the_committed_files_are_what_the_sources_give() -> None:
    sentences = build_pipeline.stale_outputs(build_pipeline.build())
    assert not sentences, "\n".join(sentences)


def test_the_committed_files_name_the_digest_of_the_sources() -> None:
    digest = sources_digest(collect_modules(build_pipeline.PACKAGE, build_pipeline.ENTRY))
    for path in build_pipeline.OUTPUTS:
        text = path.read_text(encoding="utf-8")
        assert f"sha256 {digest}" in text, f"{path.name} is stale: run `make bundle`"
        assert f'SINGLE_FILE_DIGEST = "{digest}"' in text


def test_the_committed_file_defines_one_pipeline_and_needs_nothing_of_the_package() -> None:
    text = build_pipeline.OUTPUTS[0].read_text(encoding="utf-8")
    check_joined(text)
    assert not re.search(r"importlib\.resources|pkgutil|__package__", text)


def test_diffusers_own_readers_find_one_pipeline_and_nothing_relative(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline
    from diffusers.utils import dynamic_modules_utils as readers

    for path in build_pipeline.OUTPUTS:
        assert readers.get_relative_imports(path) == []
        assert readers.check_imports(path) == []
    text = build_pipeline.OUTPUTS[0].read_text(encoding="utf-8")
    module = load(text, tmp_path)
    ours = [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, DiffusionPipeline) and thing.__module__ == module.__name__
    ]
    assert ours == [module.ZImageVLPipeline]
    assert readers.find_pipeline_class(module) is module.ZImageVLPipeline


def test_the_committed_file_says_first_that_it_is_not_to_be_edited() -> None:
    for path in build_pipeline.OUTPUTS:
        assert "do not edit" in path.read_text(encoding="utf-8").split('"""')[0]
