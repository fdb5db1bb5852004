"""Reading a package's modules and finding the order in which they can stand in one file."""

from __future__ import annotations

import ast
import builtins
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


class BundleError(ValueError):
    """The modules cannot be joined into one file."""


# (module, name): what an import binds; name None is the module itself.
ImportTarget = tuple[str, str | None]


@dataclass
class Module:
    """One module of the package, taken apart.

    Attributes:
        name: Its name without the package's, such as `blend.mix`.
        source: Its text.
        docstring: Its docstring, or "".
        has_future_annotations: Whether it begins with `from __future__ import annotations`.
        needs: Modules of the package that must stand before it.
        taken: What it imports from these, by name.
        typed_needs: Modules of the package that it imports for type checkers alone.
        imports: What its imports from outside bind, by the name they bind.
        typing_imports: The same for imports under `if TYPE_CHECKING:`.
        names: All names it binds itself at module level, with their lines.
        dropped: Line ranges (from 1, both ends included) that do not go into the joined file.
    """

    name: str
    source: str
    docstring: str = ""
    has_future_annotations: bool = False
    needs: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    typed_needs: list[str] = field(default_factory=list)
    imports: dict[str, ImportTarget] = field(default_factory=dict)
    typing_imports: dict[str, ImportTarget] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    dropped: list[tuple[int, int]] = field(default_factory=list)

    def fail(self, node: ast.AST, message: str) -> BundleError:
        return BundleError(f"{self.file}, line {getattr(node, 'lineno', 1)}: {message}")

    @property
    def file(self) -> str:
        """Its path within the package."""
        return f"{self.name.replace('.', '/')}.py"


def collect_modules(package: Path, entry: str) -> list[Module]:
    """The entry and all that it imports from the package, each after those it needs; the entry is last.

    Functions that nothing in them uses are dropped: whoever reads the joined file need not read those.

    Args:
        package: Folder of the package.
        entry: Name of the module to begin with.

    Raises:
        BundleError: A module cannot be joined, or modules import each other in a circle.
    """
    done: dict[str, Module] = {}
    _visit(package, entry, done, ())
    for module in done.values():
        for name in module.typed_needs:
            if name not in done:
                raise BundleError(f"{module.file} imports {name} for type checkers, and nothing else does.")
    modules = list(done.values())
    _check_names(modules)
    _drop_unused(modules)
    return modules


def _visit(package: Path, name: str, done: dict[str, Module], path: tuple[str, ...]) -> None:
    if name in path:
        raise BundleError(f"modules import each other in a circle: {' -> '.join([*path, name])}.")
    if name in done:
        return
    file = package.joinpath(*name.split(".")).with_suffix(".py")
    if not file.is_file():
        raise BundleError(f"{' -> '.join([*path, name])}: there is no module {file}.")
    module = read_module(name, file.read_text(encoding="utf-8"), package.name)
    for needed in module.needs:
        _visit(package, needed, done, (*path, name))
    done[name] = module


def read_module(name: str, source: str, package: str) -> Module:
    """Takes a module apart.

    Args:
        name: Its name.
        source: Its text.
        package: The package's name, which it must not import.

    Raises:
        BundleError: It does what a part of a joined file cannot do.
    """
    module = Module(name, source)
    tree = ast.parse(source)
    module.docstring = ast.get_docstring(tree) or ""
    for node in tree.body:
        if node is tree.body[0] and module.docstring:
            _drop(module, node, tree.body)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            _read_import(module, node, module.imports, module.needs, package)
            _drop(module, node, tree.body)
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            _read_typing_block(module, node, package)
            _drop(module, node, tree.body)
        elif "__all__" in _bound_names(node):
            _drop(module, node, tree.body)
        else:
            for bound in _bound_names(node):
                module.names.setdefault(bound, node.lineno)
            _refuse_inner_imports(module, node, package)
    if module.imports.get("TYPE_CHECKING") == ("typing", "TYPE_CHECKING"):
        del module.imports["TYPE_CHECKING"]
    return module


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _read_typing_block(module: Module, block: ast.If, package: str) -> None:
    if block.orelse:
        raise module.fail(block, "an `else` of `if TYPE_CHECKING:` is not supported.")
    for node in block.body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            raise module.fail(node, "only imports may stand under `if TYPE_CHECKING:`.")
        _read_import(module, node, module.typing_imports, module.typed_needs, package)


def _read_import(
    module: Module,
    node: ast.Import | ast.ImportFrom,
    targets: dict[str, ImportTarget],
    needs: list[str],
    package: str,
) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            _refuse_package(module, node, alias.name, package)
            # `import a.b` binds a, and loads a.b too: the joined file must keep the whole of it.
            _bind_import(module, node, targets, alias.asname or alias.name, (alias.name, None))
    elif node.level:
        _read_relative_import(module, node, needs)
    elif node.module == "__future__":
        if [alias.name for alias in node.names] != ["annotations"]:
            raise module.fail(node, "of __future__, only annotations can be shared by a joined file.")
        module.has_future_annotations = True
    else:
        assert node.module is not None
        _refuse_package(module, node, node.module, package)
        for alias in node.names:
            if alias.name == "*":
                raise module.fail(node, "`import *` hides which names it binds.")
            _bind_import(module, node, targets, alias.asname or alias.name, (node.module, alias.name))


