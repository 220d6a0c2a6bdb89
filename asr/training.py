"""The loss and one step of training: what train.py calls, and what benchmarks time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.runtime import Runtime
from config import OptimizerConfig
from data.dataset import Batch


@dataclass(frozen=True)
class StepResult:
    """What one update reports: CTC loss per utterance, gradient norm before clipping, whether the update was left out."""

    loss: float
    grad_norm: float
    skipped: bool


def ctc_loss(logits: Tensor, out_lens: Tensor, targets: Tensor, target_lens: Tensor) -> Tensor:
    """Connectionist temporal classification (Graves et al. 2006), in float32, blank 0: sum over the batch / B.

    logits (B, L, C), out_lens (B,), targets (M,) labels of the whole batch one after the other, target_lens (B,).
    An utterance that CTC cannot align (out_len < labels + repeats) makes the loss infinite.
    """
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)  # (L, B, C)
    return F.ctc_loss(log_probs, targets, out_lens, target_lens, blank=0, reduction="sum") / len(out_lens)


def train_step(
    model: nn.Module, batches: Sequence[Batch], optimizer: torch.optim.Optimizer, max_norm: float, runtime: Runtime
) -> StepResult:
    """One update from one batch, or from several whose gradients are weighted as those of one larger batch.

    A loss or gradient that is not finite leaves weights and batch norm statistics as they were.
    """
    utterances = sum(len(batch.spect_lens) for batch in batches)
    statistics = [buffer.clone() for buffer in model.buffers()]
    optimizer.zero_grad(set_to_none=True)
    loss = 0.0
    for batch in batches:
        batch = batch.to(runtime.device)
        with runtime.autocast():
            logits, out_lens = model(batch.spects, batch.spect_lens)
        share = len(batch.spect_lens) / utterances
        batch_loss = ctc_loss(logits, out_lens, batch.targets, batch.target_lens) * share
        batch_loss.backward()
        loss += batch_loss.item()
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm).item()
    skipped = not (math.isfinite(loss) and math.isfinite(grad_norm))
    if skipped:  # what made the loss infinite is in the running statistics already
        for buffer, before in zip(model.buffers(), statistics, strict=True):
            buffer.copy_(before)
    else:
        optimizer.step()
    return StepResult(loss, grad_norm, skipped)


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )


def learning_rate(config: OptimizerConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of an update, a function of its number alone (0-based), so that resuming needs no state.

    anneal    lr / learning_anneal ** finished epochs
    onecycle  cosine rise from lr / 25 to lr during the warm-up, cosine fall to nearly zero at the end (Smith and Topin 2017)
    cosine    lr, falling as half a cosine to zero at the end (Loshchilov and Hutter 2016)
    Outside onecycle, a warm-up multiplies the rate by a linear rise.
    """
    done = step / steps_per_epoch  # epochs, fractions included
    if config.lr_schedule == "onecycle":
        rise = config.warmup or 0.3 * epochs
        if done < rise:
            low = config.lr / 25
            return low + (config.lr - low) * (1 - math.cos(math.pi * done / rise)) / 2
        return config.lr * (1 + math.cos(math.pi * min((done - rise) / max(epochs - rise, 1e-9), 1))) / 2
    warm = min(1.0, (step + 1) / (config.warmup * steps_per_epoch)) if config.warmup else 1.0
    if config.lr_schedule == "cosine":
        return warm * config.lr * (1 + math.cos(math.pi * min(done / epochs, 1))) / 2
    return warm * config.lr / config.learning_anneal ** (step // steps_per_epoch)


def groups_of(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Gather batches for gradient accumulation; the last group of an epoch may be smaller."""
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
