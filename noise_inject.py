"""Mix noise into a recording, as train.py --noise-dir does while training, to hear what a noise level means.

    python noise_inject.py --input-path speech.wav --noise-path noise.wav --output-path noisy.wav --noise-level 0.5

A noise longer than the recording gives a random part, a shorter one is repeated. What would pass full scale is made quieter as
a whole.
"""

import argparse

import numpy as np

from config import MOST_NOISE, AudioConfig
from data.audio import audio_duration, load_audio
from data.command_line import argument_parser, number, run_script
from data.noise import add_noise, noise_part
from data.wave_file import format_of, write_wave


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--input-path", default="input.wav", help="recording of speech, of any format")
    parser.add_argument("--noise-path", default="noise.wav", help="recording of noise, of any format")
    parser.add_argument("--output-path", default="output.wav", help="file to write, 16 bits: wav, flac, aiff, au, w64 or caf")
    rate = AudioConfig().sample_rate
    parser.add_argument("--sample-rate", type=number(int, 1000, 768000), default=rate, help="Hz of the output")
    parser.add_argument("--noise-level", type=number(float, 0, MOST_NOISE), default=1.0, help="noise RMS over speech RMS")
    parser.add_argument("--seed", type=number(int, 0), default=123456, help="which part of the noise follows from it")
    return parser.parse_args(argv)


def inject(args: argparse.Namespace) -> None:
    """Raises: UsageError, ValueError, OSError with the file or flag."""
    format_of(args.output_path, "--output-path")
    speech = load_audio(args.input_path, args.sample_rate)
    duration, rng = audio_duration(args.noise_path), np.random.default_rng(args.seed)
    noise = noise_part(args.noise_path, duration, len(speech), args.sample_rate, rng)
    noisy = add_noise(speech, noise, args.noise_level)
    quieter = write_wave(args.output_path, noisy, args.sample_rate, "--output-path")
    fitted = f", {quieter:.1f} dB quieter than its parts, to fit" if quieter else ""
    print(f"{args.output_path}: {len(noisy) / args.sample_rate:.2f} s at {args.sample_rate} Hz{fitted}")


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: inject(args))


if __name__ == "__main__":
    raise SystemExit(main())
