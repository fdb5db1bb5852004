"""Loaded the ways people load it, the single file paints what the package paints, bit for bit.

The loading happens in processes of their own in which `import zimage_vl` fails.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, Union, get_origin

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from command_line import environment
from hub_stub import HubStub
from loading_processes import Worker, vl_repository
from loading_worker import paint
from tiny_models import tiny_components, tiny_pipeline, tiny_vl_encoder
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
from zimage_vl.reference.embeds import ReferenceEmbeds


BUNDLE = Path(__file__).parents[2] / "pipelines" / "zimage_vl"
CODE = BUNDLE / "pipeline.py"
CODE_REPO, BASE_REPO, WHOLE_REPO = "someone/zimage-vl", "someone/z-image", "someone/z-image-vl"
GATED = tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 38)
TEXT_CALL = {"prompt": "a red circle", "height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 0.0}
KNOBS = {"vl_alpha": 0.5, "vl_hidden_layer": -2}


class Saved:
    """What the package saved and painted, to compare with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plain, self.whole, self.without = folder / "plain", folder / "whole", folder / "without"
        self.reference, self.embeds = folder / "reference.png", folder / "reference.safetensors"
        pixels = np.random.default_rng(0).integers(0, 256, (48, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.reference)
        self.call = {**TEXT_CALL, **KNOBS, "reference_image": str(self.reference)}
        self.embeds_call = {**TEXT_CALL, **KNOBS}
        pipe = tiny_pipeline()
        self.images = paint(pipe, self.call, None)
        self.text_images = paint(pipe, TEXT_CALL, None)
        assert np.abs(self.images - self.text_images).max() > 1e-3  # the reference counts in what is compared
        pipe.encode_reference(str(self.reference), TEXT_CALL["prompt"], layers=(-2,)).save(self.embeds)
        pipe.save_pretrained(self.whole)
        tiny_pipeline(with_vl=False).save_pretrained(self.without)
        diffusers.ZImagePipeline(**tiny_components()).save_pretrained(self.plain)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Generator[Saved]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the worker: results depend on their number, bit for bit
    yield Saved(tmp_path_factory.mktemp("saved"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Generator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("offline"), HF_HUB_OFFLINE="1")
    yield worker
    worker.close()


def vl_parts(saved: Saved) -> dict[str, str]:
    """Where the tiny VL parts lie."""
    return {"vl_model_id": str(vl_repository(saved.whole, saved.folder / "vl"))}


def assert_same(answer: dict[str, Any], images: np.ndarray) -> None:
    assert "error" not in answer, answer["error"]
    assert answer["class"] == "ZImageVLPipeline"
    np.testing.assert_array_equal(answer["images"], images)


def test_the_constructors_annotations_are_of_the_kinds_that_diffusers_0_36_reads() -> None:
    # Classes and typing's Optional or Union; names as strings and `X | None` are beyond it, and from_pretrained fails.
    for parameter in list(inspect.signature(ZImageVLPipeline.__init__).parameters.values())[1:]:
        annotation = parameter.annotation
        assert inspect.isclass(annotation) or get_origin(annotation) is Union, f"{parameter.name}: {annotation!r}"


# ---- From a folder, without a network ----


def test_the_local_folder_paints_what_the_package_paints(saved: Saved, offline: Worker) -> None:
    options = {"custom_pipeline": str(BUNDLE), **vl_parts(saved)}
    answer = offline.load(saved.plain, saved.call, **options)
    assert_same(answer, saved.images)
    assert answer["missing"] == ["vl_vision"]
    # Without a reference it is the parent, and loads no VL parts.
    answer = offline.load(saved.plain, TEXT_CALL, **options)
    assert_same(answer, saved.text_images)
    assert answer["missing"] == ["vl_encoder", "vl_processor", "vl_vision"]
    # Over a plain pipeline that is loaded already.
    assert_same(offline.load(saved.plain, saved.call, over="None", **options), saved.images)
    # diffusers' own from_pipe takes no component for optional that another pipeline does not declare.
    refused = offline.load(saved.plain, over="nothing", **options)
    assert "expected" in refused["error"]
    assert "vl_encoder" in refused["error"]
    assert offline.load(saved.plain, over="None", passed=options["vl_model_id"], **options)["has_passed"]


@pytest.mark.parametrize("by_path", [False, True])
def test_embeddings_that_the_package_saved_serve_the_single_file(saved: Saved, offline: Worker, by_path: bool) -> None:
    options: dict[str, Any] = {"custom_pipeline": str(BUNDLE), "vl_model_id": None}
    if by_path:
        call = {**saved.embeds_call, "reference_embeds": str(saved.embeds)}
    else:
        call, options["embeds"] = saved.embeds_call, saved.embeds
    assert_same(offline.load(saved.plain, call, **options), saved.images)


def test_the_single_file_beside_the_package_in_one_process(saved: Saved) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(saved.whole, trust_remote_code=True)
    single = sys.modules[type(pipe).__module__]
    assert not isinstance(pipe, ZImageVLPipeline)
    for name, ours in ZImageVLPipeline.recipes.items():
        assert dict(pipe.recipes[name]) == dict(ours)
    # Embeddings of each serve the other, and each reads the other's files.
    package, call = tiny_pipeline(), saved.embeds_call
    made = [p.encode_reference(str(saved.reference), TEXT_CALL["prompt"], layers=(-2,)) for p in (pipe, package)]
    assert [type(one) for one in made] == [single.ReferenceEmbeds, ReferenceEmbeds]
    for owner, given in ((package, made[0]), (pipe, made[1]), (package, [[made[0]]])):
        np.testing.assert_array_equal(paint(owner, {**call, "reference_embeds": given}, None), saved.images)
    made[0].save(saved.folder / "single.safetensors")
    again = package.load_reference(saved.folder / "single.safetensors")
    np.testing.assert_array_equal(paint(package, {**call, "reference_embeds": again}, None), saved.images)
    # diffusers copies every local custom pipeline to one file of its cache: another may have taken its place.
    copied = Path(str(single.__file__))
    text = copied.read_text(encoding="utf-8")
    copied.write_text("class AnotherPipeline: pass", encoding="utf-8")
    with pytest.raises(ValueError, match="is no longer the file this pipeline was loaded from"):
        pipe.save_pretrained(saved.folder / "other")
    copied.write_text(text, encoding="utf-8")
    assert not (saved.folder / "other").exists()


def test_saved_folders_restore_everything_alone_also_those_that_the_single_file_saves(
    saved: Saved, offline: Worker
) -> None:
    answer = offline.load(saved.whole, saved.call)
    assert_same(answer, saved.images)
    assert answer["missing"] == ["vl_vision"]
    answer = offline.load(saved.without, saved.embeds_call, embeds=saved.embeds)
    assert_same(answer, saved.images)
    assert answer["missing"] == ["vl_encoder", "vl_processor", "vl_vision"]
    assert answer["vl_model_id"] is None
    again = offline.folder / "again"
    assert "error" not in offline.load(saved.whole, save=again)
    assert (again / "pipeline.py").read_bytes() == CODE.read_bytes()
    assert_same(offline.load(again, saved.call), saved.images)


def test_a_passed_vl_encoder_takes_precedence_over_the_saved_one(saved: Saved, offline: Worker) -> None:
    # diffusers alone loads the saved one in its place, and says nothing.
    other = saved.folder / "other_vl"
    mine = tiny_vl_encoder(seed=7)
    mine.save_pretrained(other)
    expected = paint(tiny_pipeline(vl_encoder=mine), saved.call, None)
    assert np.abs(expected - saved.images).max() > 1e-3
    for options in ({}, {"custom_pipeline": str(BUNDLE)}):
        answer = offline.load(saved.whole, saved.call, passed=other, **options)
        assert answer["has_passed"], options
        assert_same(answer, expected)
    answer = offline.load(saved.plain, passed=other, custom_pipeline=str(BUNDLE), vl_model_id=None)
    assert answer["has_passed"]
    assert answer["missing"] == ["vl_processor", "vl_vision"]
    without = offline.load(saved.whole, vl_encoder=None, vl_processor=None)
    assert without["missing"] == ["vl_encoder", "vl_processor", "vl_vision"]
    assert without["vl_model_id"] is None


@pytest.mark.skipif(not GATED, reason="diffusers runs custom code unasked before 0.38")
def test_code_is_run_only_where_it_is_trusted(saved: Saved, offline: Worker) -> None:
    for source, options in ((saved.plain, {"custom_pipeline": str(BUNDLE)}), (saved.whole, {})):
        answer = offline.load(source, **{**options, "trust_remote_code": False})
        assert "trust_remote_code=True" in answer["error"]


# ---- From the Hub ----


@pytest.fixture(scope="module")
def hub() -> Generator[HubStub]:
    with HubStub() as stub:
        yield stub


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory, hub: HubStub) -> Generator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("online"), HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", NO_PROXY="127.0.0.1")
    yield worker
    worker.close()


def downloads(hub: HubStub, start: int) -> list[str]:
    """The files that were fetched since."""
    return [path for method, path in hub.requests[start:] if method == "GET" and "/resolve/" in path]


def test_from_the_hub_cold_warm_updated_pinned_and_offline(saved: Saved, hub: HubStub, online: Worker) -> None:
    text = CODE.read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)
    assert version is not None
    newer = text.replace(version.group(), '__version__ = "999.0"')
    hub.commit_folder(BASE_REPO, saved.plain)
    first = hub.commit(CODE_REPO, {"pipeline.py": text.encode(), "README.md": b"# A card\n"})
    options = {"custom_pipeline": CODE_REPO, **vl_parts(saved)}

    cold = online.load(BASE_REPO, saved.call, **options)
    assert_same(cold, saved.images)
    assert cold["version"] == version.group(1)
    assert first in cold["module"]
    assert [path for path in downloads(hub, 0) if path.startswith(f"/{CODE_REPO}/")] != []

    start = len(hub.requests)
    assert_same(online.load(BASE_REPO, saved.call, **options), saved.images)
    assert downloads(hub, start) == [], "a warm cache is downloaded again"

    second = hub.commit(CODE_REPO, {"pipeline.py": newer.encode()})
    updated = online.load(BASE_REPO, saved.call, **options)
    assert_same(updated, saved.images)
    assert updated["version"] == "999.0"
    assert second in updated["module"]

    pinned = online.load(BASE_REPO, saved.call, custom_revision=first, **options)
    assert_same(pinned, saved.images)
    assert pinned["version"] == version.group(1)
    assert first in pinned["module"]


