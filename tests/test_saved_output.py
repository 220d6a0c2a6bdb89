"""The network's output in a file: what test.py writes, what the predecessor wrote, and what a stranger may have."""

import os
import pickle
import runpy
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from beeps import ROOT, write_utterance

from asr.checkpoint import Checkpoint, save_checkpoint
from asr.recognizer import Recognizer
from asr.runtime import Runtime
from asr.saved_output import read_saved_output, save_output
from config import AudioConfig, DecoderConfig, ModelConfig
from data.labels import Labels
from model import DeepSpeech

SYMBOLS = ("_", "A", "B", "C", " ")


def softmax_output(frames: int, seed: int, labels: int = len(SYMBOLS)) -> torch.Tensor:
    return (3 * torch.randn(frames, labels, generator=torch.Generator().manual_seed(seed))).softmax(-1)


OUTPUT = [softmax_output(frames, seed=frames) for frames in (7, 4, 9)]  # of three utterances
REFERENCES = ["AB C", "", "CAB"]


def batches(array=lambda tensor: tensor.numpy(), reference=lambda text: [text]) -> list[tuple]:
    """The utterances in two batches, as the predecessor's test.py puts them in its list."""
    first = torch.zeros(2, 7, len(SYMBOLS))
    first[0], first[1, :4] = OUTPUT[0], OUTPUT[1]
    first[1, 4:] = 0.3  # padding is not read, whatever it is
    return [
        (array(first), array(torch.tensor([7, 4], dtype=torch.int32)), [reference(text) for text in REFERENCES[:2]]),
        (array(OUTPUT[2][None]), array(torch.tensor([9], dtype=torch.int32)), [reference(REFERENCES[2])]),
    ]


def check(path: Path, tolerance: float) -> None:
    saved = read_saved_output(path)
    assert saved.references == REFERENCES
    for log_probs, output in zip(saved.log_probs, OUTPUT, strict=True):
        assert log_probs.dtype == np.float32
        np.testing.assert_allclose(log_probs, output.log().numpy(), atol=tolerance)
        np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, atol=1e-6)


def test_what_is_saved_is_read_and_half_as_large(tmp_path):
    path = tmp_path / "out.npz"
    outputs = {9: OUTPUT[2].log(), 2: OUTPUT[0].log(), 5: OUTPUT[1].log()}
    save_output(path, outputs, REFERENCES, SYMBOLS)
    check(path, 0.005)
    assert read_saved_output(path).labels == Labels(SYMBOLS)
    with np.load(path, allow_pickle=False) as file:
        assert {name: (file[name].dtype.kind, file[name].shape) for name in file.files} == {
            "log_probs": ("f", (20, 5)),
            "lens": ("i", (3,)),
            "references": ("U", (3,)),
            "labels": ("U", (5,)),
        }
        assert file["log_probs"].dtype == np.float16


def test_improbable_labels_stay_numbers(tmp_path):
    log_probs = torch.tensor([[0.0, -1e5, -30.0]])
    save_output(tmp_path / "out.npz", {0: log_probs}, ["A"], ("_", "A", "B"))
    (found,) = read_saved_output(tmp_path / "out.npz").log_probs
    assert np.isfinite(found).all() and found[0, 1] < -1e4
    np.savez(tmp_path / "zero.npz", probs=np.array([[1.0, 0.0]], np.float16), lens=np.array([1]), refs=np.array(["A"]))
    (found,) = read_saved_output(tmp_path / "zero.npz").log_probs
    assert np.isfinite(found).all() and found[0, 1] < -60


@pytest.mark.parametrize(
    "array",
    [
        lambda tensor: tensor.numpy(),
        lambda tensor: np.asfortranarray(tensor.numpy()),
        lambda tensor: tensor.numpy().astype(tensor.numpy().dtype.newbyteorder(">")),
        lambda tensor: tensor,
        lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor,
        lambda tensor: tensor.half().numpy() if tensor.is_floating_point() else tensor.numpy(),
        lambda tensor: tensor.log().numpy() if tensor.is_floating_point() else tensor.long(),
    ],
    ids="numpy by-columns big-endian torch bfloat16 half logarithms".split(),
)
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "before-1.6"])
def test_the_predecessors_list_is_read(tmp_path, array, as_zip):
    path = tmp_path / "out.pth"
    torch.save(batches(array), path, _use_new_zipfile_serialization=as_zip)
    check(path, 0.02)
    assert read_saved_output(path).labels is None


