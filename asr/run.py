"""What one training works with, built from its flags and from the checkpoint it starts from."""

import argparse
import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from asr.checkpoint import Checkpoint
from asr.checkpoint_folder import CheckpointFolder
from asr.continuation import (
    NEVER,
    Progress,
    changes,
    digest,
    launch_id,
    network_of,
    settings_of,
    starting_point,
)
from asr.interruption import Interruption
from asr.loggers import RunLog
from asr.options import config_from
from asr.runtime import Runtime, set_seed
from asr.training import Learner, LossScale, ctc_backend, learning_rate
from asr.transfer import fit_weights
from config import AugmentConfig, DecoderConfig, OptimizerConfig
from data.checks import read_manifests
from data.command_line import UsageError, tell
from data.dataset import BatchLoader, SpectrogramDataset
from data.files import check_writable
from data.labels import Labels
from data.samplers import BatchLimit, LengthBatchSampler
from data.utterances import UtteranceTable
from decoder import GreedyDecoder, build_decoder
from model import DeepSpeech, output_frames


@dataclass
class Run:
    args: argparse.Namespace
    runtime: Runtime
    learner: Learner
    train_set: UtteranceTable
    order: LengthBatchSampler
    train_loader: BatchLoader
    val_set: UtteranceTable
    val_loader: BatchLoader
    decoder: GreedyDecoder
    folder: CheckpointFolder
    checkpoint: Checkpoint  # all that is to be kept, but for weights and states
    progress: Progress
    continued: Checkpoint | None = None  # what it goes on from
    log: RunLog | None = None  # the main process's
    interruption: Interruption | None = None

    def tell(self, text: str) -> None:
        if self.runtime.main:
            tell(text)


def set_up(args: argparse.Namespace, runtime: Runtime) -> Run:
    """Read and check everything that can be wrong before hours are spent. Raises: ValueError, OSError naming it."""
    optimization, augmentation = config_from(OptimizerConfig, args), config_from(AugmentConfig, args)
    backend, loss_scale = ctc_backend(args.ctc_backend), LossScale.choose(args.loss_scale)
    for flag, epochs in (("--warmup", args.warmup), ("--freeze-batch-norm", args.freeze_batch_norm)):
        if epochs and epochs >= args.epochs:
            raise UsageError(f"{flag} {epochs:g}: expected fewer than the {args.epochs} of --epochs")
    folder = CheckpointFolder(args.save_folder, args.keep_checkpoints)
    if folder.NAMES.fullmatch(Path(args.model_path).name):
        raise UsageError(f"--model-path {args.model_path}: the name of a checkpoint; the best model needs another")
    # The main process's file is everyone's: other machines need not see the folder, and none reads while it changes.
    source = runtime.from_main(starting_point(args, folder) if runtime.main else None)
    args.finetune = runtime.from_main(args.finetune)
    if source is not None and not args.finetune:
        source.check_continuable()
    config, audio, labels = network_of(args, source)
    manifests = (args.train_manifest, args.val_manifest)
    train_set, val_set = read_manifests(manifests, audio, labels, output_frames, args.on_bad_data)
    settings, data, val_data = settings_of(args, runtime, config), digest(train_set), digest(val_set)
    check_agreement(
        runtime,
        {
            "--train-manifest": f"{len(train_set)} utterances ({data})",
            "--val-manifest": f"{len(val_set)} utterances ({val_data})",
            "--labels-path": "".join(labels.symbols),
            **{name: value for name, value in settings.items() if name != "threads"},
            **{name: getattr(args, name) for name in ("checkpoint_per_batch", "early_stopping")},
        },
    )
    if runtime.main:
        check_writable(args.model_path)
        check_writable(folder.epoch_path(1))

    set_seed(args.seed)
    model = DeepSpeech(config)
    if source is not None:
        start_from(model, source, args.finetune, runtime, labels)
    model.to(runtime.device)
    if args.sync_bn:
        runtime.sync_batch_norm(model)
    train_data = SpectrogramDataset(train_set, audio, labels, augmentation, args.seed, output_frames)
    if runtime.main and train_data.augment is not None:
        for fault in train_data.augment.unusable:
            tell(f"noise or room left out: {fault}", error=True)
    run = Run(
        args=args,
        runtime=runtime,
        learner=Learner(model, optimization, runtime, loss_scale, backend),
        **loaders(args, runtime, train_data, SpectrogramDataset(val_set, audio)),
        decoder=build_decoder(DecoderConfig(), labels.symbols),
        folder=folder,
        checkpoint=Checkpoint(config, audio, labels, weights={}, settings=settings),
        progress=Progress(run_id=launch_id(), data=data, val_data=val_data),
    )
    announce(run)
    if source is not None and not args.finetune:
        take_up(run, source)
    return run


def announce(run: Run) -> None:
    runtime, parameters = run.runtime, sum(p.numel() for p in run.learner.parameters)
    processes = f", {runtime.world_size} processes" if runtime.world_size > 1 else ""
    run.tell(
        f"{len(run.train_set)} utterances to train on, {len(run.val_set)} to validate; {parameters:,} parameters; "
        f"{runtime.device.type}, {runtime.precision.name}, {torch.get_num_threads()} threads{processes}; "
        f"{len(run.order)} batches an epoch, {100 * run.order.padding:.1f} % of them padding"
    )


