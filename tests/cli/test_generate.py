"""`zimage-vl generate`: what it refuses before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from zimage_vl.cli._options import RecipeChoice, TokenChoice
from zimage_vl.cli.app import app
from zimage_vl.cli.generate import _read_knobs
from zimage_vl.recipes import RECIPES


Refusal = Callable[..., str]


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Runs `zimage-vl ARGUMENTS` in this process and gives what it says on stderr when it refuses them."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            app([str(argument) for argument in arguments], prog_name="zimage-vl")
        printed = capsys.readouterr()
        assert stop.value.code == 2, printed.err
        assert printed.out == ""
        return printed.err

    return run


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "reference.png"
    PIL.Image.new("RGB", (32, 32), "red").save(path)
    return path


@pytest.mark.parametrize(
    ("output", "reason"),
    [("picture.jpg", "must end in .png"), ("missing/picture.png", "does not exist. Create it first")],
)
def test_an_output_that_cannot_be_written(output: str, reason: str, refusal: Refusal, tmp_path: Path) -> None:
    assert reason in refusal("generate", "-p", "a red circle", "-o", tmp_path / output)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--alpha", "1.5"], "`vl_alpha`"),
        (["--alpha", "nan"], "`vl_alpha`"),
        (["--layer", "last"], "--layer takes a whole number"),
        (["--target-std", "0"], "`vl_target_std`"),
        (["--outlier-threshold", "1"], "`vl_outlier_threshold`"),
        (["--start", "0.5", "--end", "0.5"], "`vl_start` must be below `vl_end`"),
        (["--tokens", "text", "--outlier-masking", "zero"], "would do nothing"),
        (["--blend-mode", "style_delta"], "`neutral_image`"),
        (["--recipe", "guide", "--outlier-masking", "zero"], "would do nothing"),
        (["--reference-weights", "1,2"], "2 numbers for 1 references"),
        (["--embeds", "states.safetensors"], "exclude each other"),
        (["--size", "100x64"], "multiples of 16"),
        (["--device", "gpu"], "--device 'gpu' cannot be used here"),
        (["--negative-prompt", "blue"], "--negative-prompt does nothing without guidance"),
        (["--vl-model", "./qwen"], "--vl-model does nothing with --model toy"),
        (["--offload", "model", "--device", "cpu"], "--offload model needs an accelerator"),
        (["--model", "./nowhere"], "--model './nowhere' is neither a folder"),
        (["--strength", "0.5"], "--strength does nothing without --init-image"),
        (["--init-image", "REFERENCE", "--strength", "0"], "--strength must be above 0"),
        (["--init-image", "REFERENCE", "--start", "0.2"], "--start cannot be had with --init-image"),
        (["--init-image", "REFERENCE", "--end", "0.8"], "--end cannot be had with --init-image"),
        (["--init-image", "REFERENCE", "--width", "50"], "multiples of 16"),
        (["--init-image", "nowhere.png"], "nowhere.png' does not exist"),
        (["--low-memory", "--offload", "model"], "--low-memory and --offload exclude each other"),
        (["--low-memory", "--init-image", "REFERENCE"], "--init-image cannot be had with --low-memory"),
        (["--iterations", "2", "--alpha", "0"], "the same picture each time"),
        (["--statistics", "nowhere.safetensors", "--normalization", "per_dim"], "no file nowhere.safetensors"),
    ],
)
def test_settings_that_cannot_be(
    options: list[str], reason: str, refusal: Refusal, reference: Path, tmp_path: Path
) -> None:
    output = tmp_path / "picture.png"
    given = [str(reference) if option == "REFERENCE" else option for option in options]
    said = refusal("generate", "-p", "a red circle", "-r", reference, "-o", output, *given)
    assert reason in said
    assert len(said.splitlines()) == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--alpha", "0.5"], "`vl_alpha` without --reference or --embeds would do nothing"),
        (["--tokens", "text", "--vl-text", ""], "`vl_text` and `vl_token_selection` without"),
        (["--recipe", "guide"], "--recipe without --reference or --embeds would do nothing"),
        (["--reference-mask", "mask.png"], "--reference-mask without --reference would do nothing"),
        (["--reference", "nowhere.png"], "nowhere.png' does not exist"),
        (["--embeds", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--iterations", "2"], "--iterations above 1 needs a --reference"),
    ],
)
def test_references_that_are_not_there(options: list[str], reason: str, refusal: Refusal, tmp_path: Path) -> None:
    assert reason in refusal("generate", "-p", "a red circle", "-o", tmp_path / "picture.png", *options)


def test_a_broken_reference_is_named(refusal: Refusal, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("<!DOCTYPE html><html></html>")
    line = refusal("generate", "-p", "a red circle", "-r", broken, "-o", tmp_path / "picture.png")
    assert "broken.png" in line
    assert "HTML page" in line


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", "0"],
        ["--num-images", "0"],
        ["--iterations", "0"],
        ["--strength", "1.5"],
        ["--guidance", "-1"],
        ["--tokens", "picture"],
        ["--start", "2"],
        ["--recipe", "x"],
    ],
)
def test_values_out_of_range_name_their_option(options: list[str], refusal: Refusal, tmp_path: Path) -> None:
    said = refusal("generate", "-p", "a red circle", "-o", tmp_path / "picture.png", *options)
    assert f"'{options[0]}'" in said


def read_knobs(**options: object) -> dict[str, object]:
    """What `generate` makes of these options; all others are left out."""
    empty = {"recipe": None, "reference": ["a.png"], "embeds": None, "reference_weights": None}
    return _read_knobs({**empty, **options})


@pytest.mark.parametrize("choice", list(RecipeChoice))
def test_a_recipe_sets_its_knobs(choice: RecipeChoice) -> None:
    assert read_knobs(recipe=choice) == RECIPES[choice.value]


def test_options_go_before_the_recipe() -> None:
    before = dict(RECIPES["guide"])
    knobs = read_knobs(recipe=RecipeChoice.GUIDE, vl_alpha=["0.7"], vl_token_selection=TokenChoice.ALL, vl_start=None)
    assert knobs == {**RECIPES["guide"], "vl_alpha": 0.7, "vl_token_selection": "all"}
    assert RECIPES["guide"] == before
