"""The beam search against all paths there are: texts, their probabilities and prices, in every mode."""

import itertools
import math
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from config import DecoderConfig
from decoder import BeamDecoder
from decoding import entry_points
from decoding.compiled import version
from decoding.language_model import load_language_model
from decoding.ngrams import transition

SYMBOLS = ("_", "A", "B", " ")
# A word model in which A B is likely, BA follows it, BB is unknown and B alone rare. Weights in log10.
ARPA = """\\data\\
ngram 1=7
ngram 2=6

\\1-grams:
-1.5\t<unk>\t-0.1
-99\t<s>\t-0.3
-1.1\t</s>
-0.5\tA\t-0.2
-1.9\tB\t-0.4
-0.9\tAB\t-0.15
-1.2\tBA

\\2-grams:
-0.2\t<s> A
-0.4\tA B
-0.7\tB BA
-0.6\tA </s>
-1.4\tAB <unk>
-0.3\tB </s>

\\end\\
"""
EVERYTHING = {
    "decoder": "beam",
    "beam_width": 3000,
    "token_min_logp": -math.inf,
    "beam_prune_logp": -math.inf,
    "top_paths": 3000,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "tiny.arpa"
    path.write_text(ARPA)
    return load_language_model(path)


def random_output(seed: int, frames: int = 5, labels: int = len(SYMBOLS)) -> torch.Tensor:
    return (2 * torch.randn(1, frames, labels, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


def all_texts(log_probs: torch.Tensor, symbols: tuple[str, ...]) -> dict[str, float]:
    """ln p of each text, summed over all of its paths."""
    found = defaultdict(float)
    for path in itertools.product(range(len(symbols)), repeat=log_probs.shape[1]):
        kept = [label for label, _ in itertools.groupby(path) if label]
        text = "".join(symbols[label] for label in kept)
        found[" ".join(text.split())] += math.exp(sum(float(log_probs[0, t, label]) for t, label in enumerate(path)))
    return {text: math.log(p) for text, p in found.items()}


def prices(text, model, alpha, beta, unk_penalty, hot, spaced=True):
    """(what is added to the acoustic score, ln p of the model)."""
    words = text.split() if spaced else list(text)
    total, lm = sum(hot.get(word, 0.0) for word in words), 0.0
    if model:
        lm = model.score(" ".join(words)) * math.log(10)
        unknown = [word for word in words if model.word_id(word) == 0 and word not in hot]
        total += alpha * lm + beta * len(words) - (unk_penalty * len(unknown) if unknown else 0)
    return total, lm


def check_against_all_paths(decoder, log_probs, expected):
    """`expected`: text -> (score, acoustic, lm)."""
    (found,) = decoder.decode(log_probs, torch.tensor([log_probs.shape[1]]))
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    assert {h.text for h in found} == set(expected) and len(found) == len(expected)
    for h in found:
        assert (h.score, h.acoustic_score, h.lm_score) == pytest.approx(expected[h.text], abs=1e-4), h.text


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "with_model, settings, hot",
    [
        (False, {}, {}),
        (False, {}, {"AB": 3.0, "BB": 1.0}),
        (True, {"alpha": 0.7, "beta": 0.4, "unk_penalty": 1.5}, {}),
        (True, {"alpha": 2.0, "beta": -1.0, "unk_penalty": 0.0}, {}),
        (True, {"alpha": 0.0, "beta": 2.0, "unk_penalty": 3.0}, {"BB": 2.5, "A": -1.0}),
        (True, {"alpha": 0.7, "beta": 0.4, "unk_penalty": math.inf}, {}),
        (True, {"alpha": 0.7, "beta": 0.4, "unk_penalty": math.inf}, {"BB": 2.0}),
    ],
)
def test_a_wide_beam_finds_every_text_and_its_scores(model, seed, with_model, settings, hot):
    settings = dict(settings, hotwords=",".join(f"{word}:{weight}" for word, weight in hot.items()) or None)
    model = model if with_model else None
    config = DecoderConfig(**EVERYTHING, **settings)
    log_probs = random_output(seed)
    expected = {}
    for text, acoustic in all_texts(log_probs, SYMBOLS).items():
        price, lm = prices(text, model, config.alpha, config.beta, config.unk_penalty, hot)
        if price > -math.inf:
            expected[text] = (acoustic + price, acoustic, lm)
    check_against_all_paths(BeamDecoder(SYMBOLS, config, model), log_probs, expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("hot", [{}, {"AB": 3.0}])
def test_without_a_space_every_character_is_a_word(model, seed, hot):
    symbols = ("_", "A", "B", "C")
    config = DecoderConfig(
        **EVERYTHING, alpha=0.7, beta=0.4, unk_penalty=1.5, hotwords=",".join(f"{word}:{hot[word]}" for word in hot) or None
    )
    log_probs = random_output(seed)
    expected = {}
    for text, acoustic in all_texts(log_probs, symbols).items():
        price, lm = prices(text, model, config.alpha, config.beta, config.unk_penalty, {}, spaced=False)
        price += sum(weight * text.count(word) for word, weight in hot.items())
        expected[text] = (acoustic + price, acoustic, lm)
    check_against_all_paths(BeamDecoder(symbols, config, model), log_probs, expected)


class Asked:
    """A model that compiled code cannot look into: it must be asked, as KenLM's binaries are."""

    def __init__(self, model):
        self.name, self.words, self.word_id = model.name, model.words, model.word_id
        self.begin, self.end, self.unigram_ln_p, self.score = model.begin, model.end, model.unigram_ln_p, model.score
        self._tables, self.asked = model.tables, []

    def transition(self, state, word):
        self.asked.append((state, word))
        ln_p, state = transition(self._tables, state, word)
        return float(ln_p), int(state)


@pytest.mark.parametrize("symbols", [SYMBOLS, ("_", "A", "B", "C")])
@pytest.mark.parametrize("width", [1, 4, 100])
def test_a_model_that_must_be_asked_gives_the_same(model, symbols, width):
    asked = Asked(model)
    config = DecoderConfig(decoder="beam", beam_width=width, top_paths=min(width, 9), unk_penalty=1.0, hotwords="BB:2")
    log_probs = random_output(1, 200)
    lens = torch.tensor([200])
    decoder = BeamDecoder(symbols, config, asked)
    assert decoder.decode(log_probs, lens) == BeamDecoder(symbols, config, model).decode(log_probs, lens)
    assert 0 < len(asked.asked) == len(set(asked.asked)), "each transition once"


def test_answers_are_forgotten_when_they_are_too_many(model, monkeypatch):
    monkeypatch.setattr("decoding.beam.MOST_ANSWERS", 8)
    monkeypatch.setattr("decoding.beam.ASKS_AT_ONCE", 2)
    asked = Asked(model)
    config = DecoderConfig(decoder="beam", beam_width=5, unk_penalty=1.0)
    log_probs, lens = random_output(1, 200), torch.tensor([200])
    found = BeamDecoder(SYMBOLS, config, asked).decode(log_probs, lens)
    assert found == BeamDecoder(SYMBOLS, config, model).decode(log_probs, lens)
    assert len(asked.asked) > len(set(asked.asked))


def test_code_is_compiled_anew_when_any_of_its_files_changed():
    folder = Path(entry_points.__file__).parent
    compiled = {path.name for path in folder.glob("*.py") if re.search(r"import compiled\b", path.read_text())}
    watched = {Path(file).name for file in entry_points.FILES}
    others = {"entry_points.py", "arpa_lines.py"}  # whose entry points are in the same file
    assert compiled - others < watched and {"compiled.py", "ngrams.py", "search.py"} <= watched
    one, two = (folder / name for name in sorted(compiled)[:2])
    assert version([one]) != version([two]) and version([one]) == version([one])
