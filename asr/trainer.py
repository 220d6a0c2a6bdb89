"""A training: epoch after epoch train, validate, keep; and end in good order whenever it is asked to."""

import argparse
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from asr.checkpoint import save_checkpoint
from asr.continuation import NEVER, continuing_command, launch_id
from asr.evaluation import Errors, acoustic_output, count_errors, evaluate
from asr.interruption import Interrupted, Interruption
from asr.loggers import METRICS, Example, RunLog, check_flags
from asr.run import Run, set_up
from asr.runtime import Precision, joined, set_step_seed
from asr.training import StepResult, groups_of, learning_rate, train_step
from data.command_line import progress_bar, tell
from data.dataset import BadData, Batch, collate
from decoder import Hypothesis

T = TypeVar("T")
BAD_UPDATES = 20  # left out in a row: the run has gone wrong
EXAMPLES = 4  # validation utterances shown in the graphs


def train(args: argparse.Namespace) -> int:
    """Train as the flags of train.py say. Returns: the exit status. Raises: ValueError, OSError with what stands in the way."""
    precision = Precision.choose(args.precision, args.opt_level, args.keep_batchnorm_fp32)
    check_flags(args)
    with joined(args, precision) as runtime:
        run = set_up(args, runtime)
        if run.progress.epoch > args.epochs:
            begun = f", epoch {run.progress.epoch} is begun" if run.progress.batches else ""
            run.tell(f"nothing left to train: {run.checkpoint.epoch} epochs are done{begun}, and --epochs is {args.epochs}")
            return 0
        if runtime.main:
            finished = {"epoch": run.checkpoint.epoch, "step": run.progress.updates, "results": run.checkpoint.history}
            history = Path(run.continued.path).parent / METRICS if run.continued else None
            run.log = RunLog.open(args, run.folder.path, **finished, history=history)
        try:
            with Interruption(aloud=runtime.main) as run.interruption:
                return run_epochs(run)
        finally:
            if run.log:
                run.log.close()


def run_epochs(run: Run) -> int:
    """Train until the last epoch, or until nothing gets better, or until asked to end. Returns: the exit status."""
    args, progress = run.args, run.progress
    try:
        while progress.epoch <= args.epochs and not stale(run):
            loss = train_epoch(run)
            errors, found = validate(run)
            end_epoch(run, loss, errors, found)
            stop_if_asked(run)
    except Interrupted as interrupted:
        run.tell(f"{interrupted}: {leave(run)}")
        return interrupted.status
    except BadData:
        run.tell(leave(run))
        raise
    if progress.best != NEVER:
        run.tell(f"Best WER {progress.best[0]:.3f} in epoch {progress.best_epoch}: {args.model_path}")
    return 0


def leave(run: Run) -> str:
    """Write a checkpoint between two steps. Returns: what to say of it."""
    progress, folder = run.progress, run.folder
    at_an_epochs_end = progress.batches == 0 and progress.epoch > 1
    path = folder.epoch_path(progress.epoch - 1) if at_an_epochs_end else folder.batch_path(progress.epoch, progress.batches)
    save(run, path)
    run.runtime.barrier()  # the others stay until it is written: whoever started them may kill all when one has ended
    if progress.epoch > run.args.epochs:
        return f"wrote {path}; all {run.args.epochs} epochs are done"
    others = "\nand the like on every other rank" if run.runtime.world_size > 1 and not launch_id() else ""
    return f"wrote {path}; to continue:\n{continuing_command(run.args, path)}{others}"


def stop_if_asked(run: Run, problem: str = "") -> None:
    """End all processes if any was asked to end, or met data that cannot be read. Raises: Interrupted, BadData."""
    runtime, signal = run.runtime, run.interruption.signal
    asked, broken = runtime.sum(bool(signal), bool(problem))
    if broken:
        raise BadData(next(text for text in runtime.gather(problem) if text))
    if asked:
        raise Interrupted(max(runtime.gather(signal)))


def until_asked_to_end(run: Run, items: Iterable[T]) -> Iterator[T]:
    """The items of a pass over data, as many in every process, each after a look whether it is time to end."""
    remaining, nothing = iter(items), object()
    while True:
        item, problem = nothing, ""
        try:
            item = next(remaining, nothing)
        except BadData as error:
            problem = str(error)
        stop_if_asked(run, problem)
        if item is nothing:
            return
        yield item


