"""The predecessor's numbers, recorded in ../shared/golden: logits, loss, gradients, statistics, one SGD step, transcripts."""

import copy
import json

import numpy as np
import pytest
import torch
from shared_data import GOLDEN, needs_shared
from torch import nn

from asr.checkpoint import load_checkpoint
from asr.predecessor import renamed
from asr.training import ctc_loss
from decoder import GreedyDecoder
from model import output_frames

pytestmark = needs_shared
MODELS = ("bigru_64x3", "unigru_lookahead20_64x2")


@pytest.fixture(params=MODELS)
def golden(request):
    folder = GOLDEN / request.param
    return folder, json.loads((folder / "golden.json").read_text()), load_checkpoint(folder / "deepspeech_2.pth.tar")


def batch():
    """The three golden files as one batch: spects (3, 1, 161, 461), lengths, targets, target lengths."""
    files = json.loads((GOLDEN / "meta.json").read_text())["files"]
    spects = [torch.from_numpy(np.load(GOLDEN / "audio" / f"{file['name']}.spect.npy")) for file in files]
    lens = torch.tensor([spect.shape[1] for spect in spects])
    padded = torch.zeros(3, 1, 161, int(lens.max()))
    for row, spect in zip(padded, spects, strict=True):
        row[0, :, : spect.shape[1]] = spect
    targets = torch.tensor([label for file in files for label in file["target"]])
    return padded, lens, targets, torch.tensor([len(file["target"]) for file in files])


def test_eval_logits_in_a_batch_and_alone(golden):
    folder, expected, checkpoint = golden
    model = checkpoint.build_model()
    spects, lens, _, _ = batch()
    with torch.inference_mode():
        logits, out_lens = model(spects, lens)
        assert out_lens.tolist() == expected["eval"]["output_sizes"]
        recorded = torch.from_numpy(np.load(folder / "eval_logits.npz")["logits"])
        for row, n in enumerate(out_lens):
            assert (logits[row, :n] - recorded[row, :n]).abs().max() < 1e-4
            alone, _ = model(spects[row : row + 1, :, :, : lens[row]], lens[row : row + 1])
            assert (alone[0] - logits[row, :n]).abs().max() < 1e-5


def test_greedy_transcripts_and_offsets(golden):
    _, expected, checkpoint = golden
    spects, lens, _, _ = batch()
    with torch.inference_mode():
        logits, out_lens = checkpoint.build_model()(spects, lens)
    found = GreedyDecoder(checkpoint.labels.symbols).decode(logits.log_softmax(-1), out_lens)
    assert [hypotheses[0].text for hypotheses in found] == expected["eval"]["batch_text"]
    assert [list(hypotheses[0].offsets) for hypotheses in found] == expected["eval"]["batch_offsets"]


def test_ctc_of_each_file(golden):
    _, expected, checkpoint = golden
    spects, lens, targets, target_lens = batch()
    with torch.inference_mode():
        logits, out_lens = checkpoint.build_model()(spects, lens)
    for row, target in enumerate(targets.split(target_lens.tolist())):
        loss = ctc_loss(logits[row : row + 1], out_lens[row : row + 1], target, target_lens[row : row + 1])
        assert loss.item() == pytest.approx(expected["eval"]["eval_ctc_nll"][row], rel=1e-3)


def test_training_forward_gradients_statistics_and_one_sgd_step(golden):
    folder, expected, checkpoint = golden
    model = checkpoint.build_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.load_state_dict(copy.deepcopy(checkpoint.optimizer))  # rate, momentum, Nesterov and weight decay are in it
    spects, lens, targets, target_lens = batch()
    logits, out_lens = model(spects, lens)
    loss = ctc_loss(logits, out_lens, targets, target_lens)
    loss.backward()
    train = expected["train"]
    assert loss.item() == pytest.approx(train["ctc_loss_batch_mean"], rel=1e-3)
    ours = dict(model.named_parameters())
    assert {renamed(name) for name in train["grad_norms"]} == ours.keys()
    for name, norm in train["grad_norms"].items():
        assert ours[renamed(name)].grad.norm().item() == pytest.approx(norm, rel=1e-3), name
    total = nn.utils.clip_grad_norm_(model.parameters(), train["clipped_to"])
    assert total.item() == pytest.approx(train["grad_norm_total"], rel=1e-3)
    optimizer.step()
    for name, norm in train["param_norms_after_step"].items():
        assert ours[renamed(name)].norm().item() == pytest.approx(norm, rel=1e-5), name
    if (folder / "train_logits.npz").exists():
        recorded = torch.from_numpy(np.load(folder / "train_logits.npz")["logits"])
        for row, n in enumerate(out_lens):
            assert (logits[row, :n] - recorded[row, :n]).abs().max() < 1e-4
        state = model.state_dict()
        for name, statistic in np.load(folder / "train_bn_after.npz").items():
            assert (state[renamed(name)] - torch.from_numpy(statistic)).abs().max() < 1e-4, name


def test_parameter_count(golden):
    _, expected, checkpoint = golden
    assert sum(p.numel() for p in checkpoint.build_model().parameters()) == expected["params"]


def test_lengths():
    assert [output_frames(t) for t in (461, 253, 73, 1, 2, 3)] == [231, 127, 37, 1, 1, 2]
