"""Model files: what is written comes back, half a file never exists, and nothing in a file is executed."""

import pickle
import zipfile
from dataclasses import asdict

import numpy as np
import pytest
import torch
from shared_data import GOLDEN, needs_shared

from asr.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
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


def loaded_error(path) -> str:
    """What is said of a file that is refused, without its name."""
    with pytest.raises(ValueError) as error:
        load_checkpoint(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and text.isprintable() and len(text) < 5000
    return text.removeprefix(f"{path}: ")


def saved_content(path) -> dict:
    """What is in a file of a training: plain dicts, to spoil."""
    whole = checkpoint()
    model = whole.build_model().train()
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    logits, _ = model(torch.randn(1, 1, 81, 20), torch.tensor([20]))
    logits.sum().backward()
    optimizer.step()
    whole.optimizer, whole.progress, whole.settings = optimizer.state_dict(), {"batch": 3}, {"lr": 3e-4, "device_ids": [0]}
    whole.loss_scale = {"scale": 2.0, "good_steps": 0}
    save_checkpoint(whole, path)
    return torch.load(path, weights_only=True)


SPOILT = [  # where, by what, and what is said of it
    (("release",), 5, "release is a int, expected str"),
    (("model",), None, "model is a NoneType"),
    (("model", "hidden_size"), "8", "hidden size is a str: expected int"),
    (("model", "hidden_size"), True, "hidden size is a bool: expected int"),
    (("model", "hidden_size"), 10**19, ""),
    (("model", "hidden_layers"), 10**6, "hidden layers 1000000: expected at most 100"),
    (("model", "rnn_type"), ["gru"], "rnn type is a list: expected str"),
    (("model", "dropout"), float("nan"), "dropout nan"),
    (("model", "bidirectional"), "no", "bidirectional is a str: expected bool"),
    (("model", "num_labels"), 29, "it has 4 labels, and a network for 29"),
    (("audio", "sample_rate"), 16000, "it has 161 frequency bins, and a network for 81"),
    (("audio", "sample_rate"), 1_600_000_000, "sample rate 1600000000: expected 1000 to 768000 Hz"),
    (("audio", "window_size"), float("inf"), "infinity"),
    (("audio", "window"), 5, "window is a int"),
    (("labels",), "_AB ", "labels is a str, expected list"),
    (("labels",), ["_", "A"], "it has 2 labels, and a network for 4"),
    (("labels",), ["_", *map(chr, range(200, 300))], "it has 101 labels, and a network for 4"),
    (("labels",), ["_", "A", "B", 5], "label 3 is a int"),
    (("labels",), ["_", "A", "B", "x" * 10**5], "label 'xxx"),
    (("weights",), [], "weights is a list"),
    (("weights", "head.weight"), "none", "head.weight is a str, expected a tensor"),
    (("weights", "head.weight"), torch.zeros(4, 8, device="meta"), "head.weight is a meta tensor"),
    (("weights", "head.weight"), torch.zeros(4, 8).to_sparse(), "head.weight is a sparse_coo tensor"),
    (("weights", "head.weight"), torch.zeros(()).expand(4, 8), "head.weight claims 128 bytes, and 4 are stored"),
    (("weights", "head.weight"), torch.zeros(4, 8, dtype=torch.int64), "head.weight is torch.int64, expected torch.float32"),
    (("weights", "head.weight"), torch.zeros(4, 8, dtype=torch.complex64), "head.weight is torch.complex64"),
    (("weights", "head_norm.num_batches_tracked"), torch.tensor(0.5), "num_batches_tracked is torch.float32, expected"),
    (("weights", "\x1b[31mhead\n"), torch.zeros(1), "\\x1b[31mhead is unknown"),
    (("epoch",), "2", "epoch is a str, expected int"),
    (("epoch",), -1, "epoch -1"),
    (("within_epoch",), 1, "within_epoch is a int, expected bool"),
    (("history",), 5, "history is a int, expected list"),
    (("history",), [5], "history: expected numbers"),
    (("history",), [{"loss": "abc"}], "history: expected numbers"),
    (("optimizer",), [1], "optimizer is a list, expected dict or None"),
    (("optimizer", "param_groups"), [], "its optimizer's state does not fit its network: expected it to list 29 parameters"),
    (("optimizer", "param_groups", 0, "lr"), "fast", "expected a number as its learning rate"),
    (("optimizer", "param_groups", 0, "betas"), [0.9, 0.999], "parameter 0 is unknown, or lacks a part of its state"),
    (("optimizer", "state", 3), {"momentum_buffer": torch.zeros(3)}, "momentum_buffer of parameter 3 is (3,)"),
    (("optimizer", "state", 3), {"momentum_buffer": torch.zeros(())}, "momentum_buffer of parameter 3 is ()"),
    (("optimizer", "state", 3), {"momentum_buffer": 5}, "momentum_buffer of parameter 3 is a int"),
    (("optimizer", "state", 99), {}, "parameter 99 is unknown"),
    (("loss_scale",), {"scale": 0.0, "good_steps": 0}, "loss_scale: expected a positive scale"),
    (("progress",), [1], "progress is a list, expected dict or None"),
    (("settings",), [1], "settings is a list, expected dict"),
    (("settings",), {"lr": torch.zeros(2)}, "settings: expected values of flags"),
]


@pytest.mark.parametrize(("where", "value", "words"), SPOILT, ids=lambda part: None if isinstance(part, str) else "")
def test_a_field_that_is_not_what_it_should_be_is_named(tmp_path, where, value, words):
    content = inner = saved_content(tmp_path / "model.pth")
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    torch.save(content, tmp_path / "model.pth")
    assert words in loaded_error(tmp_path / "model.pth")


def test_what_continues_a_training_is_read_as_it_was(tmp_path):
    content = saved_content(tmp_path / "model.pth")
    found = load_checkpoint(tmp_path / "model.pth")
    assert torch.equal(found.optimizer["state"][3]["momentum_buffer"], content["optimizer"]["state"][3]["momentum_buffer"])
    optimizer = torch.optim.AdamW(found.build_model().parameters())
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(content | {"optimizer": optimizer.state_dict()}, tmp_path / "adam.pth")
    assert load_checkpoint(tmp_path / "adam.pth").optimizer["param_groups"][0]["betas"] == (0.9, 0.999)


def doubled(times: int) -> list:
    held = ["x"]
    for _ in range(times):
        held = [held, held]
    return held


@pytest.mark.parametrize(("where", "ours"), [("labels", True), ("settings", True), ("labels", False)])
def test_a_list_that_unfolds_without_end_is_refused_at_once(tmp_path, where, ours):
    content = saved_content(tmp_path / "model.pth")
    if not ours:
        content = content | {"format": "another", "state_dict": content["weights"], "audio_conf": content["audio"]}
    torch.save(content | {where: doubled(25)}, tmp_path / "model.pth")
    assert "nested or repeated without end" in loaded_error(tmp_path / "model.pth")


def test_a_list_that_holds_itself_is_refused(tmp_path):
    content = saved_content(tmp_path / "model.pth")
    circle: list = []
    circle.append(circle)
    torch.save(content | {"settings": {"lr": circle}}, tmp_path / "model.pth")
    assert "nested or repeated without end" in loaded_error(tmp_path / "model.pth")
    torch.save(content | {"labels": ["x" * 2**20] * 100}, tmp_path / "model.pth")
    assert "nested or repeated without end" in loaded_error(tmp_path / "model.pth")


def test_a_small_file_does_not_become_a_large_network(tmp_path):
    """20,000 wide, from one stored number: 10 GB, were it copied to float32."""
    config = ModelConfig(num_labels=4, freq_bins=81, hidden_size=20000, hidden_layers=1)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in DeepSpeech(config).state_dict().items()}
    content = saved_content(tmp_path / "model.pth") | {"model": asdict(config), "optimizer": None}
    for dtype in (torch.float16, torch.float32):
        weights = {name: torch.zeros((), dtype=dtype).expand(shape) for name, shape in shapes.items()}
        torch.save(content | {"weights": weights}, tmp_path / "model.pth")
        assert (tmp_path / "model.pth").stat().st_size < 100_000
        assert "bytes, and" in loaded_error(tmp_path / "model.pth")