def test_names_of_numpy_before_its_second_release(tmp_path):
    path = tmp_path / "out.pth"
    torch.save(batches(reference=str), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    check(path, 1e-5)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("made",)


def npz(**changes: object):
    arrays = {
        "log_probs": torch.cat(OUTPUT).log().numpy(),
        "lens": np.array([7, 4, 9]),
        "references": np.array(REFERENCES),
        "labels": np.array(SYMBOLS),
    }

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            np.savez_compressed(file, **{name: array for name, array in (arrays | changes).items() if array is not None})

    return write


def listed(content: object, **kwargs: object):
    return lambda path: torch.save(content, path, **kwargs)


def compressed_list(path: Path) -> None:
    torch.save([(torch.full((1, 10**5, 5), 0.2), torch.tensor([10**5]), [["A"]])], path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, record in records.items():
            archive.writestr(name, record)


def cut_short(write):
    def cut(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[:-200])

    return cut


def one_as_many() -> tuple[torch.Tensor, torch.Tensor, list[list[str]]]:
    return torch.full((1, 1, 1), 0.2).expand(1, 10**9, 5), torch.tensor([10**9]), [["A"]]


BAD = {
    "empty": (lambda path: path.write_bytes(b""), "of another kind, or cut short"),
    "text": (lambda path: path.write_text("hello\n"), "of another kind, or cut short"),
    "array": (lambda path: path.write_bytes(np.lib.format.magic(1, 0) + b"v\0{}\n"), "of another kind"),
    "npz cut short": (cut_short(npz()), "File is not a zip file; expected all of what"),
    "list cut short": (cut_short(listed(batches())), "File is not a zip file"),
    "old list cut short": (cut_short(listed(batches(), _use_new_zipfile_serialization=False)), "of another kind, or cut short"),
    "objects in npz": (npz(references=np.array([Hostile()], object)), "allow_pickle"),
    "npz that unfolds": (npz(log_probs=np.zeros((10**7, 5), np.float16)), "it unfolds from"),
    "no output": (npz(log_probs=None), "log_probs is missing"),
    "no lengths": (npz(lens=None), "lens is missing"),
    "no references": (npz(references=None), "references is missing"),
    "other lengths": (npz(lens=np.array([7, 4, 8])), "3 lengths, of 19 frames, for 20 frames"),
    "negative length": (npz(lens=np.array([24, -13, 9])), "3 lengths"),
    "two references": (npz(references=np.array(["A", "B"])), "2 references"),
    "three dimensions": (npz(log_probs=np.zeros((20, 5, 1))), "log_probs is (20, 5, 1)"),
    "labels": (npz(labels=np.array(["A", "B"])), "first label 'A'"),
    "logits": (npz(log_probs=torch.cat(OUTPUT).numpy() * 9 - 4), "utterance 0: frame 0 adds up to"),
    "not a number": (npz(log_probs=np.full((20, 5), np.nan)), "adds up to nan"),
    "no words": (npz(references=np.array(["", " ", ""])), "without a word in their references"),
    "no utterances": (npz(log_probs=np.zeros((0, 5)), lens=np.array([], int), references=np.array([], str)), "0 utterances"),
    "model file": (listed({"state_dict": {}}), "it holds a dict"),
    "pairs of release 1.x": (listed([batch[:2] for batch in batches()]), "batch 0 is no tuple of output, lengths and"),
    "hostile list": (listed([Hostile()]), "it refers to posix.mkdir, which is not loaded for safety"),
    "hostile array": (listed([(np.array([Hostile()], object), np.array([1]), [["A"]])]), "refers to posix.mkdir"),
    "array of texts": (listed([(np.array([["AB"]]), np.array([1]), [["A"]])]), "'U2', expected numbers"),
    "too long": (listed([(OUTPUT[0][None], torch.tensor([8]), [["A"]])]), "8 of 7 frames"),
    "references missing": (listed([(*batches()[0][:2], [["A"]])]), "zip()"),
    "targets": (listed([(*batches()[1][:2], torch.tensor([[3]]))]), "a reference of Tensor"),
    "one number as many": (listed([one_as_many()]), "claims"),
    "one batch as many": (listed([batches()[0]] * 10**4), "claim more than"),
    "compressed list": (compressed_list, "it unfolds from"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(batches())), "of another kind"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_saved_output_is_named_and_not_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write, error = BAD[name]
    path = tmp_path / "out"
    write(path)
    with pytest.raises(ValueError) as caught:
        read_saved_output(path)
    assert str(caught.value).startswith(f"{path}: ") and error in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("made").exists()


def test_test_py_keeps_the_output_of_the_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    config = ModelConfig(num_labels=len(SYMBOLS), hidden_size=8, hidden_layers=1)
    save_checkpoint(Checkpoint(config, AudioConfig(), Labels(SYMBOLS), DeepSpeech(config).state_dict()), "model.pth")
    texts = ["AB C", "A", "CAB BA"]
    Path("val.csv").write_text("".join(write_utterance(tmp_path, f"u{i}", text) for i, text in enumerate(texts)))
    command = "test.py --model-path model.pth --test-manifest val.csv --num-workers 0 --save-output"

    def run(output: str) -> int:
        monkeypatch.setattr(sys, "argv", [*command.split(), output])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "test.py"), run_name="__main__")
        return stop.value.code

    assert run("kept/out.npz") == 0
    saved = read_saved_output("kept/out.npz")
    assert saved.references == texts and saved.labels == Labels(SYMBOLS)
    recognizer = Recognizer("model.pth", DecoderConfig(), Runtime.choose(False))
    for i, log_probs in enumerate(saved.log_probs):
        assert recognizer.decoder.decode(torch.from_numpy(log_probs)[None], torch.tensor([len(log_probs)]))[0][0].text == (
            recognizer.transcribe(f"u{i}.wav").text
        )
    capsys.readouterr()
    Path("val.csv").unlink()
    assert run("kept") == 1
    assert capsys.readouterr().err.startswith("error: kept: "), "found out before the work"
