"""Model files that run without this code: ONNX, or a TorchScript file for PyTorch and its C++ library."""

import contextlib
import importlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.checkpoint import FORMAT, Checkpoint
from data.files import whole_file
from model import TIME_KERNEL, DeepSpeech

METADATA = "metadata.json"  # the name of what a TorchScript file holds beside the network
LARGEST_ONNX = 2**31 - 2**20  # bytes of weights that one file holds
TRIAL_FRAMES = (200, 87, 23)  # utterances that an exported model is tried on, in one batch
TOLERANCE = 1e-3  # of a probability: rounding is a hundred times less

Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Exported(nn.Module):
    """What both formats compute: log probabilities of each frame, from spectrograms and how much of each counts."""

    def __init__(self, model: DeepSpeech):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, spects: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """spects (B, 1, F, T) float32, lens (B,) int64 -> log_probs (B, L, C) float32, out_lens (B,) int64.

        What lies beyond an utterance's length changes nothing, and has no meaning in the result.
        """
        beyond = torch.arange(spects.shape[-1]) >= lens[:, None]  # (B, T)
        spects = spects.masked_fill(beyond[:, None, None], 0.0)
        if self.model.config.release1:  # as the network itself does to what is too short, which a trace would forget
            spects = F.pad(spects, (0, TIME_KERNEL - 1))
        logits, out_lens = self.model(spects, lens)
        return logits.log_softmax(-1), out_lens


def metadata(checkpoint: Checkpoint) -> dict[str, object]:
    """What a model's user has to know: its labels, the blank first, and how its spectrograms are made."""
    return {"version": FORMAT, "labels": list(checkpoint.labels.symbols), **asdict(checkpoint.audio)}


def export_model(checkpoint: Checkpoint, kind: str, path: str | Path) -> float:
    """Write a model as `kind`, onnx or torch, once what was written has been run and agrees with the original.

    Returns: the largest difference in probability found.
    Raises: ValueError if a package is missing, or the model cannot be written; OSError.
    """
    if kind == "onnx":
        require_onnx()
    model = checkpoint.build_model().requires_grad_(False)
    write, opened = {"onnx": (_write_onnx, _open_onnx), "torch": (_write_torch, _open_torch)}[kind]
    with whole_file(path) as temporary:
        write(model, metadata(checkpoint), temporary)
        difference = _difference(model, opened(temporary))
        if not difference < TOLERANCE:
            raise ValueError(f"{path}: not written: the exported model is {difference:.2g} off in probability")
    return difference


def require_onnx() -> None:
    """Raises: ValueError naming the packages of ONNX that are missing."""
    missing = []
    for package in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            missing.append(f"{package} ({error})")
    if missing:
        raise ValueError(f"--format onnx needs {', '.join(missing)}: pip install -r requirements-export.txt")


def _write_onnx(model: DeepSpeech, about: dict[str, object], path: Path) -> None:
    """By PyTorch's older exporter: the newer one, on torch.export, fails at a GRU, and makes a loop of an LSTM (2.13)."""
    import onnx

    size = sum(4 * parameter.numel() for parameter in model.parameters())
    if size > LARGEST_ONNX:
        raise ValueError(f"{size / 2**30:.1f} GiB of weights: a file of ONNX holds 2; use --format torch")
    axes = {"spects": {0: "B", 3: "T"}, "lens": {0: "B"}, "log_probs": {0: "B", 1: "L"}, "out_lens": {0: "B"}}
    names = {"input_names": ["spects", "lens"], "output_names": ["log_probs", "out_lens"], "dynamic_axes": axes}
    with _warnings_of_traces():
        torch.onnx.export(Exported(model), _example(model), path, dynamo=False, opset_version=17, **names)
    made = onnx.load(path)
    onnx.helper.set_model_props(made, {name: json.dumps(value) for name, value in about.items()})
    onnx.save(made, path)


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])

    def run(spects: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        log_probs, out_lens = session.run(["log_probs", "out_lens"], {"spects": spects.numpy(), "lens": lens.numpy()})
        return torch.from_numpy(log_probs), torch.from_numpy(out_lens)

    return run


def _write_torch(model: DeepSpeech, about: dict[str, object], path: Path) -> None:
    """A trace. torch.export, its heir, would fix the number of frames of a recurrent layer to that of the example."""
    with _warnings_of_traces():
        trace = torch.jit.trace(Exported(model), _example(model), check_trace=False)
        torch.jit.save(trace, path, _extra_files={METADATA: json.dumps(about)})


def _open_torch(path: Path) -> Run:
    with _warnings_of_traces():
        return torch.jit.load(path)


def _example(model: DeepSpeech) -> tuple[Tensor, Tensor]:
    return torch.zeros(2, 1, model.config.freq_bins, 50), torch.tensor([50, 30])


@contextlib.contextmanager
def _warnings_of_traces() -> Iterator[None]:
    """Leave out that traces are on their way out in PyTorch, and that they may not fit other inputs, which is tried instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@torch.inference_mode()
def _difference(model: DeepSpeech, run: Run) -> float:
    """How far an exported model is from the original in any probability, of a padded batch and of its utterances alone."""
    rng = np.random.default_rng(0)
    spects = torch.from_numpy(rng.normal(0, 1, (len(TRIAL_FRAMES), 1, model.config.freq_bins, max(TRIAL_FRAMES)))).float()
    lens = torch.tensor(TRIAL_FRAMES)
    together, together_lens = run(spects, lens)
    worst = torch.tensor(0.0)
    for row, frames in enumerate(TRIAL_FRAMES):
        alone = spects[row : row + 1, ..., :frames].contiguous(), lens[row : row + 1]
        logits, out_lens = model(*alone)
        expected = logits[0].softmax(-1)
        single, single_lens = run(*alone)
        if not out_lens[0] == single_lens[0] == together_lens[row]:
            raise ValueError(f"the exported model gives {single_lens[0]} and {together_lens[row]} frames, not {out_lens[0]}")
        for found in (single[0, : len(expected)], together[row, : len(expected)]):
            worst = worst.maximum((found.exp() - expected).abs().max())  # which, unlike Python's, keeps what is no number
    return worst.item()
