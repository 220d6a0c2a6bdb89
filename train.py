"""Train a Deep Speech 2 model on the utterances of a manifest.

    python train.py --train-manifest data/train_manifest.csv --val-manifest data/val_manifest.csv

After each epoch the model is evaluated on the validation manifest, and kept in --model-path if its word error rate is the best
so far. README.md tells the rest.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from asr import options
from data.command_line import UsageError, argument_parser, number, progress_bar, run_script


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--train-manifest", default="data/train_manifest.csv", help="utterances to learn from")
    data.add_argument("--val-manifest", default="data/val_manifest.csv", help="utterances to judge each epoch by")
    data.add_argument("--labels-path", default="labels.json", help="JSON list of output labels, blank _ first")
    data.add_argument("--batch-size", type=number(int, 1), default=20, help="utterances per batch")
    data.add_argument("--num-workers", type=number(int, 0), default=4, help="data-loading processes; 0: none")
    data.add_argument("--no-shuffle", dest="shuffle", action="store_false", help="keep batches ordered by length")
    data.add_argument(
        "--no-sortaGrad",
        "--no-sorta-grad",
        dest="sorta_grad",
        action="store_false",
        help="shuffle the first epoch too, instead of running from the shortest utterance to the longest",
    )
    options.add_bad_data_option(data)
    options.add_audio_options(parser)
    options.add_model_options(parser)
    options.add_optimizer_options(parser)
    options.add_augment_options(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--epochs", type=number(int, 1), default=70, help="passes over the training manifest")
    run.add_argument(
        "--freeze-batch-norm",
        type=number(int, 0),
        metavar="N",
        default=0,
        help="in the last N epochs normalise by the running statistics, as evaluation does, and leave them as they are",
    )
    run.add_argument("--early-stopping", type=number(int, 0), default=0, help="stop after N epochs without a better model")
    run.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=123456, help="every random choice follows from it")
    run.add_argument("--cuda", action="store_true", help="train on CUDA")
    options.add_precision_option(run)
    run.add_argument("--cer-spaces", action="store_true", help="count spaces in the character error rate")
    files = parser.add_argument_group("files")
    files.add_argument("--checkpoint", action="store_true", help="write a checkpoint after every epoch")
    files.add_argument("--save-folder", default="models/", help="where checkpoints go, as deepspeech_N.pth.tar")
    files.add_argument("--model-path", default="models/deepspeech_final.pth", help="where the best model goes")
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> None:
    import torch

    from asr.checkpoint import Checkpoint, save_checkpoint
    from asr.evaluation import count_errors, evaluate
    from asr.runtime import Runtime, set_seed
    from asr.training import build_optimizer
    from config import AudioConfig, AugmentConfig, DecoderConfig, ModelConfig, OptimizerConfig
    from data.checks import read_manifests
    from data.dataset import BatchLoader, SpectrogramDataset
    from data.files import check_writable
    from data.labels import Labels
    from data.samplers import LengthBatchSampler
    from decoder import build_decoder
    from model import DeepSpeech, output_frames

    runtime = Runtime.choose(args.cuda, args.precision)
    labels = Labels.read(args.labels_path)
    audio = options.config_from(AudioConfig, args)
    config = options.config_from(ModelConfig, args, num_labels=len(labels), freq_bins=audio.freq_bins)
    optimization = options.config_from(OptimizerConfig, args)
    for flag, epochs in (("--warmup", args.warmup), ("--freeze-batch-norm", args.freeze_batch_norm)):
        if epochs and epochs >= args.epochs:
            raise UsageError(f"{flag} {epochs:g}: expected fewer than the {args.epochs} of --epochs")
    train_set, val_set = read_manifests(
        (args.train_manifest, args.val_manifest), audio, labels, output_frames, args.on_bad_data
    )
    check_writable(args.model_path)
    if args.checkpoint:
        check_writable(Path(args.save_folder) / "deepspeech_1.pth.tar")
    set_seed(args.seed)
    model = DeepSpeech(config).to(runtime.device)
    optimizer = build_optimizer(optimization, model)
    order = LengthBatchSampler(
        [u.duration for u in train_set],
        args.batch_size,
        shuffle=args.shuffle,
        sorta_grad=args.sorta_grad,
        seed=args.seed,
    )
    augmentation = options.config_from(AugmentConfig, args)
    dataset = SpectrogramDataset(train_set, audio, labels, augmentation, args.seed, output_frames)
    loader = BatchLoader(dataset, order, args.num_workers, args.on_bad_data)
    val_order = LengthBatchSampler([u.duration for u in val_set], args.batch_size, shuffle=False)
    val_loader = BatchLoader(SpectrogramDataset(val_set, audio), val_order, args.num_workers, args.on_bad_data)
    decoder = build_decoder(DecoderConfig(), labels.symbols)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{len(train_set)} utterances to train on, {len(val_set)} to validate; {parameters:,} parameters; "
        f"{runtime.device.type}, {args.precision}, {torch.get_num_threads()} threads",
        flush=True,
    )

    checkpoint = Checkpoint(config, audio, labels, weights=model.state_dict())
    best, best_epoch = (math.inf, math.inf), 0
    for epoch in range(1, args.epochs + 1):
        order.epoch = epoch - 1
        started = time.monotonic()
        model.train()
        if epoch > args.epochs - args.freeze_batch_norm:
            model.freeze_batch_norm()
        loss, waited = train_epoch(model, loader, optimizer, optimization, runtime, epoch, args.epochs, train_set)
        seconds = time.monotonic() - started
        print(
            f"Training Summary Epoch: [{epoch}]\tTime taken (s): {seconds:.0f}\tAverage Loss {loss:.3f}\t"
            f"Waiting for data {100 * waited / seconds:.1f} %",
            flush=True,
        )
        found = evaluate(model, progress_bar(val_loader, "validating"), decoder, runtime)
        errors = count_errors((val_set[i].text for i in found), (h.text for h in found.values()), args.cer_spaces)
        print(
            f"Validation Summary Epoch: [{epoch}]\tAverage WER {errors.wer:.3f}\tAverage CER {errors.cer:.3f}",
            flush=True,
        )
        checkpoint.epoch = epoch
        checkpoint.history.append({"loss": loss, "wer": errors.wer, "cer": errors.cer})
        if args.checkpoint:
            checkpoint.optimizer = optimizer.state_dict()
            save_checkpoint(checkpoint, Path(args.save_folder) / f"deepspeech_{epoch}.pth.tar")
        score = (errors.wer, errors.cer)  # every CTC training begins with a WER of 100, while CER falls already
        if score < best:
            best, best_epoch = score, epoch
            checkpoint.optimizer = None  # the model people keep needs no optimizer
            save_checkpoint(checkpoint, args.model_path)
            print(f"Best model so far: {args.model_path}", flush=True)
        if args.early_stopping and epoch - best_epoch >= args.early_stopping:
            print(f"No better model for {args.early_stopping} epochs: stopping early", flush=True)
            break
    print(f"Best WER {best[0]:.3f} in epoch {best_epoch}: {args.model_path}")


def train_epoch(model, loader, optimizer, optimization, runtime, epoch, epochs, utterances) -> tuple[float, float]:
    """One pass over the training set.

    Returns: average loss per utterance, seconds spent waiting for data.
    """
    from asr.training import groups_of, learning_rate, train_step

    steps = math.ceil(len(loader) / optimization.grad_accumulation)
    waiting = Stopwatch(loader)
    total_loss, done, audio_seconds, started = 0.0, 0, 0.0, time.monotonic()
    with progress_bar(total=len(utterances), desc=f"epoch {epoch}/{epochs}", unit="utt") as bar:
        for step, group in enumerate(groups_of(waiting, optimization.grad_accumulation)):
            rate = learning_rate(optimization, (epoch - 1) * steps + step, steps, epochs)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate
            result = train_step(model, group, optimizer, optimization.max_norm, runtime)
            indices = [i for batch in group for i in batch.indices.tolist()]
            if result.skipped:
                names = ", ".join(utterances[i].where for i in indices[:3]) + (", ..." if len(indices) > 3 else "")
                bar.write(f"loss {result.loss}, gradient norm {result.grad_norm}: update left out: {names}", file=sys.stderr)
            else:
                total_loss += result.loss * len(indices)
                done += len(indices)
            audio_seconds += sum(utterances[i].duration for i in indices)
            speed = audio_seconds / (time.monotonic() - started)
            bar.set_postfix_str(f"loss {total_loss / max(done, 1):.2f}, lr {rate:.1e}, {speed:.1f} audio s/s", refresh=False)
            bar.update(len(indices))
    if not done:
        raise ValueError("every update of an epoch was left out for a loss that is not finite; lower --lr")
    return total_loss / done, waiting.seconds


class Stopwatch:
    """An iterable that adds up the time its user waits for the next item."""

    def __init__(self, items):
        self.items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator:
        started = time.monotonic()
        for item in self.items:
            self.seconds += time.monotonic() - started
            yield item
            started = time.monotonic()


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: train(args))


if __name__ == "__main__":
    raise SystemExit(main())