def test_without_a_network_the_cached_folder_of_the_model_card_works(
    saved: Saved, hub: HubStub, online: Worker
) -> None:
    hub.commit(CODE_REPO, {"pipeline.py": CODE.read_bytes(), "README.md": b"# A card\n"})
    options = vl_parts(saved)
    assert_same(online.load(saved.plain, saved.call, custom_snapshot=CODE_REPO, **options), saved.images)
    offline = Worker(online.folder, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    start = len(hub.requests)
    try:
        answer = offline.load(saved.plain, saved.call, custom_snapshot=CODE_REPO, **options)
        refused = offline.load(saved.plain, custom_pipeline=CODE_REPO, **options)
    finally:
        offline.close()
    assert_same(answer, saved.images)
    assert "error" in refused, "diffusers has learnt it: the model card can drop the advice"
    assert hub.requests[start:] == []


def test_a_saved_folder_uploaded_to_the_hub_loads_by_its_id_alone(saved: Saved, hub: HubStub, online: Worker) -> None:
    sha = hub.commit_folder(WHOLE_REPO, saved.whole)
    answer = online.load(WHOLE_REPO, saved.call, revision=sha)
    assert_same(answer, saved.images)
    assert answer["missing"] == ["vl_vision"]


def test_the_packages_class_loads_a_repository_by_its_own_code(saved: Saved, hub: HubStub, tmp_path: Path) -> None:
    hub.commit_folder(WHOLE_REPO, saved.whole)
    code = (
        "from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline\n"
        f"print('LOADED', type(ZImageVLPipeline.from_pretrained({WHOLE_REPO!r})).__module__)"
    )
    online = environment(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path), NO_PROXY="127.0.0.1")
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=online, capture_output=True, text=True, check=False)
    assert "LOADED zimage_vl.pipeline.pipeline_z_image_vl" in done.stdout, done.stderr
