"""What --int8 gains and costs: a network in float32 and with int8 weights, one utterance at a time, on one thread.

    python benchmarks/quantization.py [--rnn-type lstm] [--seconds 5] [--rounds 7]
    python benchmarks/quantization.py --model-path models/deepspeech_final.pth --test-manifest test.csv

Speed is the processor's time for one utterance of noise, in turns, so that a busy machine slows both. Memory is what a process
grows by when it loads the model, measured in a process for each. With a manifest, also the errors, one by one and in batches.
Without --model-path, the network is the default one with random weights.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # also when run as a file of this folder

from asr.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from asr.evaluation import count_errors, evaluate  # noqa: E402
from asr.recognizer import Recognizer  # noqa: E402
from asr.runtime import Runtime  # noqa: E402
from asr.watched import resident_memory  # noqa: E402
from config import AudioConfig, DecoderConfig, ModelConfig  # noqa: E402
from data.checks import read_manifests  # noqa: E402
from data.dataset import BatchLoader, SpectrogramDataset  # noqa: E402
from data.labels import Labels  # noqa: E402
from data.samplers import BatchLimit, LengthBatchSampler  # noqa: E402
from model import DeepSpeech  # noqa: E402

MEGABYTE = 1e6


def write_random_model(path: Path, **settings: object) -> None:
    labels = Labels.read(ROOT / "labels.json")
    config = ModelConfig(num_labels=len(labels), **settings)
    save_checkpoint(Checkpoint(config, AudioConfig(), labels, DeepSpeech(config).state_dict()), path)


def recognizer(path: Path, int8: bool) -> Recognizer:
    return Recognizer(path, DecoderConfig(), Runtime.choose(cuda=False), int8)


def run(model: torch.nn.Module, frames: int) -> None:
    with torch.inference_mode():
        model(torch.zeros(1, 1, model.config.freq_bins, frames), torch.tensor([frames]))


def memory(path: Path, int8: bool) -> float:
    """Megabytes that this process grows by when it loads a model, besides what the first small one took."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.pth"
        write_random_model(small, hidden_size=8, hidden_layers=1)
        run(recognizer(small, int8).model, 100)
    before = resident_memory(os.getpid())
    loaded = recognizer(path, int8)
    after = resident_memory(os.getpid())
    del loaded
    return (after - before) / MEGABYTE


def in_a_process(*args: object) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory, args)


def seconds(model: torch.nn.Module, spect: torch.Tensor) -> float:
    started = time.process_time()
    with torch.inference_mode():
        model(spect, torch.tensor([spect.shape[-1]]))
    return time.process_time() - started


def errors(path: Path, manifest: str, int8: bool, batch_size: int) -> str:
    loaded = recognizer(path, int8)
    (utterances,) = read_manifests([manifest], loaded.audio, policy="fail")
    order = LengthBatchSampler(utterances.durations, BatchLimit.of(batch_size, None), shuffle=False)
    batches = BatchLoader(SpectrogramDataset(utterances, loaded.audio), order, 0, "fail")
    found = evaluate(loaded.model, batches, loaded.decoder, loaded.runtime)
    references = [utterances[index].text for index in found]
    counted = count_errors(references, [hypothesis.text for hypothesis in found.values()])
    return f"WER {counted.wer:.2f}, CER {counted.cer:.2f}"


def measure(path: Path, args: argparse.Namespace) -> None:
    models = [recognizer(path, int8).model for int8 in (False, True)]
    config = models[0].config
    spect = torch.randn(1, 1, config.freq_bins, int(args.seconds / AudioConfig.window_stride))
    rounds = [[seconds(model, spect) for model in models] for _ in range(args.rounds + 1)][1:]
    sizes = [in_a_process(path, int8) for int8 in (False, True)]
    network = f"{config.rnn_type} {config.hidden_layers} x {config.hidden_size}"
    print(f"{network}, an utterance of {args.seconds:g} s, {args.rounds} rounds in turns")
    for name, times, size in zip(("float32", "int8"), zip(*rounds, strict=True), sizes, strict=True):
        print(f"{name:8} {statistics.median(times):.3f} CPU s, {size:.0f} MB")
    ratios = sorted(a / b for a, b in rounds)
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(f"int8 is {statistics.median(ratios):.2f} x as fast ({spread}), in {sizes[1] / sizes[0]:.2f} of the memory")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rnn-type", default="gru", help="of the random network")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the utterance")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model-path", type=Path)
    parser.add_argument("--test-manifest")
    args = parser.parse_args(argv)
    print(f"{date.today()}, {platform.machine()}, one thread; torch {torch.__version__}, {torch.backends.quantized.engine}")
    with tempfile.TemporaryDirectory() as folder:
        path = args.model_path or Path(folder) / "random.pth"
        if not args.model_path:
            write_random_model(path, rnn_type=args.rnn_type)
        measure(path, args)
        for batch_size in (1, 20) if args.test_manifest else ():
            for name, int8 in (("float32", False), ("int8", True)):
                print(f"batches of {batch_size:<2} {name:8} {errors(path, args.test_manifest, int8, batch_size)}")


if __name__ == "__main__":
    main()
