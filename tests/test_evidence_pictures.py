"""Measuring on pictures and prompts, with the toy pipeline in place of real weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline_samples import record_runs
from zimage_vl.evidence.picture_settings import Setting
from zimage_vl.evidence.pictures import COLUMNS, measure_pictures
from zimage_vl.evidence.similarity import MEASURES, PictureReader, describe_picture
from zimage_vl.evidence.summaries import format_mean, get_typical_alpha
from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline


PROMPTS = ("a blue square on a black background", "a green cross on a gray background")
KNOBS = {"vl_hidden_layer": -2, "vl_normalization": "token_rms"}
DELTA = {"vl_hidden_layer": -2, "vl_normalization": "none", "vl_blend_mode": "style_delta"}
FULL = Setting("Alpha", "alpha 1", {**KNOBS, "vl_alpha": 1.0})
SETTINGS = [
    Setting("Alpha", "alpha 0.15", {**KNOBS, "vl_alpha": 0.15}),
    FULL,
    Setting("Blend", "linear at 1", {**KNOBS, "vl_alpha": 1.0}),
    Setting(
        "Blend", "style_delta", {"vl_hidden_layer": -2, "vl_normalization": "none", "vl_blend_mode": "style_delta"}
    ),
    Setting("Controls", "grey", {**KNOBS, "vl_alpha": 1.0}, "grey"),
    Setting("Controls", "noise", {**KNOBS, "vl_alpha": 1.0, "vl_text": ""}, "noise"),
]
TOY = {"steps": 4, "size": 64}


@pytest.fixture(scope="module")
def pipe():
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    scenes = (Scene("circle", "red", "white"), Scene("triangle", "yellow", "brown"))
    for n, scene in enumerate(scenes):
        draw_scene(scene, n).save(folder / f"{n}.png")
    return [folder / "0.png", folder / "1.png"]


@pytest.fixture(scope="module")
def measured(pipe, files):
    """The tables, and the painted pictures by setting, picture and prompt."""
    painted = {}

    def keep(setting, picture, prompt, image):
        painted[setting.name if setting else None, picture, prompt] = image

    return measure_pictures(pipe, files, PROMPTS, settings=SETTINGS, on_picture=keep, **TOY), painted


def get_row(tables, name: str) -> dict[str, str]:
    rows = [row for table in tables for row in table.rows if row[0] == name]
    return dict(zip(COLUMNS, rows[0], strict=True))


def get_mean(row: dict[str, str], column: str) -> float:
    return float(row[column].split(" ")[0])


def test_a_table_a_group_each_with_the_prompt_alone(measured) -> None:
    tables, _ = measured
    assert [table.title for table in tables] == ["Alpha", "Blend", "Controls"]
    for table in tables:
        assert table.columns == COLUMNS
        assert table.rows[0][0] == "the prompt alone"
        assert table.rows[0][-3:] == ("1.00 ± 0.00",) * 3
    assert "2 pictures, 2 prompts, 64 x 64 pixels, 4 steps" in tables[0].note
    assert "which was not shown" in tables[2].note


def test_the_reference_arrives_and_the_prompt_is_kept(measured) -> None:
    tables, _ = measured
    alone, weak, full = (get_row(tables, name) for name in ("the prompt alone", "alpha 0.15", "alpha 1"))
    for name in ("colour", "semantics"):
        near, kept = f"{name}: like the reference", f"{name}: kept of the prompt's"
        assert get_mean(full, near) > get_mean(alone, near) + 0.2
        assert get_mean(weak, kept) > get_mean(full, kept) + 0.2
    assert (weak["effective alpha"], full["effective alpha"]) == ("0.15", "1.00")
    assert full["pictures"] == "4"


def test_a_control_is_no_picture(measured) -> None:
    tables, _ = measured
    full = get_row(tables, "alpha 1")
    for name in ("grey", "noise"):
        control = get_row(tables, name)
        assert get_mean(control, "colour: like the reference") < get_mean(full, "colour: like the reference") - 0.2


def test_what_comes_to_the_same_is_painted_once(measured) -> None:
    tables, painted = measured
    assert get_row(tables, "linear at 1") == {**get_row(tables, "alpha 1"), "setting": "linear at 1"}
    names = [name for name, _, _ in painted]
    assert "linear at 1" not in names
    assert {name: names.count(name) for name in names} == {
        None: 2, "alpha 0.15": 4, "alpha 1": 4, "style_delta": 4, "grey": 4, "noise": 4
    }  # fmt: skip


def test_a_row_again_by_hand(pipe, files, measured) -> None:
    """The same pictures with `reference_image`, compared without the module."""
    tables, painted = measured
    reader = PictureReader(pipe, 64)
    near, alphas, influences = [], [], []
    for p, path in enumerate(files):
        for n, prompt in enumerate(PROMPTS):
            call = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 0.0}
            output = pipe(
                prompt,
                reference_image=path,
                generator=torch.Generator().manual_seed(n),
                **call,
                **FULL.knobs,
            )
            assert np.array_equal(np.asarray(output.images[0]), np.asarray(painted["alpha 1", p, n]))
            image = Image.open(path).convert("RGB")
            near.append(describe_picture(reader, output.images[0]).compare(describe_picture(reader, image)))
            alphas.append(get_typical_alpha(output.conditioning[0]))
            influences.append(output.conditioning[0].influence)
    row = get_row(tables, "alpha 1")
    for name in MEASURES:
        assert row[f"{name}: like the reference"] == format_mean([one[name] for one in near])
    assert row["influence"] == f"{np.mean(influences):.2f}"
    assert row["effective alpha"] == f"{np.mean(alphas):.2f}"


def test_each_reference_is_encoded_once_for_its_text(pipe, files) -> None:
    settings = [
        Setting("a", str(alpha), {"vl_alpha": alpha, "vl_hidden_layer": layer, **text})
        for alpha, layer in ((0.2, -2), (0.4, -3))
        for text in ({}, {"vl_text": ""})
    ]
    pipe.set_reference_cache_size(0)
    with record_runs(pipe) as runs:
        measure_pictures(pipe, files[:1], PROMPTS[:1], settings=settings, steps=1, size=64)
    pipe.set_reference_cache_size()
    # Two encodings; and one each for flat grey, the picture, the prompt's own and the four painted ones.
    assert runs.count("vl_encoder") == 2 + 3 + 4


def test_a_setting_that_does_not_fit_does_not_lose_the_others(pipe, files) -> None:
    phrase = Setting("a", "phrase", {**KNOBS, "vl_alpha": {"square": 1.0}})
    tables = measure_pictures(pipe, files[:1], PROMPTS, settings=[phrase, FULL], **TOY)
    table = tables[0]
    assert table.rows[1][:3] == ("phrase", "not painted", "-")
    assert len(table.rows[1]) == len(COLUMNS)
    refused = table.note.split("Not painted: phrase: ")[1]
    assert refused.startswith("ValueError: ")
    assert "square" in refused
    assert get_row(tables, "alpha 1")["pictures"] == "2"


def test_settings_by_name_have_controls_beside_them(pipe, files) -> None:
    named = {"mine": {**KNOBS, "vl_alpha": 0.5}}
    sizes = set()
    tables = measure_pictures(
        pipe, files[:1], PROMPTS[:1], settings=named, steps=1, size=(64, 48),
        on_picture=lambda *event: sizes.add(event[-1].size),
    )  # fmt: skip
    assert [table.title for table in tables] == ["Settings", "Controls"]
    assert [row[0] for row in tables[0].rows] == ["the prompt alone", "mine"]
    assert "grey, alpha 1" in [row[0] for row in tables[1].rows]
    assert sizes == {(64, 48)}


def test_a_broken_picture_names_itself_before_anything_runs(pipe, files, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:60])
    with record_runs(pipe) as runs:
        with pytest.raises(ValueError, match=r"broken\.png"):
            measure_pictures(pipe, [files[0], broken], PROMPTS, settings=SETTINGS, **TOY)
        with pytest.raises(FileNotFoundError, match=r"missing\.png"):
            measure_pictures(pipe, [files[0], tmp_path / "missing.png"], PROMPTS, **TOY)
    assert runs == []


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"pictures": []}, ValueError, "`pictures` must be a list of at least one file"),
        ({"pictures": "a.png"}, ValueError, "`pictures` must be a list"),
        ({"prompts": "a circle"}, ValueError, "`prompts` must be a list"),
        ({"prompts": []}, ValueError, "`prompts` must be a list"),
        ({"prompts": ["a", " "]}, ValueError, "empty text"),
        ({"prompts": [3]}, TypeError, "got 3 of type int"),
        ({"settings": []}, ValueError, "`settings` must hold at least one"),
        ({"settings": {"deep": {"vl_hidden_layer": -24}}}, ValueError, "'deep' does not fit the VL encoder: .*-24"),
        ({"size": 100}, ValueError, "`size` must be a multiple of 16, at least 16, got 100"),
        ({"size": (64, 72)}, ValueError, r"`size` must be a multiple of 16, at least 16, got \(64, 72\)"),
    ],
)
def test_bad_arguments_are_refused_before_any_model_runs(pipe, files, arguments, kind, message) -> None:
    given = {"pictures": files, "prompts": PROMPTS, "settings": SETTINGS, **TOY, **arguments}
    with record_runs(pipe) as runs, pytest.raises(kind, match=message):
        measure_pictures(pipe, given.pop("pictures"), given.pop("prompts"), **given)
    assert runs == []
