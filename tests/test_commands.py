"""The commands as people type them: train, test, transcribe and describe a model on speech-like tones made here."""

import json
import os
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from beeps import ROOT, make_corpus, run, train

from asr.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def trained(corpus):
    """The output of a training that learns the beeps; its model is models/deepspeech_final.pth, checkpoints beside it."""
    done = train(corpus, "--epochs", 10, "--lr-schedule", "onecycle", "--checkpoint")
    assert done.returncode == 0, done.stderr
    return done


def test_training_learns_and_says_so_in_the_contracts_words(corpus, trained):
    epochs = re.findall(r"^Training Summary Epoch: \[(\d+)\]\t.*Average Loss ([\d.]+)", trained.stdout, re.MULTILINE)
    scores = re.findall(
        r"^Validation Summary Epoch: \[(\d+)\]\tAverage WER ([\d.]+)\tAverage CER", trained.stdout, re.MULTILINE
    )
    assert [int(n) for n, _ in epochs] == [int(n) for n, _ in scores] == list(range(1, 11))
    assert float(epochs[-1][1]) < 0.2 * float(epochs[0][1])
    assert min(float(wer) for _, wer in scores) < 20
    assert trained.stderr == "", "quiet when not a terminal"
    assert {path.name for path in (corpus / "models").iterdir()} == {
        "deepspeech_final.pth",
        "metrics.jsonl",
        *(f"deepspeech_{n}.pth.tar" for n in range(1, 11)),
    }


def test_test_py_prints_the_manifests_order_and_saves_the_output(corpus, trained):
    done = run(
        "test.py",
        "--test-manifest",
        "val.csv",
        "--verbose",
        "--save-output",
        "out.npz",
        "--num-workers",
        (os.cpu_count() or 1) + 2,
        cwd=corpus,
    )
    assert (done.returncode, done.stderr) == (0, ""), "even with more workers than cores"
    references = re.findall(r"^Ref: (.*)\nHyp: .*\nWER: [\d.]+\tCER: [\d.]+$", done.stdout, re.MULTILINE)
    assert references == [(corpus / f"u{i}.txt").read_text().strip() for i in range(64, 72)]
    assert float(re.search(r"^Test Summary\tAverage WER ([\d.]+)\tAverage CER [\d.]+$", done.stdout, re.MULTILINE)[1]) < 20
    output = np.load(corpus / "out.npz", allow_pickle=False)
    assert output["lens"].sum() == len(output["log_probs"]) and output["references"].tolist() == references
    np.testing.assert_allclose(np.exp(output["log_probs"].astype(np.float32)).sum(-1), 1, atol=2e-3)


def test_transcribe_answers_in_json(corpus, trained):
    wrong = 0
    for i in range(64, 68):
        done = run("transcribe.py", "--audio-path", f"u{i}.wav", "--offsets", cwd=corpus)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        (output,) = answer["output"]
        wrong += output["transcription"] != (corpus / f"u{i}.txt").read_text().strip()
        assert len(output["offsets"]) == len(output["transcription"])
        assert output["offsets"] == sorted(output["offsets"])
    assert wrong <= 1
    assert answer["_meta"] == {
        "acoustic_model": {"name": "deepspeech_final.pth"},
        "language_model": {"name": None},
        "decoder": {"lm": False, "alpha": None, "beta": None, "type": "greedy"},
    }


def test_model_py_describes(corpus, trained):
    done = run("model.py", "--model-path", "models/deepspeech_10.pth.tar", cwd=corpus)
    assert done.returncode == 0, done.stderr
    for words in ("gru", "_ABC ", "16000", "hamming", "Epochs:        10", "Current WER"):
        assert words in done.stdout