def test_weights_that_share_their_numbers_are_refused(tmp_path):
    content = saved_content(tmp_path / "model.pth")
    store = torch.zeros(2**18)
    weights = {
        name: store[: weight.numel()].view_as(weight) if weight.is_floating_point() else weight
        for name, weight in content["weights"].items()
    }
    torch.save(content | {"weights": weights, "optimizer": None}, tmp_path / "model.pth")
    assert "its tensors claim" in loaded_error(tmp_path / "model.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_lie_in_one_block_are_read(tmp_path, zipped):
    """As cuDNN arranges those of recurrent layers, with gaps; and in every format that torch had."""
    content = saved_content(tmp_path / "model.pth")
    store, start, weights = torch.randn(2**16), 0, dict(content["weights"])
    for name, weight in weights.items():
        if "_rnn." in name:
            weights[name] = store[start : start + weight.numel()].view_as(weight)
            start += weight.numel() + 5
    torch.save(content | {"weights": weights}, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    found = load_checkpoint(tmp_path / "model.pth").weights
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def test_a_compressed_file_is_refused_before_it_is_inflated(tmp_path):
    saved_content(tmp_path / "model.pth")
    with zipfile.ZipFile(tmp_path / "model.pth") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in records if name.endswith("data.pkl"))
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
            for name, record in records.items():
                kind = compression if name == pickled else zipfile.ZIP_STORED
                archive.writestr(name, record + bytes(10**7) if name == pickled else record, kind)
        assert "it is compressed, which torch.save never does" in loaded_error(tmp_path / "model.pth")


def test_a_description_is_text_whatever_the_file_says(tmp_path):
    odd = checkpoint()
    odd.labels, odd.release = Labels(["_", "\x1b", "\u202e", "\u00c4"]), "\x1b]0;title\x07\nModel version: 9"
    save_checkpoint(odd, tmp_path / "model.pth")
    text = load_checkpoint(tmp_path / "model.pth").describe()
    assert all(line.isprintable() for line in text.split("\n")) and len(text.split("\n")) == 18
    assert "_\\x1b\\u202e\u00c4" in text and "\\x1b]0;title\\x07" in text


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
    assert "2, written within epoch 3" in loaded.describe()

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