def _read_relative_import(module: Module, node: ast.ImportFrom, needs: list[str]) -> None:
    rooms = module.name.split(".")
    if not node.module or node.level > len(rooms):
        raise module.fail(node, f"`{ast.unparse(node)}`: write `from .module import name`, within the package.")
    for alias in node.names:
        if alias.asname not in (None, alias.name):
            raise module.fail(node, f"`{alias.name} as {alias.asname}`: in one file a name has no second one.")
        if alias.name == "*":
            raise module.fail(node, "`import *` hides which names it binds.")
        module.taken.append(alias.name)
    needed = ".".join([*rooms[: -node.level], node.module])
    if needed not in needs:
        needs.append(needed)


def _refuse_package(module: Module, node: ast.AST, imported: str, package: str) -> None:
    if imported.split(".")[0] == package:
        raise module.fail(node, f"`import {imported}`: it must not import the package by name; import relatively.")


def _bind_import(
    module: Module, node: ast.AST, targets: dict[str, ImportTarget], name: str, target: ImportTarget
) -> None:
    if targets.get(name, target) != target:
        raise module.fail(node, f"{name!r} is imported twice, from different places.")
    targets[name] = target


def _refuse_inner_imports(module: Module, statement: ast.stmt, package: str) -> None:
    for node in ast.walk(statement):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise module.fail(node, f"`{ast.unparse(node)}` must stand at the top of the module.")
        if isinstance(node, ast.ImportFrom):
            _refuse_package(module, node, node.module or "", package)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                _refuse_package(module, node, alias.name, package)
        elif isinstance(node, ast.Name) and node.id in ("__package__", "__spec__", "__path__"):
            raise module.fail(node, f"{node.id} means something else in a joined file.")


def _bound_names(node: ast.AST) -> list[str]:
    """The names that a statement binds in its own scope."""
    return list(dict.fromkeys(_walk_bound(node)))


def _walk_bound(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
        return
    if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        return  # scopes of their own
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    if isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        for alias in node.names:
            yield alias.asname or alias.name.split(".")[0]
    for child in ast.iter_child_nodes(node):
        yield from _walk_bound(child)


def _drop(module: Module, node: ast.stmt, body: list[ast.stmt]) -> None:
    """Leaves a statement out, with the comment lines right above it (they are about it)."""
    first, last = node.lineno, node.end_lineno or node.lineno
    for other in body:
        if other is not node and not (other.lineno > last or (other.end_lineno or other.lineno) < first):
            raise module.fail(node, "two statements share a line.")
    lines = module.source.splitlines()
    if module.names or module.dropped:  # at the very top a comment is about the file
        while first > 1 and re.match(r"#", lines[first - 2]):
            first -= 1
    module.dropped.append((first, last))


def _drop_unused(modules: list[Module]) -> None:
    """Leaves out the functions whose names stand nowhere but in themselves, and then those that only they used."""
    bodies = [(module, ast.parse(module.source).body) for module in modules]
    left = [(module, node, body) for module, body in bodies for node in body]
    while True:
        names = [{name.id for name in ast.walk(node) if isinstance(name, ast.Name)} for _, node, _ in left]
        uses = Counter(name for own in names for name in own)
        unused = [
            one
            for one, own in zip(left, names, strict=True)
            if isinstance(one[1], ast.FunctionDef) and uses[one[1].name] == (one[1].name in own)
        ]
        if not unused:
            return
        for one in unused:
            _drop(*one)
            left.remove(one)


def _check_names(modules: list[Module]) -> None:
    """No name may mean two things in the joined file."""
    owners: dict[str, str] = {}
    for module in modules:
        for name, line in module.names.items():
            where = f"{module.file}, line {line}"
            if hasattr(builtins, name) and not (name.startswith("__") and name.endswith("__")):
                raise BundleError(f"{where}: {name!r} would replace Python's own in every other module; rename it.")
            if name in owners:
                raise BundleError(f"{where}: {name!r} is also bound in {owners[name]}; rename one of them.")
            owners[name] = where
    _check_imported_names(modules, owners)


def _check_imported_names(modules: list[Module], owners: dict[str, str]) -> None:
    targets: dict[str, tuple[ImportTarget, str]] = {}
    for module in modules:
        for bound, target in [*module.imports.items(), *module.typing_imports.items()]:
            name = bound.split(".")[0]
            if name != bound:
                target = (name, None)  # `import a.b` binds a
            if name in owners:
                raise BundleError(f"{module.file} imports {name!r}, bound in {owners[name]} too; rename it.")
            known, owner = targets.setdefault(name, (target, module.file))
            if known != target:
                raise BundleError(
                    f"{module.file} and {owner} import different things as {name!r}: {_spell(target)} and "
                    f"{_spell(known)}; import one of them under another name."
                )


def _spell(target: ImportTarget) -> str:
    module, name = target
    return f"`import {module}`" if name is None else f"`from {module} import {name}`"
