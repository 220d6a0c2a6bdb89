"""What happens to a training wave before it becomes a spectrogram, in the order in which it would meet a microphone.

    python -m data.augment --input speech.wav --output-dir heard/ --noise-dir noise/ --reverb-dir rooms/

writes a recording after each augmentation by itself, and after all of them, to listen to, and their spectrograms, SpecAugment's
too, to look at (spectrograms.png; needs matplotlib: pip install -r requirements-graphs.txt).
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import MOST_NOISE, AudioConfig, AugmentConfig
from data.audio import load_audio
from data.channel import amplify, reverberate, telephone
from data.command_line import argument_parser, number, run_script
from data.files import whole_file
from data.noise import Recordings, add_noise, find_recordings, noise_part
from data.tempo import change_speed, change_tempo
from data.wave_file import write_wave

Step = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # (S,) float32 -> (S',) float32

# The speaker, the room, what else sounds in it, the microphone, the line
ORDER = ("speed", "tempo", "reverb", "noise", "gain", "codec")
TEMPOS = (0.85, 1.15)
GAINS = (-6.0, 8.0)  # dB
FAULTS_SHOWN = 5  # of a folder


@dataclass(frozen=True)
class Speed:
    share: float  # speeds are 1 - share to 1 + share

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return change_speed(wave, rng.uniform(1 - self.share, 1 + self.share))


@dataclass(frozen=True)
class Tempo:
    sample_rate: int

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return change_tempo(wave, rng.uniform(*TEMPOS), self.sample_rate)


@dataclass(frozen=True)
class Reverb:
    """A room of a folder of impulse responses. Those of several channels are averaged, as the speech they record would be."""

    rooms: Recordings
    sample_rate: int
    prob: float

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.prob:
            return wave
        return reverberate(wave, load_audio(self.rooms.paths[rng.integers(len(self.rooms.paths))], self.sample_rate))


@dataclass(frozen=True)
class Noise:
    """A part of one of a folder of recordings, each as likely, at a level (noise RMS over speech RMS) from `low` to `high`."""

    noises: Recordings
    sample_rate: int
    prob: float
    low: float
    high: float

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.prob:
            return wave
        level = rng.uniform(self.low, self.high)
        chosen = rng.integers(len(self.noises.paths))
        path, duration = self.noises.paths[chosen], self.noises.durations[chosen]
        return add_noise(wave, noise_part(path, duration, len(wave), self.sample_rate, rng), level)


def gain(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return amplify(wave, rng.uniform(*GAINS))


@dataclass(frozen=True)
class Codec:
    sample_rate: int
    prob: float

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return telephone(wave, self.sample_rate) if rng.random() < self.prob else wave


class Augmentation:
    """All that an AugmentConfig asks for, one after the other; itself a Step.

    The folders it names are looked through once, here; `unusable` tells what was found there and cannot be read.
    Raises: UsageError if a folder is missing or holds no recording.
    """

    def __init__(self, config: AugmentConfig, sample_rate: int):
        self.steps: dict[str, Step] = {}
        self.unusable: tuple[str, ...] = ()
        if config.speed_perturb:
            self.steps["speed"] = Speed(config.speed_perturb)
        if config.speed_volume_perturb:
            self.steps |= {"tempo": Tempo(sample_rate), "gain": gain}
        if config.reverb_dir is not None:
            rooms = self._found(config.reverb_dir, "--reverb-dir")
            self.steps["reverb"] = Reverb(rooms, sample_rate, config.reverb_prob)
        if config.noise_dir is not None:
            noises = self._found(config.noise_dir, "--noise-dir")
            self.steps["noise"] = Noise(noises, sample_rate, config.noise_prob, config.noise_min, config.noise_max)
        if config.codec_prob:
            self.steps["codec"] = Codec(sample_rate, config.codec_prob)

    def _found(self, folder: str, flag: str) -> Recordings:
        recordings = find_recordings(folder, flag)
        rest = len(recordings.unusable) - FAULTS_SHOWN
        self.unusable += recordings.unusable[:FAULTS_SHOWN] + ((f"{folder}: {rest} more such files",) if rest > 0 else ())
        return recordings

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(S,) float32 -> (S',) float32; `rng` follows from (seed, epoch, utterance).

        Each step has a generator of its own, so that switching one on leaves the others' draws as they were.
        """
        for name, seed in zip(ORDER, rng.integers(2**63, size=len(ORDER)), strict=True):
            if name in self.steps:
                wave = self.steps[name](wave, np.random.default_rng(seed))
        return wave


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--input", required=True, help="recording to change")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for what comes of it")
    parser.add_argument("--noise-dir", metavar="DIR", help="noise recordings; without it no noise")
    parser.add_argument("--noise-level", type=number(float, 0, MOST_NOISE), default=0.5, help="noise RMS over speech RMS")
    parser.add_argument("--reverb-dir", metavar="DIR", help="room responses; without it no reverberation")
    rate = AudioConfig().sample_rate
    parser.add_argument("--sample-rate", type=number(int, 1000, 192000), default=rate, help="Hz of what is written")
    parser.add_argument("--seed", type=number(int, 0), default=3, help="every random choice follows from it")
    return parser.parse_args(argv)


