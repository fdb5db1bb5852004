#!/usr/bin/env python
"""Publish the pipeline and the block, their model card and notebook as one repository of the Hugging Face Hub.

    python tools/publish.py owner/name --source https://...            # a dry run: shows what would go, or is wrong
    python tools/publish.py owner/name --source https://... --upload   # one commit, then the tag v<version>

One repository, so that one revision pins both: diffusers takes pipeline.py of it as a custom pipeline, and block.py
because of modular_config.json. Needs a clean working tree and fresh files; --upload also a token that may write there
(`hf auth login`, or HF_TOKEN). Files of the repository that are not published from here are left alone. A tag is never
moved: publishing the same content twice does nothing, and other content needs another version.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parent))

import build_pipeline
from bundling.modules import BundleError
from model_card import fill_model_card, read_version


ROOT = Path(__file__).resolve().parent.parent
FOLDER, BLOCK_FOLDER = "pipelines/zimage_vl", "pipelines/zimage_vl_modular"
#: Name in the repository, and where it comes from. The pictures of the card are found in its text.
SOURCES = {
    "pipeline.py": f"{FOLDER}/pipeline.py",
    "block.py": f"{BLOCK_FOLDER}/block.py",
    "modular_config.json": f"{BLOCK_FOLDER}/modular_config.json",
    "README.md": f"{FOLDER}/README.md",
    "LICENSE": "LICENSE",
    "colab.ipynb": "examples/colab.ipynb",
}
FILLED = ("README.md", "colab.ipynb")
PACKAGE = "src/zimage_vl"
# What is larger was not meant to go.
MAX_BYTES = 5 * 2**20
_PICTURE = re.compile(r"!\[[^\]]*\]\((?!https?:)([^)\s]+)\)")


class PublishError(RuntimeError):
    """Publishing stopped; the message says what has and what has not been done."""


@dataclass(frozen=True)
class Plan:
    """What goes where.

    Attributes:
        repo: `owner/name`.
        version: The package's; the tag is `v` and this.
        files: Name in the repository to content.
        problems: What stands against it, a sentence each.
    """

    repo: str
    version: str
    files: dict[str, bytes]
    problems: tuple[str, ...]

    @property
    def tag(self) -> str:
        return f"v{self.version}"


def plan(repo: str, source: str, root: Path = ROOT) -> Plan:
    """Collects the files and all that stands against publishing them; asks nobody and changes nothing."""
    problems = check_repo(repo)
    named = not problems
    if not re.fullmatch(r"https://\S+", source):
        problems.append(f"SOURCE must be the https address of the project's repository, got {source!r}.")
    version = read_version(root / PACKAGE / "_version.py")
    files: dict[str, bytes] = {}
    for name, path in {**SOURCES, **card_pictures(root)}.items():
        if (root / path).is_file():
            files[name] = (root / path).read_bytes()
        else:
            problems.append(f"{path} is missing.")
    for name in [name for name in FILLED if named and name in files]:
        try:
            files[name] = fill_model_card(files[name].decode("utf-8"), repo, version, source, files).encode("utf-8")
        except ValueError as error:
            problems.append(f"{SOURCES[name]}: {error}")
    problems += check_files(files, repo, version) + check_bundle(root) + check_working_tree(root)
    return Plan(repo, version, files, tuple(problems))


def check_repo(repo: str) -> list[str]:
    """A sentence if this is no name of a repository."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not repo:
        return ["REPO is missing: make publish REPO=owner/name SOURCE=https://..."]
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo, re.ASCII):
        return [f"REPO must be owner/name, got {repo!r}."]
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        return [f"REPO is no name that the Hub takes: {error}"]
    return []


def card_pictures(root: Path) -> dict[str, str]:
    """Name in the repository to source, for each picture of the card that lies beside it."""
    card = root / SOURCES["README.md"]
    names = _PICTURE.findall(card.read_text(encoding="utf-8")) if card.is_file() else []
    return {name: f"{FOLDER}/{name}" for name in names}


def check_files(files: dict[str, bytes], repo: str, version: str) -> list[str]:
    """Sentences about files that are too large, broken, of another version, or linked by the card and missing."""
    problems = [
        f"{name} has {len(data)} bytes, more than {MAX_BYTES}: what goes is code, text and small pictures."
        for name, data in files.items()
        if len(data) > MAX_BYTES
    ]
    card = files.get("README.md", b"").decode("utf-8")
    linked = re.findall(rf"huggingface\.co/{re.escape(repo)}/(?:blob|resolve)/[^/\s]+/([^)\s\"]+)", card)
    problems += [f"The model card links to {name}, which is not uploaded." for name in linked if name not in files]
    try:
        notebook = json.dumps(json.loads(files.get("colab.ipynb", b"{}")))
    except ValueError as error:
        return [*problems, f"colab.ipynb is no notebook: {error}"]
    others = sorted(set(re.findall(r"zimage-vl==([\w.]+)", notebook)) - {version})
    problems += [f"colab.ipynb installs zimage-vl=={other}, but {version} is published." for other in others]
    return problems


def check_bundle(root: Path) -> list[str]:
    """Sentences about the joined files: they must be what the sources give."""
    found: list[str | None] = []
    for target in build_pipeline.TARGETS:
        output = root / target.output.relative_to(ROOT)
        try:
            found.append(build_pipeline.describe_staleness(build_pipeline.build(target, root / PACKAGE), output))
        except BundleError as error:
            return [f"{output.name} cannot be built: {error}"]
    return [sentence for sentence in found if sentence]


