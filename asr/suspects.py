"""Rank utterances by how badly a model can align their transcripts: wrong transcripts come first."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from asr.checkpoint import load_checkpoint
from asr.evaluation import acoustic_output
from asr.recognizer import Recognizer
from asr.runtime import Runtime
from asr.training import ctc_losses
from config import DecoderConfig
from data.command_line import progress_bar
from data.dataset import BatchLoader, SpectrogramDataset
from data.samplers import BatchLimit, LengthBatchSampler
from data.utterances import Utterance
from model import PADDINGS, RELEASE1_PADDINGS, output_frames

__all__ = ["Ranker", "Suspect", "output_frames"]


@dataclass(frozen=True)
class Suspect:
    index: int  # of the utterance
    loss_per_character: float  # CTC loss (natural logarithm) over the transcript's characters
    heard: str  # what the model would write


class Ranker:
    """A model file, opened for its labels and audio settings; the network is put on its device when it ranks.

    Until then this process may fork, which one that has woken CUDA must not.
    """

    def __init__(self, model_path: str | Path, cuda: bool):
        """Raises: OSError or ValueError naming the model file, or the device that is not there."""
        self.model_path, self.runtime = model_path, Runtime.choose(cuda)
        checkpoint = load_checkpoint(model_path)
        self.labels, self.audio = checkpoint.labels, checkpoint.audio
        self.output_frames = partial(output_frames, paddings=RELEASE1_PADDINGS if checkpoint.model.release1 else PADDINGS)

    @torch.inference_mode()
    def rank(self, utterances: Sequence[Utterance], batch_size: int = 20, num_workers: int = 0) -> list[Suspect]:
        """All utterances, the least likely transcript first.

        utterances: checked, with duration, and text in the model's labels. A loss is infinite where CTC cannot align.
        Raises: ValueError naming a recording that cannot be read.
        """
        recognizer = Recognizer(self.model_path, DecoderConfig(), self.runtime)
        order = LengthBatchSampler([utterance.duration for utterance in utterances], BatchLimit(batch_size), shuffle=False)
        dataset = SpectrogramDataset(utterances, self.audio, self.labels)
        suspects = []
        for batch in progress_bar(BatchLoader(dataset, order, num_workers), "aligning", unit="batch"):
            log_probs, lens = acoustic_output(recognizer.model, batch, self.runtime)
            losses = ctc_losses(log_probs, lens, batch.targets, batch.target_lens) / batch.target_lens
            heard = recognizer.decoder.decode(log_probs, lens)
            rows = zip(batch.indices.tolist(), losses.tolist(), heard, strict=True)
            suspects += [Suspect(index, loss, hypotheses[0].text) for index, loss, hypotheses in rows]
        return sorted(suspects, key=lambda suspect: suspect.loss_per_character, reverse=True)
