"""Where the time of a training step goes: train_step itself, run on synthetic speech with a watch on its parts."""

import argparse
import itertools
import math
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

from asr.benchmarking import GIB, OPTIMIZER, Setting, Step, Tell
from asr.options import config_from
from asr.runtime import Precision, Runtime, joined, set_seed
from asr.training import Learner, LossScale, StepResult, train_step
from asr.watched import peak_resident_memory
from config import AudioConfig, ModelConfig, OptimizerConfig
from data.dataset import Batch
from data.labels import Labels
from data.lengths import frame_count
from model import DeepSpeech, output_frames

SEED = 1
CHARACTERS_PER_SECOND = 15  # of read speech, roughly
PARTS = (
    ("convolution", "forward"),
    ("convolution", "backward"),
    ("recurrent", "forward"),
    ("recurrent", "backward"),
    ("CTC", "forward"),
    ("CTC", "backward"),
    ("head and other", "forward"),
    ("head and other", "backward"),
    (OPTIMIZER, "clipping"),
    (OPTIMIZER, "update"),
)
WARM_UP = 2  # updates at the least: the optimizer's state comes with the first, and is there in the second
PATIENCE = 30  # steps to wait for them, while a dynamic loss scale falls


class StepTimes:
    """A watch on the parts of a learner's steps.

    Each mark ends a part: what went by since the one before belongs to it, so that the parts add up to the whole step. The
    marks are made by hooks on the network's modules, on the gradients that pass between them, on the CTC backend and on the
    optimizer, and cost some microseconds. On CUDA a mark is an event in the stream; nothing waits for it until the step ends.
    """

    def __init__(self, learner: Learner):
        self.learner, self.backend = learner, learner.backend
        learner.backend = self._ctc
        conv, last = learner.model.conv, learner.model.rnns[-1]
        conv.register_forward_pre_hook(lambda *_: self._mark("head and other", "forward"))
        conv.register_forward_hook(lambda _, __, x: self._passed(x, ("convolution", "forward"), ("recurrent", "backward")))
        last.register_forward_hook(lambda _, __, x: self._passed(x, ("recurrent", "forward"), ("head and other", "backward")))
        for parameter in conv.conv1.parameters():  # theirs are the last gradients
            parameter.register_post_accumulate_grad_hook(lambda _: self._mark("convolution", "backward"))
        learner.optimizer.register_step_pre_hook(lambda *_: self._mark(OPTIMIZER, "clipping"))
        self.marks: list[tuple[tuple[str, str], float | torch.cuda.Event]] = []

    def step(self, batch: Batch) -> tuple[StepResult, dict[tuple[str, str], float]]:
        """One train_step. Returns: its result, and the seconds of each of PARTS."""
        self.marks = []
        self._mark("", "")
        result = train_step(self.learner, [batch])
        self._mark(OPTIMIZER, "clipping" if result.skipped else "update")
        device = self.learner.runtime.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = dict.fromkeys(PARTS, 0.0)
        for (_, before), (part, after) in itertools.pairwise(self.marks):
            seconds[part] += before.elapsed_time(after) / 1000 if device.type == "cuda" else after - before
        return result, seconds

    def _mark(self, part: str, direction: str) -> None:
        if self.learner.runtime.device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self.marks.append(((part, direction), now))

    def _passed(self, x: Tensor, came_from: tuple[str, str], comes_back_from: tuple[str, str]) -> None:
        """x has left one part for the next, and its gradient will leave that one for this."""
        self._mark(*came_from)
        x.register_hook(lambda _: self._mark(*comes_back_from))

    def _ctc(self, logits: Tensor, *rest: Tensor) -> Tensor:
        self._mark("head and other", "forward")
        logits.register_hook(lambda _: self._mark("CTC", "backward"))
        losses = self.backend(logits, *rest)
        self._mark("CTC", "forward")
        return losses


def synthetic_batch(args: argparse.Namespace, audio: AudioConfig, labels: int, rank: int) -> Batch:
    """--batch-size utterances of --seconds: noise, and random labels that CTC can align to it; each rank has its own."""
    generator = torch.Generator().manual_seed(SEED + rank)
    size, frames = args.batch_size, frame_count(int(args.seconds * audio.sample_rate), audio)
    # At the worst all labels are alike, and want a blank between every two.
    labels_each = max(1, min(int(args.seconds * CHARACTERS_PER_SECOND), (output_frames(frames) + 1) // 2))
    return Batch(
        torch.randn(size, 1, audio.freq_bins, frames, generator=generator),
        torch.full((size,), frames),
        torch.randint(1, labels, (size * labels_each,), generator=generator),
        torch.full((size,), labels_each),
        torch.arange(size),
    )


def measure(tell: Tell, args: argparse.Namespace) -> None:
    """Train as the flags of benchmark.py say, and tell the setting and each step. Raises: ValueError, RuntimeError."""
    precision = Precision.choose(args.precision, args.opt_level, args.keep_batchnorm_fp32)
    with joined(args, precision) as runtime:
        audio, labels = config_from(AudioConfig, args), len(Labels.read(args.labels_path))
        memory = device_memory(runtime, args.memory_limit)
        learner = new_learner(args, runtime, labels, audio)
        batch = synthetic_batch(args, audio, labels, runtime.rank)
        steps = args.steps or math.ceil(args.num_samples / (args.batch_size * runtime.world_size))
        setting = Setting(
            main=runtime.main,
            processes=runtime.world_size,
            device=device_name(runtime),
            software=f"torch {torch.__version__}, Python {platform.python_version()}",
            device_memory=memory,
            precision=precision.name,
            parameters=sum(p.numel() for p in learner.parameters),
            untimed_steps=max(WARM_UP, args.dry_runs * steps),
            timed_steps=args.runs * steps,
        )
        tell(setting)
        times, done, updates = StepTimes(learner), 0, 0
        while done < setting.untimed_steps or updates < WARM_UP:
            if done >= PATIENCE and updates < WARM_UP:
                raise ValueError(f"{done} steps and {updates} updates, for gradients that are not finite; lower --loss-scale")
            step = one_step(times, batch, run=0)
            tell(step)
            done, updates = done + 1, updates + (not step.skipped)
        for run in range(1, args.runs + 1):
            for _ in range(steps):
                tell(one_step(times, batch, run))


def one_step(times: StepTimes, batch: Batch, run: int) -> Step:
    result, seconds = times.step(batch)
    device = times.learner.runtime.device
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_memory()
    return Step(run, result.utterances, seconds, result.skipped, peak)


def new_learner(args: argparse.Namespace, runtime: Runtime, labels: int, audio: AudioConfig) -> Learner:
    set_seed(SEED)
    config = config_from(ModelConfig, args, num_labels=labels, freq_bins=audio.freq_bins)
    model = DeepSpeech(config).to(runtime.device).train()
    return Learner(model, config_from(OptimizerConfig, args), runtime, LossScale.choose(args.loss_scale))


def device_memory(runtime: Runtime, limit: float | None) -> int | None:
    """Bytes that this process can have on its CUDA device, --memory-limit GiB at the most, which is enforced."""
    if runtime.device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(runtime.device)
    if limit is None or limit * GIB >= free:
        return free
    torch.cuda.set_per_process_memory_fraction(limit * GIB / total, runtime.device)
    return int(limit * GIB)


def device_name(runtime: Runtime) -> str:
    if runtime.device.type == "cuda":
        return torch.cuda.get_device_name(runtime.device)
    return f"{processor_name()}, {torch.get_num_threads()} threads".replace(" 1 threads", " 1 thread")


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
