"""The loss, one update, and the learning rate."""

import math
from itertools import product

import pytest
import torch

from asr.runtime import Runtime
from asr.training import build_optimizer, ctc_loss, groups_of, learning_rate, train_step
from config import ModelConfig, OptimizerConfig
from data.dataset import Batch
from model import DeepSpeech

RUNTIME = Runtime(torch.device("cpu"))


def brute_force_ctc(probs: torch.Tensor, target: list[int]) -> float:
    """Minus log of the sum over every path that reads as the target."""
    total = 0.0
    for path in product(range(probs.shape[1]), repeat=probs.shape[0]):
        merged = [p for i, p in enumerate(path) if i == 0 or p != path[i - 1]]
        if [p for p in merged if p != 0] == target:
            total += math.prod(probs[t, p].item() for t, p in enumerate(path))
    return -math.log(total)


def test_ctc_is_the_sum_over_all_alignments_divided_by_the_batch():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3)
    lens, targets, target_lens = torch.tensor([5, 4]), torch.tensor([1, 1, 2]), torch.tensor([2, 1])
    probs = logits.softmax(-1)
    expected = (brute_force_ctc(probs[0], [1, 1]) + brute_force_ctc(probs[1, :4], [2])) / 2
    assert ctc_loss(logits, lens, targets, target_lens).item() == pytest.approx(expected, rel=1e-5)


def test_ctc_is_float32_whatever_comes():
    logits = torch.randn(1, 5, 3).bfloat16()
    assert ctc_loss(logits, torch.tensor([5]), torch.tensor([1]), torch.tensor([1])).dtype == torch.float32


def small_batch(seed: int, size: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        spects=torch.randn(size, 1, 33, 40, generator=generator),
        spect_lens=torch.full((size,), 40),
        targets=torch.randint(1, 5, (3 * size,), generator=generator),
        target_lens=torch.full((size,), 3),
        indices=torch.arange(size),
    )


def small_model() -> DeepSpeech:
    torch.manual_seed(0)
    # Evaluation mode: batch norm over parts of a batch is not that over the whole.
    return DeepSpeech(ModelConfig(num_labels=5, freq_bins=33, hidden_size=8, hidden_layers=2)).eval()


def test_accumulated_gradients_are_those_of_one_large_batch():
    parts = [small_batch(1, 2), small_batch(2, 4)]
    whole = Batch(
        torch.cat([b.spects for b in parts]),
        *(torch.cat([getattr(b, name) for b in parts]) for name in ("spect_lens", "targets", "target_lens", "indices")),
    )
    results, models = [], []
    for batches in (parts, [whole]):
        model = small_model()
        optimizer = build_optimizer(OptimizerConfig(lr=0.1), model)
        results.append(train_step(model, batches, optimizer, 400, RUNTIME))
        models.append(model)
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-5)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-4)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_lower_the_loss(optimizer):
    model = small_model().train()
    update = build_optimizer(OptimizerConfig(optimizer=optimizer, lr=0.01), model)
    losses = [train_step(model, [small_batch(1)], update, 400, RUNTIME).loss for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_an_update_from_a_loss_that_is_not_finite_is_left_out():
    model = small_model().train()
    before = [value.clone() for value in model.state_dict().values()]
    batch = small_batch(1)
    batch.spects[0, 0, 0, 0] = float("nan")
    result = train_step(model, [batch], build_optimizer(OptimizerConfig(), model), 400, RUNTIME)
    assert result.skipped
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_the_gradient_is_clipped():
    model = small_model()
    before = [p.clone() for p in model.parameters()]
    optimizer = build_optimizer(OptimizerConfig(lr=1.0, momentum=0.0, weight_decay=0.0), model)
    result = train_step(model, [small_batch(1)], optimizer, 0.01, RUNTIME)
    moved = torch.stack([(a - b).norm() for a, b in zip(before, model.parameters(), strict=True)]).norm()
    assert result.grad_norm > 0.01
    assert moved.item() == pytest.approx(0.01, rel=1e-2)


def test_sgd_is_nesterov_with_the_contracts_numbers():
    (group,) = build_optimizer(OptimizerConfig(), small_model()).param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (3e-4, 0.9, True, 1e-5)


def test_anneal_divides_after_each_epoch():
    config = OptimizerConfig()
    rates = [learning_rate(config, step, 10, 70) for step in (0, 9, 10, 25)]
    assert rates == pytest.approx([3e-4, 3e-4, 3e-4 / 1.1, 3e-4 / 1.1**2])


def test_onecycle_rises_and_falls():
    config = OptimizerConfig(lr=1.0, lr_schedule="onecycle")
    rates = [learning_rate(config, step, 10, 10) for step in range(100)]
    assert max(range(100), key=rates.__getitem__) == 30
    assert rates[0] == pytest.approx(0.04) and rates[30] == pytest.approx(1.0) and rates[99] < 0.001
    early = OptimizerConfig(lr=1.0, lr_schedule="onecycle", warmup=1)
    assert learning_rate(early, 10, 10, 10) == pytest.approx(1.0)


def test_cosine_falls_after_a_linear_warmup():
    config = OptimizerConfig(lr=1.0, lr_schedule="cosine", warmup=0.5)
    rates = [learning_rate(config, step, 10, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[4] > rates[3] > rates[2]
    assert rates[50] == pytest.approx(0.5) and rates[99] < 0.001


def test_groups_hold_every_batch():
    assert list(groups_of(iter([1, 2, 3, 4, 5]), 2)) == [[1, 2], [3, 4], [5]]
