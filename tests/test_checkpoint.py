"""Model files: what is written comes back, half a file never exists, and nothing in a file is executed."""

import pickle

import numpy as np
import pytest
import torch
from shared_data import GOLDEN, needs_shared

from asr.checkpoint import Checkpoint, average_checkpoints, fit_weights, load_checkpoint, save_checkpoint
from config import AudioConfig, ModelConfig
from data.files import whole_file
from data.labels import Labels
from model import DeepSpeech, main

LABELS = Labels(["_", "A", "B", " "])


def checkpoint(**kwargs) -> Checkpoint:
    config = ModelConfig(num_labels=4, freq_bins=81, hidden_size=8, hidden_layers=2, **kwargs)
    return Checkpoint(
        model=config,
        audio=AudioConfig(sample_rate=8000, window="hann"),
        labels=LABELS,
        weights=DeepSpeech(config).state_dict(),
        epoch=2,
        history=[{"loss": 9.0, "wer": 80.0, "cer": 50.0}, {"loss": 3.0, "wer": 40.0, "cer": 20.0}],
    )


@pytest.mark.parametrize("kind", [{}, {"bidirectional": False, "lookahead_context": 7}, {"rnn_type": "lstm"}], ids=str)
def test_what_is_saved_is_what_is_loaded(tmp_path, kind):
    saved = checkpoint(**kind)
    save_checkpoint(saved, tmp_path / "deep" / "model.pth")
    loaded = load_checkpoint(tmp_path / "deep" / "model.pth")
    assert (loaded.model, loaded.audio, loaded.labels) == (saved.model, saved.audio, saved.labels)
    assert (loaded.epoch, loaded.history) == (saved.epoch, saved.history)
    model = loaded.build_model()
    assert not model.training
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, saved.weights[name]), name


def test_description_says_what_people_look_for(tmp_path):
    save_checkpoint(checkpoint(), tmp_path / "model.pth")
    text = load_checkpoint(tmp_path / "model.pth").describe()
    for words in ("model.pth", "gru", "_AB ", "8000", "hann", "Epochs", "3.000", "20.000", "40.000"):
        assert words in text


