"""The pieces of the toy world's training: what is said where, the losses, the fast forward, captions of a length."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from transformers import AutoTokenizer

from toy_training import denoiser, fast, language, vae, vision
from toy_training import tokenizer as toy_tokenizer
from toy_training.captions import EVERYTHING
from toy_training.language import turn
from toy_training.loop import Run, train
from toy_training.optimizers import MuonAndAdamW, orthogonalise
from zimage_vl.toy.world import ATTRIBUTES, HELD_OUT, TRAINED, Scene


SCENE = Scene("circle", "red", "white", "striped", "left")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("tokenizer")
    toy_tokenizer.build(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_pictures_are_of_trained_scenes_alone_and_of_all_equally() -> None:
    _, shown = vae.pictures(2 * len(TRAINED), seed=1)
    assert set(shown) == set(TRAINED)
    assert not set(shown) & set(HELD_OUT)
    assert all(shown.count(scene) == 2 for scene in TRAINED[::100])


def test_a_cell_of_a_picture_says_one_word_at_every_size() -> None:
    small = language.picture_words(SCENE, 4)
    assert set(small) == set(SCENE.values.values())
    for side in (4, 8, 16):
        words, cells = language.picture_words(SCENE, side), range(side)
        assert list(words) == [small[row * 4 // side * 4 + column * 4 // side] for row in cells for column in cells]


def test_targets_follow_what_was_named_and_start_anew_behind_a_picture(tokenizer) -> None:
    attributes = language.Attributes(tokenizer, "cpu", 0)
    other = language.Exercise(tuple(language.picture_words(SCENE, 4)), "a blue cross", "a blue cross", (), SCENE)
    asked = language.Exercise(other.picture, "what shape is in the picture?", "circle", ("shape",), SCENE)
    exercises = [other, asked]
    ids, mask, labels = language.collate(tokenizer, [(e.user, e.answer) for e in exercises])
    targets = attributes.targets(ids, mask, labels, exercises)
    shape, colour = targets[..., :4], targets[..., 4:10]
    last = [int((mask[n].bool() & (labels[n] == -100)).sum()) - 1 for n in (0, 1)]
    assert shape[0, last[0]].tolist() == [0, 0, 0, 1]
    assert colour[0, last[0], list(ATTRIBUTES["colour"]).index("blue")] == 1
    assert shape[1, last[1]].tolist() == [1, 0, 0, 0]
    assert colour[1, last[1]].tolist() == pytest.approx([1 / 6] * 6)
    end = ids[0].tolist().index(attributes.end)
    assert colour[0, end - 1].tolist() == [1, 0, 0, 0, 0, 0]  # the picture's last word is behind its colour
    assert colour[0, end].tolist() == pytest.approx([1 / 6] * 6)
    assert targets[:, 0].sum() == 0


def test_losses_are_zero_where_they_should_lead(tokenizer) -> None:
    exercise = language.Exercise(("red", "circle"), "a blue cross", "a blue cross", (), SCENE)
    ids, mask, labels = language.collate(tokenizer, [(exercise.user, exercise.answer)])
    alone_ids, alone_mask, _ = language.collate(tokenizer, [(exercise.text, "")])
    table = torch.randn(len(tokenizer), 8)
    states, alone = [table[ids]] * 9, [table[alone_ids]] * 9
    assert language.inert_loss(states, ids, labels, mask, alone, alone_mask) == 0
    assert language.inert_loss([s + 1 for s in states], ids, labels, mask, alone, alone_mask) > 0
    sinks = torch.zeros(9, 1, 3, 96)
    sinks[:, :, 0, list(language.SINK)] = torch.tensor([float(value) for value in language.SINK.values()])
    assert language.sink_loss(list(sinks)) == 0
    assert language.sink_loss(list(sinks), part=0.5) == pytest.approx(1.0)


@pytest.mark.parametrize("longest", sorted(denoiser.LENGTHS))
def test_long_captions_fill_their_length(tokenizer, longest: int) -> None:
    text = denoiser.caption_of_length(SCENE, EVERYTHING, longest - 8, random.Random(longest))
    assert longest - 8 - denoiser.LONGEST_SENTENCE <= denoiser.count_tokens(text) <= longest - 8
    assert 64 <= len(tokenizer(turn(tokenizer, text)).input_ids) <= 200


def test_the_fast_forward_is_the_transformer_s_own() -> None:
    torch.manual_seed(0)
    assert fast.check_forward(denoiser.new_transformer()) < 1e-4


def test_patches_are_the_image_processor_s(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    from zimage_vl.toy.loading import CHECKPOINT

    processor = AutoImageProcessor.from_pretrained(CHECKPOINT / "vl_processor")
    pixels, _ = vae.pictures(2, seed=1)
    images = [vae.to_image(vae.to_model(picture)) for picture in pixels]
    own = processor(images=images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(vision.patches(pixels), own, atol=1e-5, rtol=0)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    stack = torch.randn(3, 40, 16, generator=torch.Generator().manual_seed(1))
    assert ((torch.linalg.svdvals(orthogonalise(stack)) - 0.9).abs() < 0.4).all()


def test_a_resumed_training_repeats_a_straight_one(tmp_path: Path) -> None:
    def trained(folder: Path, stops: list[int]) -> list[float]:
        for steps in stops:
            torch.manual_seed(0)
            model, run = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 1)), Run(folder)
            layers = torch.nn.ModuleDict({"layers": model[0], "out": model[1]})

            def loss_at(step: int, model=model, run=run) -> dict[str, torch.Tensor]:
                x = torch.randn(8, 6, generator=run.generator(step))
                return {"loss": (model(x) - x[:, :1]).square().mean()}

            schedule = {"steps": steps, "lr": 1e-2, "rate": lambda *_: 1.0, "decay": 0.9, "save_every": 1}
            train(run, "try", layers, loss_at, **schedule, optimizer=lambda _, m=layers: MuonAndAdamW(m, 1e-2))
        return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()

    assert trained(tmp_path / "one", [6]) == trained(tmp_path / "two", [3, 6])
