"""`zimage-vl generate`, on the toy: what it paints, what it records, and what it refuses before a model is loaded."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli_calls import Call, call, read_png
from tally import load_toy_once
from tiny_models import tiny_pipeline
from zimage_vl.blend.registry import KNOBS
from zimage_vl.cli._models import Model
from zimage_vl.cli._options import option_names
from zimage_vl.cli._records import PICTURE_KNOBS, write_png
from zimage_vl.cli.generate import choose_size
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
from zimage_vl.pipeline.text_statistics import TextStatistics
from zimage_vl.recipes import RECIPES, WISHES
from zimage_vl.toy import Scene, draw_scene
from zimage_vl.workflows.image_to_image import paint_from_image


PROMPT = "a red circle on a white background"
REFERENCE, START = draw_scene(Scene("square", "blue", "black")), draw_scene(Scene("circle", "green", "gray"))
SETTINGS: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 0.0, "height": 64, "width": 64}
same = np.testing.assert_array_equal


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_toy_once()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    REFERENCE.save("reference.png")
    START.save("start.png")
    return tmp_path


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generate(capsys: Any, *options: object, reference: str | None = "reference.png") -> Call:
    given = [] if reference is None else ["-r", reference]
    output = [] if "-o" in options else ["-o", "out.png"]
    return call(capsys, "generate", "-p", PROMPT, *output, "--seed", 5, "--steps", 3, *given, *options)


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# ---- What is painted and recorded ----


def test_all_knobs_reach_the_call(capsys: Any, folder: Path, pipe: Any) -> None:
    given = (
        "--alpha default=0.6 --alpha circle=0.2 --layer -6:1,-2:3 --text square --text-position before "
        "--tokens image --normalization hybrid --target-std 50 --outlier-masking clamp --outlier-threshold 5 "
        "--exclude-sinks --alignment pool --end 0.7 --max-pixels 1024 --mask mask.png --reference-weights 1,2"
    )
    knobs = {
        "vl_alpha": {"default": 0.6, "circle": 0.2},
        "vl_hidden_layer": {-6: 1, -2: 3},
        "vl_text": "square",
        "vl_text_position": "before",
        "vl_token_selection": "image",
        "vl_normalization": "hybrid",
        "vl_target_std": 50.0,
        "vl_outlier_masking": "clamp",
        "vl_outlier_threshold": 5.0,
        "vl_exclude_sinks": True,
        "vl_alignment": "pool",
        "vl_end": 0.7,
        "vl_max_pixels": 1024,
        "reference_weights": [1.0, 2.0],
    }
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:32] = 255
    from PIL import Image

    Image.fromarray(mask).save("mask.png")
    done = generate(capsys, *given.split(), "-r", "start.png", "--format", "json")
    assert done.code == 0, done.err
    expected = pipe(
        PROMPT, reference_image=[[REFERENCE, START]], reference_mask=mask, generator=seeded(5), **SETTINGS, **knobs
    )
    pixels, said = read_png(Path("out.png"))
    same(pixels, np.asarray(expected.images[0]))
    assert json.loads(done.out) == {"outputs": ["out.png"], **said}
    assert said["report"][0]["influence"] == expected.conditioning[0].influence
    assert set(said["knobs"]) == set(KNOBS) - set(PICTURE_KNOBS)
    for name, value in knobs.items():
        kept = {str(k): v for k, v in value.items()} if isinstance(value, dict) else value
        assert said["knobs"][name] == kept
    assert said["references"] == [
        {"option": option, "name": name, "sha256": sha256(name)}
        for option, name in (
            ("--reference", "reference.png"),
            ("--reference", "start.png"),
            ("--reference-mask", "mask.png"),
        )
    ]
    assert (said["prompt"], said["model"], said["seed"], said["steps"]) == (PROMPT, "toy", 5, 3)
    assert said["versions"]["torch"] == torch.__version__


def test_style_delta_and_concat(capsys: Any, folder: Path, pipe: Any) -> None:
    for options, knobs in (
        (
            ["--blend-mode", "style_delta", "--neutral-image", "start.png"],
            {"vl_blend_mode": "style_delta", "neutral_image": START},
        ),
        (["--alignment", "concat", "--concat-tokens", 3], {"vl_alignment": "concat", "vl_concat_tokens": 3}),
    ):
        assert generate(capsys, *options, "--overwrite").code == 0
        expected = pipe(PROMPT, reference_image=REFERENCE, generator=seeded(5), **SETTINGS, **knobs)
        same(read_png(Path("out.png"))[0], np.asarray(expected.images[0]))


@pytest.mark.parametrize("name", [*WISHES, "calibrated"])
def test_a_recipe_sets_its_knobs_and_options_take_precedence(
    name: str, capsys: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def stop(_: Model, prompt: str, **arguments: Any) -> None:
        seen.append({name: value for name, value in arguments.items() if name.startswith("vl_")})
        raise ValueError(prompt)

    monkeypatch.setattr(Model, "paint_in_stages", stop)
    generate(capsys, "--low-memory", "--take", name).refused(PROMPT)
    generate(capsys, "--low-memory", "--recipe", name, "--alpha", 0.7, "--end", 0.5).refused(PROMPT)
    assert seen == [RECIPES[name], {**RECIPES[name], "vl_alpha": 0.7, "vl_end": 0.5}]


def test_a_picture_is_repeated_from_what_stands_in_it(capsys: Any, folder: Path, pipe: Any) -> None:
    """Knobs, files, size, seed and all; what is typed takes precedence."""
    pipe.encode_reference(REFERENCE, PROMPT).save("embeds.safetensors")
    Path("elsewhere").mkdir()
    ways = (
        "--alpha default=0.6 --alpha circle=0.2 --layer -6:1,-2:3 --vl-text square --tokens image --size 64x32",
        "--blend-mode style_delta --neutral-image start.png --exclude-sinks --take calibrated --normalization none",
        "--negative-reference start.png --guidance 2 --negative-prompt blue --treatment palette -r start.png -n 2",
        "--same-picture --strength 0.6",
        "--iterations 2",
    )
    for number, options in enumerate(ways):
        done = generate(capsys, *options.split(), "-o", f"elsewhere/{number}.png", "--format", "json")
        assert done.code == 0, done.err
        made = json.loads(done.out)["outputs"][-1]
        repeated = call(capsys, "generate", "--from", made, "-o", f"{number}.png")
        assert repeated.code == 0, repeated.err
        (pixels, said), (again, told) = read_png(Path(made)), read_png(Path(f"{number}.png"))
        # Painted two at a time, a picture may differ in the last bit: other kernels round otherwise.
        np.testing.assert_allclose(again.astype(int), pixels, rtol=0, atol="-n 2" in options)
        varying = ("recipe", "num_images", "iterations", "round", "references")
        assert {k: v for k, v in told.items() if k not in varying} == {
            k: v for k, v in said.items() if k not in varying
        }
    changed = ["--from", "elsewhere/0.png", "-o", "changed.png", "--size", "32x32", "-a", 0.5, "-r", "start.png"]
    assert call(capsys, "generate", *changed).code == 0
    told = read_png(Path("changed.png"))[1]
    assert (told["width"], told["knobs"]["vl_alpha"], told["references"][0]["name"]) == (32, 0.5, "start.png")
    assert (told["knobs"]["vl_text"], told["seed"]) == ("square", 5)
    START.rotate(90).save("reference.png")  # another picture by now
    gone = call(capsys, "generate", "--from", "elsewhere/0.png", "-o", "gone.png")
    gone.refused("--reference reference.png of elsewhere/0.png is neither beside it nor here", "pass --reference")
    call(capsys, "generate", "--from", "start.png", "-o", "x.png").refused("start.png holds no record")


def test_a_record_that_was_edited_is_refused_by_its_field(capsys: Any, folder: Path, no_model: None) -> None:
    """Each field that is repeated, as what no record has there; and some that the options would not take."""
    file = {"option": "--reference", "name": "reference.png", "sha256": sha256("reference.png")}
    knobs = {name: knob.default for name, knob in KNOBS.items() if name not in PICTURE_KNOBS}
    texts = {
        "prompt": PROMPT,
        "model": "toy",
        "revision": None,
        "vl_model": None,
        "negative_prompt": None,
        "dtype": None,
    }
    numbers = {"steps": 3, "seed": 5, "guidance": 0.0, "width": 64, "height": 64}
    files = {"references": [file], "init_image": {**file, "strength": 0.5}, "statistics": file}
    record = {**texts, **numbers, **files, "knobs": knobs}
    places: list[tuple[Any, ...]] = [(name,) for name in record]
    places += [("knobs", name) for name in (*knobs, "reference_image", "new")]
    places += [("references", 0), *(("references", 0, key) for key in file)]
    places += [("init_image", key) for key in ("name", "sha256", "strength")]
    switches = ("vl_describe", "vl_exclude_sinks")
    edits: list[tuple[tuple[Any, ...], Any]]
    edits = [(place, odd) for place in places for odd in ([[1]], {"odd": {}})]
    edits += [(place, True) for place in places if place[-1] not in switches]
    edits += [(("width",), 5), (("guidance",), 1e400), (("steps",), 10**400), (("seed",), -1), (("dtype",), "x")]
    edits += [(("knobs", "vl_alpha"), 5), (("knobs", "reference_image"), "https://example.com/a.png")]
    edits += [(("references", 0, "option"), "--prompt"), (("prompt",), None), (("prompt",), "\ud800")]
    for place, odd in edits:
        edited = inner = copy.deepcopy(record)
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = odd
        write_png(START, Path("edited.png"), edited, overwrite=True)
        done = call(capsys, "generate", "--from", "edited.png", "-o", "new.png")
        done.refused("Error: edited.png cannot be repeated: ")
        named = next(name for name in reversed(place) if isinstance(name, str))
        names = (named, *option_names(named), "--size", "knobs.odd")
        assert any(name in done.err.splitlines()[-1] for name in names), done.err
    write_png(START, Path("edited.png"), {"knobs": [1]}, overwrite=True)
    assert call(capsys, "inspect", "edited.png").code == 0


def test_the_same_picture_is_blended_and_painted_over(capsys: Any, folder: Path, pipe: Any) -> None:
    for options, strength, knobs in (
        (["--strength", 0.6], 0.6, {"vl_alpha": 0.4}),
        (["--alpha", 0.2, "--strength", 0.5], 0.5, {"vl_alpha": 0.2}),
    ):
        assert generate(capsys, "--same-picture", "--overwrite", *options).code == 0
        expected = paint_from_image(
            pipe, PROMPT, REFERENCE, strength, reference_image=REFERENCE, generator=seeded(5), **SETTINGS, **knobs
        )
        pixels, said = read_png(Path("out.png"))
        same(pixels, np.asarray(expected.images[0]))
        assert (said["init_image"]["name"], said["init_image"]["strength"]) == ("reference.png", strength)
    generate(capsys, "--same-picture", "--overwrite").refused("--strength 0.85 of 3 steps is all of them")


def test_each_round_is_kept_and_feeds_the_next(capsys: Any, folder: Path, pipe: Any) -> None:
    done = generate(capsys, "--iterations", 2, "--alpha", 0.5, "-n", 2, "--reference-weights", 1, "--format", "json")
    assert done.code == 0, done.err
    paths = [f"out-{image}-round{number}.png" for image in (0, 1) for number in (1, 2)]
    told = json.loads(done.out)
    assert told["outputs"] == [entry["output"] for entry in told["rounds"]] == paths
    assert not Path("out.png").exists()
    for seed, pair in {5: paths[:2], 6: paths[2:]}.items():
        expected: Any = REFERENCE
        for number, path in enumerate(pair, start=1):
            expected = pipe(PROMPT, reference_image=expected, vl_alpha=0.5, generator=seeded(seed), **SETTINGS)
            pixels, said = read_png(Path(path))
            same(pixels, np.asarray(expected.images[0]))
            assert (said["seed"], said["round"], said["iterations"]) == (seed, number, 2)
            assert said["report"][0]["influence"] == expected.conditioning[0].influence
            expected = expected.images[0]
        first, second = (read_png(Path(path))[1] for path in pair)
        assert first["references"][0]["name"] == "reference.png"
        assert (first["knobs"]["reference_weights"], second["knobs"]["reference_weights"]) == ([1.0], None)
        assert second["references"] == [{"option": "--iterations", "name": pair[0], "sha256": sha256(pair[0])}]
    generate(capsys, "--iterations", 2, "-n", 2, "--format", "json").refused("out-0-round1.png' exists already")


def test_a_start_picture_is_painted_over(capsys: Any, folder: Path, pipe: Any) -> None:
    options = ["--init-image", "start.png", "--strength", 0.5, "--recipe", "calibrated", "--alpha", 0.5]
    done = generate(capsys, *options)
    assert done.code == 0, done.err
    knobs = {**RECIPES["calibrated"], "vl_alpha": 0.5}
    expected = paint_from_image(
        pipe, PROMPT, START, 0.5, reference_image=REFERENCE, generator=seeded(5), **SETTINGS, **knobs
    )
    pixels, said = read_png(Path("out.png"))
    same(pixels, np.asarray(expected.images[0]))
    start = {"option": "--init-image", "name": "start.png", "sha256": sha256("start.png")}
    assert said["init_image"] == {**start, "strength": 0.5, "steps_run": 2}
    assert said["report"][0]["influence"] > 0
    generate(capsys, "--init-image", "start.png", "--strength", 0.95, "--overwrite", reference=None).refused(
        "--strength 0.95 of 3 steps is all of them"
    )
    everything = generate(capsys, "--init-image", "start.png", "--strength", 1, "--overwrite", reference=None)
    assert "nothing of the start picture is left" in everything.err
    assert read_png(Path("out.png"))[1]["report"] is None


def test_embeds_and_several_pictures_are_what_the_reference_gives(capsys: Any, folder: Path, pipe: Any) -> None:
    pipe.encode_reference(REFERENCE, PROMPT).save("embeds.safetensors")
    assert generate(capsys, "--init-image", "start.png", "-n", 2).code == 0
    pictures = [read_png(Path(f"out-{index}.png"))[0] for index in (0, 1)]
    for seed in (5, 6):
        options = ["--init-image", "start.png", "--embeds", "embeds.safetensors", "--overwrite", "--seed", seed]
        assert generate(capsys, *options, reference=None).code == 0
        pixels, said = read_png(Path("out.png"))
        same(pixels, pictures[seed - 5])
        assert said["references"][0]["sha256"] == sha256("embeds.safetensors")
    assert (pictures[0] != pictures[1]).any()
    other = generate(capsys, "--embeds", "embeds.safetensors", "--take", "layout", "-o", "new.png", reference=None)
    other.refused("was read with --treatment 'none', and 'greyscale' is asked for")


def test_statistics_from_a_file(capsys: Any, folder: Path) -> None:
    assert call(capsys, "statistics", "-o", "toy.safetensors").code == 0
    options = ["--normalization", "per_dim", "--alpha", 0.5]
    assert generate(capsys, *options, "-o", "measured.png").code == 0
    assert generate(capsys, *options, "--statistics", "toy.safetensors").code == 0
    measured, given = read_png(Path("measured.png")), read_png(Path("out.png"))
    same(given[0], measured[0])
    assert measured[1]["statistics"] is None
    assert given[1]["statistics"] == {"name": "toy.safetensors", "sha256": sha256("toy.safetensors")}
    more = ["--overwrite", "--statistics"]
    generate(capsys, *more, "toy.safetensors").refused("--statistics would do nothing")
    generate(capsys, *options, *more, "toy.safetensors", "--exclude-sinks").refused("is of --include-sinks")
    TextStatistics.measure(tiny_pipeline(with_vl=False), "tiny").save("tiny.safetensors")
    generate(capsys, *options, *more, "tiny.safetensors").refused("The statistics are of 'tiny'")


def test_low_memory_paints_the_same(capsys: Any, folder: Path) -> None:
    options = ["--device", "cpu", "--guidance", 2, "--negative-prompt", "blue", "--size", "64x32", "--alpha", 0.5]
    for name, extra in (("a.png", []), ("b.png", ["--low-memory"])):
        done = generate(capsys, *options, *extra, "-o", name)
        assert done.code == 0, done.err
    a, b = read_png(Path("a.png")), read_png(Path("b.png"))
    same(a[0], b[0])
    assert a[0].shape == (32, 64, 3)
    assert a[1] == b[1]
    assert (a[1]["guidance"], a[1]["negative_prompt"]) == (2.0, "blue")


def test_another_precision_without_a_reference(capsys: Any, folder: Path) -> None:
    assert generate(capsys, "--dtype", "bfloat16", reference=None).code == 0
    said = read_png(Path("out.png"))[1]
    assert (said["dtype"], said["knobs"], said["report"], said["reference_acts"]) == ("bfloat16", None, None, False)


def test_alpha_0_and_a_seed_that_was_not_given_are_told(capsys: Any, folder: Path) -> None:
    done = call(capsys, "generate", "-p", PROMPT, "-r", "reference.png", "-a", 0, "-o", "out.png", "--steps", 1)
    assert (done.code, done.out) == (0, "out.png\n")
    assert "the reference is not read" in done.err
    assert f"seed {read_png(Path('out.png'))[1]['seed']}" in done.err


def test_knobs_that_do_nothing_are_told_in_the_words_of_the_command_line(
    capsys: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zimage_vl.pipeline.inputs._warned", set())
    done = generate(capsys, "--normalization", "none", "--target-std", 70)
    assert done.code == 0
    assert "--target-std 70.0 does nothing with --normalization 'none'" in done.err


def test_the_size_follows_the_start_picture() -> None:
    wide = START.resize((400, 200))
    assert choose_size(None, None, None, 1024) == (1024, 1024)
    assert choose_size(None, None, None, 1024, wide) == (1456, 720)
    assert choose_size(None, 512, None, 1024, wide) == (512, 256)
    assert choose_size(None, None, 512, 1024, wide) == (1024, 512)
    assert choose_size("64x64", None, None, 1024, wide) == (64, 64)
    assert choose_size(None, 32, 64, 1024, wide) == (32, 64)
    with pytest.raises(ValueError, match="multiple of 16"):
        choose_size(None, 50, None, 1024, wide)


# ---- What is refused ----


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Model, "load", never)
    monkeypatch.setattr(Model, "paint_in_stages", never)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--alpha 1.5", "Error: --alpha must be a number from 0 to 1, or one for each place, as --alpha default=0.3"),
        ("-a nan", "Error: -a must be"),
        ("--alpha much", "--alpha needs a number, got 'much'"),
        ("--layer last", "'--layer' / '--hidden-layer': 'last' is no whole number"),
        ("--target-std 0", "--target-std must be"),
        ("--outlier-threshold 1", "--outlier-threshold must be"),
        ("--start 0.5 --end 0.5", "--start must be below --end"),
        ("--tokens text --outlier-masking zero", "would do nothing"),
        ("--recipe guide --outlier-masking zero", "would do nothing"),
        ("--concat-tokens 2", "--concat-tokens is for --alignment 'concat' alone"),
        ("--reference-weights 1,2", "--reference-weights has 2 numbers for 1 reference:"),
        ("--reference-weights much", "'much' is not one or more numbers"),
        ("--embeds states.safetensors", "-r and --embeds exclude each other"),
        ("--size 100x64", "--size must be multiples of 16"),
        ("--device gpu", "--device 'gpu' cannot be used here"),
        ("--negative-prompt blue", "--negative-prompt does nothing without guidance"),
        ("--vl-model ./qwen", "--vl-model does nothing with --model toy"),
        ("--offload model --device cpu", "--offload model needs an accelerator"),
        ("--model ./nowhere", "--model './nowhere' is neither a folder"),
        ("--revision main", "--revision does nothing with --model toy"),
        ("--guidance nan", "--guidance"),
        ("--take style --recipe guide", "--take can be had once, got style and guide"),
        ("--same-picture --init-image start.png", "--same-picture and --init-image exclude each other"),
        ("--same-picture -r start.png", "paints over the reference: give one --reference"),
        ("--no-urls -r https://example.com/a.png", "--no-urls is set, and 'https://example.com/a.png' is an address"),
        ("--strength 0.5", "--strength does nothing without --init-image"),
        ("--init-image start.png --strength 0", "--strength must be above 0"),
        ("--init-image start.png --start 0.2", "--start cannot be had with --init-image"),
        ("--init-image start.png --end 0.8", "--end cannot be had with --init-image"),
        ("--init-image start.png --width 50", "--width must be a multiple of 16"),
        ("--init-image nowhere.png", "--init-image 'nowhere.png' does not exist"),
        ("--low-memory --offload model", "--low-memory and --offload exclude each other"),
        ("--low-memory --init-image start.png", "--init-image cannot be had with --low-memory"),
        ("--low-memory --statistics s.safetensors", "--statistics cannot be had with --low-memory"),
        ("--iterations 2 --alpha 0", "the same picture each time"),
        ("--statistics nowhere.safetensors --normalization per_dim", "no file nowhere.safetensors"),
        ("--mask nowhere.png", "--reference-mask 'nowhere.png' does not exist"),
        ("--vl-text a\udcff", "'--vl-text'"),
        ("--alpha a\udcff=1", "'--alpha'"),
        # Values that the parser of the options refuses, by its name.
        ("--steps 0", "'--steps'"),
        ("-n 0", "'--num-images'"),
        ("--iterations 0", "'--iterations'"),
        ("--strength 1.5", "'--strength'"),
        ("--guidance -1", "'--guidance'"),
        ("--guidance inf", "--guidance must be a finite number"),
        ("--seed -1", "'--seed'"),
        ("--tokens images", "Did you mean image?"),
        ("--recipe color-palette", "Did you mean colour-palette?"),
        ("--offload modle", "Did you mean model?"),
        ("-o out.jpg", "must end in .png"),
        ("-o missing/out.png", "does not exist. Create it first"),
    ],
)
def test_settings_that_cannot_be(options: str, reason: str, capsys: Any, folder: Path, no_model: None) -> None:
    generate(capsys, *options.split()).refused(reason)
    assert sorted(path.name for path in folder.iterdir()) == ["reference.png", "start.png"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--alpha 0.5", "--alpha does nothing without --reference or --embeds"),
        ("--tokens text --vl-text x", "--vl-text and --tokens do nothing without"),
        ("--recipe guide", "--take does nothing without --reference or --embeds"),
        ("--mask mask.png", "--mask does nothing without --reference"),
        ("--reference nowhere.png", "--reference 'nowhere.png' does not exist"),
        ("-r broken\x1b.png", r"broken\x1b.png (15 bytes) is an HTML page"),
        (
            "-r start.png --take variation --reader text_encoder",
            "--describe needs --reader 'qwen3-vl', got 'text_encoder'",
        ),
        ("-r start.png --same-picture --steps 4", "Use at least 7 steps, or a strength of at most 0.75"),
        ("--embeds nowhere.safetensors", "--embeds: There is no file nowhere.safetensors"),
        ("--embeds start.png", "read the picture with `zimage-vl extract`"),
        ("--iterations 2", "--iterations above 1 needs a --reference"),
        ("--iterations 2 --embeds e.safetensors", "--iterations above 1 needs a --reference"),
    ],
)
def test_references_that_are_not_there(options: str, reason: str, capsys: Any, folder: Path, no_model: None) -> None:
    Path("broken\x1b.png").write_text("<!DOCTYPE html>")
    generate(capsys, *options.split(), reference=None).refused(reason)


def test_a_picture_too_large_for_the_memory_is_a_line(capsys: Any, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ZImageVLPipeline, "__call__", lambda *_, **__: torch.empty(10**16))
    done = generate(capsys, reference=None)
    assert (done.code, done.out) == (2, "")
    assert "memory: you tried to allocate" in done.err.splitlines()[-1]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    "options",
    [
        "-r mine.png",
        "-r reference.png -r ./mine.png",
        "-r reference.png --mask mine.png",
        "-r reference.png --neutral-image mine.png --blend-mode style_delta",
        "--init-image mine.png",
    ],
)
def test_a_picture_of_the_user_is_never_written_over(
    options: str, overwrite: list[str], capsys: Any, folder: Path, no_model: None
) -> None:
    START.save("mine.png")
    before = sha256("mine.png")
    done = generate(capsys, *options.split(), "-o", "mine.png", *overwrite, reference=None)
    done.refused("--output 'mine.png' is an input of this command")
    assert sha256("mine.png") == before


def test_an_existing_file_needs_overwrite(capsys: Any, folder: Path) -> None:
    Path("out.png").write_bytes(b"theirs")
    generate(capsys).refused("--output 'out.png' exists already: name another file, or add --overwrite.")
    assert Path("out.png").read_bytes() == b"theirs"
    assert generate(capsys, "--overwrite").code == 0
    assert read_png(Path("out.png"))[1]["seed"] == 5
    Path("out-1.png").write_bytes(b"theirs")
    generate(capsys, "-n", 2).refused("out-1.png' exists already")


def test_a_prompt_that_is_no_text_and_a_name_that_is_none(capsys: Any, folder: Path) -> None:
    call(capsys, "generate", "-p", "a\udcff", "-o", "out.png").refused("is no valid UTF-8 text")
    done = generate(capsys, "-o", "\udcff\x1b.png", "--steps", 1)
    assert (done.code, done.out) == (0, r"\udcff\x1b.png" + "\n")
    assert Path("\udcff\x1b.png").is_file()