@pytest.mark.parametrize("durable", [False, True])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, durable):
    path = tmp_path / "model.pth"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(path, durable) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    torch.save({"format": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth.*print"):
        load_checkpoint(tmp_path / "evil.pth")
    assert "executed" not in capsys.readouterr().out


def test_float16_weights_run_in_float32(tmp_path):
    half = checkpoint()
    half.weights = {name: w.half() if w.is_floating_point() else w for name, w in half.weights.items()}
    save_checkpoint(half, tmp_path / "half.pth")
    model = load_checkpoint(tmp_path / "half.pth").build_model()
    logits, _ = model(torch.randn(1, 1, 81, 20), torch.tensor([20]))
    assert logits.dtype == torch.float32 and logits.isfinite().all()


def test_what_a_link_points_to_is_written_and_a_device_is_not(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with whole_file(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    with pytest.raises(OSError, match="not a regular file"), whole_file("/dev/null"):
        pass


def broken_files(path):
    good = path.parent / "good.pth"
    save_checkpoint(checkpoint(), good)
    whole = good.read_bytes()
    yield "cut", lambda: path.write_bytes(whole[: len(whole) // 2])
    yield "empty", lambda: path.write_bytes(b"")
    yield "text", lambda: path.write_text("not a model\n" * 100)
    yield "plain pickle", lambda: path.write_bytes(pickle.dumps({"a": 1}))
    yield "list", lambda: torch.save([1, 2], path)
    yield "another dict", lambda: torch.save({"weights": {}}, path)
    content = torch.load(good, weights_only=True)
    yield "without labels", lambda: torch.save({k: v for k, v in content.items() if k != "labels"}, path)
    yield "later field", lambda: torch.save(content | {"model": content["model"] | {"moe_experts": 8}}, path)
    fewer = {k: v for k, v in content["weights"].items() if k != "head.weight"}
    yield "without a head", lambda: torch.save(content | {"weights": fewer}, path)


def test_what_is_no_model_file_gets_one_line_that_names_it(tmp_path):
    path = tmp_path / "broken.pth"
    for name, make in broken_files(path):
        make()
        with pytest.raises(ValueError) as error:
            load_checkpoint(path)
        assert str(error.value).startswith(str(path)), name
        assert "\n" not in str(error.value), name


@needs_shared
@pytest.mark.parametrize("folder", ["bigru_64x3", "unigru_lookahead20_64x2"])
def test_the_predecessors_file_describes_itself(folder):
    text = load_checkpoint(GOLDEN / folder / "deepspeech_2.pth.tar").describe()
    assert "deepspeech.pytorch" in text and "64" in text and "Current WER" in text


@needs_shared
@pytest.mark.parametrize("folder", ["bigru_64x3", "unigru_lookahead20_64x2"])
def test_the_predecessors_model_saved_anew_is_still_that_model(tmp_path, folder):
    old = load_checkpoint(GOLDEN / folder / "deepspeech_2.pth.tar")
    save_checkpoint(old, tmp_path / "new.pth")
    new = load_checkpoint(tmp_path / "new.pth")
    assert (new.model, new.audio, new.labels, new.release, new.history) == (
        *(old.model, old.audio, old.labels, old.release, old.history),
    )
    assert all(torch.equal(new.weights[name], weight) for name, weight in old.weights.items())


def test_what_continues_a_training_is_kept_and_was_absent_before(tmp_path):
    saved = checkpoint()
    saved.progress = {"batch": 3, "random": torch.arange(5, dtype=torch.uint8), "best": (12.5, 3.0)}
    saved.settings = {"lr": 3e-4, "noise_dir": None, "device_ids": [0, 1]}
    saved.loss_scale, saved.within_epoch = {"scale": 65536.0, "good_steps": 7}, True
    save_checkpoint(saved, tmp_path / "model.pth")
    loaded = load_checkpoint(tmp_path / "model.pth")
    assert torch.equal(loaded.progress.pop("random"), saved.progress.pop("random"))
    assert (loaded.progress, loaded.settings) == (saved.progress, saved.settings)
    assert (loaded.loss_scale, loaded.within_epoch) == (saved.loss_scale, True)
    assert "2, written within the next" in loaded.describe()

    content = torch.load(tmp_path / "model.pth", weights_only=True)
    for key in ("progress", "settings", "loss_scale", "within_epoch"):
        del content[key]
    torch.save(content | {"model": {k: v for k, v in content["model"].items() if k != "release1"}}, tmp_path / "first.pth")
    first = load_checkpoint(tmp_path / "first.pth")
    assert (first.progress, first.settings, first.loss_scale, first.within_epoch) == (None, {}, None, False)


def test_what_could_not_be_read_again_is_not_saved(tmp_path):
    for where in ("progress", "settings"):
        bad = checkpoint()
        setattr(bad, where, {"best": [1.0, np.float64(2.0)]})
        with pytest.raises(TypeError, match=rf"{where}\['best'\]\[1\] is a float64"):
            save_checkpoint(bad, tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_an_optimizer_is_not_continued(tmp_path):
    best = checkpoint()
    best.path = "best.pth"
    with pytest.raises(ValueError, match=r"best\.pth: holds no state of an optimizer.*--finetune"):
        best.check_continuable()
    best.optimizer = torch.optim.SGD(best.build_model().parameters()).state_dict()
    best.check_continuable()


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
        model.optimizer = {"state": {}, "param_groups": []}
    mean = averaged(tmp_path, *models)
    for name, weight in mean.weights.items():
        if weight.is_floating_point():
            expected = sum(model.weights[name].double() for model in models) / 3
            assert weight.dtype == torch.float32 and torch.equal(weight, expected.float()), name
    assert mean.weights["conv.norm1.num_batches_tracked"] == 10
    assert (mean.epoch, mean.optimizer, mean.progress, mean.settings, mean.history) == (3, None, None, {}, [])
    logits, _ = mean.build_model()(torch.randn(1, 1, 81, 20), torch.tensor([20]))
    assert logits.isfinite().all()


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


def test_model_py_averages_and_describes(tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ("a.pth", "b.pth", "deep/c.pth")]
    for path in paths[:2]:
        save_checkpoint(checkpoint(), path)
    assert main(["--average", *paths[:2], "--output", paths[2]]) == 0
    assert capsys.readouterr().out == f"Average of 2 models: {paths[2]}\n"
    assert main(["--model-path", paths[2]]) == 0
    out = capsys.readouterr().out
    assert "c.pth" in out and "Current" not in out


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--average", "a.pth", "--output", "c.pth"], "--average a.pth: expected two"),
        (["--average", "a.pth", "b.pth"], "--output"),
        (["--output", "c.pth"], "--average"),
    ],
    ids=str,
)
def test_model_py_says_what_was_typed_wrongly(argv, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2 and words in capsys.readouterr().err
