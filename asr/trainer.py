"""A training, from its flags to its best model: set up, then epoch after epoch train, validate, keep."""

import argparse
import math
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from asr import options
from asr.checkpoint import Checkpoint, save_checkpoint
from asr.evaluation import Errors, count_errors, evaluate
from asr.runtime import Runtime, set_seed
from asr.training import build_optimizer, groups_of, learning_rate, train_step
from config import AudioConfig, AugmentConfig, DecoderConfig, ModelConfig, OptimizerConfig
from data.checks import read_manifests
from data.command_line import UsageError, progress_bar
from data.dataset import BatchLoader, SpectrogramDataset
from data.files import check_writable
from data.labels import Labels
from data.manifest import Utterance
from data.samplers import LengthBatchSampler
from decoder import GreedyDecoder, build_decoder
from model import DeepSpeech, output_frames


@dataclass
class Run:
    """What one training works with, all of it following from the flags."""

    args: argparse.Namespace
    runtime: Runtime
    optimization: OptimizerConfig
    model: DeepSpeech
    optimizer: torch.optim.Optimizer
    train_set: list[Utterance]
    train_order: LengthBatchSampler
    train_loader: BatchLoader
    val_set: list[Utterance]
    val_loader: BatchLoader
    decoder: GreedyDecoder
    checkpoint: Checkpoint  # its weights are the model's own, so that they need not be copied to be saved


def set_up(args: argparse.Namespace) -> Run:
    """Read and check everything that can be wrong before hours are spent. Raises: ValueError, OSError naming it."""
    runtime = Runtime.choose(args.cuda, args.precision)
    labels = Labels.read(args.labels_path)
    audio = options.config_from(AudioConfig, args)
    config = options.config_from(ModelConfig, args, num_labels=len(labels), freq_bins=audio.freq_bins)
    optimization = options.config_from(OptimizerConfig, args)
    for flag, epochs in (("--warmup", args.warmup), ("--freeze-batch-norm", args.freeze_batch_norm)):
        if epochs and epochs >= args.epochs:
            raise UsageError(f"{flag} {epochs:g}: expected fewer than the {args.epochs} of --epochs")
    manifests = (args.train_manifest, args.val_manifest)
    train_set, val_set = read_manifests(manifests, audio, labels, output_frames, args.on_bad_data)
    check_writable(args.model_path)
    if args.checkpoint:
        check_writable(epoch_path(args, 1))

    set_seed(args.seed)
    model = DeepSpeech(config).to(runtime.device)
    augmentation = options.config_from(AugmentConfig, args)
    train_data = SpectrogramDataset(train_set, audio, labels, augmentation, args.seed, output_frames)
    shuffling = {"shuffle": args.shuffle, "sorta_grad": args.sorta_grad, "seed": args.seed}
    train_order = LengthBatchSampler([u.duration for u in train_set], args.batch_size, **shuffling)
    val_order = LengthBatchSampler([u.duration for u in val_set], args.batch_size, shuffle=False)
    return Run(
        args=args,
        runtime=runtime,
        optimization=optimization,
        model=model,
        optimizer=build_optimizer(optimization, model),
        train_set=train_set,
        train_order=train_order,
        train_loader=BatchLoader(train_data, train_order, args.num_workers, args.on_bad_data),
        val_set=val_set,
        val_loader=BatchLoader(SpectrogramDataset(val_set, audio), val_order, args.num_workers, args.on_bad_data),
        decoder=build_decoder(DecoderConfig(), labels.symbols),
        checkpoint=Checkpoint(config, audio, labels, weights=model.state_dict()),
    )


