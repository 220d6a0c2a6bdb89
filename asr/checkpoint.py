"""Model files: written whole or not at all, read without running code from them.

A file holds a dict of tensors and plain values: what rebuilds the network (settings, labels, weights) and, while a training
goes on, what continues it. Files of the predecessor's releases are read too (asr/predecessor.py).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from asr import predecessor
from asr.plain_file import PLAIN_TYPES, check_plain, printable, read_plain, told
from config import AudioConfig, ModelConfig
from data.files import whole_file
from data.labels import Labels
from model import DeepSpeech

FORMAT = "deepspeech-toolkit/1"
STORED_TYPES = (torch.float32, torch.float16, torch.bfloat16)
FIELDS = {  # of a file of ours, besides its format
    **{"release": str, "model": dict, "audio": dict, "labels": list, "weights": dict, "epoch": int, "within_epoch": bool},
    **{"history": list, "optimizer": dict | None, "loss_scale": dict | None, "progress": dict | None, "settings": dict},
}
FIRST_FILES_LACK = {"release": FORMAT, "within_epoch": False, "loss_scale": None, "progress": None, "settings": {}}
NAMED_FAULTS = 20  # of weights that do not fit; a network of another kind has hundreds


@dataclass
class Checkpoint:
    """Everything a model file says."""

    model: ModelConfig
    audio: AudioConfig
    labels: Labels
    weights: dict[str, Tensor]
    path: str = ""
    release: str = FORMAT
    epoch: int = 0  # finished epochs
    within_epoch: bool = False  # written while the next epoch ran; without `progress`, that epoch has to begin anew
    history: list[dict[str, float]] = field(default_factory=list)  # of each finished epoch: loss, wer, cer
    optimizer: dict | None = None  # what torch's load_state_dict takes, parameters numbered in the order of the network's
    loss_scale: dict | None = None  # of float16 training: scale (float), good_steps (int) since it last changed
    progress: dict | None = None  # where a training stands, known only to whoever trains
    settings: dict = field(default_factory=dict)  # the flags it ran with

    def build_model(self, device: torch.device | None = None) -> DeepSpeech:
        """The network with these weights, in evaluation mode."""
        with torch.device("meta"):
            model = DeepSpeech(self.model)
        weights = {name: w.float() if w.is_floating_point() else w for name, w in self.weights.items()}
        model.load_state_dict(weights, assign=True)
        return model.to(device or "cpu").eval()

    def check_continuable(self) -> None:
        """Raises: ValueError naming the file and the reason if no training can be continued from it."""
        if self.model.release1:
            raise ValueError(
                f"{self.path}: a model of release 1.x, another network, which is not trained further; "
                "--finetune takes over those of its weights that fit"
            )
        if self.optimizer is None:
            raise ValueError(
                f"{self.path}: holds no state of an optimizer that fits its network: continue from a file that --checkpoint "
                "wrote, or start afresh from its weights with --finetune"
            )

    def describe(self) -> str:
        lines = {
            "Model name": Path(self.path).name,
            "Model version": self.release,
            "RNN type": self.model.rnn_type,
            "RNN layers": self.model.hidden_layers,
            "RNN size": self.model.hidden_size,
            "Bidirectional": "yes" if self.model.bidirectional else f"no, lookahead {self.model.lookahead_context} frames",
            "Parameters": f"{sum(w.numel() for name, w in self.weights.items() if not predecessor.BUFFER.search(name)):,}",
            "Classes": len(self.labels),
            "Labels": "".join(self.labels.symbols),
            "Sample rate": self.audio.sample_rate,
            "Window type": self.audio.window,
            "Window size": self.audio.window_size,
            "Window stride": self.audio.window_stride,
            "Normalised by": "what was heard so far" if self.audio.streaming_norm else "the whole utterance",
        }
        if self.epoch or self.within_epoch:
            lines["Epochs"] = f"{self.epoch}, written within epoch {self.epoch + 1}" if self.within_epoch else self.epoch
        for name, key in (("Current loss", "loss"), ("Current CER", "cer"), ("Current WER", "wer")):
            if self.history and key in self.history[-1]:
                lines[name] = f"{self.history[-1][key]:.3f}"
        width = max(map(len, lines)) + 1
        return "\n".join(f"{name + ':':<{width}} {printable(str(value))}" for name, value in lines.items())


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a model file under a temporary name, then rename it: a reader, or a crash, never meets half of one.

    Raises: TypeError, before anything is written, if progress or settings hold what load_checkpoint would refuse.
    """
    content = {
        "format": FORMAT,
        "release": checkpoint.release,
        "model": asdict(checkpoint.model),
        "audio": asdict(checkpoint.audio),
        "labels": list(checkpoint.labels.symbols),
        "weights": checkpoint.weights,
        "epoch": checkpoint.epoch,
        "within_epoch": checkpoint.within_epoch,
        "history": checkpoint.history,
        "optimizer": checkpoint.optimizer,
        "loss_scale": checkpoint.loss_scale,
        "progress": checkpoint.progress,
        "settings": checkpoint.settings,
    }
    for key in ("history", "loss_scale", "progress", "settings"):
        check_plain(content[key], key)
    with whole_file(path, durable=True) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a model file of ours or of a predecessor's release.

    Raises: OSError if it cannot be opened; ValueError naming it if it is not a model file, or is one that cannot be used.
    """
    content = read_plain(path)
    theirs = content.get("format") != FORMAT
    try:
        if theirs and not predecessor.is_predecessors(content):
            keys = ", ".join(key for key in list(content)[:6] if isinstance(key, str))
            raise ValueError(f"expected a model file; it is a dict of {keys or 'nothing'}")
        checkpoint = _from_ours(predecessor.as_ours(content) if theirs else content)
        shapes = _check_weights(checkpoint, predecessor.own_names(content) if theirs else str)
        if checkpoint.optimizer is not None and (fault := _optimizer_fault(checkpoint.optimizer, shapes)):
            if not theirs:
                raise ValueError(f"its optimizer's state does not fit its network: {fault}")
            checkpoint.optimizer = None  # very old files have such; their weights are good without it
    except KeyError as error:
        raise ValueError(f"{path}: not a whole model file: {told(error)} is missing in it") from None
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{path}: {told(error)}") from None
    checkpoint.path = str(path)
    return checkpoint


def _from_ours(content: dict) -> Checkpoint:
    content = FIRST_FILES_LACK | content
    _check_fields(content)
    checkpoint = Checkpoint(
        model=ModelConfig(**content["model"]),
        audio=AudioConfig(**content["audio"]),
        labels=Labels(content["labels"]),
        **{name: content[name] for name in FIELDS if name not in ("model", "audio", "labels")},
    )
    for name, found, expected in (
        ("labels", len(checkpoint.labels), checkpoint.model.num_labels),
        ("frequency bins", checkpoint.audio.freq_bins, checkpoint.model.freq_bins),
    ):
        if found != expected:
            raise ValueError(f"it has {found} {name}, and a network for {expected}")
    return checkpoint


def _check_fields(content: dict) -> None:
    """Raises: ValueError if a field does not hold what its users take for granted; KeyError if it is missing."""
    for name, kind in FIELDS.items():
        if not isinstance(content[name], kind):
            expected = getattr(kind, "__name__", str(kind))
            raise ValueError(f"{name} is a {type(content[name]).__name__}, expected {expected.replace('|', 'or')}")
    if content["epoch"] < 0:
        raise ValueError(f"epoch {content['epoch']}: expected at least 0")
    for results in content["history"]:
        if not isinstance(results, dict) or not all(isinstance(k, str) and _is_number(v) for k, v in results.items()):
            raise ValueError("history: expected numbers for each epoch, by name")
    scaling = content["loss_scale"]
    if scaling is not None:
        scale, good_steps = scaling["scale"], scaling["good_steps"]
        if not (_is_number(scale) and 0 < scale < math.inf and type(good_steps) is int):
            raise ValueError("loss_scale: expected a positive scale, and good_steps counted")
    for name, value in content["settings"].items():
        if not all(type(part) in PLAIN_TYPES for part in (name, *(value if isinstance(value, list | tuple) else [value]))):
            raise ValueError("settings: expected values of flags, by name")


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _check_weights(checkpoint: Checkpoint, spoken: Callable[[str], str]) -> list[torch.Size]:
    """Refuse weights that do not fit the network the file describes, naming every parameter that does not, as `spoken`.

    Returns: the shapes of the network's parameters.
    """
    with torch.device("meta"):
        network = DeepSpeech(checkpoint.model)
    expected, found = network.state_dict(), checkpoint.weights
    faults = [f"{spoken(name)} is missing" for name in expected.keys() - found.keys()]
    faults += [f"{spoken(name)} is unknown" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        fault = _misfit(found[name], expected[name])
        faults += [f"{spoken(name)} is {fault}"] if fault else []
    if faults:
        more = f"; and {len(faults) - NAMED_FAULTS} more" if len(faults) > NAMED_FAULTS else ""
        raise ValueError(f"its weights do not fit the network it describes: {'; '.join(sorted(faults)[:NAMED_FAULTS])}{more}")
    return [parameter.shape for parameter in network.parameters()]


def _misfit(found: object, expected: Tensor) -> str:
    """What keeps a value of a file from being a weight; nothing if it can be it."""
    if not isinstance(found, Tensor):
        return f"a {type(found).__name__}, expected a tensor"
    if found.shape != expected.shape or not found.numel():
        return f"{tuple(found.shape)}, expected {tuple(expected.shape)}"
    if found.dtype not in (STORED_TYPES if expected.is_floating_point() else (torch.int64,)):
        return f"{found.dtype}, expected {expected.dtype}"
    return ""


def _optimizer_fault(optimizer: dict, shapes: list[torch.Size]) -> str:
    """What keeps a state from being one of an optimizer of parameters of these shapes; nothing if it can be it."""
    groups, state = optimizer["param_groups"], optimizer["state"]
    if [number for group in groups for number in group["params"]] != list(range(len(shapes))):
        return f"expected it to list {len(shapes)} parameters"
    if not all(_is_number(group["lr"]) for group in groups):
        return "expected a number as its learning rate"
    needed = {"step", "exp_avg", "exp_avg_sq"} if any("betas" in group for group in groups) else set()  # of AdamW
    for number, entries in state.items():
        if number not in range(len(shapes)) or (entries and not needed <= entries.keys()):
            return f"parameter {number} is unknown, or lacks a part of its state"
        for name, entry in entries.items():
            shape = () if name == "step" else tuple(shapes[number])
            if isinstance(entry, Tensor) and (tuple(entry.shape) != shape or not entry.is_floating_point()):
                return f"{name} of parameter {number} is {tuple(entry.shape)} of {entry.dtype}, expected {shape} of floats"
            if not isinstance(entry, Tensor) and not (_is_number(entry) if name == "step" else entry is None and not needed):
                return f"{name} of parameter {number} is a {type(entry).__name__}, expected a tensor"
    return ""
