"""Exported models: run in processes that cannot see this code, on recordings of three lengths, they say what the model says."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from beeps import ROOT, run
from test_model import KINDS

from asr.checkpoint import Checkpoint, save_checkpoint
from asr.export import export_model
from asr.recognizer import Recognizer
from asr.runtime import Runtime
from config import AudioConfig, DecoderConfig, ModelConfig
from data.features import spectrogram
from data.labels import Labels
from model import DeepSpeech, output_frames

LABELS = Labels(["_", "'", *"ABCDE", " ", "É"])
AUDIO = AudioConfig(window="hann")
SECONDS = (1.0, 0.37, 2.13)


def needs(kind: str) -> None:
    """Skip, visibly, where what runs this kind of file is not installed."""
    if kind == "onnx":
        for package in ("onnx", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed: pip install -r requirements-export.txt")


def checkpoint(**kwargs) -> Checkpoint:
    """Of a network whose opinion changes from frame to frame, as a trained one's does."""
    torch.manual_seed(6)
    config = ModelConfig(**(dict(num_labels=len(LABELS), hidden_size=24, hidden_layers=3) | kwargs))
    model = DeepSpeech(config)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 1, 161, 60) * 2, torch.tensor([60, 47, 33, 20]))
        for rnn in (rnn for layer in model.rnns for rnn in (layer.forward_rnn, layer.backward_rnn) if rnn):
            rnn.weight_ih_l0 *= 3
    return Checkpoint(config, AUDIO, LABELS, model.state_dict())


