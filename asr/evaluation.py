"""How good a model is: word and character errors over a data set."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor, nn

from asr.runtime import Runtime
from data.dataset import Batch
from decoder import BeamDecoder, GreedyDecoder, Hypothesis


@dataclass(frozen=True)
class Errors:
    """Edits (substitutions, insertions, deletions) of words and characters, and how many of each the references hold."""

    word_edits: int = 0
    words: int = 0
    char_edits: int = 0
    chars: int = 0

    @classmethod
    def between(cls, reference: str, hypothesis: str, cer_spaces: bool = False) -> "Errors":
        """Spaces are no characters unless `cer_spaces` says so, as the predecessor counted."""
        ref_words, hyp_words = reference.split(), hypothesis.split()
        gap = " " if cer_spaces else ""
        ref_chars, hyp_chars = gap.join(ref_words), gap.join(hyp_words)
        return cls(
            Levenshtein.distance(ref_words, hyp_words),
            len(ref_words),
            Levenshtein.distance(ref_chars, hyp_chars),
            len(ref_chars),
        )

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            self.word_edits + other.word_edits,
            self.words + other.words,
            self.char_edits + other.char_edits,
            self.chars + other.chars,
        )

    @property
    def wer(self) -> float:
        """Word errors in percent of the reference's words; its insertions alone make an empty reference infinitely wrong."""
        return _percent(self.word_edits, self.words)

    @property
    def cer(self) -> float:
        return _percent(self.char_edits, self.chars)


def _percent(edits: int, total: int) -> float:
    if total == 0:
        return 0.0 if edits == 0 else float("inf")
    return 100.0 * edits / total


def count_errors(references: Iterable[str], hypotheses: Iterable[str], cer_spaces: bool = False) -> Errors:
    """Errors over a whole set: total edits over total words or characters, not the mean of percentages."""
    pairs = zip(references, hypotheses, strict=True)
    return sum((Errors.between(ref, hyp, cer_spaces) for ref, hyp in pairs), Errors())


@torch.inference_mode()
def acoustic_output(model: nn.Module, batch: Batch, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Log probabilities (B, L, C) float32 and lengths (B,) of a batch, both on the CPU. Raises: as log_probabilities."""
    batch = batch.to(runtime.device)
    with runtime.autocast():
        logits, out_lens = model(batch.spects, batch.spect_lens)
    return log_probabilities(logits), out_lens.cpu()


def log_probabilities(logits: Tensor) -> Tensor:
    """Logits (..., C) to log probabilities (..., C) float32 on the CPU, where decoders work.

    Raises: ValueError if they are no numbers, so that a model ruined in training is not taken for one that hears silence.
    """
    log_probs = logits.float().log_softmax(-1).cpu()
    if log_probs.isnan().any():
        raise ValueError("the network's output is not a number: its training diverged; train it anew with a lower --lr")
    return log_probs


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    decoder: GreedyDecoder | BeamDecoder,
    runtime: Runtime,
    keep_output: dict[int, Tensor] | None = None,
) -> dict[int, Hypothesis]:
    """The best hypothesis of every utterance under its index, in the order of the data set, not of the batches.

    Each process brings its share of the batches, and all of them get the whole.
    `keep_output`, if given, receives each utterance's log probabilities (L, C) under its index.

    Raises: ValueError if there is nothing to evaluate, which must not pass for a score without errors.
    """
    was_training = model.training
    model.eval()
    found: dict[int, Hypothesis] = {}
    for batch in batches:
        if not len(batch.indices):
            continue
        log_probs, out_lens = acoustic_output(model, batch, runtime)
        hypotheses = decoder.decode(log_probs, out_lens)
        for row, index in enumerate(batch.indices.tolist()):
            found[index] = hypotheses[row][0]
            if keep_output is not None:
                keep_output[index] = log_probs[row, : out_lens[row]].clone()
    model.train(was_training)
    found = {index: hypothesis for share in runtime.gather(found) for index, hypothesis in share.items()}
    if not found:
        raise ValueError("no utterance could be evaluated; the reasons are above")
    return dict(sorted(found.items()))
