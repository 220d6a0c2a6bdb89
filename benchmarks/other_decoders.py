"""Other people's beam searches: benchmarks/decoding.py starts this in an environment of their own and asks it by lines.

    python benchmarks/other_decoders.py INPUT.npz MODEL.arpa        then one JSON object a line on standard input

INPUT.npz has log_probs (sum of lens, C) float32, lens and labels, the blank first and the space last; the first line of the
answer tells the versions. A request names a decoder, its settings and rows; what comes back are the texts of these rows and the
seconds of a core that they took. Whatever can be made ready before the first frame is not timed.
"""

import importlib.metadata
import json
import logging
import math
import platform
import resource
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

PACKAGES = ("numpy", "pyctcdecode", "kenlm", "flashlight-text")
SPACE = " "
LN_10 = math.log(10)

Decode = Callable[[np.ndarray], str]


class Others:
    def __init__(self, labels: list[str], arpa: Path) -> None:
        self.labels, self.arpa = labels, arpa

    @cached_property
    def pyctcdecoders(self) -> tuple:
        """Without the language model and with it."""
        from pyctcdecode import build_ctcdecoder

        logging.disable(logging.WARNING)  # of the model's <unk>
        labels = ["", *self.labels[1:]]
        return build_ctcdecoder(labels), build_ctcdecoder(labels, str(self.arpa), self.words)

    @cached_property
    def words(self) -> list[str]:
        with open(self.arpa, encoding="utf-8") as file:
            text = file.read().partition("\\1-grams:")[2].partition("\\2-grams:")[0]
        words = [line.split("\t")[1] for line in text.splitlines() if "\t" in line]
        return [word for word in words if set(word) <= set(self.labels)]

    def use_pyctcdecode(self, lm: bool, beam: int, weights: dict[str, float]) -> Decode:
        """weights: alpha, beta, unk_score_offset, as it calls them; without them, its own."""
        decoder = self.pyctcdecoders[lm]
        if lm:
            decoder.reset_params(**({"alpha": 0.5, "beta": 1.5, "unk_score_offset": -10.0} | weights))
        return lambda log_probs: decoder.decode(log_probs, beam_width=beam)

    @cached_property
    def flashlight_lexicon(self) -> tuple:
        """Its language model, its trie of words, and the words."""
        from flashlight.lib.text.decoder import SmearingMode, Trie
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary

        words = self.words
        numbers = Dictionary(words)
        numbers.add_entry("<unk>")
        model = KenLM(str(self.arpa), numbers)
        trie, start = Trie(len(self.labels), self.labels.index(SPACE)), model.start(False)
        for index, word in enumerate(words):
            spelling = [self.labels.index(character) for character in word + SPACE]
            trie.insert(spelling, index, model.score(start, index)[1])
        trie.smear(SmearingMode.MAX)
        return model, trie, words

    def use_flashlight(self, lm: bool, beam: int, weights: dict[str, float], tokens: int, threshold: float) -> Decode:
        """weights: alpha and beta, alpha of natural logarithms; `tokens` of a frame; `threshold` below the best, in ln p."""
        from flashlight.lib.text import decoder

        space, log_add = self.labels.index(SPACE), True
        common = {"beam_size": beam, "beam_size_token": min(tokens, len(self.labels)), "beam_threshold": threshold}
        common |= {"sil_score": 0.0, "log_add": log_add, "criterion_type": decoder.CriterionType.CTC}
        if lm:
            model, trie, words = self.flashlight_lexicon
            score = {"lm_weight": weights["alpha"] * LN_10, "word_score": weights["beta"], "unk_score": -math.inf}
            options = decoder.LexiconDecoderOptions(**common, **score)
            search = decoder.LexiconDecoder(options, trie, model, space, 0, len(words), [], False)
        else:
            words = None
            options = decoder.LexiconFreeDecoderOptions(**common, lm_weight=0.0)
            search = decoder.LexiconFreeDecoder(options, decoder.ZeroLM(), space, 0, [])

        def decode(log_probs: np.ndarray) -> str:
            frames = np.ascontiguousarray(log_probs, np.float32)
            best = search.decode(frames.ctypes.data, *frames.shape)[0]
            return " ".join(words[i] for i in best.words if i >= 0) if words else self.collapse(best.tokens)

        return decode

    def collapse(self, path: list[int]) -> str:
        """The text of a path of one label a frame."""
        changes = [label for label, before in zip(path, [-1, *path], strict=False) if label != before]
        return " ".join("".join(self.labels[label] for label in changes if label != 0).split())


def installed() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def core_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    given = np.load(sys.argv[1])
    lens = given["lens"]
    rows = np.split(given["log_probs"], np.cumsum(lens)[:-1])
    others = Others(given["labels"].tolist(), Path(sys.argv[2]))
    print(json.dumps(installed()), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        decode = getattr(others, f"use_{asked['decoder']}")(**asked["settings"])
        before = core_seconds()
        texts = [decode(rows[row]) for row in asked["rows"]]
        print(json.dumps({"seconds": core_seconds() - before, "texts": texts}), flush=True)


if __name__ == "__main__":
    main()
