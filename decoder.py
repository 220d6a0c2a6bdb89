"""Log probabilities to text.

L output frames, C labels, B utterances. Label 0 is the CTC blank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from config import DecoderConfig

BLANK = 0


@dataclass(frozen=True)
class Hypothesis:
    """One reading of an utterance."""

    text: str
    offsets: tuple[int, ...]  # the output frame at which each character of the text starts
    score: float  # natural log probability of the path behind it


class GreedyDecoder:
    """The best label of each frame, repeats merged, blanks dropped (Graves et al. 2006, section 3.2)."""

    def __init__(self, symbols: Sequence[str]):
        self.symbols = tuple(symbols)

    def decode(self, log_probs: Tensor, lens: Tensor) -> list[list[Hypothesis]]:
        """Best first, one list for each utterance; greedy knows one hypothesis.

        log_probs (B, L, C) of log-softmaxed logits, lens (B,) frames that count.
        """
        scores, best = log_probs.max(-1)
        # A label starts where it is not blank and differs from the frame before. Labels are compared as indices.
        starts = best != BLANK
        starts[:, 1:] &= best[:, 1:] != best[:, :-1]
        return [[self._hypothesis(best[b, :n], starts[b, :n], scores[b, :n])] for b, n in enumerate(lens.tolist())]

    def _hypothesis(self, best: Tensor, starts: Tensor, scores: Tensor) -> Hypothesis:
        frames = torch.nonzero(starts).flatten().tolist()
        text = "".join(self.symbols[label] for label in best[starts].tolist())
        return Hypothesis(text, tuple(frames), float(scores.sum()))


def build_decoder(config: DecoderConfig, symbols: Sequence[str]) -> GreedyDecoder:
    if config.decoder != "greedy":
        raise ValueError(f"decoder {config.decoder!r}: expected greedy")
    return GreedyDecoder(symbols)