def check_agreement(runtime: Runtime, settings: dict[str, object]) -> None:
    """Find out before it trains whether every process, perhaps on another machine, would train the same.

    Raises: ValueError in all of them, naming a rank and what it has otherwise.
    """
    everyones = runtime.gather(settings)
    for rank, theirs in enumerate(everyones):
        for name, value in everyones[0].items():
            if theirs[name] != value:
                raise ValueError(f"{name}: rank {rank} has {theirs[name]}, rank 0 has {value}; all processes need the same")


def loaders(
    args: argparse.Namespace, runtime: Runtime, train_data: SpectrogramDataset, val_data: SpectrogramDataset
) -> dict[str, object]:
    """This process's share of the data, as fields of a Run."""
    share = {"seed": args.seed, "rank": runtime.rank, "world_size": runtime.world_size}
    shuffling = {"shuffle": args.shuffle, "sorta_grad": args.sorta_grad}
    limit = BatchLimit.of(args.batch_size, args.batch_seconds)
    order = LengthBatchSampler(train_data.utterances.durations, limit, **shuffling, **share)
    val_order = LengthBatchSampler(val_data.utterances.durations, limit, shuffle=False, **share)
    return {
        "train_set": train_data.utterances,
        "order": order,
        "train_loader": BatchLoader(train_data, order, args.num_workers, args.on_bad_data),
        "val_set": val_data.utterances,
        "val_loader": BatchLoader(val_data, val_order, args.num_workers, args.on_bad_data),
    }


def start_from(model: DeepSpeech, source: Checkpoint, finetune: bool, runtime: Runtime, labels: Labels) -> None:
    """Give a network a checkpoint's weights: all of them, or for finetuning those that fit, saying which."""
    if not finetune:
        model.load_state_dict(source.build_model().state_dict())
        return
    kept, started = fit_weights(model, source, labels)
    if runtime.main:
        tell(f"finetuning {source.path}: kept {', '.join(kept) or 'nothing'}; started {', '.join(started) or 'nothing'}")


def take_up(run: Run, source: Checkpoint) -> None:
    """Go on where a checkpoint was written, and say where that is, and what keeps it from being exact.

    Raises: ValueError if the checkpoint has not what it takes.
    """
    before, now = Progress.of(source), run.progress
    notes = restore_optimizer(run, source)
    scale = run.learner.loss_scale
    if source.loss_scale and scale.dynamic:
        scale.scale, scale.good_steps = source.loss_scale["scale"], source.loss_scale["good_steps"]
    run.continued = source
    run.checkpoint.epoch, run.checkpoint.history = source.epoch, copy.deepcopy(source.history)
    run.progress = replace(before, run_id=now.run_id, data=now.data, val_data=now.val_data)
    notes += changes(source.settings, run.checkpoint.settings)
    if source.progress is None:
        notes.append("order and augmentation are this toolkit's")
    if source.progress is None and source.within_epoch:
        notes.append(f"epoch {before.epoch} begun anew, as deepspeech.pytorch's order is not known")
    if before.val_data not in ("", now.val_data):
        notes.append("another validation manifest")
    if before.data not in ("", now.data):
        notes.append("another training manifest")
        if before.position.done:
            run.progress.begin_epoch(before.position.epoch)
            notes.append(f"epoch {before.epoch} begun anew, as its order was another's")
    keep_files(run, source)
    done = f", {run.progress.position.done} utterances of it done" if run.progress.position.done else ""
    run.tell(f"continuing {source.path} in epoch {run.progress.epoch}{done}")
    if notes:
        run.tell(f"not exactly as it would have gone on: {'; '.join(notes)}")


def keep_files(run: Run, source: Checkpoint) -> None:
    """See which files of the run that is continued are still its own: a file of another's must not be removed or missed."""
    progress, folder = run.progress, run.folder
    if not run.runtime.from_main(Path(run.args.model_path).exists()) and progress.best != NEVER:
        progress.best, progress.best_epoch = NEVER, source.epoch
        run.tell(f"{run.args.model_path} is not there: the best model from here on will be")
    if Path(source.path).parent.resolve() != folder.path.resolve():
        progress.written = []
    elif run.runtime.main:
        folder.trim(progress.written)  # what a kill left


def restore_optimizer(run: Run, source: Checkpoint) -> list[str]:
    """Give the optimizer its state; momentum and decay are what the flags say now, and so is the rate of the next update.

    Returns: what is worth noting about it.
    """
    optimizer = run.learner.optimizer
    kind = "adamw" if any("betas" in group for group in source.optimizer["param_groups"]) else "sgd"
    if kind != run.learner.config.optimizer:
        raise UsageError(
            f"--optimizer {run.learner.config.optimizer}: {source.path} was trained with {kind}, whose state is of no use to "
            f"it; continue with --optimizer {kind}, or add --finetune to start from its weights"
        )
    kept = ("params", "lr")
    now = [{name: value for name, value in group.items() if name not in kept} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(copy.deepcopy(source.optimizer))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{source.path}: its optimizer state does not fit the network: {error}") from None
    for group, hyperparameters in zip(optimizer.param_groups, now, strict=True):
        group.update(hyperparameters)
    if source.settings:
        return []
    before, config = optimizer.param_groups[0]["lr"], run.learner.config  # of a file that does not tell its flags
    next_rate = learning_rate(config, source.epoch + 0.5 / len(run.train_set), run.args.epochs)
    # The predecessor wrote a file at an epoch's end before it annealed the rate, and within an epoch after.
    expected = (before, before / config.learning_anneal)
    if any(math.isclose(next_rate, rate, rel_tol=1e-3) for rate in expected):
        return []
    return [f"learning rate {next_rate:.3g} (was {before:.3g})"]
