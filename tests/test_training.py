"""The loss, one update, and the learning rate."""

import math
import sys
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from asr.runtime import Precision, Runtime
from asr.training import Learner, LossScale, ctc_backend, ctc_loss, groups_of, learning_rate, train_step
from config import ModelConfig, OptimizerConfig
from data.command_line import UsageError
from data.dataset import Batch, collate
from model import DeepSpeech

RUNTIME = Runtime(torch.device("cpu"))


def learner(model: DeepSpeech, runtime: Runtime = RUNTIME, loss_scale: LossScale | None = None, **config) -> Learner:
    return Learner(model, OptimizerConfig(**config), runtime, loss_scale)


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
        results.append(train_step(learner(model, lr=0.1), batches))
        models.append(model)
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-5)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-4)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_lower_the_loss(optimizer):
    model = small_model().train()
    pupil = learner(model, optimizer=optimizer, lr=0.01)
    losses = [train_step(pupil, [small_batch(1)]).loss for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_an_update_from_a_loss_that_is_not_finite_is_left_out():
    model = small_model().train()
    before = [value.clone() for value in model.state_dict().values()]
    batch = small_batch(1)
    batch.spects[0, 0, 0, 0] = float("nan")
    result = train_step(learner(model), [batch])
    assert result.skipped
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_the_utterance_at_fault_is_named():
    batch = small_batch(1, 3)
    lens = torch.tensor([3, 30, 3])  # 30 labels do not fit into 20 output frames
    batch = replace(batch, targets=torch.ones(36, dtype=torch.int64), target_lens=lens, indices=torch.tensor([7, 8, 9]))
    result = train_step(learner(small_model().train()), [small_batch(2), batch])
    assert result.skipped and result.loss == math.inf and result.culprits == (8,)


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_a_negative_loss_is_left_out_too(value):
    pupil = learner(small_model())
    pupil.backend = lambda logits, *_: logits.sum((1, 2)) * 0.0 + torch.tensor([5.0, value])
    before = [value.clone() for value in pupil.model.state_dict().values()]
    result = train_step(pupil, [small_batch(1)])
    assert result.skipped and result.culprits == (1,)
    assert all(torch.equal(a, b) for a, b in zip(before, pupil.model.state_dict().values(), strict=True))


def test_a_batch_without_utterances_changes_nothing():
    pupil = learner(small_model().train())
    before = [value.clone() for value in pupil.model.state_dict().values()]
    result = train_step(pupil, [collate([])])
    assert (result.utterances, result.skipped) == (0, False)
    assert all(torch.equal(a, b) for a, b in zip(before, pupil.model.state_dict().values(), strict=True))


@pytest.mark.parametrize("scale", [8.0, 1024.0])
def test_the_loss_scale_is_taken_out_again(scale):
    models = [small_model(), small_model()]
    plain = train_step(learner(models[0], lr=0.1), [small_batch(1)])
    scaled = train_step(learner(models[1], lr=0.1, loss_scale=LossScale(scale)), [small_batch(1)])
    assert scaled.loss == plain.loss and scaled.grad_norm == pytest.approx(plain.grad_norm, rel=1e-6)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_dynamic_loss_scale_halves_on_overflow_and_doubles_after_long_peace():
    scale = LossScale.choose("dynamic")
    assert scale.scale == 65536
    scale.update(overflowed=True)
    assert scale.scale == 32768
    for _ in range(2000):
        scale.update(overflowed=False)
    assert (scale.scale, scale.good_steps) == (65536, 0)
    for _ in range(40):
        scale.update(overflowed=True)
    assert scale.scale == 1
    for text in ("0", "-1", "nan", "much"):
        with pytest.raises(UsageError, match="--loss-scale"):
            LossScale.choose(text)


def test_an_overflow_that_a_smaller_scale_may_cure_is_told_apart():
    pupil = learner(small_model(), loss_scale=LossScale(2.0**127, dynamic=True))
    result = train_step(pupil, [small_batch(1)])  # float32 overflows at such a scale
    assert result.skipped and result.rescaled and math.isfinite(result.loss) and pupil.loss_scale.scale == 2.0**126


BF16 = {level: Precision.choose("bf16", level) for level in ("O1", "O2", "O3")}


@pytest.mark.parametrize("rnn_type", ["gru", "lstm"])
@pytest.mark.parametrize("level", BF16)
def test_every_level_learns_as_float32_does(level, rnn_type):
    """With bfloat16, which a CPU can: the levels differ by where numbers are narrow, not by which narrow numbers."""
    losses = {}
    for precision in (Precision(), BF16[level]):
        torch.manual_seed(0)
        model = DeepSpeech(ModelConfig(num_labels=5, freq_bins=33, rnn_type=rnn_type, hidden_size=16, hidden_layers=2)).train()
        pupil = learner(model, Runtime(torch.device("cpu"), precision), optimizer="adamw", lr=0.003)
        losses[precision.level] = [train_step(pupil, [small_batch(1)]).loss for _ in range(30)]
    assert losses[level][0] == pytest.approx(losses["O0"][0], rel=0.05)
    assert losses[level][-1] < 0.6 * losses[level][0]
    assert losses[level] != losses["O0"], "it is another precision"


def test_what_each_level_keeps_in_which_numbers():
    def kinds(precision):
        pupil = learner(small_model(), Runtime(torch.device("cpu"), precision))
        model = pupil.model
        tensors = (model.head.weight, model.head_norm.weight, model.head_norm.running_var, pupil.weights()["head.weight"])
        return [tensor.dtype for tensor in tensors]

    single, half = torch.float32, torch.bfloat16
    assert kinds(BF16["O1"]) == [single] * 4
    assert kinds(BF16["O2"]) == [half, single, single, single], "master weights are what is kept"
    assert kinds(BF16["O3"]) == [half] * 4
    assert kinds(Precision.choose("bf16", "O3", keep_batchnorm_fp32=True)) == [half, single, single, half]
    assert kinds(Precision.choose("bf16", "O2", keep_batchnorm_fp32=False)) == [half, half, half, single]


def test_small_updates_reach_the_master_weights():
    """The reason for masters: 1 + 0.001 is 1 in bfloat16, for ever."""
    pupil = learner(small_model(), Runtime(torch.device("cpu"), BF16["O2"]), momentum=0.0, weight_decay=0.0, lr=1e-6)
    before = {name: weight.clone() for name, weight in pupil.weights().items()}
    train_step(pupil, [small_batch(1)])
    moved = before["head.weight"] != pupil.weights()["head.weight"]
    seen = before["head.weight"].bfloat16() != pupil.model.head.weight
    assert moved.float().mean() > 0.9 and seen.float().mean() < 0.2


def test_adamw_is_refused_where_its_epsilon_would_be_zero():
    runtime = Runtime(torch.device("cpu"), Precision.choose(None, "O3"))  # built, not run: that takes a GPU
    with pytest.raises(UsageError, match="epsilon is zero"):
        learner(small_model(), runtime, optimizer="adamw")
    learner(small_model(), runtime, optimizer="sgd")
    learner(small_model(), Runtime(torch.device("cpu"), Precision.choose(None, "O2")), optimizer="adamw")


def test_an_empty_batch_among_others_changes_nothing():
    models = [small_model().train(), small_model().train()]
    for model, batches in zip(models, ([small_batch(1)], [collate([]), small_batch(1), collate([])]), strict=True):
        train_step(learner(model), batches)
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_flags_of_precision_that_contradict_each_other_are_refused():
    for flags in (("fp32", "O1"), ("bf16", "O0"), (None, "O1", False), (None, None, False)):
        with pytest.raises(UsageError, match="--"):
            Precision.choose(*flags)
    assert Precision.choose("fp16") == Precision.choose(None, "O1") == Precision("O1", torch.float16)
    assert Precision.choose(None) == Precision.choose("fp32", "O0", True) == Precision()
    with pytest.raises(ValueError, match=r"needs --cuda.*bf16"):
        Runtime.choose(False, Precision.choose(None, "O2"))


class WarpCtc:
    """The interface of warpctc_pytorch.CTCLoss, which no longer installs: the sum of the batch, from int32 on the CPU."""

    def __init__(self, blank: int, size_average: bool, length_average: bool):
        assert (blank, size_average, length_average) == (0, False, False)

    def __call__(self, acts, labels, act_lens, label_lens):
        for integers in (labels, act_lens, label_lens):
            assert integers.dtype == torch.int32 and integers.device.type == "cpu"
        log_probs = acts.log_softmax(-1)
        return torch.nn.functional.ctc_loss(log_probs, labels, act_lens, label_lens, reduction="sum")[None]


def test_warpctc_serves_behind_the_same_interface(monkeypatch):
    with pytest.raises(UsageError, match=r"--ctc-backend warpctc.*PyTorch's own"):
        ctc_backend("warpctc")
    monkeypatch.setitem(sys.modules, "warpctc_pytorch", SimpleNamespace(CTCLoss=WarpCtc))
    results = []
    for name in ("torch", "warpctc"):
        pupil = learner(small_model(), lr=0.1)
        pupil.backend = ctc_backend(name)
        results.append(train_step(pupil, [small_batch(1, 4)]))
    assert results[0].loss == pytest.approx(results[1].loss) and results[0].grad_norm == pytest.approx(results[1].grad_norm)


def test_the_gradient_is_clipped():
    model = small_model()
    before = [p.clone() for p in model.parameters()]
    result = train_step(learner(model, lr=1.0, momentum=0.0, weight_decay=0.0, max_norm=0.01), [small_batch(1)])
    moved = torch.stack([(a - b).norm() for a, b in zip(before, model.parameters(), strict=True)]).norm()
    assert result.grad_norm > 0.01
    assert moved.item() == pytest.approx(0.01, rel=1e-2)


def test_sgd_is_nesterov_with_the_contracts_numbers():
    (group,) = learner(small_model()).optimizer.param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (3e-4, 0.9, True, 1e-5)


def rates(steps_per_epoch: int, epochs: int, **config) -> list[float]:
    steps = range(steps_per_epoch * epochs)
    return [learning_rate(OptimizerConfig(**config), (step + 0.5) / steps_per_epoch, epochs) for step in steps]


def test_anneal_divides_after_each_epoch():
    found = rates(10, 70)
    assert [found[step] for step in (0, 9, 10, 25)] == pytest.approx([3e-4, 3e-4, 3e-4 / 1.1, 3e-4 / 1.1**2])


def test_onecycle_rises_and_falls():
    found = rates(10, 10, lr=1.0, lr_schedule="onecycle")
    assert found.index(max(found)) in (29, 30)
    assert found[0] == pytest.approx(0.04, rel=0.05) and max(found) == pytest.approx(1.0, rel=1e-2) and 0 < found[99] < 0.001
    early = OptimizerConfig(lr=1.0, lr_schedule="onecycle", warmup=1)
    assert learning_rate(early, 1.0, 10) == pytest.approx(1.0)


def test_cosine_falls_after_a_linear_warmup():
    found = rates(10, 10, lr=1.0, lr_schedule="cosine", warmup=0.5)
    assert found[0] == pytest.approx(0.1, rel=1e-2)
    assert found[4] > found[3] > found[2]
    assert found[50] == pytest.approx(0.5, abs=0.01) and 0 < found[99] < 0.001


def test_groups_hold_every_batch():
    assert list(groups_of(iter([1, 2, 3, 4, 5]), 2)) == [[1, 2], [3, 4], [5]]
