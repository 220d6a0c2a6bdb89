"""The loss and one step of training: what train.py calls, and what benchmark.py times."""

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.runtime import Runtime
from config import OptimizerConfig
from data.command_line import UsageError
from data.dataset import Batch
from model import DeepSpeech

T = TypeVar("T")
# (logits (B, L, C) float32, out_lens (B,), targets (M,), target_lens (B,)) -> (B,) losses, or (1,) their sum
CtcBackend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
NEGATIVE = -0.01  # a loss below this is no rounding of zero, but the sign of a fault


def torch_ctc(logits: Tensor, out_lens: Tensor, targets: Tensor, target_lens: Tensor) -> Tensor:
    log_probs = logits.log_softmax(-1).transpose(0, 1)  # (L, B, C)
    return F.ctc_loss(log_probs, targets, out_lens, target_lens, blank=0, reduction="none")


def warp_ctc(logits: Tensor, out_lens: Tensor, targets: Tensor, target_lens: Tensor) -> Tensor:
    """Baidu's warp-ctc, the predecessor's: it has its own softmax, takes int32 on the CPU, and returns the batch's sum."""
    loss = importlib.import_module("warpctc_pytorch").CTCLoss(blank=0, size_average=False, length_average=False)
    lens = (integers.int().cpu() for integers in (targets, out_lens, target_lens))
    return loss(logits.transpose(0, 1).contiguous(), *lens).to(logits.device)


def ctc_backend(name: str) -> CtcBackend:
    """Raises: UsageError if it is not installed, saying how PyTorch's own serves instead."""
    if name == "torch":
        return torch_ctc
    try:
        importlib.import_module("warpctc_pytorch")
    except ImportError as error:
        raise UsageError(
            f"--ctc-backend warpctc: warpctc_pytorch cannot be imported ({error}); leave the flag out: PyTorch's own CTC "
            "computes the same loss, in float32, on CPU and CUDA"
        ) from None
    return warp_ctc


def ctc_losses(
    logits: Tensor, out_lens: Tensor, targets: Tensor, target_lens: Tensor, backend: CtcBackend = torch_ctc
) -> Tensor:
    """Connectionist temporal classification (Graves et al. 2006), in float32, blank 0: the loss of each utterance.

    logits (B, L, C), out_lens (B,), targets (M,) labels of the whole batch one after the other, target_lens (B,) -> (B,).
    An utterance that CTC cannot align (out_len < labels + repeats) has an infinite loss.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return backend(logits.float(), out_lens, targets, target_lens)


def ctc_loss(logits: Tensor, out_lens: Tensor, targets: Tensor, target_lens: Tensor) -> Tensor:
    """The scalar that training minimises: the sum over the batch / B."""
    return ctc_losses(logits, out_lens, targets, target_lens).sum() / len(out_lens)


@dataclass
class LossScale:
    """A factor on the loss that lifts small gradients into float16's range; it is taken out again before the update.

    A dynamic one halves when a gradient overflows and doubles after GROWTH_STEPS updates without: the rule of
    torch.amp.GradScaler, which cannot serve here, because it refuses the float16 gradients of level O3 and decides for each
    process by itself.
    """

    GROWTH_STEPS = 2000

    scale: float = 1.0
    dynamic: bool = False
    good_steps: int = 0  # since the scale last changed

    @classmethod
    def choose(cls, text: str) -> "LossScale":
        """From --loss-scale: a number, or `dynamic`. Raises: UsageError."""
        if text == "dynamic":
            return cls(2.0**16, dynamic=True)
        try:
            scale = float(text)
        except ValueError:
            scale = math.nan
        if not 0 < scale < math.inf:
            raise UsageError(f"--loss-scale {text}: expected a positive number, or dynamic")
        return cls(scale)

    def update(self, overflowed: bool) -> None:
        if not self.dynamic:
            return
        self.good_steps = 0 if overflowed else self.good_steps + 1
        if overflowed:
            self.scale = max(self.scale / 2, 1.0)
        elif self.good_steps == self.GROWTH_STEPS:
            self.scale, self.good_steps = self.scale * 2, 0


class Learner:
    """A network and what changes it: optimizer, precision, loss scale."""

    def __init__(
        self,
        model: DeepSpeech,
        config: OptimizerConfig,
        runtime: Runtime,
        loss_scale: LossScale | None = None,
        backend: CtcBackend = torch_ctc,
    ):
        """`model` comes in float32, and is given the weights of the runtime's precision."""
        self.model, self.config, self.runtime, self.backend = model, config, runtime, backend
        self.loss_scale = loss_scale or LossScale()
        originals = [p.detach().clone() for p in model.parameters()] if runtime.precision.level == "O2" else []
        runtime.precision.convert(model)
        self.parameters = list(model.parameters())
        # What the optimizer moves: the parameters, or float32 masters of those that are not.
        self.masters = self.parameters
        if originals:
            pairs = zip(self.parameters, originals, strict=True)
            self.masters = [p if p.dtype == torch.float32 else nn.Parameter(original) for p, original in pairs]
        if config.optimizer == "adamw" and any(master.dtype == torch.float16 for master in self.masters):
            raise UsageError(
                "--opt-level O3: AdamW's epsilon is zero in float16, and its first update infinite; use O2, or sgd"
            )
        self.optimizer = build_optimizer(config, self.masters)

    def weights(self) -> dict[str, Tensor]:
        """The state dict to keep: with the masters, where there are any."""
        names = (name for name, _ in self.model.named_parameters())
        return self.model.state_dict() | {n: m.detach() for n, m in zip(names, self.masters, strict=True)}

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate


