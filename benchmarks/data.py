"""How fast a recording becomes a training sample, on one core: ours against deepspeech.pytorch's way, on real AN4 utterances.

    python benchmarks/data.py [--flac FOLDER] [--noise-dir FOLDER] [--utterances 25] [--rounds 15]

Both read the same 16-bit wav files, made in a temporary folder, and both augment every utterance. Theirs, written here by its
description: tempo, gain and the cutting of noise by sox, a process and a temporary file each; librosa's spectrogram;
SpecAugment by a sparse image warp and a loop over masks. Rounds are short and alternate, so that a busy machine slows both; as
it may slow one long computation more than many small processes, the core's time is told beside the clock's. It needs sox,
librosa and scipy.
"""

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported

import librosa
import numpy as np
import scipy.io.wavfile
import scipy.signal
import soundfile
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # also when run as a file of this folder

from config import AudioConfig, AugmentConfig  # noqa: E402
from data.augment import GAINS, TEMPOS  # noqa: E402
from data.dataset import SpectrogramDataset  # noqa: E402
from data.labels import Labels  # noqa: E402
from data.samplers import SampleKey  # noqa: E402
from data.utterances import Utterance  # noqa: E402
from model import output_frames  # noqa: E402

AUDIO = AudioConfig()
RATE = AUDIO.sample_rate
LEVELS = (0.0, 0.5)  # of noise
WINDOW = scipy.signal.windows.hamming(AUDIO.window_samples)
MODES = {  # name: what ours is told
    "plain": AugmentConfig(),
    "tempo + gain": AugmentConfig(speed_volume_perturb=True),
    "noise": AugmentConfig(noise_prob=1.0),
    "SpecAugment": AugmentConfig(spec_augment=True),
    "all of these": AugmentConfig(speed_volume_perturb=True, noise_prob=1.0, spec_augment=True),
}


