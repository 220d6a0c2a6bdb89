"""Weights of other networks: those that fit a new one, to begin a training with, and the mean of several."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from asr.checkpoint import Checkpoint, load_checkpoint
from data.labels import Labels
from model import DeepSpeech


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
    return Checkpoint(first.model, first.audio, first.labels, mean, epoch=epoch)


def _differences(first: Checkpoint, other: Checkpoint) -> Iterable[str]:
    """Each setting of network, audio and labels in which a model differs from another, with both values."""
    for ours, theirs in ((first.model, other.model), (first.audio, other.audio)):
        for name, value in asdict(theirs).items():
            if value != getattr(ours, name) and name != "dropout":  # no weight depends on that
                yield f"{name.replace('_', ' ')} is {value}, in {first.path} {getattr(ours, name)}"
    if first.labels != other.labels:
        yield f"labels are {''.join(other.labels.symbols)!r}, in {first.path} {''.join(first.labels.symbols)!r}"
