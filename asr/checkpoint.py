"""Model files: written whole or not at all, read without running code from them.

A file holds a dict of tensors and plain values: what rebuilds the network (settings, labels, weights) and, while a training
goes on, what continues it. Files of the predecessor's releases are read too (asr/predecessor.py).
"""

import pickle
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from asr import predecessor
from config import AudioConfig, ModelConfig
from data.files import whole_file
from data.labels import Labels
from model import DeepSpeech

FORMAT = "deepspeech-toolkit/1"
STORED_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64)
PLAIN_TYPES = (type(None), bool, int, float, str, bytes)
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
        }
        if self.epoch or self.within_epoch:
            lines["Epochs"] = f"{self.epoch}, written within the next" if self.within_epoch else self.epoch
        for name, key in (("Current loss", "loss"), ("Current CER", "cer"), ("Current WER", "wer")):
            if self.history and key in self.history[-1]:
                lines[name] = f"{self.history[-1][key]:.3f}"
        width = max(map(len, lines)) + 1
        return "\n".join(f"{name + ':':<{width}} {value}" for name, value in lines.items())


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
        _check_plain(content[key], key)
    with whole_file(path, durable=True) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def _check_plain(value: object, where: str) -> None:
    """A NumPy number among the settings would be saved without a word, and the file never read again."""
    if isinstance(value, dict):
        for key, held in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(held, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, held in enumerate(value):
            _check_plain(held, f"{where}[{i}]")
    elif type(value) not in PLAIN_TYPES and not isinstance(value, Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}: model files hold tensors and plain values only")


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a model file of ours or of a predecessor's release.

    Raises: OSError if it cannot be opened; ValueError naming it if it is not a model file, or is one that cannot be used.
    """
    content = _read_plain(path)
    try:
        if content.get("format") == FORMAT:
            checkpoint = _from_ours(content)
        elif predecessor.is_predecessors(content):
            checkpoint = _from_ours(predecessor.as_ours(content))
        else:
            raise ValueError(f"expected a model file; it is a dict of {', '.join(map(str, list(content)[:6])) or 'nothing'}")
        _check_weights(checkpoint)
    except KeyError as error:
        raise ValueError(f"{path}: not a whole model file: {error} is missing in it") from None
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    checkpoint.path = str(path)
    return checkpoint


def _read_plain(path: str | Path) -> dict:
    """The dict in a file, of tensors and plain values only: nothing that a file holds is ever executed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unexpected pickle protocol: the error that follows says more
            content = _unpickle(path)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it refers to {found[1]}, which is not loaded for safety" if found else "it is no file of torch.save"
        if "Only persistent_load of storage" in str(error):
            reason = "it holds classes with their source code, as torch did before release 1.6; save it again with a later one"
        raise ValueError(f"{path}: not a model file this toolkit reads: {reason}") from None
    except OSError:
        raise
    except Exception as error:  # an unpickler given what is no pickle may raise anything
        reason = str(error).partition("\n")[0] or "it ends too early"
        raise ValueError(f"{path}: not a model file, or one cut short: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a model file: it holds a {type(content).__name__}, expected a dict")
    return content


def _unpickle(path: str | Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # The predecessor's releases 2.1 and 3.x name classes of other packages; our own files name none.
        with torch.serialization.safe_globals(predecessor.stand_ins(path)):
            content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, dict) and "format" in content:
            raise
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
        # What the first files of this format did not have.
        within_epoch=content.get("within_epoch", False),
        loss_scale=content.get("loss_scale"),
        progress=content.get("progress"),
        settings=content.get("settings", {}),
    )


def _check_weights(checkpoint: Checkpoint) -> None:
    """Refuse weights that do not fit the network the file describes, naming every parameter that does not."""
    if checkpoint.model.hidden_layers > len(checkpoint.weights):
        raise ValueError(f"{checkpoint.model.hidden_layers} layers, but only {len(checkpoint.weights)} weights")
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
        more = f"; and {len(faults) - NAMED_FAULTS} more" if len(faults) > NAMED_FAULTS else ""
        raise ValueError(f"its weights do not fit the network it describes: {'; '.join(sorted(faults)[:NAMED_FAULTS])}{more}")


