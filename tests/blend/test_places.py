from __future__ import annotations

import re

import pytest
import torch

from zimage_vl.blend.knobs import VLAlpha, check_vl_alpha, resolve_alpha
from zimage_vl.blend.regions import PromptToken, Region


PROMPT = "a red car and a Red redwood"


def make_tokens(prompt: str = PROMPT, cut: int | None = None) -> list[PromptToken]:
    """Two tokens of template on each side; words with their leading space, as Qwen's tokenizer splits."""
    spans = [(m.start(), m.end()) for m in re.finditer(r"\s?\w+", prompt)][:cut]
    parts = [("<s>", Region.PREFIX, -1, -1), ("user", Region.PREFIX, -1, -1)]
    parts += [(prompt[start:end], Region.WORDS, start, end) for start, end in spans]
    parts += [("</s>", Region.SUFFIX, -1, -1), ("assistant", Region.SUFFIX, -1, -1)]
    return [PromptToken(i, text, region, start, end) for i, (text, region, start, end) in enumerate(parts)]


def resolve(vl_alpha: VLAlpha) -> list[float]:
    alphas = resolve_alpha(vl_alpha, make_tokens(), PROMPT)
    assert alphas.dtype == torch.float32
    return alphas.tolist()


def test_a_number_is_everywhere() -> None:
    assert resolve(0.5) == [0.5] * 11


def test_one_a_token_is_taken_as_it_is() -> None:
    values = torch.linspace(0, 1, 11)
    assert resolve(values) == resolve(values.tolist()) == values.tolist()


@pytest.mark.parametrize("values", [[0.5] * 10, torch.full((12,), 0.5)])
def test_a_wrong_length_is_refused_with_both_numbers(values: VLAlpha) -> None:
    with pytest.raises(ValueError, match=rf"11 tokens.*got {len(values)}"):  # pyright: ignore[reportArgumentType]
        resolve(values)


@pytest.mark.parametrize(
    ("place", "positions"), [("prefix", [0, 1]), ("prompt", range(2, 9)), ("suffix", [9, 10]), ("default", range(11))]
)
def test_a_place_is_its_region_and_the_rest_is_zero(place: str, positions: list[int]) -> None:
    assert resolve({place: 0.5}) == [0.5 if i in positions else 0.0 for i in range(11)]


def test_phrase_goes_before_prompt_before_default() -> None:
    alphas = resolve({"default": 0.125, "prompt": 0.25, "car": 1.0, "suffix": 0.5})
    assert alphas == [0.125, 0.125, 0.25, 0.25, 1.0, 0.25, 0.25, 0.25, 0.25, 0.5, 0.5]
    # A phrase may lower, too.
    assert resolve({"prompt": 1.0, "car": 0.0})[4] == 0.0


def test_the_order_of_places_does_not_matter() -> None:
    places = {"car": 1.0, "prompt": 0.25, "suffix": 0.5, "default": 0.125}
    assert resolve(places) == resolve(dict(reversed(places.items())))


def test_every_occurrence_counts_in_longer_words_too_and_case_matters() -> None:
    # " red", "redwood" hold "red"; " Red" does not.
    assert resolve({"red": 1.0})[2:9] == [0, 1, 0, 0, 0, 0, 1]


def test_a_token_that_shares_a_character_counts() -> None:
    assert resolve({"d car a": 1.0})[2:9] == [0, 1, 1, 1, 0, 0, 0]


def test_occurrences_that_overlap_all_count() -> None:
    prompt = "aa aa aa"
    assert resolve_alpha({"aa aa": 1.0}, make_tokens(prompt), prompt)[2:5].tolist() == [1, 1, 1]


def test_one_character_over_several_tokens_takes_them_all() -> None:
    """A byte-level tokenizer may split a character; both tokens then have its span."""
    tokens = [PromptToken(i, "�", Region.WORDS, 0, 1) for i in range(2)] + [PromptToken(2, "b", Region.WORDS, 1, 2)]
    assert resolve_alpha({"é": 1.0}, tokens, "éb").tolist() == [1, 1, 0]


def test_an_unknown_phrase_is_refused_by_name() -> None:
    for phrase in ("lorry", "CAR", "car  and"):
        with pytest.raises(ValueError, match=rf"'{phrase}'.*does not contain"):
            resolve({"default": 1.0, phrase: 0.0})


def test_a_phrase_that_was_cut_off_is_refused() -> None:
    with pytest.raises(ValueError, match="cut off"):
        resolve_alpha({"redwood": 1.0}, make_tokens(cut=4), PROMPT)


def test_contradicting_phrases_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"' car' lies in 'red car' with 1.0 and in 'car and' with 0.5"):
        resolve({"red car": 1.0, "car and": 0.5})
    assert resolve({"red car": 0.5, "car and": 0.5})[2:9] == [0, 0.5, 0.5, 0.5, 0, 0, 0]


def test_without_the_prompts_text_places_work_and_phrases_do_not() -> None:
    assert resolve_alpha({"suffix": 1.0}, make_tokens(), None)[-2:].tolist() == [1, 1]
    with pytest.raises(ValueError, match="text is not known"):
        resolve_alpha({"car": 1.0}, make_tokens(), None)


def test_a_prompt_without_words_has_its_template() -> None:
    assert resolve_alpha({"prompt": 1.0, "prefix": 0.5}, make_tokens(""), "").tolist() == [0.5, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("vl_alpha", "error", "message"),
    [
        ({"car": 1.5}, ValueError, r"`vl_alpha\['car'\]` must be a number from 0 to 1, got 1.5"),
        ({"car": float("nan")}, ValueError, "got nan"),
        ({"car": True}, TypeError, "got True"),
        ({"car": "1"}, TypeError, "got '1'"),
        ({1: 0.5}, TypeError, "got 1"),
        ({" ": 0.5}, ValueError, "got ' '"),
        ({}, ValueError, "names no place"),
        ("0.5", TypeError, "`vl_alpha`"),
        (None, TypeError, "`vl_alpha`"),
        (-1, ValueError, "got -1"),
    ],
)
def test_a_bad_alpha_is_refused_by_name(vl_alpha: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_vl_alpha(vl_alpha)


def test_the_callers_places_stay() -> None:
    places = {"car": 1, "default": 0}
    check_vl_alpha(places)["default"] = 0.5  # pyright: ignore[reportIndexIssue]
    resolve(places)
    assert places == {"car": 1, "default": 0}
