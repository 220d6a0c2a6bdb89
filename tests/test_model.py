"""The network by itself: batches change nothing, padding counts for nothing, every kind of it learns and rebuilds."""

import pytest
import torch
from torch import nn

from config import ModelConfig
from model import DeepSpeech, MaskedBatchNorm, output_frames

SMALL = dict(num_labels=7, freq_bins=33, hidden_size=16, hidden_layers=2)
KINDS = [
    dict(rnn_type=rnn_type, bidirectional=bidirectional)
    for rnn_type in ("rnn", "gru", "lstm")
    for bidirectional in (True, False)
]


def small_model(**kwargs) -> DeepSpeech:
    """A small network whose batch norm statistics are not those of an untrained one."""
    torch.manual_seed(1)
    model = DeepSpeech(ModelConfig(**(SMALL | kwargs)))
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 1, 33, 40) * 2, torch.tensor([40, 33, 20, 9]))
    return model.eval()


def padded(spects: list[torch.Tensor], width: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    lens = torch.tensor([spect.shape[1] for spect in spects])
    batch = torch.zeros(len(spects), 1, spects[0].shape[0], width or int(lens.max()))
    for row, spect in zip(batch, spects, strict=True):
        row[0, :, : spect.shape[1]] = spect
    return batch, lens


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_batch_never_changes_an_utterance(kind):
    model = small_model(**kind)
    spects = [torch.randn(33, frames) for frames in [*range(1, 20), 60]]
    with torch.inference_mode():
        together, out_lens = model(*padded(spects))
        for row, spect in enumerate(spects):
            alone, (length,) = model(spect[None, None], torch.tensor([spect.shape[1]]))
            assert length == out_lens[row] == output_frames(spect.shape[1]) == alone.shape[1]
            torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_padding_changes_neither_loss_nor_gradients_while_training(kind):
    spects = [torch.randn(33, frames) for frames in (30, 25, 12)]
    results = []
    for width in (30, 47):
        model = small_model(**kind).train()
        logits, out_lens = model(*padded(spects, width))
        loss = sum(row[:n].log_softmax(-1)[:, 1].sum() for row, n in zip(logits, out_lens, strict=True))
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters()), *model.buffers()])
    for narrow, wide in zip(*results, strict=True):
        torch.testing.assert_close(narrow, wide, atol=1e-3, rtol=1e-3)


def test_dropout_is_off_when_evaluating():
    model = small_model(dropout=0.5)
    x = torch.randn(1, 1, 33, 20), torch.tensor([20])
    with torch.inference_mode():
        torch.testing.assert_close(model(*x)[0], model(*x)[0], atol=0, rtol=0)
        model.train()
        assert not torch.equal(model(*x)[0], model(*x)[0])


@pytest.mark.parametrize("mean, std", [(1, 3), (15, 0.1), (100, 1)])
def test_masked_batch_norm_is_batch_norm_of_the_frames_that_count(mean, std):
    torch.manual_seed(2)
    frames = (torch.randn(50, 6) * std + mean).requires_grad_()
    plain, masked = nn.BatchNorm1d(6), MaskedBatchNorm(6)
    with torch.no_grad():
        plain.weight.uniform_(), plain.bias.uniform_()
        masked.load_state_dict(plain.state_dict())
    with_padding = torch.cat([frames.detach(), torch.zeros(30, 6)]).requires_grad_()
    padding = torch.arange(80)[:, None] >= 50
    expected, found = plain(frames), masked(with_padding, padding)[:50]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    for output in (expected, found):
        output.pow(3).sum().backward()
    torch.testing.assert_close(with_padding.grad[:50], frames.grad, atol=2e-3 / std, rtol=1e-2)
    assert with_padding.grad[50:].abs().max() <= frames.grad.abs().max()
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(masked.get_buffer(name), buffer, msg=name)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(masked.get_parameter(name).grad, parameter.grad, atol=1e-2, rtol=1e-2, msg=name)


def test_the_backward_direction_hears_the_end_and_the_lookahead_only_its_context():
    spect = torch.randn(33, 200)
    changed = spect.clone()
    changed[:, 190:] += 1.0
    with torch.inference_mode():
        for bidirectional, reaches in ((True, True), (False, False)):
            model = small_model(bidirectional=bidirectional, lookahead_context=3)
            a, b = (model(s[None, None], torch.tensor([200]))[0] for s in (spect, changed))
            assert (not torch.equal(a[0, :50], b[0, :50])) == reaches
            assert not torch.equal(a[0, 90:], b[0, 90:])


def test_settings_out_of_range_are_named():
    for kwargs, words in ((dict(rnn_type="transformer"), "transformer"), (dict(hidden_size=0), "hidden size 0")):
        with pytest.raises(ValueError, match=words):
            ModelConfig(**kwargs)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("rnn_type, hidden_size", [("lstm", 16), ("lstm", 384), ("gru", 16)])
def test_bfloat16_follows_float32(rnn_type, hidden_size, masked):
    model = small_model(rnn_type=rnn_type, hidden_size=hidden_size, masked_batch_norm=masked).train()
    x = torch.randn(2, 1, 33, 30), torch.tensor([30, 22])
    exact, _ = model(*x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = model(*x)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.15, rtol=0.1)
    rounded.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_frozen_batch_norm_computes_what_evaluation_does_and_still_learns():
    model = small_model().train()
    model.freeze_batch_norm()
    x = torch.randn(2, 1, 33, 30), torch.tensor([30, 22])
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    logits, _ = model(*x)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(*x)[0], logits.detach())