def train(args: argparse.Namespace) -> None:
    """Train as the flags of train.py say. Raises: ValueError, OSError with what stands in the way."""
    run = set_up(args)
    parameters = sum(p.numel() for p in run.model.parameters())
    print(
        f"{len(run.train_set)} utterances to train on, {len(run.val_set)} to validate; {parameters:,} parameters; "
        f"{run.runtime.device.type}, {args.precision}, {torch.get_num_threads()} threads",
        flush=True,
    )
    best, best_epoch = (math.inf, math.inf), 0
    for epoch in range(1, args.epochs + 1):
        loss = train_epoch(run, epoch)
        errors = validate(run, epoch)
        run.checkpoint.epoch = epoch
        run.checkpoint.history.append({"loss": loss, "wer": errors.wer, "cer": errors.cer})
        if args.checkpoint:
            save_checkpoint(replace(run.checkpoint, optimizer=run.optimizer.state_dict()), epoch_path(args, epoch))
        score = (errors.wer, errors.cer)  # every CTC training begins with a WER of 100, while CER falls already
        if score < best:
            best, best_epoch = score, epoch
            save_checkpoint(run.checkpoint, args.model_path)
            print(f"Best model so far: {args.model_path}", flush=True)
        if args.early_stopping and epoch - best_epoch >= args.early_stopping:
            print(f"No better model for {args.early_stopping} epochs: stopping early", flush=True)
            break
    print(f"Best WER {best[0]:.3f} in epoch {best_epoch}: {args.model_path}")


def epoch_path(args: argparse.Namespace, epoch: int) -> Path:
    return Path(args.save_folder) / f"deepspeech_{epoch}.pth.tar"


def train_epoch(run: Run, epoch: int) -> float:
    """One pass over the training set. Returns: average CTC loss of an utterance."""
    run.train_order.epoch = epoch - 1
    run.model.train()
    if epoch > run.args.epochs - run.args.freeze_batch_norm:
        run.model.freeze_batch_norm()
    steps = math.ceil(len(run.train_loader) / run.optimization.grad_accumulation)
    waiting = Stopwatch(run.train_loader)
    total_loss, done, audio_seconds, started = 0.0, 0, 0.0, time.monotonic()
    with progress_bar(total=len(run.train_set), desc=f"epoch {epoch}/{run.args.epochs}", unit="utt") as bar:
        for step, group in enumerate(groups_of(waiting, run.optimization.grad_accumulation), (epoch - 1) * steps):
            rate = learning_rate(run.optimization, step, steps, run.args.epochs)
            for parameters in run.optimizer.param_groups:
                parameters["lr"] = rate
            result = train_step(run.model, group, run.optimizer, run.optimization.max_norm, run.runtime)
            utterances = [run.train_set[i] for batch in group for i in batch.indices.tolist()]
            if result.skipped:
                names = ", ".join(u.where for u in utterances[:3]) + (", ..." if len(utterances) > 3 else "")
                bar.write(f"loss {result.loss}, gradient norm {result.grad_norm}: update left out: {names}", file=sys.stderr)
            else:
                total_loss += result.loss * len(utterances)
                done += len(utterances)
            audio_seconds += sum(u.duration for u in utterances)
            speed = audio_seconds / (time.monotonic() - started)
            bar.set_postfix_str(f"loss {total_loss / max(done, 1):.2f}, lr {rate:.1e}, {speed:.1f} audio s/s", refresh=False)
            bar.update(len(utterances))
    if not done:
        raise ValueError("every update of an epoch was left out for a loss that is not finite; lower --lr")
    seconds = time.monotonic() - started
    print(
        f"Training Summary Epoch: [{epoch}]\tTime taken (s): {seconds:.0f}\tAverage Loss {total_loss / done:.3f}\t"
        f"Waiting for data {100 * waiting.seconds / seconds:.1f} %",
        flush=True,
    )
    return total_loss / done


def validate(run: Run, epoch: int) -> Errors:
    found = evaluate(run.model, progress_bar(run.val_loader, "validating"), run.decoder, run.runtime)
    references = (run.val_set[index].text for index in found)
    errors = count_errors(references, (h.text for h in found.values()), run.args.cer_spaces)
    print(f"Validation Summary Epoch: [{epoch}]\tAverage WER {errors.wer:.3f}\tAverage CER {errors.cer:.3f}", flush=True)
    return errors


class Stopwatch:
    """An iterable that adds up the time its user waits for the next item."""

    def __init__(self, items: Iterable):
        self.items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator:
        started = time.monotonic()
        for item in self.items:
            self.seconds += time.monotonic() - started
            yield item
            started = time.monotonic()
