"""How fast live speech becomes text on one core: for each 100 ms chunk, and in all.

    python benchmarks/streaming.py [--hidden-size 512] [--hidden-layers 3] [--seconds 60]
    python benchmarks/streaming.py --model-path models/deepspeech_final.pth

Noise goes through networks with random weights, LSTM and GRU, in float32 and with int8 weights, chunk by chunk as from a
microphone, partial texts included. The latency of a chunk is the time from when it is there until its text is; a chunk's share
of real time is the processor's, so that a busy machine does not count.
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

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # also when run as a file of this folder

from asr.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from asr.network_stream import frames_ahead  # noqa: E402
from asr.recognizer import Recognizer  # noqa: E402
from asr.runtime import Runtime  # noqa: E402
from asr.streaming import LiveTranscriber  # noqa: E402
from config import AudioConfig, DecoderConfig, ModelConfig  # noqa: E402
from data.labels import Labels  # noqa: E402
from model import DeepSpeech  # noqa: E402

CHUNK_SECONDS = 0.1
WARM_UP = 20  # chunks; the first ones have less to do, and build kernels


def write_random_model(path: Path, rnn_type: str, args: argparse.Namespace) -> None:
    torch.manual_seed(1)
    shape = {"rnn_type": rnn_type, "hidden_size": args.hidden_size, "hidden_layers": args.hidden_layers}
    config = ModelConfig(bidirectional=False, **shape)
    labels = Labels(["_", "'", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", " "])
    save_checkpoint(Checkpoint(config, AudioConfig(streaming_norm=True), labels, DeepSpeech(config).state_dict()), path)


def measure(path: Path, int8: bool, seconds: float) -> str:
    recognizer = Recognizer(path, DecoderConfig(), Runtime.choose(cuda=False), int8=int8)
    live, rng = LiveTranscriber(recognizer), np.random.default_rng(0)
    samples = round(recognizer.audio.sample_rate * CHUNK_SECONDS)
    latencies, busy = [], 0.0
    for chunk in range(WARM_UP + round(seconds / CHUNK_SECONDS)):
        wave = (0.1 * rng.standard_normal(samples)).astype(np.float32)
        processor, clock = time.process_time(), time.perf_counter()
        live.feed(wave)
        if chunk >= WARM_UP:
            latencies.append(1000 * (time.perf_counter() - clock))
            busy += time.process_time() - processor
    *_, p95 = statistics.quantiles(latencies, n=20)
    speed = CHUNK_SECONDS * len(latencies) / busy
    ahead = 1000 * frames_ahead(recognizer.model.config) * recognizer.audio.window_stride
    return (
        f"median {statistics.median(latencies):5.1f} ms, 95 % {p95:5.1f} ms, most {max(latencies):5.1f} ms; "
        f"{speed:5.1f} x real time; hears {ahead:.0f} ms ahead"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--hidden-layers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="of speech")
    parser.add_argument("--model-path", type=Path, help="measure this model instead")
    args = parser.parse_args(argv)
    print(
        f"{date.today()}, {processor_name()}, one thread; Python {platform.python_version()}, torch {torch.__version__}, "
        f"numpy {np.__version__}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    with tempfile.TemporaryDirectory() as folder:
        for rnn_type in ("lstm", "gru") if args.model_path is None else (None,):
            path = args.model_path or Path(folder) / f"{rnn_type}.pth"
            if rnn_type:
                write_random_model(path, rnn_type, args)
            name = f"{rnn_type.upper()} {args.hidden_layers} x {args.hidden_size}" if rnn_type else path.name
            for numbers, int8 in (("float32", False), ("int8", True)):
                print(f"{name} {numbers:8} {measure(path, int8, args.seconds)}", flush=True)


def processor_name() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
