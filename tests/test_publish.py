"""Publishing into a stand-in Hub: what goes, what is refused, and that it loads from there and paints the same."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline

from command_line import environment
from hub_uploads import TOKEN, UploadHub
from loading_processes import Worker, vl_repository
from loading_worker import paint
from modular_samples import HAS_MODULAR
from zimage_vl.toy import SIZE, Scene, draw_scene, load_toy_pipeline
from zimage_vl.toy.loading import CHECKPOINT


ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import publish  # noqa: E402
from model_card import fill_model_card, read_version  # noqa: E402


pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

HAS_RUFF = Path(sys.executable).with_name("ruff").exists() or shutil.which("ruff") is not None
needs_ruff = pytest.mark.skipif(not HAS_RUFF, reason="ruff formats the single file, and is not installed here")

REPO, SOURCE = "someone/zimage-vl", "https://example.com/zimage-vl"
VERSION = read_version()
TAG = f"v{VERSION}"
NOTEBOOK = ROOT / "examples" / "colab.ipynb"
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")


def commit_all(root: Path) -> None:
    for command in (("add", "--all"), ("commit", "--quiet", "--message", "A state")):
        subprocess.run([*GIT, *command], cwd=root, check=True, env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull})


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean commit of what publishing reads."""
    root = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "checkpoint")
    for folder in ("src", "tools", "pipelines"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    for name in ("LICENSE", "pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, root / name)
    (root / "examples").mkdir()
    notebook = NOTEBOOK.read_text("utf-8") if NOTEBOOK.exists() else '{"cells": ["{{REPO}} at v{{VERSION}}"]}'
    (root / "examples" / "colab.ipynb").write_text(notebook, encoding="utf-8")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    commit_all(root)
    return root


@pytest.fixture
def changed(checkout: Path, tmp_path: Path) -> Path:
    """A copy of the checkout that a test may spoil."""
    return Path(shutil.copytree(checkout, tmp_path / "changed"))


@pytest.fixture(scope="module")
def planned(checkout: Path) -> publish.Plan:
    planned = publish.plan(REPO, SOURCE, checkout)
    if HAS_RUFF:
        return planned
    return dataclasses.replace(planned, problems=tuple(p for p in planned.problems if "ruff is not" not in p))


@pytest.fixture
def hub() -> Generator[UploadHub]:
    with UploadHub(lfs=(".png",)) as stub:  # which files it stores apart, the Hub decides: pictures may well be
        yield stub


@pytest.fixture(autouse=True)
def on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", huggingface_hub.constants.ENDPOINT)  # `api` sets it


def api(hub: UploadHub, token: str = TOKEN) -> huggingface_hub.HfApi:
    # huggingface_hub before 1.0 reads the addresses of commits by this, whatever endpoint it was given.
    huggingface_hub.constants.ENDPOINT = hub.url
    return huggingface_hub.HfApi(endpoint=hub.url, token=token)


def run(root: Path, hub: UploadHub, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command as it is run in that checkout."""
    online = environment(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_HOME=str(root / "outputs"), NO_PROXY="127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        online.pop(name, None)
    online["HF_HUB_DISABLE_XET"] = "1"
    command = [sys.executable, "-W", "ignore", str(root / "tools" / "publish.py"), "--source", SOURCE, *arguments]
    return subprocess.run(command, env={**online, **variables}, capture_output=True, text=True, check=False)


def writes(hub: UploadHub) -> list[str]:
    return [path for method, path in hub.requests if method not in ("GET", "HEAD")]


# ---- What goes ----


def test_the_plan_is_both_folders_the_licence_and_the_notebook(planned: publish.Plan) -> None:
    assert planned.problems == ()
    assert planned.tag == TAG
    folders = ROOT / "pipelines" / "zimage_vl", ROOT / "pipelines" / "zimage_vl_modular"
    there = {path.name: path for folder in folders for path in folder.iterdir() if path.is_file()}
    assert set(planned.files) == {*there, "LICENSE", "colab.ipynb"}
    for name in set(there) - {"README.md"}:
        assert planned.files[name] == there[name].read_bytes()
    assert planned.files["LICENSE"] == (ROOT / "LICENSE").read_bytes()
    card = fill_model_card(there["README.md"].read_text(encoding="utf-8"), REPO, VERSION, SOURCE, planned.files)
    assert planned.files["README.md"] == card.encode()
    for name in ("pipeline.py", "block.py"):
        assert hashlib.sha256(planned.files[name]).hexdigest() in card
    assert f"#fileId=https://huggingface.co/{REPO}/blob/main/colab.ipynb" in card, "the badge opens the uploaded copy"
    assert b"{{REPO}}" not in planned.files["colab.ipynb"]


@needs_ruff
def test_the_command_names_all_and_asks_nobody_until_it_is_told_to_upload(
    checkout: Path, planned: publish.Plan, hub: UploadHub
) -> None:
    done = run(checkout, hub, REPO)
    assert done.returncode == 0, done.stderr
    for name, data in planned.files.items():
        assert f"{len(data)}  {hashlib.sha256(data).hexdigest()}  {name}" in done.stdout
    for part in (f"{hub.url}/{REPO}, tag {TAG}:", "nothing was uploaded", f"make publish REPO={REPO} SOURCE={SOURCE}"):
        assert part in done.stdout
    assert hub.requests == []
    done = run(checkout, hub, REPO, "--upload", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "Publishing as someone." in done.stdout
    assert f"Tagged it {TAG}" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    assert [re.sub("[0-9a-f]{12}$", "SHA", message) for message in hub.messages] == [f"zimage-vl {VERSION}, from SHA"]
    assert planned.files.items() <= (hub.find(REPO, TAG) or ("", {}))[1].items()


# ---- What is refused ----


MALFORMED = ["", "zimage-vl", "a/b/c", "https://huggingface.co/a/b", "-a/b", "a b/c", "ä/b"]
NOT_TAKEN = ["a/b--c", "a/b..c", "a/b.git", "a/" + "b" * 97]


@pytest.mark.parametrize(
    ("repo", "reason"),
    [(repo, "owner/name") for repo in MALFORMED] + [(repo, "no name that the Hub takes") for repo in NOT_TAKEN],
)
def test_a_repository_that_the_hub_would_not_take_is_refused(repo: str, reason: str) -> None:
    (problem,) = publish.check_repo(repo)
    assert reason in problem


@pytest.mark.parametrize("source", ["", "someone/zimage-vl", "http://example.com", "https://a b"])
def test_without_an_address_of_the_source_nothing_is_published(
    source: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "check_bundle", lambda root: [])
    (problem,) = publish.plan(REPO, source, checkout).problems
    assert problem.startswith("SOURCE must be the https address")


BLEND, PIPELINE = Path("src", "zimage_vl", "blend"), Path("pipelines", "zimage_vl")
COLAB = Path("examples", "colab.ipynb")
# What is done to which file (bytes: it becomes these, None: it goes, a function: it is rewritten), and what is said.
SPOILT: dict[str, tuple[Path, Any, list[str]]] = {
    "stale joined files": (
        BLEND / "mix.py",
        lambda text: text + b"\n\n# Another end.\n",
        ["zimage_vl/pipeline.py is stale", "zimage_vl_modular/pipeline.py is stale", "block.py is stale"],
    ),
    "sources that cannot be joined": (
        BLEND / "knobs.py",
        lambda text: b"import zimage_vl\n" + text,
        ["pipeline.py cannot be built"],
    ),
    "a missing picture": (PIPELINE / "failures.png", None, ["failures.png is missing"]),
    "a large file": (PIPELINE / "failures.png", b"x" * (publish.MAX_BYTES + 1), ["code, text and small pictures"]),
    "an unknown placeholder": (PIPELINE / "README.md", lambda text: text + b"\n{{OTHER}}\n", ["{{OTHER}}"]),
    "a broken notebook": (COLAB, b"no notebook", ["colab.ipynb is no notebook"]),
    "a notebook of another version": (
        COLAB,
        b'{"cells": ["pip install zimage-vl==0.0.1"]}',
        ["installs zimage-vl==0.0.1, but"],
    ),
    "a missing notebook": (COLAB, None, ["examples/colab.ipynb is missing", "links to colab.ipynb"]),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_should_not_be_published_is_refused_by_name(case: str, changed: Path, monkeypatch: Any) -> None:
    name, content, messages = SPOILT[case]
    if name.parent != BLEND:  # building takes the longest, and the others do not touch it
        monkeypatch.setattr(publish, "check_bundle", lambda root: [])
    elif not HAS_RUFF:
        pytest.skip("ruff formats the single file, and is not installed here")
    file = changed / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content(file.read_bytes()))
    commit_all(changed)
    assert_problems(changed, messages)


def assert_problems(root: Path, messages: list[str]) -> None:
    problems = publish.plan(REPO, SOURCE, root).problems
    assert len(problems) == len(messages), problems
    for problem, message in zip(problems, messages, strict=True):
        assert message in problem


def test_what_is_in_no_commit_is_not_published(changed: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(changed.parent))
    monkeypatch.setattr(publish, "check_bundle", lambda root: [])
    (changed / "LICENSE").write_text("another")
    (changed / "new.txt").touch()
    assert_problems(changed, ["2 uncommitted change(s): LICENSE, new.txt"])
    shutil.rmtree(changed / ".git")
    assert_problems(changed, ["cannot be compared with a commit"])


def test_the_command_refuses_before_it_asks_the_hub(changed: Path, hub: UploadHub) -> None:
    (changed / "new.txt").touch()
    done = run(changed, hub, "no-owner", "--upload")
    assert done.returncode == 1
    assert "REPO must be owner/name, got 'no-owner'" in done.stderr
    assert "There is no token of the Hub: run `hf auth login`" in done.stderr
    assert "uncommitted change(s): new.txt" in done.stderr
    assert hub.requests == []


def test_problems_an_unknown_token_and_no_hub_upload_nothing(planned: publish.Plan, hub: UploadHub) -> None:
    nowhere = huggingface_hub.HfApi(endpoint="http://127.0.0.1:1", token=TOKEN)
    for plan, client, reason in (
        (dataclasses.replace(planned, problems=("It rains.",)), api(hub), r"Nothing was uploaded\. It rains"),
        (planned, api(hub, "hf_other"), "asking whose token it is; nothing was uploaded"),
        (planned, nowhere, "nothing was uploaded"),
    ):
        with pytest.raises(publish.PublishError, match=reason):
            publish.upload(plan, client, message="x")
    assert writes(hub) == []


# ---- What the Hub then has ----


def upload(planned: publish.Plan, hub: UploadHub) -> tuple[str, list[str]]:
    said: list[str] = []
    return publish.upload(planned, api(hub), message="A version", say=said.append), said


def test_one_commit_and_a_tag_nothing_twice_and_the_files_and_tags_that_are_there_stay(
    planned: publish.Plan, hub: UploadHub
) -> None:
    hub.commit(REPO, {"kept.txt": b"theirs", "LICENSE": planned.files["LICENSE"]})
    hub.fail_at = ("POST", "/tag/")
    with pytest.raises(publish.PublishError, match=r"setting the tag .*files are committed as \w{40}; run it again"):
        upload(planned, hub)
    hub.fail_at = None
    first, _ = upload(planned, hub)
    assert hub.messages == ["A version"], "the files are committed twice"
    assert any(path.startswith("/storage/") for path in writes(hub)), "no file was stored apart"
    published = (first, {"kept.txt": b"theirs", **planned.files})
    assert hub.find(REPO, TAG) == hub.find(REPO, "main") == published
    before = len(writes(hub))
    again, said = upload(planned, hub)
    assert (again, "there is nothing to do" in said[-1]) == (first, True)
    for name, data in (("pipeline.py", b"# Another\n"), ("failures.png", b"1"), ("more.png", b"1")):
        other = dataclasses.replace(planned, files={**planned.files, name: data})
        with pytest.raises(publish.PublishError, match=rf"other content \({name}\).*raise the version"):
            upload(other, hub)
    assert len(writes(hub)) == before
    newer = dataclasses.replace(planned, version="999.0", files={**planned.files, "pipeline.py": b"# Newer\n"})
    second, _ = upload(newer, hub)
    assert hub.find(REPO, TAG) == published
    assert hub.find(REPO, "v999.0") == (second, {"kept.txt": b"theirs", **newer.files})


@pytest.mark.slow
def test_what_was_published_loads_by_id_and_by_tag_and_paints_the_packages_bits(
    planned: publish.Plan, hub: UploadHub, tmp_path: Path
) -> None:
    sha, _ = upload(planned, hub)
    draw_scene(Scene("square", "blue", "black")).save(tmp_path / "reference.png")
    call = {"prompt": "a red circle on a white background", "reference_image": str(tmp_path / "reference.png")}
    call |= {"vl_alpha": 0.5, "height": SIZE, "width": SIZE, "num_inference_steps": 2, "guidance_scale": 0.0}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the worker: results depend on their number, bit for bit
    try:
        pipe = load_toy_pipeline()
        images = paint(pipe, call, None)
        without = paint(pipe, {**call, "vl_alpha": 0.0}, None)
    finally:
        torch.set_num_threads(threads)
    assert np.abs(images - without).max() > 0.1
    ZImagePipeline(**pipe.z_image_components).save_pretrained(tmp_path / "toy")
    vl = {"vl_model_id": str(vl_repository(CHECKPOINT, tmp_path / "vl"))}

    answers: dict[str, dict[str, Any]] = {}
    worker = Worker(tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", NO_PROXY="127.0.0.1")
    try:
        for by, pipeline_at, block_at in (("id", {}, {}), ("tag", {"custom_revision": TAG}, {"revision": TAG})):
            answers[f"pipeline by {by}"] = worker.load(
                tmp_path / "toy", call, custom_pipeline=REPO, **pipeline_at, **vl
            )
            if HAS_MODULAR:
                answers[f"block by {by}"] = worker.load(tmp_path / "toy", call, block=REPO, **block_at, **vl)
            hub.commit(REPO, dict.fromkeys(planned.files, b"raise RuntimeError('main, not the tag')\n"))
    finally:
        worker.close()
    for name, answer in answers.items():
        assert "error" not in answer, (name, answer["error"])
        assert answer["version"] == VERSION
        np.testing.assert_array_equal(answer["images"], images, name)
        assert sha in answer["module"], name