def heard(wave: np.ndarray, augmentation: Augmentation, seed: int) -> dict[str, np.ndarray]:
    """The wave as it is, after each step by itself, and after all of them."""
    steps = {name: augmentation.steps[name] for name in ORDER if name in augmentation.steps} | {"all": augmentation}
    return {"original": wave} | {name: step(wave, np.random.default_rng(seed)) for name, step in steps.items()}


def draw(spects: dict[str, np.ndarray], audio: AudioConfig, path: Path) -> None:
    """Write spectrograms (F, T), one below the other on one axis of time, as a PNG. Raises: ValueError, OSError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"{path}: needs matplotlib ({error}): pip install -r requirements-graphs.txt") from None
    figure = Figure(figsize=(10, 1.6 * len(spects)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    hop = audio.hop_samples / audio.sample_rate
    for axes, (name, spect) in zip(figure.subplots(len(spects), sharex=True), spects.items(), strict=True):
        place = (0, spect.shape[1] * hop, 0, audio.sample_rate / 2000)
        axes.imshow(spect, origin="lower", aspect="auto", extent=place, vmin=-2, vmax=3, cmap="magma")
        axes.set_ylabel(f"{name}\nkHz", rotation=0, labelpad=36, verticalalignment="center")
    axes.set(xlabel="seconds", xlim=(0, max(spect.shape[1] for spect in spects.values()) * hop))
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def show(args: argparse.Namespace) -> None:
    """Raises: UsageError, ValueError, OSError with what cannot be read or written."""
    config = AugmentConfig(
        speed_perturb=0.1,
        speed_volume_perturb=True,
        reverb_dir=args.reverb_dir,
        reverb_prob=1,
        noise_dir=args.noise_dir,
        noise_prob=1,
        noise_min=args.noise_level,
        noise_max=args.noise_level,
        codec_prob=1,
        spec_augment=True,
    )
    augmentation = Augmentation(config, args.sample_rate)
    for fault in augmentation.unusable:
        print(f"left out: {fault}", file=sys.stderr)
    waves = heard(load_audio(args.input, args.sample_rate), augmentation, args.seed)
    for name, wave in waves.items():
        path = args.output_dir / f"{name}.wav"
        quieter = write_wave(path, wave, args.sample_rate, "--output-dir")
        print(f"{path}: {len(wave) / args.sample_rate:.2f} s" + (f", {quieter:.1f} dB quieter, to fit" if quieter else ""))

    from data.features import spectrogram  # torch comes with it, which --help need not wait for
    from data.spec_augment import spec_augment

    audio = AudioConfig(args.sample_rate)
    spects = {name: spectrogram(wave, audio) for name, wave in waves.items()}
    spects["SpecAugment"] = spec_augment(spects["original"].clone(), config, np.random.default_rng(args.seed))
    path = args.output_dir / "spectrograms.png"
    draw({name: spect.numpy() for name, spect in spects.items()}, audio, path)
    print(path)


def main(argv: list[str] | None = None) -> int:
    return run_script(lambda: show(parse_arguments(argv)))


if __name__ == "__main__":
    raise SystemExit(main())
