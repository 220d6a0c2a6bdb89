"""How fast a recording becomes a spectrogram, on one core: ours against scipy and librosa, on real AN4 utterances.

    python benchmarks/features.py [--flac FOLDER] [--utterances 300] [--rounds 7]

Both read the same 16 kHz 16-bit wav files and normalise alike; the rounds alternate, so that a busy machine slows both.
librosa and scipy are needed for this comparison only.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
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

from config import AudioConfig  # noqa: E402
from data.audio import load_audio  # noqa: E402
from data.features import spectrogram  # noqa: E402

CONFIG = AudioConfig()


def ours(path: Path) -> np.ndarray:
    return spectrogram(load_audio(path, CONFIG.sample_rate), CONFIG).numpy()


def theirs(path: Path) -> np.ndarray:
    """What a toolkit on scipy and librosa does; the scale, padding and window are the predecessor's."""
    _, samples = scipy.io.wavfile.read(path)
    wave = samples.astype(np.float32) / 32767
    length = CONFIG.window_samples
    spect = librosa.stft(
        wave, n_fft=length, hop_length=CONFIG.hop_samples, win_length=length, window=WINDOW, pad_mode="reflect"
    )
    spect = np.log1p(np.abs(spect))
    return (spect - spect.mean()) / spect.std(ddof=1)


WINDOW = scipy.signal.windows.hamming(CONFIG.window_samples)  # made once, as ours is


def wav_files(flac_folder: Path, folder: Path, count: int) -> list[Path]:
    """Write the first recordings of a folder as 16-bit wav files."""
    paths = []
    for source in sorted(flac_folder.rglob("*.flac"))[:count]:
        samples, rate = soundfile.read(source, dtype="int16")
        paths.append(folder / f"{source.stem}.wav")
        soundfile.write(paths[-1], samples, rate)
    if not paths:
        raise SystemExit(f"{flac_folder}: no flac files; give a folder of recordings with --flac")
    return paths


def seconds(function, paths: list[Path]) -> float:
    start = time.perf_counter()
    for path in paths:
        function(path)
    return time.perf_counter() - start


def difference(paths: list[Path]) -> tuple[float, float]:
    """Largest absolute difference between ours and theirs: over all frames but the last, and in the last frame."""
    inner = last = 0.0
    for path in paths:
        gap = np.abs(ours(path) - theirs(path))
        inner, last = max(inner, float(gap[:, :-1].max())), max(last, float(gap[:, -1].max()))
    return inner, last


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flac", type=Path, default=ROOT.parent / "shared" / "data" / "an4" / "train")
    parser.add_argument("--utterances", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = wav_files(args.flac, Path(folder), args.utterances)
        audio_seconds = sum(soundfile.info(path).duration for path in paths)
        inner, last = difference(paths)  # warms both up, too
        rounds = [(seconds(ours, paths), seconds(theirs, paths)) for _ in range(args.rounds)]
    print(
        f"{date.today()}, {platform.machine()}, one thread; python {platform.python_version()}, torch "
        f"{torch.__version__}, librosa {librosa.__version__}, scipy {scipy.__version__}, numpy {np.__version__}, "
        f"soundfile {soundfile.__version__}"
    )
    print(f"{len(paths)} utterances of {audio_seconds / len(paths):.2f} s on average, {args.rounds} rounds in turns")
    for name, times in zip(("ours", "scipy + librosa"), zip(*rounds, strict=True), strict=True):
        print(f"{name:16} {len(paths) / statistics.median(times):7.0f} utterances/s")
    print(f"ratio            {statistics.median(b / a for a, b in rounds):7.2f} (median over rounds)")
    print(f"largest difference {inner:.1e}; in the last frame {last:.1e}")


if __name__ == "__main__":
    main()
