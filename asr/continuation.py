"""What continues a training: where it stands, which checkpoint it starts from, and what may have changed since.

Nothing random is kept. The order of the data and their augmentation follow from (seed, epoch, utterance), dropout from (seed,
update, rank), the learning rate from the utterances seen; so that a Progress, weights, optimizer state and loss scale are all
it takes to go on as if nothing had happened.
"""

import argparse
import hashlib
import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeVar

import torch

from asr.checkpoint import Checkpoint, load_checkpoint
from asr.checkpoint_folder import CheckpointFolder
from asr.runtime import Runtime
from asr.training import StepResult
from config import AudioConfig, AugmentConfig, ModelConfig, OptimizerConfig
from data.command_line import UsageError, tell
from data.files import sweep
from data.labels import Labels
from data.samplers import Position
from data.utterances import Utterance

Settings = TypeVar("Settings", ModelConfig, AudioConfig)
LATEST = "latest"
NEVER = (math.inf, math.inf)  # WER and CER before the first validation


@dataclass
class Progress:
    """Where a training stands."""

    position: Position = field(default_factory=Position)
    batches: int = 0  # of this epoch so far
    updates: int = 0  # tried since the training began
    loss_sum: float = 0.0  # of the utterances of this epoch whose update was made, and how many these are
    counted: int = 0
    skipped: int = 0  # updates left out since the training began
    skipped_in_a_row: int = 0
    best: tuple[float, float] = NEVER  # WER, CER
    best_epoch: int = 0  # or the one since when there is none
    written: list[str] = field(default_factory=list)  # its checkpoints that are still in the folder, oldest first
    run_id: str = ""  # the launch that began it, if a launcher did
    data: str = ""  # what the training manifest said
    val_data: str = ""  # and the validation manifest

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Progress":
        """A file of ours says it; one of the predecessor's is taken up at the beginning of its next, or unfinished, epoch.

        Raises: ValueError naming the file if what it says is no progress.
        """
        if checkpoint.progress is not None:
            return cls._read(checkpoint.progress, checkpoint.path)
        scores = [(past.get("wer", math.inf), past.get("cer", math.inf)) for past in checkpoint.history]
        best = min(scores, default=NEVER)
        best_epoch = scores.index(best) + 1 if scores else checkpoint.epoch
        return cls(position=Position(epoch=checkpoint.epoch), best=best, best_epoch=best_epoch)

    @classmethod
    def _read(cls, kept: dict, path: str) -> "Progress":
        counts = [f.name for f in fields(cls) if isinstance(f.default, int)]
        try:
            if not all(type(kept[name]) is int and kept[name] >= 0 for name in counts):
                raise ValueError("a count is not a whole number")
            # They will be removed: names of checkpoints, and nothing that leads anywhere else.
            written = [name for name in kept["written"] if CheckpointFolder.NAMES.fullmatch(name)]
            best = tuple(float(score) for score in kept["best"])
            return cls(**kept | {"position": Position.read(kept["position"]), "best": best, "written": written})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: where its training stood cannot be read ({error}); try --finetune") from None

    @property
    def epoch(self) -> int:
        """The epoch being trained, counted from 1."""
        return self.position.epoch + 1

    def advance(self, batches: int, utterances: int, result: StepResult) -> None:
        """Count an update: so many batches of each process, so many utterances of all of them, and what came of it."""
        self.position = replace(self.position, done=self.position.done + utterances)
        self.batches += batches
        self.updates += 1
        if not result.utterances:
            return
        if result.skipped:
            self.skipped += 1
            self.skipped_in_a_row += not result.rescaled
        else:
            self.skipped_in_a_row = 0
            self.loss_sum += result.loss * result.utterances
            self.counted += result.utterances

    def begin_epoch(self, epoch: int) -> None:
        """`epoch` is 0-based."""
        self.position = Position(epoch=epoch)
        self.batches = self.counted = 0
        self.loss_sum = 0.0


def starting_point(args: argparse.Namespace, folder: CheckpointFolder) -> Checkpoint | None:
    """The checkpoint a training starts from, None for a fresh one. Raises: UsageError, ValueError, OSError naming it.

    A group of processes that its launcher restarts goes on from what it wrote itself, whatever its flags say.
    """
    for written_to in {folder.path, Path(args.model_path).parent}:
        sweep(written_to)
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        checkpoint = folder.latest(run_id=launch_id())
        if checkpoint is not None:
            args.finetune = False
            return checkpoint
    if not args.continue_from:
        if args.finetune:
            raise UsageError("--finetune: expected --continue-from FILE too, whose weights it starts from")
        return None
    if args.continue_from != LATEST:
        return load_checkpoint(args.continue_from)
    checkpoint = folder.latest(args.finetune)
    if checkpoint is None and args.finetune:
        raise ValueError(f"{folder.path}: no checkpoint there to start from; name one with --continue-from FILE")
    if checkpoint is None:
        tell(f"no checkpoint in {folder.path} yet: starting afresh")
    return checkpoint


