"""Model files: what is written comes back, half a file never exists, and nothing in a file is executed."""

import pickle

import pytest
import torch
from shared_data import GOLDEN, needs_shared

from asr.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from config import AudioConfig, ModelConfig
from data.files import whole_file
from data.labels import Labels
from model import DeepSpeech

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


@needs_shared
def test_a_file_written_within_an_epoch_does_not_count_it():
    middle = load_checkpoint(GOLDEN / "bigru_64x3" / "deepspeech_checkpoint_epoch_2_iter_4.pth")
    assert middle.epoch == 1 and len(middle.history) == 1 and middle.history[0]["wer"] > 0


@needs_shared
def test_a_release_1_file_is_recognised():
    with pytest.raises(ValueError, match=r"release 1\.x"):
        load_checkpoint(GOLDEN / "v12_bigru_64x2" / "deepspeech_2.pth")