def check_working_tree(root: Path) -> list[str]:
    """A sentence if what lies here is not what is committed: nobody could tell later what was published."""
    done = _git(root, "status", "--porcelain")
    if done.returncode:
        return [f"The working tree cannot be compared with a commit: {done.stderr.strip()}"]
    lines = done.stdout.splitlines()
    if not lines:
        return []
    shown = ", ".join(line[3:] for line in lines[:5]) + (", ..." if len(lines) > 5 else "")
    return [f"The working tree has {len(lines)} uncommitted change(s): {shown}. Commit or remove them first."]


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)


# ---- The Hub ----


def upload(
    planned: Plan, api: Any, *, message: str, private: bool = False, say: Callable[[str], object] = print
) -> str:
    """Creates the repository if need be, commits the files at once, tags the commit, and reads it all back.

    Args:
        planned: A plan without problems.
        api: A `huggingface_hub.HfApi` with a token.
        message: First line of the commit.
        private: Whether a repository that is made now is private.
        say: Takes a line about each step.

    Returns:
        The id of the tagged commit.

    Raises:
        PublishError: The plan has problems, the token is refused, the tag stands on other content, or a step failed.
    """
    from huggingface_hub import CommitOperationAdd

    if planned.problems:
        raise PublishError("Nothing was uploaded. " + " ".join(planned.problems))
    nothing = "nothing was uploaded"
    with _step("asking whose token it is", nothing):
        say(f"Publishing as {api.whoami()['name']}.")
    with _step(f"reading the tags of {planned.repo}", nothing):
        tagged = find_tag(planned, api)
    if tagged is not None:
        with _step(f"reading the tag {planned.tag}", nothing):
            differing = differing_files(planned, api, tagged)
        if differing:
            raise PublishError(
                f"The tag {planned.tag} exists and has other content ({', '.join(differing)}); nothing was uploaded. "
                "A published version does not change: raise the version in src/zimage_vl/_version.py."
            )
        say(f"The tag {planned.tag} exists and has this content: there is nothing to do.")
        return tagged
    with _step(f"creating {planned.repo}", nothing):
        api.create_repo(planned.repo, exist_ok=True, **({"private": True} if private else {}))
    operations = [CommitOperationAdd(name, data) for name, data in planned.files.items()]
    with _step("uploading the files", "no commit was made"):
        commit = str(api.create_commit(planned.repo, operations, commit_message=message).oid)
    say(f"Committed {len(operations)} files as {commit}.")
    with _step(f"setting the tag {planned.tag}", f"the files are committed as {commit}; run it again for the tag"):
        api.create_tag(planned.repo, tag=planned.tag, revision=commit)
    with _step("reading it back", f"the files are committed as {commit} and tagged"):
        differing = differing_files(planned, api, planned.tag)
    if differing:
        raise PublishError(f"{planned.repo} at {planned.tag} is not what was sent: {', '.join(differing)}.")
    say(f"Tagged it {planned.tag}, and read it back: all files are there.")
    return commit


@contextmanager
def _step(doing: str, state: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the Hub's errors, and those of the network: both depend on huggingface_hub's version
        reason = str(error).strip() or type(error).__name__
        raise PublishError(f"It stopped at {doing}; {state}. {reason}") from error


def find_tag(planned: Plan, api: Any) -> str | None:
    """The commit that has the tag; None without it, or without the repository."""
    from huggingface_hub.utils import RepositoryNotFoundError

    try:
        tags = api.list_repo_refs(planned.repo).tags
    except RepositoryNotFoundError:
        return None
    return next((tag.target_commit for tag in tags if tag.name == planned.tag), None)


def differing_files(planned: Plan, api: Any, revision: str) -> list[str]:
    """The planned files that are missing at a revision or have other content there."""
    there = {entry.path: entry for entry in api.list_repo_tree(planned.repo, recursive=True, revision=revision)}
    return [name for name, data in planned.files.items() if not same_content(data, there.get(name))]


def same_content(data: bytes, entry: Any) -> bool:
    """Whether an entry of `list_repo_tree` has this content: by git's id, or by sha256 where it is stored apart."""
    if entry is None or not hasattr(entry, "blob_id"):
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == hashlib.sha256(data).hexdigest()
    return entry.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


# ---- The command ----


def describe(planned: Plan, endpoint: str) -> str:
    """What goes: target, tag, and size and sha256 of each file."""
    lines = [f"zimage-vl {planned.version} to {endpoint}/{planned.repo}, tag {planned.tag}:"]
    for name, data in sorted(planned.files.items()):
        lines.append(f"{len(data):>9}  {hashlib.sha256(data).hexdigest()}  {name}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Shows or publishes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo", nargs="?", default="", help="owner/name of the Hub repository; it is made if need be")
    parser.add_argument("--source", default="", help="https address of the project's repository, which the card names")
    parser.add_argument("--upload", action="store_true", help="publish; without it, only show what would go")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    options = parser.parse_args(arguments)
    from huggingface_hub import HfApi, constants, get_token

    planned = plan(options.repo, options.source, root)
    problems = list(planned.problems)
    if options.upload and not get_token():
        problems.append("There is no token of the Hub: run `hf auth login`, or set HF_TOKEN to one that may write.")
    print(describe(planned, constants.ENDPOINT), flush=True)
    if problems:
        print("\nNothing was uploaded:\n" + "\n".join(f"- {problem}" for problem in problems), file=sys.stderr)
        return 1
    if not options.upload:
        command = f"make publish REPO={options.repo} SOURCE={options.source}"
        print(f"\nA dry run: nothing was uploaded. To publish: {command}")
        return 0
    head = _git(root, "rev-parse", "--short=12", "HEAD").stdout.strip()
    try:
        upload(planned, HfApi(), message=f"zimage-vl {planned.version}, from {head}", private=options.private)
    except PublishError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
