"""A saved folder's own code and index."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from zimage_vl import saving
from zimage_vl.pipeline.saving import (
    image_processor_alone,
    make_self_describing,
    plain_class_name,
    read_single_file,
    refuse_attached_adapters,
)


class ZImageVLPipeline:
    """Of the name that the single file defines."""


class Derived(ZImageVLPipeline):
    """Of a name that it does not."""


def index(folder: Path) -> dict[str, object]:
    return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    content = {
        "_class_name": "ZImageVLPipeline",
        "_diffusers_version": "0.36.0",
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def test_the_folder_gets_the_code_and_names_it(folder: Path) -> None:
    before = index(folder)
    make_self_describing(folder, ZImageVLPipeline)
    assert index(folder) == {**before, "_class_name": ["pipeline", "ZImageVLPipeline"]}
    assert (folder / "pipeline.py").read_text(encoding="utf-8") == read_single_file(ZImageVLPipeline)
    assert sorted(path.name for path in folder.iterdir()) == ["model_index.json", "pipeline.py"]


def test_twice_is_once(folder: Path) -> None:
    make_self_describing(folder, ZImageVLPipeline)
    once = {path.name: path.read_bytes() for path in folder.iterdir()}
    make_self_describing(str(folder), ZImageVLPipeline)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == once


def test_the_packages_copy_is_the_file_for_the_hub() -> None:
    hub_file = Path(__file__).parent.parent.parent / "pipelines" / "zimage_vl" / "pipeline.py"
    assert saving.SINGLE_FILE.read_bytes() == hub_file.read_bytes()


def test_a_class_that_the_file_does_not_define_is_refused_and_nothing_is_written(folder: Path) -> None:
    before = index(folder)
    with pytest.raises(ValueError, match=r"Derived is not defined in .*ZImageVLPipeline\(\*\*pipe\.components\)"):
        make_self_describing(folder, Derived)
    assert index(folder) == before
    assert [path.name for path in folder.iterdir()] == ["model_index.json"]


def test_a_file_that_was_replaced_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "SINGLE_FILE_DIGEST", "0" * 64)  # as in a single file of other sources
    with pytest.raises(ValueError, match="no longer the file this pipeline was loaded from"):
        make_self_describing(folder, ZImageVLPipeline)
    assert not (folder / "pipeline.py").exists()


def test_a_missing_file_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(saving, "SINGLE_FILE", tmp_path / "gone.txt")
    with pytest.raises(FileNotFoundError, match="Install the package again"):
        read_single_file(ZImageVLPipeline)


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no model_index\.json"):
        make_self_describing(tmp_path, ZImageVLPipeline)
    assert list(tmp_path.iterdir()) == []


def test_an_attached_adapter_is_refused_whatever_its_kind() -> None:
    class Wrapped(torch.nn.Module):
        """As every layer of peft: the layer itself below `base_layer`."""

        def __init__(self) -> None:
            super().__init__()
            self.base_layer = torch.nn.Linear(2, 2)

    plain, wrapped = torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.Sequential(Wrapped())
    refuse_attached_adapters({"transformer": plain, "tokenizer": object(), "vl_encoder": None})
    with pytest.raises(ValueError, match="attached to text_encoder, transformer: saved like this"):
        refuse_attached_adapters({"text_encoder": wrapped, "vae": plain, "transformer": wrapped})


def test_a_full_processor_gives_way_to_its_image_processor_for_a_while() -> None:
    full = SimpleNamespace(image_processor=object())

    class Pipe:
        vl_processor: object = full

        def register_modules(self, **parts: object) -> None:
            self.__dict__.update(parts)

    pipe = Pipe()
    seen: list[object] = []

    def save() -> None:
        with image_processor_alone(pipe):
            seen.append(pipe.vl_processor)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save()
    assert seen == [full.image_processor]
    assert pipe.vl_processor is full
    for other in (None, object()):
        pipe.vl_processor = other
        with image_processor_alone(pipe):
            assert pipe.vl_processor is other


def test_the_class_name_of_a_self_describing_config_is_read_as_a_plain_one() -> None:
    config = {"_class_name": ["pipeline", "ZImageVLPipeline"], "vae": ["diffusers", "AutoencoderKL"]}
    assert plain_class_name(config) == {**config, "_class_name": "ZImageVLPipeline"}
    plain = {"_class_name": "ZImagePipeline"}
    assert plain_class_name(plain) == plain
    assert config["_class_name"] == ["pipeline", "ZImageVLPipeline"]