@dataclass(frozen=True)
class StepResult:
    """What one update of all processes together reports."""

    loss: float  # CTC loss per utterance
    grad_norm: float  # before clipping; NaN if the loss was not worth a gradient
    utterances: int
    skipped: bool = False  # the update was left out
    rescaled: bool = False  # a dynamic loss scale was too large, and was halved: what it is expected to do now and then
    culprits: tuple[int, ...] = ()  # indices of this process's utterances whose loss was the reason


def train_step(learner: Learner, batches: Sequence[Batch]) -> StepResult:
    """One update from one batch, or from several whose gradients are weighted as those of one larger batch.

    Each process brings its share of the batches; the update is that of the whole, and the same in all of them. A loss that is
    infinite, negative or not a number, or a gradient that is not finite, leaves weights and batch norm statistics as they
    were: all processes decide so together, from the same sums.
    """
    model, runtime, scale = learner.model, learner.runtime, learner.loss_scale.scale
    statistics = [buffer.clone() for buffer in model.buffers()]
    utterances = int(runtime.sum(sum(len(batch.spect_lens) for batch in batches))[0])
    if not utterances:  # all of them turned out unreadable
        return StepResult(0.0, 0.0, 0)
    model.zero_grad(set_to_none=True)
    told = []
    for batch in batches:
        losses = _losses(learner, batch.to(runtime.device))
        if losses is not None:
            (losses.sum() * (scale / utterances)).backward()
            told.append((losses.detach(), batch))
    told = [(losses.cpu(), batch) for losses, batch in told]  # not earlier: a GPU need not wait between the batches
    culprits = [index for losses, batch in told for index in _culprits(losses, batch)]
    loss, faults = runtime.sum(sum(losses.sum().item() for losses, _ in told) / utterances, len(culprits))
    grad_norm = math.nan
    if not faults:
        grad_norm = _gradient(learner)
        learner.loss_scale.update(overflowed=not math.isfinite(grad_norm))
    skipped, rescaled = not math.isfinite(grad_norm), learner.loss_scale.scale < scale
    if skipped:  # what made the loss infinite is in the running statistics already
        for buffer, before in zip(model.buffers(), statistics, strict=True):
            buffer.copy_(before)
    else:
        _update(learner)
    return StepResult(loss, grad_norm, utterances, skipped, rescaled, tuple(culprits))