def test_the_same_seed_trains_the_same_model_whatever_the_workers(corpus, tmp_path):
    prints = []
    for workers, name in ((0, "a"), (2, "b")):
        augment = ["--spec-augment", "--speed-perturb", 0.1, "--hidden-layers", 2, "--dropout", 0.3, "--epochs", 2]
        done = train(corpus, *augment, "--num-workers", workers, "--model-path", tmp_path / name)
        assert done.returncode == 0, done.stderr
        prints.append(re.findall(r"Average (?:Loss|WER|CER) [\d.]+", done.stdout))
    assert prints[0] == prints[1] and len(prints[0]) == 6
    a, b = (load_checkpoint(tmp_path / name).weights for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_early_stopping_and_accumulation(corpus, tmp_path):
    flags = ["--lr", 1e-9, "--early-stopping", 2, "--grad-accumulation", 3, "--precision", "bf16", "--rnn-type", "lstm"]
    done = train(corpus, *flags, "--epochs", 9, "--model-path", tmp_path / "m.pth")
    assert done.returncode == 0, done.stderr
    best = int(re.search(r"^Best WER .* in epoch (\d+)", done.stdout, re.MULTILINE)[1])
    assert "stopping early" in done.stdout and done.stdout.count("Training Summary") == best + 2 < 9


def replaced(corpus: Path, name: str, line: str) -> None:
    lines = (corpus / "train.csv").read_text().splitlines(keepends=True)
    (corpus / name).write_text("".join([*lines[:3], line, *lines[4:12]]))


BAD_DATA = {
    "missing audio": ("nowhere.wav,u1.txt\n", "nowhere.wav"),
    "empty transcript": ("u3.wav,empty.txt\n", "empty.txt"),
    "characters outside the labels": ("u3.wav,lower.txt\n", "'a'"),
    "too short for its transcript": ("u3.wav,long.txt\n", "u3.wav"),
    "unreadable audio": ("labels.json,u3.txt\n", "labels.json"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_stops_the_run_before_it_starts_or_is_left_out_aloud(corpus, tmp_path, kind):
    for name, text in (("empty", " \n"), ("lower", "abc\n"), ("long", "ABC" * 100)):
        (corpus / f"{name}.txt").write_text(text)
    line, named = BAD_DATA[kind]
    replaced(corpus, "bad.csv", line)
    flags = ["--train-manifest", "bad.csv", "--epochs", 1, "--model-path", tmp_path / "m.pth"]
    done = train(corpus, *flags)
    assert done.returncode == 1 and not (tmp_path / "m.pth").exists()
    assert kind in done.stderr and "bad.csv:4" in done.stderr and named in done.stderr
    assert "--on-bad-data skip" in done.stderr and "Traceback" not in done.stderr
    done = train(corpus, *flags, "--on-bad-data", "skip")
    assert done.returncode == 0 and "11 utterances to train on" in done.stdout and "bad.csv:4" in done.stderr


GOOD_DATA = "--train-manifest train.csv --val-manifest val.csv --labels-path labels.json --num-workers 0".split()
BAD_USE = [
    ("train.py", ["--train-manifest", "nix.csv"], 1, "nix.csv"),
    ("train.py", ["--train-manifest", "u1.wav"], 1, "u1.wav:"),
    ("train.py", ["--labels-path", "nix.json"], 1, "nix.json"),
    ("train.py", ["--rnn-type", "transformer"], 2, "--rnn-type"),
    ("train.py", ["--epochs", "0"], 2, "--epochs"),
    ("train.py", ["--batch-size", "many"], 2, "--batch-size"),
    ("train.py", ["--window", "square"], 2, "--window"),
    ("train.py", ["--no-such-flag"], 2, "--no-such-flag"),
    ("train.py", ["--learning-rate", "-1"], 2, "--learning-rate"),
    ("train.py", ["--learning-rate", "nan"], 2, "--learning-rate"),
    ("train.py", ["--seed", "9" * 30], 2, "--seed"),
    ("train.py", ["--warmup", "9", "--epochs", "9"], 2, "--warmup"),
    ("train.py", ["--freeze-batch-norm", "70"], 2, "--freeze-batch-norm"),
    ("train.py", [*GOOD_DATA, "--model-path", "models"], 1, "models:"),
    ("train.py", [*GOOD_DATA, "--model-path", ""], 1, "''"),
    ("train.py", [*GOOD_DATA, "--model-path", "/dev/null"], 1, "/dev/null"),
    ("train.py", [*GOOD_DATA, "--checkpoint", "--save-folder", "labels.json"], 1, "labels.json"),
    ("train.py", [*GOOD_DATA, "--hidden-size", "1000000000"], 1, "error: "),
    ("test.py", ["--test-manifest", "val.csv", "--model-path", "labels.json"], 1, "labels.json"),
    ("test.py", ["--test-manifest", "nix.csv"], 1, "nix.csv"),
    ("test.py", ["--test-manifest", "val.csv", "--sample-rate", "8000"], 2, "--sample-rate 8000"),
    ("transcribe.py", ["--model-path", "nix.pth"], 1, "nix.pth"),
    ("transcribe.py", ["--audio-path", "nix.wav"], 1, "nix.wav"),
    ("transcribe.py", ["--audio-path", "labels.json"], 1, "labels.json"),
    ("transcribe.py", ["--audio-path", "models"], 1, "models: no recordings"),
    ("transcribe.py", ["--audio-path", "u1.wav", "--sample-rate", "8000"], 2, "--sample-rate 8000"),
    ("model.py", ["--model-path", "u1.wav"], 1, "u1.wav"),
]


def run_here(script: str, *args: str) -> int:
    """A script's main in this process, which need not import torch again: its exit status."""
    try:
        return runpy.run_path(str(ROOT / script), run_name="script")["main"](list(args))
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize("script, args, status, named", BAD_USE, ids=str)
def test_bad_use_gets_one_line_that_names_it(corpus, trained, monkeypatch, capsys, script, args, status, named):
    monkeypatch.chdir(corpus)
    assert run_here(script, *args) == status
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and named in printed.err, printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_one_line(corpus, trained, monkeypatch, capsys):
    monkeypatch.chdir(corpus)
    for script in ("train.py", "test.py", "transcribe.py"):
        assert run_here(script, "--cuda") == 1
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1 and "--cuda" in printed.err


def test_a_training_that_diverges_says_so_and_keeps_no_model(corpus, tmp_path):
    done = train(corpus, "--lr", 1e30, "--epochs", 2, "--model-path", tmp_path / "m.pth")
    assert done.returncode == 1 and "lower --lr" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "m.pth").exists()


def test_nothing_left_to_evaluate_is_no_perfect_score(corpus, trained, monkeypatch, capsys):
    monkeypatch.chdir(corpus)
    good = (corpus / "broken.flac").resolve()
    soundfile.write(good, np.random.default_rng(0).normal(0, 0.1, 60000), 16000)
    content = bytearray(good.read_bytes())
    content[40000:60000] = bytes(20000)  # the header and the last frame stay
    good.write_bytes(content)
    (corpus / "broken.csv").write_text("broken.flac,u1.txt\n")
    assert run_here("test.py", "--test-manifest", "broken.csv", "--on-bad-data", "skip", "--num-workers", "0") == 1
    printed = capsys.readouterr()
    assert "broken.csv:1" in printed.err and "no utterance could be evaluated" in printed.err and printed.out == ""


def test_characters_the_model_cannot_write_are_told(corpus, trained, monkeypatch, capsys):
    monkeypatch.chdir(corpus)
    (corpus / "small.txt").write_text("abc\n")
    (corpus / "small.csv").write_text("u1.wav,small.txt\n")
    assert run_here("test.py", "--test-manifest", "small.csv", "--num-workers", "0") == 0
    printed = capsys.readouterr()
    assert "'abc'" in printed.err and "Average WER" in printed.out


def test_a_batch_has_one_size(corpus):
    failed = run("test.py", "--test-manifest", "val.csv", "--batch-seconds", "5", "--batch-size", "20", cwd=corpus)
    assert failed.returncode == 2 and "not allowed with" in failed.stderr
