"""Finetuning keeps what fits of a network and says what does not; the mean of several is one of their kind."""

import pytest
import torch
from shared_data import GOLDEN, needs_shared
from test_checkpoint import checkpoint

from asr.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from asr.transfer import average_checkpoints, fit_weights
from config import AudioConfig, ModelConfig
from data.labels import Labels
from model import DeepSpeech


def network(labels: str = "_AB ", **kwargs) -> DeepSpeech:
    torch.manual_seed(7)
    return DeepSpeech(
        ModelConfig(**({"num_labels": len(labels), "freq_bins": 81, "hidden_size": 8, "hidden_layers": 2} | kwargs))
    )


def fit(model: DeepSpeech, labels: str = "_AB ", **kwargs) -> tuple[list[str], list[str], set[str]]:
    """Kept and started, and the names of the weights that really are the file's."""
    source = checkpoint(**kwargs)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    kept, started = fit_weights(model, source, Labels(labels))
    same = set()
    for name, weight in model.state_dict().items():
        theirs = source.weights.get(name)
        if theirs is not None and theirs.shape == weight.shape and torch.equal(theirs, weight):
            same.add(name)
        elif name != "head.weight":
            assert torch.equal(weight, before[name]), name
    return kept, started, same


ALL = ["convolution 1", "convolution 2", "recurrent layer 1", "recurrent layer 2", "head norm", "head"]


def test_finetuning_the_same_network_keeps_everything():
    model = network()
    kept, started, same = fit(model)
    assert (kept, started) == (ALL, []) and same == model.state_dict().keys()


def test_finetuning_onto_other_labels_moves_each_row_with_its_character():
    labels = "_\u00c4 BC"
    model, source = network(labels), checkpoint()
    fresh = model.head.weight.detach().clone()
    kept, started = fit_weights(model, source, Labels(labels))
    assert kept == [*ALL[:-1], "head: 3 of 5 labels"] and started == ["head: labels '\u00c4', 'C'"]
    old, new = source.weights["head.weight"], model.head.weight
    for row, symbol in enumerate(labels):
        if symbol in "\u00c4C":
            assert torch.equal(new[row], fresh[row])
        else:
            assert torch.equal(new[row], old["_AB ".index(symbol)])


@pytest.mark.parametrize(
    "kwargs, started",
    [
        ({"hidden_layers": 3}, ["recurrent layer 3"]),
        ({"hidden_layers": 1}, []),
        ({"hidden_size": 12}, ["recurrent layer 1", "recurrent layer 2", "head norm", "head"]),
        ({"rnn_type": "lstm"}, ["recurrent layer 1", "recurrent layer 2 (forward_rnn, backward_rnn)"]),
        (
            {"freq_bins": 161},
            ["recurrent layer 1 (forward_rnn.weight_ih_l0, backward_rnn.weight_ih_l0)"],
        ),
        ({"bidirectional": False}, ["lookahead"]),
    ],
    ids=str,
)
def test_finetuning_another_network_keeps_what_fits_and_says_what_does_not(kwargs, started):
    model = network(**kwargs)
    kept, found, same = fit(model)
    assert found == started
    whole = [layer for layer in (*ALL, "recurrent layer 3", "lookahead") if layer in kept]
    assert whole[:2] == ALL[:2] and not set(whole) & set(started)
    # What counts batches is zero in every untrained network, whatever it was copied from.
    unfit = {name for name in model.state_dict().keys() - same if "num_batches" not in name}
    assert bool(unfit) == bool(started)
    partly = [entry for entry in kept if "(" in entry]
    assert len(partly) == sum("(" in entry for entry in started)


def test_finetuning_from_one_direction_to_two_starts_the_other():
    kept, started, _ = fit(network(), bidirectional=False)
    assert started == ["recurrent layer 1 (backward_rnn)", "recurrent layer 2 (backward_rnn)"]
    assert "recurrent layer 1 (forward_rnn)" in kept and "recurrent layer 2 (norm, forward_rnn)" in kept


@needs_shared
def test_finetuning_from_release_1_keeps_what_the_networks_share():
    old = load_checkpoint(GOLDEN / "v12_bigru_64x2" / "deepspeech_2.pth")
    model = network("".join(old.labels.symbols), freq_bins=161, hidden_size=64)
    kept, started = fit_weights(model, old, old.labels)
    assert "convolution 1" in kept and "head" in kept and "recurrent layer 1 (forward_rnn.weight_hh_l0, " in " ".join(kept)
    assert all("bias_ih_l0" in entry for entry in started) and len(started) == 2


def averaged(tmp_path, *models: Checkpoint) -> Checkpoint:
    paths = [tmp_path / f"{i}.pth" for i in range(len(models))]
    for path, model in zip(paths, models, strict=True):
        save_checkpoint(model, path)
    return average_checkpoints(paths)


def test_the_average_is_the_mean_of_each_weight(tmp_path):
    models = [checkpoint() for _ in range(3)]
    for i, model in enumerate(models):
        model.weights["conv.norm1.num_batches_tracked"] = torch.tensor(10 * (i % 2))
        model.epoch, model.progress, model.settings = i + 1, {"batch": 1}, {"lr": 1.0}
        model.optimizer = torch.optim.SGD(model.build_model().parameters()).state_dict()
    mean = averaged(tmp_path, *models)
    for name, weight in mean.weights.items():
        if weight.is_floating_point():
            expected = sum(model.weights[name].double() for model in models) / 3
            assert weight.dtype == torch.float32 and torch.equal(weight, expected.float()), name
    assert mean.weights["conv.norm1.num_batches_tracked"] == 10
    assert (mean.epoch, mean.optimizer, mean.progress, mean.settings, mean.history) == (3, None, None, {}, [])
    logits, _ = mean.build_model()(torch.randn(1, 1, 81, 20), torch.tensor([20]))
    assert logits.isfinite().all()


def test_models_that_differ_in_what_no_weight_depends_on_are_averaged(tmp_path):
    first, second = checkpoint(dropout=0.1), checkpoint(dropout=0.3)
    first.release = "deepspeech.pytorch 2.0"
    mean = averaged(tmp_path, first, second)
    assert mean.release == second.release != first.release, "the mean is a file of ours"


def test_models_of_different_networks_are_not_averaged(tmp_path):
    other_labels, other_audio = checkpoint(), checkpoint()
    other_labels.labels = Labels(["_", "A", "C", " "])
    other_audio.audio = AudioConfig(sample_rate=8000, window="hamming")
    for other, words in (
        (checkpoint(rnn_type="lstm"), "rnn type is lstm, in .*0.pth gru"),
        (other_labels, "labels are '_AC ', in .*0.pth '_AB '"),
        (other_audio, "window is hamming, in .*0.pth hann"),
    ):
        with pytest.raises(ValueError, match=rf"1\.pth: only models of one network can be averaged: {words}"):
            averaged(tmp_path, checkpoint(), other)
