"""Greedy decoding on tiny hand-made scores."""

import pytest
import torch

from config import DecoderConfig
from decoder import GreedyDecoder, build_decoder

SYMBOLS = ("_", "A", "B", " ")


def scores(*paths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities that follow the given labels frame by frame, padded with frames that say B."""
    lens = torch.tensor([len(path) for path in paths])
    logits = torch.zeros(len(paths), int(lens.max()), len(SYMBOLS))
    logits[:, :, 2] = 5.0
    for b, path in enumerate(paths):
        for t, label in enumerate(path):
            logits[b, t] = torch.eye(len(SYMBOLS))[label] * 5
    return logits.log_softmax(-1), lens


@pytest.mark.parametrize(
    "path, text, offsets",
    [
        ([1, 1, 1], "A", (0,)),
        ([1, 0, 1], "AA", (0, 2)),
        ([0, 0, 0], "", ()),
        ([0, 2, 2, 3, 1, 1, 0], "B A", (1, 3, 4)),
        ([1, 2, 1], "ABA", (0, 1, 2)),
    ],
)
def test_repeats_merge_and_blanks_drop(path, text, offsets):
    ((hypothesis,),) = GreedyDecoder(SYMBOLS).decode(*scores(path))
    assert (hypothesis.text, hypothesis.offsets) == (text, offsets)


def test_padding_is_not_read():
    found = GreedyDecoder(SYMBOLS).decode(*scores([1], [1, 0, 0, 0, 2]))
    assert [hypotheses[0].text for hypotheses in found] == ["A", "AB"]


def test_score_is_the_log_probability_of_the_path():
    log_probs, lens = scores([1, 0])
    ((hypothesis,),) = GreedyDecoder(SYMBOLS).decode(log_probs, lens)
    assert hypothesis.score == pytest.approx(float(log_probs[0, 0, 1] + log_probs[0, 1, 0]))


def test_labels_without_a_space():
    ((hypothesis,),) = GreedyDecoder(("_", "日", "本", "語")).decode(*scores([1, 2, 3]))
    assert hypothesis.text == "日本語"


def test_two_labels_that_look_alike_are_two_labels():
    ((hypothesis,),) = GreedyDecoder(("_", "A", "A", " ")).decode(*scores([1, 2]))
    assert hypothesis.text == "AA"


def test_unknown_decoder_is_named():
    with pytest.raises(ValueError, match="psychic"):
        build_decoder(DecoderConfig(decoder="psychic"), SYMBOLS)
