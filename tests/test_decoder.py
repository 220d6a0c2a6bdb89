"""Decoders on tiny hand-made scores, whose answers can be told by looking."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from asr.options import add_decoder_options, decoder_config
from config import DecoderConfig
from data.command_line import UsageError, argument_parser
from decoder import BeamDecoder, DecodeError, GreedyDecoder, build_decoder
from decoding.language_model import load_language_model

SYMBOLS = ("_", "A", "B", " ")
LETTERS = ("_", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", " ")
ARPA = """\\data\\
ngram 1=8
ngram 2=3

\\1-grams:
-2.0\t<unk>
-99\t<s>\t-0.3
-1.0\t</s>
-1.0\tTHE\t-0.3
-1.2\tCAT\t-0.2
-2.5\tCAP
-1.5\tSAT
-1.5\tKEY

\\2-grams:
-0.3\t<s> THE
-0.5\tTHE CAT
-0.4\tCAT SAT

\\end\\
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "cat.arpa"
    path.write_text(ARPA)
    return load_language_model(path)


def scores(*paths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities that follow the given labels frame by frame, padded with frames that say B."""
    lens = torch.tensor([len(path) for path in paths])
    logits = torch.zeros(len(paths), int(lens.max()), len(SYMBOLS))
    logits[:, :, 2] = 5.0
    for b, path in enumerate(paths):
        for t, label in enumerate(path):
            logits[b, t] = torch.eye(len(SYMBOLS))[label] * 5
    return logits.log_softmax(-1), lens


def spoken(text: str, *doubts: tuple[int, str, float], symbols: tuple[str, ...] = LETTERS) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities of a text said clearly, a frame for each character and a blank behind it.

    `doubts`: at this character it may have been another one, with this probability.
    """
    probs = torch.full((1, 2 * len(text), len(symbols)), 1e-6)
    probs[0, 1::2, 0] = 1.0
    for i, character in enumerate(text):
        probs[0, 2 * i, symbols.index(character)] = 1.0
    for i, other, p in doubts:
        probs[0, 2 * i, symbols.index(text[i])] = 1 - p
        probs[0, 2 * i, symbols.index(other)] = p
    return (probs / probs.sum(-1, keepdim=True)).log(), torch.tensor([2 * len(text)])


def beam(model=None, symbols=LETTERS, **settings) -> BeamDecoder:
    return BeamDecoder(symbols, DecoderConfig(decoder="beam", **settings), model)


def best_text(decoder, *output) -> str:
    return decoder.decode(*output)[0][0].text


BOTH = pytest.mark.parametrize("decoder", [GreedyDecoder(SYMBOLS), beam(symbols=SYMBOLS)], ids=["greedy", "beam"])


@BOTH
@pytest.mark.parametrize(
    "path, text, offsets",
    [
        ([1, 1, 1], "A", (0,)),
        ([1, 0, 1], "AA", (0, 2)),
        ([0, 0, 0], "", ()),
        ([0, 2, 2, 3, 1, 1, 0], "B A", (1, 3, 4)),
        ([1, 2, 1], "ABA", (0, 1, 2)),
        ([2, 0, 0, 2, 2, 0, 2], "BBB", (0, 3, 6)),
    ],
)
def test_repeats_merge_and_blanks_drop(decoder, path, text, offsets):
    hypothesis = decoder.decode(*scores(path))[0][0]
    assert (hypothesis.text, hypothesis.offsets) == (text, offsets)


@BOTH
def test_padding_is_not_read(decoder):
    found = decoder.decode(*scores([1], [1, 0, 0, 0, 2]))
    assert [hypotheses[0].text for hypotheses in found] == ["A", "AB"]


@BOTH
def test_words_have_times_and_confidences(decoder):
    log_probs, lens = scores([0, 1, 1, 0, 2, 3, 0, 2, 2, 2])
    log_probs[0, 7:] = torch.tensor([0.1, 0.1, 0.6, 0.2]).log()
    first, second = decoder.decode(log_probs, lens)[0][0].words
    assert (first.text, first.start, first.end) == ("AB", 1, 5)
    assert (second.text, second.start, second.end) == ("B", 7, 10)
    assert 0 < second.confidence < 0.61 < 0.9 < first.confidence < 1


@BOTH
def test_an_utterance_of_no_frames_is_an_empty_text(decoder):
    found = decoder.decode(*scores([1], []))
    assert [hypotheses[0].text for hypotheses in found] == ["A", ""]
    assert (found[1][0].offsets, found[1][0].words) == ((), ())
    assert decoder.decode(torch.zeros(0, 4, len(SYMBOLS)), torch.zeros(0, dtype=torch.int64)) == []


@BOTH
def test_what_does_not_fit_is_refused(decoder):
    log_probs, lens = scores([1, 2])
    with pytest.raises(ValueError, match="length 3: expected 0 to 2"):
        decoder.decode(log_probs, lens + 1)
    with pytest.raises(ValueError, match="length -1: expected 0 to 2"):
        decoder.decode(log_probs, lens - 3)
    with pytest.raises(ValueError, match=r"\(1, 2, 3\).*expected .*4 labels"):
        decoder.decode(log_probs[:, :, :3], lens)
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        decoder.decode(log_probs[0], lens)


def test_greedy_score_is_the_log_probability_of_the_path():
    log_probs, lens = scores([1, 0])
    ((hypothesis,),) = GreedyDecoder(SYMBOLS).decode(log_probs, lens)
    assert hypothesis.score == pytest.approx(float(log_probs[0, 0, 1] + log_probs[0, 1, 0]))


@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_labels_without_a_space(kind):
    decoder = build_decoder(DecoderConfig(decoder=kind), ("_", "日", "本", "語"))
    hypothesis = decoder.decode(*scores([1, 2, 0, 3]))[0][0]
    assert hypothesis.text == "日本語"
    assert [(word.text, word.start, word.end) for word in hypothesis.words] == [("日", 0, 1), ("本", 1, 2), ("語", 3, 4)]


def test_two_labels_that_look_alike_are_two_labels():
    ((hypothesis,),) = GreedyDecoder(("_", "A", "A", " ")).decode(*scores([1, 2]))
    assert hypothesis.text == "AA"


def test_the_beam_sums_over_paths_where_greedy_takes_one():
    """Each frame says blank, but A has three paths, of .2 each and .16 twice... against .36 for no character at all."""
    log_probs = torch.tensor([[[0.6, 0.4, 0.0, 0.0], [0.6, 0.4, 0.0, 0.0]]]).log()
    lens = torch.tensor([2])
    assert best_text(GreedyDecoder(SYMBOLS), log_probs, lens) == ""
    found = beam(symbols=SYMBOLS, top_paths=2).decode(log_probs, lens)[0]
    assert [(h.text, round(math.exp(h.score), 6)) for h in found] == [("A", 0.64), ("", 0.36)]


def test_runs_of_spaces_are_one_and_none_is_at_an_end():
    assert best_text(beam(symbols=SYMBOLS), *scores([3, 0, 3, 1, 3, 0, 3, 3, 2, 3, 0])) == "A B"


def test_alpha_flips_the_answer(model):
    output = spoken("THE CAP SAT", (6, "T", 0.3))
    assert best_text(beam(), *output) == best_text(beam(model, alpha=0.0), *output) == "THE CAP SAT"
    assert best_text(beam(model, alpha=0.5), *output) == "THE CAT SAT"


def test_beta_flips_the_answer(model):
    output = spoken("CAT KEY", (3, "S", 0.5))  # CATSKEY, which the model does not know, or two words
    weights = {"alpha": 0.0, "unk_penalty": 0.0}
    output[0][0, 6, LETTERS.index(" ")] = math.log(0.4)
    output[0][0, 6, LETTERS.index("S")] = math.log(0.6)
    assert best_text(beam(model, beta=-2.0, **weights), *output) == "CATSKEY"
    assert best_text(beam(model, beta=2.0, **weights), *output) == "CAT KEY"


def test_unk_penalty_flips_the_answer(model):
    output = spoken("THE CAB", (6, "T", 0.01))
    assert best_text(beam(model, unk_penalty=0.0), *output) == "THE CAB"
    assert best_text(beam(model, unk_penalty=10.0), *output) == "THE CAT"
    for hypothesis in beam(model, unk_penalty=math.inf, top_paths=10).decode(*spoken("THE CAB"))[0]:
        assert all(model.word_id(word) for word in hypothesis.text.split()), "a closed vocabulary"


def test_hot_words_flip_the_answer(model):
    output = spoken("THE CAB SAT", (6, "T", 0.2), (4, "K", 0.01))
    assert best_text(beam(), *output) == "THE CAB SAT"
    assert best_text(beam(hotwords="KAB"), *output) == "THE KAB SAT"
    assert best_text(beam(hotwords="CAT:3"), *output) == "THE CAT SAT"
    assert best_text(beam(hotwords="CA,CATS,AT,THE C"), *output) == "THE CAB SAT", "whole words only"
    assert best_text(beam(model), *output) == best_text(beam(model, hotwords="CAB:2"), *output) == "THE CAT SAT"
    assert best_text(beam(model, hotwords="CAB:5"), *output) == "THE CAB SAT", "without the penalty, which is 10"
    assert best_text(beam(model, unk_penalty=math.inf, hotwords="KAB:20"), *output) == "THE KAB SAT"


def test_a_hot_phrase():
    output = spoken("CAT KEY SAT", (4, "L", 0.9))
    assert best_text(beam(), *output) == "CAT LEY SAT"
    assert best_text(beam(hotwords="CAT KEY:6"), *output) == "CAT KEY SAT"
    assert best_text(beam(hotwords="SAT KEY:6"), *output) == "CAT LEY SAT"


def test_a_hot_word_survives_in_a_narrow_beam():
    """Nine characters in doubt: only with a part of its bonus at each of them does the hot word stay among two prefixes."""
    output = spoken("XXXXXXXXX", *((i, character, 0.3) for i, character in enumerate("CATHARINE")))
    assert best_text(beam(beam_width=2, hotwords="CATHARINE:12"), *output) == "CATHARINE"


def test_hot_words_in_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("KAB:9\n\nCATHARINE\n")
    assert best_text(beam(hotwords=str(tmp_path / "names.txt")), *spoken("CAB", (0, "K", 0.01))) == "KAB"
    for text, message in [
        ("KAB:nine\n", r"names\.txt:1.*'KAB:nine'"),
        ("A\nKAB:1\nKAB:2\n", "names.txt:3.*'KAB'"),
        (":3", "names.txt:1"),
        ("KAB:1e9", "names.txt:1"),
        ("", "no words"),
        ("kab", "hot word 'kab': .*'abk'"),
    ]:
        (tmp_path / "names.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            beam(hotwords=str(tmp_path / "names.txt"))
    with pytest.raises(OSError, match=r"no such file.*nowhere\.txt"):
        beam(hotwords="nowhere.txt")
    (tmp_path / "names.txt").write_bytes(b"\xff\xfeK\0")
    with pytest.raises(ValueError, match=r"names\.txt: not UTF-8"):
        beam(hotwords=str(tmp_path / "names.txt"))


def test_n_best_are_sorted_distinct_and_their_scores_add_up(model):
    decoder = beam(model, beam_width=50, top_paths=20, alpha=0.9, beta=0.5, unk_penalty=2.0, beam_prune_logp=-30.0)
    doubts = [(6, "P", 0.4), (0, "C", 0.3), (9, "X", 0.2), (3, "S", 0.3), (10, " ", 0.3)]
    (found,) = decoder.decode(*spoken("THE CAT SAT", *doubts))
    assert len(found) == 20 == len({h.text for h in found})
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    for h in found:
        unknown = sum(model.word_id(word.text) == 0 for word in h.words)
        assert h.score == pytest.approx(h.acoustic_score + 0.9 * h.lm_score + 0.5 * len(h.words) - 2.0 * unknown)
        assert h.lm_score == pytest.approx(model.score(h.text) * math.log(10), abs=1e-4)
        assert " ".join(word.text for word in h.words) == h.text
        assert len(h.offsets) == len(h.text) and all(np.diff(h.offsets) > 0)
        assert all(0 < word.confidence <= 1 for word in h.words)


def test_a_beam_of_one_and_few_labels_still_decode(model):
    output = spoken("THE CAT SAT", (6, "P", 0.4))
    for settings in (
        {"beam_width": 1},
        {"cutoff_top_n": 1},
        {"cutoff_prob": 0.5},
        {"cutoff_prob": 0.0},
        {"token_min_logp": 0.0},
    ):
        assert best_text(beam(model, **settings), *output) == "THE CAT SAT"
        assert best_text(beam(**settings), *output) == "THE CAT SAT"


def test_impossible_frames_do_not_end_the_search(model):
    """One-hot frames that spell what a closed vocabulary does not have: the text ends with its last whole word."""
    log_probs = torch.full((1, 14, len(LETTERS)), -math.inf)
    for t, character in enumerate("THE CAT QQQQQQ"):
        log_probs[0, t, LETTERS.index(character)] = 0.0
    assert best_text(beam(), log_probs, torch.tensor([14])) == "THE CAT Q"
    for n in (14, 10, 9, 8, 6, 1):
        (found,) = beam(model, unk_penalty=math.inf, top_paths=3).decode(log_probs, torch.tensor([n]))
        assert found and all(model.word_id(word) for h in found for word in h.text.split())
        assert all(len(h.offsets) == len(h.text) for h in found)


@pytest.mark.parametrize(
    "spoil", [lambda x: x.fill_(math.nan), lambda x: x.add_(1.0), lambda x: x.exp_(), lambda x: x.fill_(math.inf)]
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_spoilt_utterance_is_named_and_the_others_are_decoded(spoil, workers):
    log_probs, lens = scores([1, 2, 0], [2, 0, 1], [2, 1, 2])
    spoil(log_probs[1, 1])
    with pytest.raises(DecodeError, match=r"1 of 3 .*row 1: frame 1: .*expected 1") as refused:
        beam(symbols=SYMBOLS, lm_workers=workers).decode(log_probs, lens)
    assert list(refused.value.failures) == [1]
    assert [found and found[0].text for found in refused.value.hypotheses] == ["AB", None, "BAB"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_pass(dtype):
    generator = torch.Generator().manual_seed(1)
    log_probs = (3 * torch.randn(1, 50, 5000, generator=generator)).log_softmax(-1)
    symbols = ("_", *(chr(0x4E00 + i) for i in range(4999)))
    found = beam(symbols=symbols).decode(log_probs.to(dtype), torch.tensor([50]))[0][0]
    assert len(found.text) > 10


def test_threads_decode_the_same(model):
    generator = torch.Generator().manual_seed(1)
    log_probs = (3 * torch.randn(9, 40, len(LETTERS), generator=generator)).log_softmax(-1)
    lens = torch.tensor([40, 3, 0, 40, 17, 40, 1, 40, 40])
    one = beam(model, top_paths=3).decode(log_probs, lens)
    assert one == beam(model, top_paths=3, lm_workers=4).decode(log_probs, lens)


def test_other_weights_share_the_model(model):
    decoder = beam(model)
    other = decoder.with_weights(alpha=0.1, beta=2.0, unk_penalty=1.0, beam_width=3)
    assert other.model is decoder.model
    assert (other.config.alpha, other.config.beam_width, decoder.config.alpha) == (0.1, 3, 0.8)
    output = spoken("THE CAB", (6, "T", 0.01))
    assert best_text(decoder, *output) == "THE CAT" and best_text(other, *output) == "THE CAB"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"decoder": "psychic"}, "'psychic': expected greedy or beam"),
        ({"beam_width": 0}, "--beam-width 0: expected at least 1"),
        ({"beam_width": 5, "top_paths": 6}, "--top-paths 6: expected at most the 5 of --beam-width"),
        ({"alpha": -0.1}, "--alpha -0.1: expected 0 to 10"),
        ({"beta": math.nan}, "--beta nan"),
        ({"unk_penalty": -1.0}, "--unk-penalty -1"),
        ({"cutoff_prob": 1.1}, "--cutoff-prob 1.1"),
        ({"beam_prune_logp": 3.0}, "--beam-prune-logp 3: expected -inf to 0"),
        ({"lm_workers": 0}, "--lm-workers 0"),
        ({"decoder": "greedy", "lm_path": "x.arpa"}, "--lm-path x.arpa: .*--decoder beam"),
        ({"decoder": "greedy", "hotwords": "X"}, "--hotwords X: .*--decoder beam"),
        ({"decoder": "greedy", "top_paths": 2}, "--top-paths 2: .*--decoder beam"),
    ],
)
def test_settings_that_cannot_be_meant(settings, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**({"decoder": "beam"} | settings))