def waves() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [np.convolve(rng.normal(0, 0.1, int(16000 * s)), rng.normal(0, 0.3, 40), "same") for s in SECONDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of the default kind and three recordings, in a folder without this code."""
    path = tmp_path_factory.mktemp("away")
    save_checkpoint(checkpoint(), path / "model.pth")
    for i, wave in enumerate(waves()):
        soundfile.write(path / f"{i}.wav", wave.clip(-1, 1), 16000)
    return path


def main(*args: str) -> int:
    """export.py in this process, which need not import torch again: its exit status."""
    try:
        return runpy.run_path(str(ROOT / "export.py"), run_name="script")["main"](list(args))
    except SystemExit as stop:
        return stop.code


def opened(kind: str, path: Path):
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path))
        return lambda spects, lens: session.run(None, {"spects": spects.numpy(), "lens": lens.numpy()})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.load", DeprecationWarning)
        module = torch.jit.load(path)
    return lambda spects, lens: [output.numpy() for output in module(spects, lens)]


@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize("release1", [False, True])
@pytest.mark.parametrize("network", KINDS, ids=str)
def test_every_network_alone_and_in_a_batch_whatever_lies_beyond_a_length(tmp_path, kind, release1, network):
    needs(kind)
    original = checkpoint(hidden_layers=2, release1=release1, **network)
    assert export_model(original, kind, tmp_path / "model") < 1e-4
    run, model = opened(kind, tmp_path / "model"), original.build_model()
    lens = torch.tensor([130, 3, 64, 11])
    spects = torch.randn(4, 1, 161, 150) * 2
    together, together_lens = run(spects, lens)
    for row, n in enumerate(lens):
        alone = spects[row : row + 1, ..., :n].contiguous(), lens[row : row + 1]
        with torch.inference_mode():
            logits, (length,) = model(*alone)
        expected = logits[0].log_softmax(-1).numpy()
        single, (single_length,) = run(*alone)
        assert length == single_length == together_lens[row]
        if not release1:
            assert length == output_frames(int(n))
        np.testing.assert_allclose(single[0, :length], expected, atol=2e-3)
        np.testing.assert_allclose(together[row, :length], expected, atol=2e-3)


def test_the_readmes_lines_transcribe_with_onnxruntime(folder):
    """As a stranger copies them: no other file beside, and neither torch nor anything of ours imported."""
    needs("onnx")
    (lines,) = (text for text in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S) if "onnx" in text)
    done = run("export.py", "--model-path", "model.pth", "--output", "deepspeech.onnx", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    recognizer = Recognizer(folder / "model.pth", DecoderConfig(), Runtime.choose(cuda=False))
    (folder / "lines.py").write_text(
        lines + "\nimport sys\nassert not {'torch', 'model', 'asr', 'data'} & sys.modules.keys()\n"
    )
    for i in range(len(SECONDS)):
        shutil.copy(folder / f"{i}.wav", folder / "speech.wav")
        done = subprocess.run([sys.executable, "-W", "error", "lines.py"], cwd=folder, capture_output=True, text=True)
        text = recognizer.transcribe(folder / f"{i}.wav").text
        assert (done.stderr, done.stdout) == ("", text + "\n") and len(text) > 3


TORCH_LINES = """
import json, sys
import numpy as np, torch

about = {"metadata.json": ""}
model = torch.jit.load("deepspeech.pt", _extra_files=about)
about = json.loads(about["metadata.json"])
spects = [torch.from_numpy(np.load(name)) for name in sys.argv[1:]]
lens = torch.tensor([spect.shape[1] for spect in spects])
batch = torch.zeros(len(spects), 1, len(spects[0]), int(lens.max()))
for row, spect in zip(batch, spects):
    row[0, :, : spect.shape[1]] = spect
log_probs, out_lens = model(batch, lens)
for row, n in zip(log_probs, out_lens):
    best = torch.unique_consecutive(row[:n].argmax(-1))
    print("".join(about["labels"][i] for i in best if i))
assert not {"model", "asr", "data"} & sys.modules.keys()
"""


def test_a_torch_file_transcribes_a_batch(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main("--model-path", "model.pth", "--format", "torch", "--output", "deepspeech.pt") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("deepspeech.pt: ") and printed.err == ""
    recognizer = Recognizer(folder / "model.pth", DecoderConfig(), Runtime.choose(cuda=False))
    for i in range(len(SECONDS)):
        wave, _ = soundfile.read(folder / f"{i}.wav", dtype="float32")
        np.save(folder / f"{i}.npy", spectrogram(wave, AUDIO).numpy())
    command = [sys.executable, "-c", TORCH_LINES, *(f"{i}.npy" for i in range(len(SECONDS)))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [recognizer.transcribe(folder / f"{i}.wav").text for i in range(len(SECONDS))]


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_labels_and_audio_settings_travel_inside(tmp_path, kind):
    needs(kind)
    export_model(checkpoint(), kind, tmp_path / "model")
    if kind == "onnx":
        import onnxruntime

        properties = onnxruntime.InferenceSession(str(tmp_path / "model")).get_modelmeta().custom_metadata_map
        about = {name: json.loads(value) for name, value in properties.items()}
    else:
        extra = {"metadata.json": ""}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit\.load", DeprecationWarning)
            torch.jit.load(tmp_path / "model", _extra_files=extra)
        about = json.loads(extra["metadata.json"])
    assert about == {
        "version": "deepspeech-toolkit/1",
        "labels": list(LABELS.symbols),
        "sample_rate": 16000,
        "window_size": 0.02,
        "window_stride": 0.01,
        "window": "hann",
        "streaming_norm": False,
    }


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_model_that_does_not_work_is_not_written(tmp_path, kind):
    needs(kind)
    broken = checkpoint()
    broken.weights["head.weight"][1, 2] = float("nan")
    with pytest.raises(ValueError, match="not written"):
        export_model(broken, kind, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_onnx_cannot_hold_is_said_before_it_is_tried(tmp_path, monkeypatch):
    needs("onnx")
    monkeypatch.setattr("asr.export.LARGEST_ONNX", 10_000)  # of the two gigabytes that it is, models take long to make
    with pytest.raises(ValueError, match="--format torch"):
        export_model(checkpoint(), "onnx", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_in_one_line(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)  # which is how Python is told that there is none
    assert main("--model-path", "model.pth", "--output", "no.onnx") == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "requirements-export.txt" in printed
    assert "onnx (" in printed and "onnxruntime (" in printed and not (folder / "no.onnx").exists()


BAD_USE = [
    ([], 2, "--output"),
    (["--output", "x", "--format", "tflite"], 2, "--format"),
    (["--output", "x.pt", "--format", "torch", "--model-path", "nix.pth"], 1, "nix.pth"),
    (["--output", "x.pt", "--format", "torch", "--model-path", "0.wav"], 1, "0.wav"),
    (["--output", "", "--format", "torch", "--model-path", "model.pth"], 1, "''"),
    (["--output", "0.wav/x.pt", "--format", "torch", "--model-path", "model.pth"], 1, "0.wav"),
]


@pytest.mark.parametrize("args, status, named", BAD_USE, ids=str)
def test_bad_use_is_one_line(folder, monkeypatch, capsys, args, status, named):
    monkeypatch.chdir(folder)
    assert main(*args) == status
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and named in printed.err, printed