def launch_id() -> str:
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def network_of(args: argparse.Namespace, source: Checkpoint | None) -> tuple[ModelConfig, AudioConfig, Labels]:
    """The network, audio settings and labels that the flags, and the checkpoint to start from, mean together.

    A checkpoint decides what the flags leave open. Continuing cannot change them, finetuning can.

    Raises: UsageError naming a flag that contradicts the checkpoint; ValueError, OSError about the labels.
    """
    typed = {name: getattr(args, name) for name in args.typed}
    labels = source.labels if source and "labels_path" not in args.typed else Labels.read(args.labels_path)
    audio = _overridden(source.audio if source else AudioConfig(), typed)
    model = _overridden(source.model if source else ModelConfig(), typed)
    model = replace(model, num_labels=len(labels), freq_bins=audio.freq_bins, release1=False)  # that one is not trained
    if source is not None and not args.finetune:
        changed = {"labels_path": labels.symbols != source.labels.symbols}
        changed |= {f.name: getattr(audio, f.name) != getattr(source.audio, f.name) for f in fields(AudioConfig)}
        changed |= {f.name: getattr(model, f.name) != getattr(source.model, f.name) for f in fields(ModelConfig)}
        changed["dropout"] = False  # no weight depends on it
        for name in typed:
            if changed.get(name):
                raise UsageError(
                    f"{_flag(name)}: {source.path} was trained with another value, which continuing cannot change; leave the "
                    "flag out, or add --finetune to start afresh from its weights"
                )
    return model, audio, labels


def _overridden(config: Settings, typed: dict[str, object]) -> Settings:
    names = {f.name for f in fields(config)} & typed.keys()
    try:
        return replace(config, **{name: typed[name] for name in names})
    except ValueError as error:
        raise UsageError(str(error)) from None


def _flag(name: str) -> str:
    negative = {"bidirectional": "--no-bidirectional"}
    return negative.get(name) or "--" + name.replace("_", "-")


# Flags that decide what an update computes: with the same of these, the same checkpoint and threads, it is the same to the bit.
EXACT = (
    *(f.name for f in fields(OptimizerConfig)),
    *(f.name for f in fields(AugmentConfig)),
    *"batch_size batch_seconds shuffle sorta_grad seed epochs".split(),
    *"loss_scale ctc_backend sync_bn freeze_batch_norm cer_spaces".split(),
)
# What has no flag of its name.
TOLD = {"shuffle": "shuffling", "sorta_grad": "sortaGrad", "world_size": "processes", "threads": "threads", "device": "device"}


def settings_of(args: argparse.Namespace, runtime: Runtime, model: ModelConfig) -> dict[str, object]:
    """What a checkpoint keeps of the flags, to tell when a training is continued with others."""
    kept = {name: getattr(args, name) for name in EXACT}
    numbers = runtime.precision.name + (" with its batch norm" if runtime.precision.half_batch_norm else "")
    kept |= {"dropout": model.dropout, "precision": numbers, "device": runtime.device.type}
    return kept | {"threads": torch.get_num_threads(), "world_size": runtime.world_size}


def changes(before: dict[str, object], now: dict[str, object]) -> list[str]:
    """Settings that end the exactness of a continued training, as `--flag new (was old)`."""
    if now["lr_schedule"] == "anneal" and not (before.get("freeze_batch_norm") or now["freeze_batch_norm"]):
        now = now | {"epochs": before.get("epochs")}  # how many there will be changes nothing now
    return [
        f"{TOLD.get(name) or _flag(name)} {_shown(value)} (was {_shown(before[name])})"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def _shown(value: object) -> str:
    return {True: "on", False: "off", None: "off"}[value] if value is None or isinstance(value, bool) else str(value)


def digest(utterances: Sequence[Utterance]) -> str:
    """Which utterances a training set holds, in which order; where the recordings lie does not matter."""
    told = hashlib.sha256()
    for utterance in utterances:
        told.update(f"{utterance.duration:.6f}\t{utterance.text}\n".encode())
    return told.hexdigest()[:16]


def continuing_command(args: argparse.Namespace, path: Path) -> str:
    """What to type to go on from a checkpoint."""
    if launch_id():
        without = ", without --finetune" if args.finetune else ""
        return f"the same launch with --continue-from {shlex.quote(str(path))}{without}"
    kept, arguments = [], iter(args.argv)
    for argument in arguments:
        if argument == "--continue-from":
            next(arguments, None)
        elif argument != "--finetune" and not argument.startswith("--continue-from="):
            kept.append(argument)
    return shlex.join([sys.executable, sys.argv[0], *kept, "--continue-from", str(path)])