def parse(*flags: str) -> DecoderConfig:
    parser = argument_parser("")
    add_decoder_options(parser)
    return decoder_config(parser.parse_args(flags))


def test_flags_become_settings():
    assert parse() == DecoderConfig()
    flags = "--decoder beam --lm-path x --alpha 0.5 --beta -1 --unk-penalty inf --beam-width 99 --top-paths 2 --cutoff-top-n 7"
    more = "--cutoff-prob 0.99 --token-min-logp=-inf --beam-prune-logp -15 --lm-workers 3 --hotwords A:2,B"
    assert parse(*flags.split(), *more.split()) == DecoderConfig(
        decoder="beam",
        lm_path="x",
        alpha=0.5,
        beta=-1.0,
        unk_penalty=math.inf,
        beam_width=99,
        top_paths=2,
        cutoff_top_n=7,
        cutoff_prob=0.99,
        token_min_logp=-math.inf,
        beam_prune_logp=-15.0,
        lm_workers=3,
        hotwords="A:2,B",
    )
    for flag in ("--alpha", "--beta", "--unk-penalty"):
        with pytest.raises(UsageError, match=f"{flag} 1: .*add --lm-path"):
            parse("--decoder", "beam", flag, "1")
    with pytest.raises(UsageError, match=r"--lm-path x: .*--decoder beam"):
        parse("--lm-path", "x")


def test_a_model_in_other_letters_is_refused(model):
    with pytest.raises(ValueError, match=r"cat\.arpa"):
        beam(model, symbols=("_", *"abcdefghijklmnopqrstuvwxyz", " "))


def test_greedy_decoding_does_not_wait_for_the_compiler():
    code = (
        "import sys, config, decoder\n"
        "decoder.build_decoder(config.DecoderConfig(), '_AB ')\n"
        "assert 'numba' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