def fit_weights(model: DeepSpeech, checkpoint: Checkpoint, labels: Labels) -> tuple[list[str], list[str]]:
    """Start a network from another one's weights: take what fits by name and shape, and leave the rest as it was initialised.

    `labels` are those of `model`, which may also differ from the file's network in layers, width, direction or spectrogram.
    In the head, a label's row belongs to its character, whatever its position in either list.

    Returns: what was kept, and what starts afresh; layers in the order of the network, the head with its labels at the end.
    Raises: ValueError naming the file if nothing in it fits.
    """
    layers: dict[str, dict[str, bool]] = {}  # layer -> weight within it -> whether it fits
    state = model.state_dict()
    for name in (name for name in state if name != "head.weight"):
        # A count of batches would fit every network; it goes with the statistics it counts for.
        sized = name.replace("num_batches_tracked", "running_var")
        fits = sized in checkpoint.weights and checkpoint.weights[sized].shape == state[sized].shape
        layer, part = _layer_of(name)
        layers.setdefault(layer, {})[part] = fits
        if fits:
            state[name].copy_(checkpoint.weights[name])
    kept = [_which(layer, fits, True) for layer, fits in layers.items() if any(fits.values())]
    started = [_which(layer, fits, False) for layer, fits in layers.items() if not all(fits.values())]
    known = _fit_head(model, checkpoint, labels)
    new = [label for label in labels.symbols if label not in known]
    if known:
        kept.append(f"head: {len(known)} of {len(labels)} labels" if new else "head")
    if new:
        started.append(f"head: labels {', '.join(map(repr, new))}" if known else "head")
    if not kept:
        raise ValueError(f"{checkpoint.path}: none of its weights fits this network")
    return kept, started


def _layer_of(weight: str) -> tuple[str, str]:
    """A weight's layer, as people call and count it, and the weight's name within it."""
    part, _, name = weight.partition(".")
    if part == "conv":  # conv1.weight, norm1.bias
        return f"convolution {name[4]}", name
    if part == "rnns":  # 0.forward_rnn.weight_ih_l0
        number, _, name = name.partition(".")
        return f"recurrent layer {int(number) + 1}", name
    return part.replace("_", " "), name


def _which(layer: str, fits: dict[str, bool], wanted: bool) -> str:
    """A layer's name, followed, if only some of its weights are wanted, by those: whole modules where all of one are."""
    chosen = [name for name, fitting in fits.items() if fitting == wanted]
    if len(chosen) == len(fits):
        return layer
    mixed = {name.partition(".")[0] for name, fitting in fits.items() if fitting != wanted}
    parts = dict.fromkeys(name if name.partition(".")[0] in mixed else name.partition(".")[0] for name in chosen)
    return f"{layer} ({', '.join(parts)})"


def _fit_head(model: DeepSpeech, checkpoint: Checkpoint, labels: Labels) -> set[str]:
    """Copy the rows of the labels that the head knew. Returns: those labels; none if it is of another width."""
    old, new = checkpoint.weights["head.weight"], model.head.weight
    if old.shape[1] != new.shape[1]:
        return set()
    row_of = {label: row for row, label in enumerate(checkpoint.labels.symbols)}
    known = [label for label in labels.symbols if label in row_of]
    with torch.no_grad():
        new[[labels.symbols.index(label) for label in known]] = old[[row_of[label] for label in known]].to(new)
    return set(known)


def average_checkpoints(paths: Sequence[str | Path]) -> Checkpoint:
    """The mean of the weights of several models of one network, which is often better than any of them.

    One file is in memory at a time, besides the sum in float64. What belongs to one training (optimizer, progress, results)
    is left out: nobody has evaluated the mean.

    Raises: ValueError naming the file and what differs if network, audio or labels are not those of the first.
    """
    first = load_checkpoint(paths[0])
    sums = {name: weight.double() if weight.is_floating_point() else weight for name, weight in first.weights.items()}
    dtypes = {name: weight.dtype for name, weight in first.weights.items()}
    epoch, first.weights, first.optimizer = first.epoch, {}, None
    for path in paths[1:]:
        other = load_checkpoint(path)
        if differing := list(_differences(first, other)):
            raise ValueError(f"{path}: only models of one network can be averaged: {'; '.join(differing)}")
        epoch = max(epoch, other.epoch)
        for name, weight in other.weights.items():
            # Counts of batches, the only integers, have no mean; the largest is of the longest training.
            sums[name] = sums[name] + weight if weight.is_floating_point() else torch.maximum(sums[name], weight)
    mean = {name: (total / len(paths)).to(dtypes[name]) if total.is_floating_point() else total for name, total in sums.items()}
    return Checkpoint(first.model, first.audio, first.labels, mean, release=first.release, epoch=epoch)


def _differences(first: Checkpoint, other: Checkpoint) -> Iterable[str]:
    """Each setting of network, audio and labels in which a model differs from another, with both values."""
    for ours, theirs in ((first.model, other.model), (first.audio, other.audio)):
        for name, value in asdict(theirs).items():
            if value != getattr(ours, name):
                yield f"{name.replace('_', ' ')} is {value}, in {first.path} {getattr(ours, name)}"
    if first.labels != other.labels:
        yield f"labels are {''.join(other.labels.symbols)!r}, in {first.path} {''.join(first.labels.symbols)!r}"