def stale(run: Run) -> bool:
    patience, waited = run.args.early_stopping, run.checkpoint.epoch - run.progress.best_epoch
    if not patience or waited < patience:
        return False
    run.tell(f"No better model for {patience} epochs: stopping early")
    return True


def train_epoch(run: Run) -> float:
    """One pass over the training set, or what remains of it. Returns: average CTC loss of an utterance."""
    args, progress, learner = run.args, run.progress, run.learner
    progress.position = run.order.go_to(progress.position)
    learner.model.train()
    if progress.epoch > args.epochs - args.freeze_batch_norm:
        learner.model.freeze_batch_norm()
    waiting, started = Stopwatch(run.train_loader), time.monotonic()
    groups = groups_of(zip(waiting, run.order.batches, strict=True), learner.config.grad_accumulation)
    description = {"desc": f"epoch {progress.epoch}/{args.epochs}", "unit": "utt", "initial": progress.position.done}
    with progress_bar(total=len(run.train_set), shown=run.runtime.main, **description) as bar:
        clock = time.monotonic()
        for group in until_asked_to_end(run, groups):
            batches, members = [batch for batch, _ in group], np.concatenate([members for _, members in group])
            result = take_step(run, batches, members)
            clock, seconds = time.monotonic(), time.monotonic() - clock
            report_step(run, result, members, seconds, bar)
            every = args.checkpoint_per_batch
            if every and progress.batches // every > (progress.batches - len(group)) // every:
                save(run, run.folder.batch_path(progress.epoch, progress.batches))
    loss = progress.loss_sum / progress.counted if progress.counted else math.nan
    seconds = time.monotonic() - started
    who = "" if run.runtime.main else f"[rank {run.runtime.rank}] "  # in its own log
    tell(
        f"{who}Training Summary Epoch: [{progress.epoch}]\tTime taken (s): {seconds:.0f}\tAverage Loss {loss:.3f}\t"
        f"Waiting for data {100 * waiting.seconds / seconds:.1f} %"
    )
    return loss


def take_step(run: Run, batches: Sequence[Batch], members: np.ndarray) -> StepResult:
    """One update, and the progress it is. `members`: the utterances of the batches of all processes.

    Raises: ValueError when one update after the other had to be left out.
    """
    progress, learner = run.progress, run.learner
    done = progress.position.epoch + (progress.position.done + len(members) / 2) / len(run.train_set)
    learner.set_learning_rate(learning_rate(learner.config, done, run.args.epochs))
    set_step_seed(run.args.seed, progress.updates, run.runtime.rank)
    result = train_step(learner, batches)
    progress.advance(len(batches), len(members), result)
    if result.skipped:
        names = named_culprits(run, result, members)
        if run.runtime.main:
            numbers = f"loss {result.loss:.4g}, gradient norm {result.grad_norm:.4g}"
            with tqdm.external_write_mode():  # so that the progress bar stays below
                tell(f"{numbers}: update left out: {names}", error=True)
    if progress.skipped_in_a_row >= BAD_UPDATES:
        raise ValueError(
            f"{BAD_UPDATES} updates in a row were left out, the last for loss {result.loss:.4g} and gradient norm "
            f"{result.grad_norm:.4g}; lower --lr, or look at the utterances named above"
        )
    return result


def named_culprits(run: Run, result: StepResult, members: np.ndarray) -> str:
    """The utterances whose loss was the reason, in whichever process; if it was the gradient, all of them may be."""
    culprits = sorted(index for share in run.runtime.gather(result.culprits) for index in share) or members.tolist()
    names = ", ".join(run.train_set[index].where for index in culprits[:3])
    return names + (f" and {len(culprits) - 3} more" if len(culprits) > 3 else "")


