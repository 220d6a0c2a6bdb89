"""Model files: written whole or not at all, read without running code from them.

A file holds a dict of tensors and plain values: what rebuilds the network (settings, labels, weights) and, while a training
goes on, what continues it. Files of the predecessor's releases 2.0 and spring 2020 are read too; their parameters are
renamed to ours, and their numbers stay what they were.
"""

import pickle
import re
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from config import AudioConfig, ModelConfig
from data.files import whole_file
from data.labels import Labels
from model import DeepSpeech

FORMAT = "deepspeech-toolkit/1"
STORED_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64)
BUFFER = re.compile(r"running_(mean|var)$|num_batches_tracked$")  # what a state dict holds besides parameters


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
    history: list[dict[str, float]] = field(default_factory=list)  # of each epoch: loss, wer, cer
    optimizer: dict | None = None

    def build_model(self, device: torch.device | None = None) -> DeepSpeech:
        """The network with these weights, in evaluation mode."""
        with torch.device("meta"):
            model = DeepSpeech(self.model)
        weights = {name: w.float() if w.is_floating_point() else w for name, w in self.weights.items()}
        model.load_state_dict(weights, assign=True)
        return model.to(device or "cpu").eval()

    def describe(self) -> str:
        lines = {
            "Model name": Path(self.path).name,
            "Model version": self.release,
            "RNN type": self.model.rnn_type,
            "RNN layers": self.model.hidden_layers,
            "RNN size": self.model.hidden_size,
            "Bidirectional": "yes" if self.model.bidirectional else f"no, lookahead {self.model.lookahead_context} frames",
            "Parameters": f"{sum(w.numel() for name, w in self.weights.items() if not BUFFER.search(name)):,}",
            "Classes": len(self.labels),
            "Labels": "".join(self.labels.symbols),
            "Sample rate": self.audio.sample_rate,
            "Window type": self.audio.window,
            "Window size": self.audio.window_size,
            "Window stride": self.audio.window_stride,
        }
        if self.epoch:
            lines["Epochs"] = self.epoch
        for name, key in (("Current loss", "loss"), ("Current CER", "cer"), ("Current WER", "wer")):
            if self.history and key in self.history[-1]:
                lines[name] = f"{self.history[-1][key]:.3f}"
        width = max(map(len, lines)) + 1
        return "\n".join(f"{name + ':':<{width}} {value}" for name, value in lines.items())


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a model file under a temporary name, then rename it: a reader, or a crash, never meets half of one."""
    content = {
        "format": FORMAT,
        "release": checkpoint.release,
        "model": asdict(checkpoint.model),
        "audio": asdict(checkpoint.audio),
        "labels": list(checkpoint.labels.symbols),
        "weights": checkpoint.weights,
        "epoch": checkpoint.epoch,
        "history": checkpoint.history,
        "optimizer": checkpoint.optimizer,
    }
    with whole_file(path, durable=True) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a model file of ours or of a predecessor's release.

    Raises: OSError if it cannot be opened; ValueError naming it if it is not a model file, or is one that cannot be used.
    """
    content = _read_plain(path)
    try:
        if content.get("format") == FORMAT:
            checkpoint = _from_ours(content)
        elif "state_dict" in content and "audio_conf" in content:
            checkpoint = _from_2020(content)
        else:
            raise ValueError(f"expected a model file; it is a dict of {', '.join(map(str, list(content)[:6])) or 'nothing'}")
        _check_weights(checkpoint)
    except KeyError as error:
        raise ValueError(f"{path}: not a whole model file: {error} is missing in it") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None
    checkpoint.path = str(path)
    return checkpoint


