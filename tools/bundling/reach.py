"""What a file reaches outside of itself, by function: the network, the disk, the state of other classes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator


KINDS = ("Network", "Disk", "State of others")
# A name that begins with a dot is a method's alone.
_CALLS = {
    "Network": (
        *(".from_pretrained", ".load_config", "hf_hub_download", "snapshot_download", "cached_file", ".model_info"),
        *("requests.get", "requests.head", "requests.Session", "urlopen"),
    ),
    "Disk": (
        *("open", ".open", ".read_bytes", ".read_text", ".write_bytes", ".write_text", ".mkdir", ".unlink", ".rename"),
        *("os.replace", "safe_open", "save_file", "load_file", ".save_pretrained", ".save_config", "rmtree"),
        *("copyfile", "copytree", "NamedTemporaryFile", "TemporaryDirectory", "mkstemp", "mkdtemp"),
    ),
    "State of others": (
        *(".register_forward_hook", ".register_forward_pre_hook", "add_hook_to_module", "remove_hook_from_module"),
        *(".pre_forward", ".post_forward", ".offload"),
    ),
}


def find_reach(text: str) -> dict[str, set[str]]:
    """Get the functions that reach outside, as `function` or `Class.method`, by kind.

    Calls are told by their names. The state of others is an attribute set on anything but `self` and `cls`, which
    includes what these hold.
    """
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for name, function in _functions(ast.parse(text)):
        for node in ast.walk(function):
            for kind in KINDS:
                if _is_call(node, _CALLS[kind]) or (kind == "State of others" and _sets_foreign(node)):
                    found[kind].add(name)
    return found


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{getattr(part, 'name', '')}".rstrip("."), part) for part in node.body)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node
        else:
            yield "module", node


def _is_call(node: ast.AST, names: Iterable[str]) -> bool:
    if not isinstance(node, ast.Call) or "BytesIO(" in ast.unparse(node):  # reading from memory
        return False
    dotted = ast.unparse(node.func)
    return any(dotted == name or dotted.endswith(f".{name.lstrip('.')}") for name in names)


def _sets_foreign(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr", "object.__setattr__"):
        return ast.unparse(node.args[0]) not in ("self", "cls")
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
        if node.attr == "__annotations__":  # the joined file's own
            return False
        return ast.unparse(node.value) not in ("self", "cls")
    return False


def compare_with_map(note: str, text: str) -> list[str]:
    """Get a sentence for each function that the map of a file names wrongly or leaves out.

    Args:
        note: The map: paragraphs that each begin with one of `KINDS`, functions in backticks.
        text: The file.
    """
    sentences: list[str] = []
    for kind, names in find_reach(text).items():
        paragraphs = re.findall(rf"^{kind}\b.*?(?=^\S|\Z)", note, re.MULTILINE | re.DOTALL)
        named = set(re.findall(r"`([\w.]+)`", "".join(paragraphs)))
        sentences += [f"the map's {kind!r} leaves out `{name}`" for name in sorted(names - named)]
        sentences += [f"the map's {kind!r} names `{name}`, which does no such thing" for name in sorted(named - names)]
    return sentences