def report_step(run: Run, result: StepResult, members: np.ndarray, seconds: float, bar: tqdm) -> None:
    """Tell the progress bar and the graphs of an update that took so long, waiting for its data included."""
    progress = run.progress
    audio_seconds = sum(run.train_set[index].duration for index in members)
    rate = run.learner.optimizer.param_groups[0]["lr"]
    average, made = progress.loss_sum / max(progress.counted, 1), result.utterances and not result.skipped
    bar.set_postfix_str(f"loss {average:.2f}, lr {rate:.1e}, {audio_seconds / seconds:.1f} audio s/s", refresh=False)
    bar.update(len(members))
    if run.log:
        run.log.step(
            {
                "epoch": progress.epoch,
                "step": progress.updates,
                "loss": result.loss if made else math.nan,
                "lr": rate,
                "grad_norm": result.grad_norm if result.utterances else math.nan,
                "utterances_per_second": len(members) / seconds,
                "audio_seconds_per_second": audio_seconds / seconds,
                "skipped": progress.skipped,
            }
        )


def validate(run: Run) -> tuple[Errors, dict[int, Hypothesis]]:
    """Errors and hypotheses of the whole validation set, of which each process evaluates its share."""
    run.runtime.take_from_main(run.learner.model)  # running statistics are each process's own until here
    bar = progress_bar(run.val_loader, "validating", shown=run.runtime.main)
    found = evaluate(run.learner.model, until_asked_to_end(run, bar), run.decoder, run.runtime)
    references = (run.val_set[index].text for index in found)
    errors = count_errors(references, (h.text for h in found.values()), run.args.cer_spaces)
    run.tell(f"Validation Summary Epoch: [{run.progress.epoch}]\tAverage WER {errors.wer:.3f}\tAverage CER {errors.cer:.3f}")
    return errors, found


def end_epoch(run: Run, loss: float, errors: Errors, found: dict[int, Hypothesis]) -> None:
    """Note an epoch's results, and keep the model if it is the best so far."""
    progress, epoch = run.progress, run.progress.epoch
    results = {"loss": loss, "wer": errors.wer, "cer": errors.cer}
    run.checkpoint.epoch = epoch
    run.checkpoint.history.append(results)
    score = (errors.wer, errors.cer)  # every CTC training begins with a WER of 100, while CER falls already
    best = score < progress.best
    if best:
        progress.best, progress.best_epoch = score, epoch
    if run.log:
        run.log.epoch({"epoch": epoch, "step": progress.updates, **results}, examples(run, found), run.learner.model)
    progress.begin_epoch(epoch)
    # The best model first: killed between the two files, the run repeats this epoch, and with it both.
    if best:
        if run.runtime.main:
            save_checkpoint(replace(run.checkpoint, weights=run.learner.weights()), run.args.model_path)
        run.tell(f"Best model so far: {run.args.model_path}")
    if run.args.checkpoint:
        save(run, run.folder.epoch_path(epoch))


def save(run: Run, path: Path) -> None:
    """Write all that continues this training; the main process's business."""
    if not run.runtime.main:
        return
    run.log.flush()  # a checkpoint must not know more than the graphs, which are cut back to it
    scale = run.learner.loss_scale
    run.folder.enter(path, run.progress.written)
    checkpoint = replace(
        run.checkpoint,
        weights=run.learner.weights(),
        optimizer=run.learner.optimizer.state_dict(),
        loss_scale={"scale": scale.scale, "good_steps": scale.good_steps} if scale.dynamic else None,
        progress=asdict(run.progress),
        within_epoch=run.progress.batches > 0,
    )
    save_checkpoint(checkpoint, path)
    run.folder.trim(run.progress.written)  # only now, and again when continuing: what a kill leaves is not forgotten


def examples(run: Run, found: dict[int, Hypothesis]) -> list[Example]:
    """A few validation utterances, always the same, with the greedy path through their spectrograms."""
    model, indices = run.learner.model.eval(), list(found)
    shown = []
    for index in indices[:: max(1, len(indices) // EXAMPLES)][:EXAMPLES]:
        sample = run.val_loader.dataset[index]
        log_probs, _ = acoustic_output(model, collate([sample]), run.runtime)
        path = [run.checkpoint.labels.symbols[label] for label in log_probs[0].argmax(-1).tolist()]
        shown.append(Example(run.val_set[index].text, found[index].text, sample.spect, path))
    return shown


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