def _read_plain(path: str | Path) -> dict:
    """The dict in a file, of tensors and plain values only: nothing that a file holds is ever executed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unexpected pickle protocol: the error that follows says more
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it refers to {found[1]}, which is not loaded for safety" if found else "it is no file of torch.save"
        raise ValueError(f"{path}: not a model file this toolkit reads: {reason}") from None
    except OSError:
        raise
    except Exception as error:  # an unpickler given what is no pickle may raise anything
        reason = str(error).partition("\n")[0] or "it ends too early"
        raise ValueError(f"{path}: not a model file, or one cut short: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a model file: it holds a {type(content).__name__}, expected a dict")
    return content


def _from_ours(content: dict) -> Checkpoint:
    return Checkpoint(
        model=ModelConfig(**content["model"]),
        audio=AudioConfig(**content["audio"]),
        labels=Labels(content["labels"]),
        weights=content["weights"],
        release=content.get("release", FORMAT),
        epoch=content["epoch"],
        history=content["history"],
        optimizer=content["optimizer"],
    )


# Parameter names of releases 2.0 to spring 2020, and what ours are called.
RENAMED = (
    (r"conv\.seq_module\.0\.", "conv.conv1."),
    (r"conv\.seq_module\.1\.", "conv.norm1."),
    (r"conv\.seq_module\.3\.", "conv.conv2."),
    (r"conv\.seq_module\.4\.", "conv.norm2."),
    (r"rnns\.(\d+)\.batch_norm\.module\.", r"rnns.\1.norm."),
    (r"rnns\.(\d+)\.rnn\.(.*)_reverse$", r"rnns.\1.backward_rnn.\2"),
    (r"rnns\.(\d+)\.rnn\.", r"rnns.\1.forward_rnn."),
    (r"lookahead\.0\.conv\.", "lookahead.conv."),
    (r"fc\.0\.module\.0\.", "head_norm."),
    (r"fc\.0\.module\.1\.", "head."),
)


def _from_2020(content: dict) -> Checkpoint:
    weights = {_renamed(name.removeprefix("module.")): w for name, w in content["state_dict"].items()}
    if "conv.conv1.weight" not in weights:
        raise ValueError("a model of release 1.x, another network, which is not read; train it anew or convert it")
    audio = content["audio_conf"]
    labels = Labels(content["labels"])
    model = ModelConfig(
        num_labels=len(labels),
        freq_bins=AudioConfig(audio["sample_rate"], audio["window_size"]).freq_bins,
        rnn_type=str(content["rnn_type"]).lower(),
        hidden_size=content["hidden_size"],
        hidden_layers=content["hidden_layers"],
        bidirectional=bool(content.get("bidirectional", True)),
        lookahead_context=weights["lookahead.conv.weight"].shape[-1] if "lookahead.conv.weight" in weights else 20,
        masked_batch_norm=False,
    )
    # In a file written within an epoch that epoch is counted already, though it has no results yet.
    epoch = int(content.get("epoch") or 0) - (content.get("iteration") is not None)
    results = {key: content.get(f"{key}_results") for key in ("loss", "wer", "cer")}
    history = [
        {key: float(values[i]) for key, values in results.items() if values is not None and i < len(values)}
        for i in range(epoch)
    ]
    return Checkpoint(
        model=model,
        audio=AudioConfig(**{key: audio[key] for key in ("sample_rate", "window_size", "window_stride", "window")}),
        labels=labels,
        weights=weights,
        release=f"deepspeech.pytorch {content.get('version', '2.x')}",
        epoch=epoch,
        history=history,
        optimizer=content.get("optim_dict"),
    )


def _renamed(name: str) -> str:
    for old, new in RENAMED:
        name, hits = re.subn("^" + old, new, name)
        if hits:
            break
    return name


def _check_weights(checkpoint: Checkpoint) -> None:
    """Refuse weights that do not fit the network the file describes, naming the first few parameters that do not."""
    with torch.device("meta"):
        expected = {name: w.shape for name, w in DeepSpeech(checkpoint.model).state_dict().items()}
    found = {name: w.shape for name, w in checkpoint.weights.items()}
    faults = [f"{name} is missing" for name in expected.keys() - found.keys()]
    faults += [f"{name} is unknown" for name in found.keys() - expected.keys()]
    faults += [
        f"{name} is {tuple(found[name])}, expected {tuple(expected[name])}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    faults += [f"{name} is {w.dtype}" for name, w in checkpoint.weights.items() if w.dtype not in STORED_TYPES]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"its weights do not fit the network it describes: {'; '.join(sorted(faults)[:3])}{more}")
