"""Audio to hypotheses to JSON: the one path that test.py, transcribe.py and the server share.

A recording becomes pieces (`pieces`), these become log probabilities, several at a time (`hear`), and those a transcript
(`Reader`). `transcribe` does it all for one recording; asr/transcribing.py for many at once.

F frequency bins, T spectrogram frames, L output frames, C labels.
"""

import argparse
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from asr.checkpoint import load_checkpoint
from asr.evaluation import acoustic_output
from asr.frame_times import FrameTimes
from asr.options import decoder_config
from asr.quantization import quantized, release_memory
from asr.runtime import Precision, Runtime
from asr.transcript import Transcript, shifted, word_json
from config import DecoderConfig
from data.audio import audio_blocks, source_name
from data.command_line import UsageError
from data.dataset import Sample, collate
from data.features import RunningNorm, TooShort, spectrogram
from data.pieces import Piece, cut_pieces
from decoder import SPACE, BeamDecoder, GreedyDecoder, Hypothesis, build_decoder, decode_at_once, utterances
from model import TIME_STRIDE

MOST_UNPAUSED = 60.0  # seconds; who speaks so long without a pause is read up to a cut that is in none


class Recognizer:
    """A model, the decoder that reads it, and where it runs."""

    def __init__(self, model_path: str | Path, config: DecoderConfig, runtime: Runtime, int8: bool = False):
        """Raises: OSError or ValueError naming the model file if it cannot be used."""
        checkpoint = load_checkpoint(model_path)
        self.name, self.written = Path(model_path).name, int(os.stat(model_path).st_mtime)  # seconds since 1970
        self.audio, self.labels = checkpoint.audio, checkpoint.labels
        self.times = FrameTimes.of_output(checkpoint.audio, checkpoint.model)
        self.model = checkpoint.build_model(runtime.device)
        runtime.precision.convert(self.model)
        if int8:
            self.model = quantized(self.model)
        del checkpoint  # and with it what is no part of the network: the optimizer's state, and with int8 the weights
        release_memory()
        self.decoder = build_decoder(config, self.labels.symbols)
        self.config, self.runtime = config, runtime

    @classmethod
    def from_options(cls, args: argparse.Namespace, decoder: DecoderConfig | None = None) -> "Recognizer":
        """As the flags say (asr/options.py); those of the decoder are not needed if it is given."""
        if args.half and not args.cuda:
            raise UsageError("--half: float16 needs --cuda; on a CPU leave it out, and the model runs in float32")
        if args.half and args.precision not in (None, "fp16"):
            raise UsageError(f"--half and --precision {args.precision} contradict each other; leave one of them out")
        if args.int8 and (args.cuda or args.half or args.precision):
            flag = "--cuda" if args.cuda else "--half" if args.half else f"--precision {args.precision}"
            raise UsageError(f"--int8 and {flag} contradict each other: 8-bit kernels are the CPU's; leave one of them out")
        if args.threads:
            torch.set_num_threads(args.threads)
        precision = Precision.choose("fp16", "O2") if args.half else Precision.choose(args.precision)
        runtime = Runtime.choose(args.cuda, precision)
        recognizer = cls(args.model_path, decoder or decoder_config(args), runtime, args.int8)
        if args.sample_rate not in (None, recognizer.audio.sample_rate):
            raise UsageError(
                f"--sample-rate {args.sample_rate}: {args.model_path} was trained at {recognizer.audio.sample_rate} Hz; "
                "leave the flag out, recordings of any rate are resampled to it"
            )
        return recognizer

    def pieces(
        self,
        source: str | Path | BinaryIO,
        offset: float = 0.0,
        duration: float | None = None,
        longest: float = math.inf,
    ) -> Iterator[tuple[Piece, Tensor]]:
        """Cut a recording, or the segment of it that starts at `offset`, both in seconds, into what the network can hear.

        longest: seconds that the recording may last.
        Yields: pieces and their spectrograms (F, T), as the recording is read.
        Raises: OSError or ValueError naming the recording if it cannot be read or is too short to hold a frame; TooLong.
        """
        try:
            yield from self.pieces_of(audio_blocks(source, self.audio.sample_rate, offset, duration, longest=longest))
        except TooShort as error:
            raise ValueError(f"{source_name(source)}: {error}") from None

    def pieces_of(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[Piece, Tensor]]:
        """The same of samples (S,) float32 at the model's rate, in blocks of any size. Raises: TooShort."""
        norm = RunningNorm()  # which a model of that kind keeps from piece to piece
        for piece, wave in cut_pieces(blocks, self.audio.sample_rate, TIME_STRIDE * self.audio.hop_samples):
            yield piece, spectrogram(wave, self.audio, norm)

    def hear(self, pieces: Sequence[tuple[Piece, Tensor]]) -> list[np.ndarray]:
        """The log probabilities (L, C) float32 of those frames of each piece that count, computed as one batch."""
        batch = collate([Sample(spect, torch.empty(0, dtype=torch.int64), i) for i, (_, spect) in enumerate(pieces)])
        log_probs, lens = acoustic_output(self.model, batch, self.runtime)
        rows = zip(pieces, utterances(log_probs, lens, len(self.labels.symbols)), strict=True)
        return [row[piece.skip :][: piece.frames] for (piece, _), row in rows]

    def reader(self, decoder: GreedyDecoder | BeamDecoder | None = None) -> "Reader":
        """Reads one recording, by a decoder of its own if it needs one."""
        return Reader(self, decoder or self.decoder)

    def transcribe(self, source: str | Path | BinaryIO) -> Transcript:
        """What is said in a recording of any length.

        Raises: OSError or ValueError naming the recording if it cannot be read or is too short to hold a frame.
        """
        reader = self.reader()
        for piece, spect in self.pieces(source):
            reader.add(piece, self.hear([(piece, spect)])[0])
        return reader.transcript()

    def answer(self, transcript: Transcript, offsets: bool = False, words: bool = False) -> dict:
        """The JSON of transcribe.py for a recording; `offsets` adds each character's output frame, `words` the words' times."""
        language_model = self.decoder.model
        weights = {name: getattr(self.config, name) if language_model else None for name in ("alpha", "beta")}
        return {
            "output": [_reading(transcript, h, offsets, words) for h in transcript.readings(self.config.top_paths)],
            "_meta": {
                "acoustic_model": {"name": self.name},
                "language_model": {"name": language_model.name if language_model else None},
                "decoder": {"lm": language_model is not None, **weights, "type": self.config.decoder},
            },
        }


