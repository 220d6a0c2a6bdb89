"""The search for the decoder's weights: points to try, and how good each is on saved output of a network.

Points are scored one after another, each point's utterances on all threads: they share the language model, and the compiled
beam search lets them run side by side.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from types import ModuleType

import numpy as np
import torch

from asr.evaluation import Errors
from asr.saved_output import SavedOutput
from asr.tuning_results import Point, Row, RowFile
from config import DecoderConfig
from decoder import BeamDecoder

BLOCK = 2**20  # bytes
UNK_PENALTIES = (0.0, 20.0)  # ln, from none to where a word outside the model is next to impossible
BEAM_WIDTHS = (8, 128)  # beyond, errors hardly fall any more


class Scorer:
    """Decodes all utterances at a point, and counts the errors; what `rows` has already is not decoded again."""

    def __init__(
        self,
        output: SavedOutput,
        decoder: BeamDecoder,
        rows: RowFile,
        threads: int,
        seed: int,
        prune: bool = False,
        cer_spaces: bool = False,
    ):
        """`prune`: cut a point short at the utterance with which it has more word errors than the best one before it.

        The utterances are decoded in an order that follows from `seed`, so that their beginning speaks for all of them.
        """
        order = np.random.default_rng(seed).permutation(len(output.references))
        self._utterances = [(output.log_probs[i], output.references[i]) for i in order]
        self._decoder, self._rows, self._prune, self._cer_spaces = decoder, rows, prune, cer_spaces
        self._threads = ThreadPoolExecutor(threads)
        self._ahead = 1 + threads // len(order)  # points begun before one is finished, so that no thread waits for its end
        self._fewest: int | None = None  # word edits of the best point so far
        self.decoded = 0  # points that were

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def score(self, points: Iterable[Point]) -> Iterator[Row]:
        """A row for each point, in their order; the ones that follow are begun before it is finished."""
        begun: deque[tuple[Point, list[Future]]] = deque()
        for point in points:
            begun.append((point, self._begin(point)))
            if len(begun) > self._ahead:
                yield self._finish(*begun.popleft())
        while begun:
            yield self._finish(*begun.popleft())

    def _begin(self, point: Point) -> list[Future]:
        known = self._rows.rows.get(point)
        return [] if known and (known.complete or self._prune) else self._decode(point)

    def _decode(self, point: Point) -> list[Future]:
        decoder = self._decoder.with_weights(**point._asdict())
        return [self._threads.submit(self._errors, decoder, *utterance) for utterance in self._utterances]

    def _errors(self, decoder: BeamDecoder, log_probs: np.ndarray, reference: str) -> Errors:
        ((best, *_),) = decoder.decode(torch.from_numpy(log_probs)[None], torch.tensor([len(log_probs)]))
        return Errors.between(reference, best.text, self._cer_spaces)

    def _finish(self, point: Point, begun: list[Future]) -> Row:
        row = self._rows.rows.get(point)
        if not begun and not row.complete and not self._has_lost(row.word_edits):  # cut short by another search's best
            begun = self._decode(point)
        if begun:
            row = self._add_up(point, begun)
            self._rows.add(row)
            self.decoded += 1
        if row.complete and (self._fewest is None or row.word_edits < self._fewest):
            self._fewest = row.word_edits
        return row

    def _add_up(self, point: Point, begun: list[Future]) -> Row:
        errors = Errors()
        for number, utterance in enumerate(begun, 1):
            errors += utterance.result()
            if self._has_lost(errors.word_edits) and number < len(begun):
                for later in begun[number:]:
                    later.cancel()
                return Row(point, errors.word_edits, None, None)
        return Row(point, errors.word_edits, errors.wer, errors.cer)

    def _has_lost(self, word_edits: int) -> bool:
        return self._prune and self._fewest is not None and word_edits > self._fewest


def grid(alphas: tuple[float, float, int], betas: tuple[float, float, int], config: DecoderConfig) -> list[Point]:
    """All pairs of values, `alphas` and `betas` being first value, last value and how many: by alpha, then by beta."""
    pairs = ((alpha, beta) for alpha in np.linspace(*alphas).tolist() for beta in np.linspace(*betas).tolist())
    return [Point(alpha, beta, config.unk_penalty, config.beam_width) for alpha, beta in pairs]


def search_grid(scorer: Scorer, points: Sequence[Point], seed: int) -> Iterator[tuple[int, Row]]:
    """The number of a point and its row, in an order that spans the grid from the beginning."""
    order = np.random.default_rng(seed).permutation(len(points)).tolist()
    yield from zip(order, scorer.score(points[number] for number in order), strict=True)


def search_optuna(
    scorer: Scorer,
    alphas: tuple[float, float],
    betas: tuple[float, float],
    unk_penalties: tuple[float, float],
    beam_widths: tuple[int, int],
    trials: int,
    seed: int,
) -> Iterator[tuple[int, Row]]:
    """Each trial's number and row, where Optuna's tree-structured Parzen estimator looks next (Bergstra et al. 2011).

    One trial ends before the next begins, so that the same seed makes the same trials with any number of threads; and again
    after an interruption. Raises: ValueError if optuna is not installed.
    """
    optuna = import_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    for number in range(trials):
        trial = study.ask()
        point = Point(
            _between(alphas, partial(trial.suggest_float, "alpha")),
            _between(betas, partial(trial.suggest_float, "beta")),
            _between(unk_penalties, partial(trial.suggest_float, "unk_penalty")),
            _between(beam_widths, partial(trial.suggest_int, "beam_width", log=True)),
        )
        (row,) = scorer.score([point])
        if row.complete:
            study.tell(trial, row.wer)
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        yield number, row


def _between(bounds: tuple[float, float], suggest: Callable[[float, float], float]) -> float:
    lowest, highest = bounds
    return lowest if lowest == highest else suggest(lowest, highest)  # which may be infinite, and no sampler's business


def import_optuna() -> ModuleType:
    """Raises: ValueError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ValueError(f"--method optuna needs its package ({error}): pip install -r requirements-tuning.txt") from None
    return optuna


def search_key(output: SavedOutput, symbols: Sequence[str], config: DecoderConfig, cer_spaces: bool) -> str:
    """What the scores of points follow from, in a word: utterances, labels, language model and the settings not searched."""
    from decoding.hotwords import read_hot_words

    digest = hashlib.sha256()
    for log_probs in output.log_probs:
        digest.update(log_probs)
    with open(config.lm_path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    apart = ("lm_path", "hotwords", "top_paths", "lm_workers", *Point._fields)
    settings = {name: value for name, value in asdict(config).items() if name not in apart}
    hot_words = read_hot_words(config.hotwords) if config.hotwords is not None else {}
    lengths = [len(log_probs) for log_probs in output.log_probs]
    digest.update(json.dumps([lengths, output.references, list(symbols), settings, hot_words, cer_spaces]).encode())
    return digest.hexdigest()[:32]
