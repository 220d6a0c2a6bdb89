"""Word and character errors, against another library and on the cases that divide by nothing."""

import random

import jiwer
import pytest

from asr.evaluation import Errors, count_errors


def sentences(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(["AN", "ANT", "TAN", "NINE"]) for _ in range(rng.randint(1, 6))) for _ in range(count)]


def test_word_and_character_error_rates_are_jiwers():
    references, hypotheses = sentences(1, 50), sentences(2, 50)
    errors = count_errors(references, hypotheses)
    assert errors.wer == pytest.approx(100 * jiwer.wer(references, hypotheses))
    joined = [[text.replace(" ", "") for text in texts] for texts in (references, hypotheses)]
    assert errors.cer == pytest.approx(100 * jiwer.cer(*joined))
    assert count_errors(references, hypotheses, cer_spaces=True).cer == pytest.approx(100 * jiwer.cer(references, hypotheses))


def test_the_rate_is_of_all_words_not_the_mean_of_rates():
    errors = count_errors(["A B C D", "E"], ["A B C D", "X"])
    assert errors.wer == pytest.approx(20.0)


def test_an_empty_reference_counts_its_insertions():
    errors = count_errors(["", "ONE TWO"], ["ONE", "ONE TWO"])
    assert (errors.word_edits, errors.words, errors.wer) == (1, 2, 50.0)
    assert Errors.between("", "").wer == 0.0
    assert Errors.between("", "ONE").wer == float("inf")