def sox(*arguments: object) -> np.ndarray:
    """Let sox write a temporary file and read it: (S,) float32. {} in the arguments is the file."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["sox", *(str(file.name if a == "{}" else a) for a in arguments)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return read_wav(file.name)


def read_wav(path: str) -> np.ndarray:
    _, samples = scipy.io.wavfile.read(path)
    return samples.astype(np.float32) / 32767


def theirs(path: str, mode: AugmentConfig, noises: list[str], rng: np.random.Generator) -> torch.Tensor:
    """(F, T), as the predecessor would make it."""
    as_is = ("-r", RATE, "-c", 1, "-b", 16, "-e", "si", "{}")
    if mode.speed_volume_perturb:
        tempo, decibels = rng.uniform(*TEMPOS), rng.uniform(*GAINS)
        wave = sox(path, *as_is, "tempo", f"{tempo:.3f}", "gain", f"{decibels:.3f}")
    else:
        wave = read_wav(path)
    if mode.noise_dir:
        noise_path = rng.choice(noises)
        told = subprocess.run(["soxi", "-D", noise_path], capture_output=True, check=True)
        start = rng.random() * (float(told.stdout) - len(wave) / RATE)
        noise = sox(noise_path, *as_is, "trim", start, f"={start + len(wave) / RATE}")[: len(wave)]
        level = rng.uniform(*LEVELS)
        energy, noise_energy = np.sqrt(wave.dot(wave) / wave.size), np.sqrt(noise.dot(noise) / noise.size)
        wave[: len(noise)] += level * noise * energy / noise_energy
    length, hop = AUDIO.window_samples, AUDIO.hop_samples
    spect = librosa.stft(wave, n_fft=length, hop_length=hop, win_length=length, window=WINDOW, pad_mode="reflect")
    spect = torch.from_numpy(np.log1p(np.abs(spect)))
    spect.add_(-spect.mean()).div_(spect.std())
    return their_spec_augment(spect, mode, rng) if mode.spec_augment else spect


def their_spec_augment(spect: torch.Tensor, policy: AugmentConfig, rng: np.random.Generator) -> torch.Tensor:
    """A sparse image warp with one control point, its spline evaluated at every pixel, then one mask after the other."""
    bins, frames = spect.shape
    farthest = min(policy.time_warp, (frames - 1) // 4)
    point = torch.tensor([[bins // 2, int(rng.integers(farthest, frames - farthest))]], dtype=torch.float32)
    moved = torch.tensor([[0.0, float(rng.integers(-farthest, farthest + 1))]])
    rows, columns = torch.meshgrid(torch.arange(bins), torch.arange(frames), indexing="ij")
    pixels = torch.stack([rows, columns], -1).reshape(-1, 2).float()
    squares = (pixels - point - moved).square().sum(1, keepdim=True)
    basis = 0.5 * squares * torch.log(squares.clamp_min(1e-10))
    flow = basis @ torch.zeros(1, 2) + moved  # the spline through one point is its flow everywhere
    came_from = pixels - flow
    low = torch.minimum(came_from.floor().clamp_min(0), torch.tensor([bins - 2.0, frames - 2.0])).long()
    down, right = (came_from - low).clamp(0, 1).unbind(1)
    flat, corner = spect.reshape(-1), low[:, 0] * frames + low[:, 1]
    top = flat[corner] + right * (flat[corner + 1] - flat[corner])
    bottom = flat[corner + frames] + right * (flat[corner + frames + 1] - flat[corner + frames])
    spect = (top + down * (bottom - top)).reshape(bins, frames)
    for _ in range(policy.num_freq_masks):
        width = int(rng.integers(policy.freq_mask_width))
        start = int(rng.integers(bins - width))
        spect[start : start + width] = 0
    for _ in range(policy.num_time_masks):
        width = int(rng.integers(min(policy.time_mask_width, frames)))
        start = int(rng.integers(frames - width))
        spect[:, start : start + width] = 0
    return spect


def wav_files(sources: list[Path], folder: Path) -> list[str]:
    """Write recordings as 16-bit wav files, which is what the predecessor reads."""
    folder.mkdir()
    for source in sources:
        samples, rate = soundfile.read(source, dtype="int16")
        soundfile.write(folder / f"{source.stem}.wav", samples, rate)
    if not sources:
        raise SystemExit("no flac files; give folders of recordings with --flac and --noise-dir")
    return sorted(map(str, folder.iterdir()))


def seconds(make: Callable[[int], object], count: int) -> np.ndarray:
    """(2,): seconds by the clock, and of a core, child processes included."""
    before = now()
    for index in range(count):
        make(index)
    return now() - before


def now() -> np.ndarray:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array([time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in used)])


def compare(mode: AugmentConfig, paths: list[str], noises: list[str], rounds: int) -> np.ndarray:
    """(rounds, 2, 2): seconds that all utterances take; ours and theirs; by the clock and of a core."""
    utterances = [Utterance(path, "A") for path in paths]
    dataset = SpectrogramDataset(utterances, AUDIO, Labels(["_", "A"]), mode, output_frames=output_frames)
    times = []
    for epoch in range(rounds + 1):
        ours = seconds(lambda index: dataset[SampleKey(epoch, index)].spect, len(paths))  # noqa: B023
        rng = np.random.default_rng(epoch)
        times.append((ours, seconds(lambda index: theirs(paths[index], mode, noises, rng), len(paths))))  # noqa: B023
    return np.array(times[1:])  # the first warms both up


def quartiles(ratios: np.ndarray) -> np.ndarray:
    """(rounds, 2) -> (2, 3)"""
    return np.quantile(ratios, [0.25, 0.5, 0.75], axis=0).T


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = ROOT.parent / "shared" / "data"
    parser.add_argument("--flac", type=Path, default=shared / "an4" / "train", help="folder of speech")
    parser.add_argument("--noise-dir", type=Path, default=shared / "noise", help="folder of noise in flac")
    parser.add_argument("--utterances", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if shutil.which("sox") is None:
        raise SystemExit("sox is not installed: apt-get install sox")
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # sox inherits it
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        speech = sorted(args.flac.rglob("*.flac"))
        paths = wav_files(speech[:: max(1, len(speech) // args.utterances)][: args.utterances], Path(folder, "speech"))
        noises = wav_files(sorted(args.noise_dir.rglob("*.flac")), Path(folder, "noise"))
        audio_seconds = sum(soundfile.info(path).duration for path in paths)
        print(
            f"{date.today()}, {platform.machine()}, one of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; python "
            f"{platform.python_version()}, torch {torch.__version__}, librosa {librosa.__version__}, numpy {np.__version__}"
        )
        print(f"{len(paths)} utterances of {audio_seconds / len(paths):.2f} s on average, {args.rounds} rounds in turns")
        print("theirs / ours: median of the rounds (quartiles)")
        print(f"{'ms per utterance':16} {'ours':>8} {'theirs':>8}   {'by the clock':22} of the core")
        for name, mode in MODES.items():
            if mode.noise_prob == 1:
                mode = replace(mode, noise_dir=str(Path(folder, "noise")))
            times = compare(mode, paths, noises, args.rounds)
            ours, other = 1000 * np.median(times[:, :, 0], 0) / len(paths)
            clock, core = ("{1:.2f} ({0:.2f} to {2:.2f})".format(*q) for q in quartiles(times[:, 1] / times[:, 0]))
            print(f"{name:16} {ours:8.2f} {other:8.2f}   {clock:22} {core}", flush=True)


if __name__ == "__main__":
    main()
