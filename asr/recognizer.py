"""Audio to hypotheses to JSON: the one path that test.py, transcribe.py and the server share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from asr.checkpoint import load_checkpoint
from asr.evaluation import acoustic_output
from asr.options import decoder_config
from asr.quantization import quantized, release_memory
from asr.runtime import Precision, Runtime
from config import DecoderConfig
from data.audio import load_audio, source_name
from data.command_line import UsageError
from data.dataset import Sample, collate
from data.features import spectrogram
from decoder import Hypothesis, build_decoder


class Recognizer:
    """A model, the decoder that reads it, and where it runs."""

    def __init__(self, model_path: str | Path, config: DecoderConfig, runtime: Runtime, int8: bool = False):
        """Raises: OSError or ValueError naming the model file if it cannot be used."""
        checkpoint = load_checkpoint(model_path)
        self.name = Path(model_path).name
        self.audio, self.labels = checkpoint.audio, checkpoint.labels
        self.model = checkpoint.build_model(runtime.device)
        runtime.precision.convert(self.model)
        if int8:
            self.model = quantized(self.model)
            del checkpoint  # and with it the float32 weights
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

    def transcribe(self, source: str | Path | BinaryIO) -> list[Hypothesis]:
        """What is said in a recording, best reading first.

        Raises: OSError or ValueError naming the recording if it cannot be read or is too short to hold a frame.
        """
        wave = load_audio(source, self.audio.sample_rate)
        try:
            spect = spectrogram(wave, self.audio)
        except ValueError as error:
            raise ValueError(f"{source_name(source)}: {error}") from None
        batch = collate([Sample(spect, torch.empty(0, dtype=torch.int64), 0)])
        log_probs, lens = acoustic_output(self.model, batch, self.runtime)
        return self.decoder.decode(log_probs, lens)[0]

    def answer(self, hypotheses: Sequence[Hypothesis], offsets: bool = False) -> dict:
        """The JSON of transcribe.py for one recording; `offsets` adds each character's output frame."""
        language_model = self.decoder.model
        weights = {name: getattr(self.config, name) if language_model else None for name in ("alpha", "beta")}
        return {
            "output": [{"transcription": h.text, **({"offsets": list(h.offsets)} if offsets else {})} for h in hypotheses],
            "_meta": {
                "acoustic_model": {"name": self.name},
                "language_model": {"name": language_model.name if language_model else None},
                "decoder": {"lm": language_model is not None, **weights, "type": self.config.decoder},
            },
        }