class Reader:
    """Log probabilities of a recording's pieces, in their order, to its transcript."""

    def __init__(self, recognizer: Recognizer, decoder: GreedyDecoder | BeamDecoder):
        self._times, self._decoder = recognizer.times, decoder
        self._spaced = SPACE in recognizer.labels.symbols
        self._segments: list[list[Hypothesis]] = []
        self._unread: list[np.ndarray] = []  # frames since the last pause
        self._frame, self._begin, self._end = 0, 0.0, 0.0  # of the unread: first frame, and seconds

    def add(self, piece: Piece, log_probs: np.ndarray) -> None:
        """Go on with the frames of the next piece that count. Raises: ValueError if they are no log probabilities."""
        if not self._unread:
            self._frame, self._begin = piece.frame, self._end
        self._unread.append(log_probs)
        self._end += piece.seconds
        if piece.pauses or self._end - self._begin > MOST_UNPAUSED:
            hypotheses = decode_at_once(self._decoder, np.concatenate(self._unread))
            self._unread = []
            self._segments.append([shifted(hypothesis, self._frame) for hypothesis in hypotheses])

    def transcript(self) -> Transcript:
        """What was said, once all pieces were added."""
        return Transcript(self._segments, self._end, self._times, self._spaced)


def _reading(transcript: Transcript, hypothesis: Hypothesis, offsets: bool, words: bool) -> dict:
    reading = {"transcription": hypothesis.text}
    if offsets:
        reading["offsets"] = list(hypothesis.offsets)
    if words:
        reading["words"] = [word_json(word) for word in transcript.words(hypothesis)]
    return reading