def _losses(learner: Learner, batch: Batch) -> Tensor | None:
    """The losses of a batch's utterances, with their graph; None if there are none.

    If batch norm is synchronised, the others wait for this process all the same: then it runs the network on silence, which
    has no part in the statistics, and learns nothing from that.
    """
    if not len(batch.spect_lens):
        if not learner.runtime.synchronises(learner.model):
            return None
        silence = torch.zeros(1, 1, learner.model.config.freq_bins, 1, device=learner.runtime.device)
        with learner.runtime.autocast():
            logits, _ = learner.model(silence, torch.zeros(1, dtype=torch.int64, device=silence.device))
        return logits.sum((1, 2)) * 0.0
    with learner.runtime.autocast():
        logits, out_lens = learner.model(batch.spects, batch.spect_lens)
    return ctc_losses(logits, out_lens, batch.targets, batch.target_lens, learner.backend)


def _culprits(losses: Tensor, batch: Batch) -> list[int]:
    """Indices of the utterances whose loss cannot be: all of them, if the backend tells only their sum."""
    bad = ~losses.isfinite() | (losses < NEGATIVE)
    if not bad.any():
        return []
    return batch.indices[bad].tolist() if len(bad) == len(batch.indices) else batch.indices.tolist()


def _gradient(learner: Learner) -> float:
    """Leave the gradient of all processes in the masters, unscaled and clipped. Returns: its norm before clipping."""
    learner.runtime.sum_gradients(learner.parameters)
    for parameter, master in zip(learner.parameters, learner.masters, strict=True):
        if master is not parameter:
            master.grad = parameter.grad.float()
    if learner.loss_scale.scale != 1.0:
        torch._foreach_mul_([master.grad for master in learner.masters], 1.0 / learner.loss_scale.scale)
    return nn.utils.clip_grad_norm_(learner.masters, learner.config.max_norm).item()


def _update(learner: Learner) -> None:
    learner.optimizer.step()
    with torch.no_grad():
        for parameter, master in zip(learner.parameters, learner.masters, strict=True):
            if master is not parameter:
                parameter.copy_(master)


def build_optimizer(config: OptimizerConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )


def learning_rate(config: OptimizerConfig, done: float, epochs: int) -> float:
    """The learning rate of an update, a function of the training's progress alone, so that resuming needs no state.

    `done`: epochs, fractions included, that have gone by in the middle of the update. It is counted in utterances, so that
    another batch size goes on where the old one was.
    anneal    lr / learning_anneal ** finished epochs
    onecycle  cosine rise from lr / 25 to lr during the warm-up, cosine fall to nearly zero at the end (Smith and Topin 2017)
    cosine    lr, falling as half a cosine to zero at the end (Loshchilov and Hutter 2016)
    Outside onecycle, a warm-up multiplies the rate by a linear rise.
    """
    if config.lr_schedule == "onecycle":
        rise = config.warmup or 0.3 * epochs
        if done < rise:
            low = config.lr / 25
            return low + (config.lr - low) * (1 - math.cos(math.pi * done / rise)) / 2
        return config.lr * (1 + math.cos(math.pi * min((done - rise) / max(epochs - rise, 1e-9), 1))) / 2
    warm = min(1.0, done / config.warmup) if config.warmup else 1.0
    if config.lr_schedule == "cosine":
        return warm * config.lr * (1 + math.cos(math.pi * min(done / epochs, 1))) / 2
    return warm * config.lr / config.learning_anneal ** math.floor(done)


def groups_of(batches: Iterable[T], size: int) -> Iterator[list[T]]:
    """Gather batches for gradient accumulation; the last group of an epoch may be smaller."""
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
