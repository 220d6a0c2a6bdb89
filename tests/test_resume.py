"""A training that is killed, interrupted or continued otherwise: what it ends with is what it would have ended with."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from beeps import DATA, SMALL, make_corpus, run, start, train
from event_points import read_points
from shared_data import GOLDEN, needs_shared

from asr.checkpoint import load_checkpoint, save_checkpoint
from asr.checkpoint_folder import CheckpointFolder
from asr.continuation import Progress
from data.files import sweep

KILLS = int(os.environ.get("KILLS", 5))  # of the test below; more for a longer proof
# Everything random that a training has, several updates a batch file, and files small enough to be written often.
RANDOM = "--spec-augment --speed-perturb 0.1 --dropout 0.2 --hidden-layers 2 --epochs 3 --grad-accumulation 2".split()
RANDOM += "--train-manifest some.csv --batch-size 4 --window-stride 0.02 --tensorboard --log-params".split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    corpus = make_corpus(tmp_path_factory.mktemp("corpus"))
    lines = (corpus / "train.csv").read_text().splitlines(keepends=True)
    (corpus / "some.csv").write_text("".join(lines[:24]))
    return corpus


def into(folder: Path) -> list[str]:
    return ["--save-folder", str(folder), "--model-path", str(folder / "best.pth"), "--log-dir", str(folder / "graphs")]


def differences(a, b, where="") -> list[str]:
    """Where two nests of plain values and tensors are not the same to the bit."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) and a.dtype == b.dtype else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where} has other keys"]
        return [found for key in a for found in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{where} has another length"]
        return [found for i, pair in enumerate(zip(a, b, strict=True)) for found in differences(*pair, f"{where}/{i}")]
    return [] if a == b else [f"{where}: {a} and {b}"]


def assert_same_ending(a: Path, b: Path, epoch: int = 3) -> None:
    """Weights, optimizer, histories, progress, best model and graphs of two trainings are the same to the bit."""
    for name in (f"deepspeech_{epoch}.pth.tar", "best.pth"):
        ends = [torch.load(folder / name, weights_only=True) for folder in (a, b)]
        found = differences(*ends)
        # A best model of the past knows how many epochs were to come.
        assert not [where for where in found if not where.startswith("/settings/epochs")], name
    assert metrics(a) == metrics(b)
    assert points(a) == points(b)


def metrics(folder: Path) -> list[dict]:
    """metrics.jsonl, without what depends on the clock."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if not key.endswith("_per_second")} for record in records]


def points(folder: Path) -> list[tuple]:
    """What TensorBoard shows, without what depends on the clock, and without the histograms of gradients: a run that is
    continued when all updates of an epoch are made has none for that epoch, since a checkpoint keeps no gradients."""
    shown = read_points(folder / "graphs" / "Deepspeech training")
    return [point for point in shown if "_per_second" not in point[0] and not point[0].startswith("gradients/")]


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = train(corpus, *RANDOM, "--checkpoint", *into(folder), "--num-workers", 2)
    assert done.returncode == 0, done.stderr
    return folder


def wait_for_a_step(process: subprocess.Popen, folder: Path) -> None:
    while process.poll() is None and not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size):
        time.sleep(0.01)


def kill_at(process: subprocess.Popen, moment: str, folder: Path, chance: random.Random) -> bool:
    """Kill a training as nothing can be held against: in a step, in validation, while it writes a file. Whether it was."""
    before = {path.name for path in folder.glob("*")}
    for line in process.stdout:
        if "utterances to train on" in line:
            break
    if moment == "writing":
        # A folder is looked at faster than a file is written, flushed to the disk and renamed.
        while process.poll() is None and not list(folder.glob(f".deepspeech_*.{process.pid}.tmp")):
            pass
    elif moment == "validation":
        for line in process.stdout:
            if line.startswith("Training Summary"):
                break
    else:
        while process.poll() is None and not {path.name for path in folder.glob("deepspeech_*")} - before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.5))
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def test_kill_at_any_moment_changes_nothing(corpus, uninterrupted, tmp_path):
    chance = random.Random(int(os.environ.get("KILL_SEED", 1)))
    kills, starts = [], 0
    while True:
        moment = ("writing", "validation", "step")[len(kills) % 3] if len(kills) < KILLS else ""
        flags = ["--num-workers", chance.choice([0, 1, 2]), "--checkpoint-per-batch", chance.choice([1, 2, 3])]
        flags += ["--continue-from", "latest", "--checkpoint", *into(tmp_path)]
        process = start("train.py", *DATA, *SMALL, *RANDOM, *flags, cwd=corpus)
        starts += 1
        if moment and kill_at(process, moment, tmp_path, chance):
            kills.append(moment)
            continue
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        if len(kills) == KILLS:
            break
        shutil.rmtree(tmp_path)  # it ended before it could be killed: again from the beginning
        tmp_path.mkdir()
    print(f"{len(kills)} kills: {', '.join(kills)}")
    final = load_checkpoint(tmp_path / "deepspeech_3.pth.tar")
    assert set(final.progress["written"]) <= {path.name for path in tmp_path.iterdir()}
    # How often checkpoints were to be written differed from start to start, and that is all that may differ.
    final.progress["written"] = load_checkpoint(uninterrupted / "deepspeech_3.pth.tar").progress["written"]
    save_checkpoint(final, tmp_path / "deepspeech_3.pth.tar")
    assert_same_ending(uninterrupted, tmp_path)
    assert not list(tmp_path.glob(".*")), "what the killed left behind is swept"


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_in_good_order_and_what_is_printed_continues(corpus, uninterrupted, tmp_path, number, status):
    flags = [*DATA, *SMALL, *RANDOM, "--num-workers", 2, "--checkpoint", *into(tmp_path)]
    process = start("train.py", *flags, cwd=corpus)
    waited_for = {signal.SIGINT: "24 utterances", signal.SIGTERM: "Training Summary", signal.SIGHUP: "Best model so far"}
    for line in process.stdout:
        if line.startswith(waited_for[number]):
            break
    wait_for_a_step(process, tmp_path)
    os.killpg(process.pid, number)  # as a terminal or a scheduler does: to every process of the run
    output, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert errors.startswith("finishing the step, then writing a checkpoint") and errors.count("\n") == 1
    command = shlex.split(output.splitlines()[-1])
    done = subprocess.run(command, cwd=corpus, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "not exactly" not in done.stdout
    # The checkpoint written on the way is entered in the list of those that were, unless it has an epoch's own name.
    final = load_checkpoint(tmp_path / "deepspeech_3.pth.tar")
    final.progress["written"] = [name for name in final.progress["written"] if "_iter_" not in name]
    save_checkpoint(final, tmp_path / "deepspeech_3.pth.tar")
    assert_same_ending(uninterrupted, tmp_path)


def test_a_reader_that_is_gone_costs_no_checkpoint(corpus, tmp_path):
    """`train.py 2>&1 | tee log`, where Ctrl-C ends tee too, or a terminal that was closed."""
    process = start("train.py", *DATA, *SMALL, "--num-workers", 0, *into(tmp_path), cwd=corpus)
    wait_for_a_step(process, tmp_path)
    for stream in (process.stdout, process.stderr):
        stream.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    (left,) = tmp_path.glob("deepspeech_*")
    assert load_checkpoint(left).optimizer


def test_data_that_cannot_be_read_after_all_costs_no_update(corpus, tmp_path):
    wave = np.random.default_rng(0).normal(0, 0.1, 30000)
    soundfile.write(corpus / "broken.flac", wave, 16000)
    content = bytearray((corpus / "broken.flac").read_bytes())
    content[20000:30000] = bytes(10000)  # the header and the last frame stay
    (corpus / "broken.flac").write_bytes(content)
    (corpus / "broken.csv").write_text((corpus / "train.csv").read_text() + "broken.flac,u1.txt\n")
    done = train(corpus, "--train-manifest", "broken.csv", "--num-workers", 2, *into(tmp_path))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "broken.csv:65" in done.stderr
    (left,) = tmp_path.glob("deepspeech_*")
    assert f"wrote {left}; to continue:" in done.stdout
    assert load_checkpoint(left).progress["updates"] > 0


def test_an_impatient_second_ctrl_c_ends_at_once(corpus, tmp_path):
    slow = ["--batch-size", 64, "--hidden-size", 700, "--hidden-layers", 3, "--rnn-type", "gru"]
    process = start("train.py", *DATA, *SMALL, *slow, "--num-workers", 0, *into(tmp_path), cwd=corpus)
    for line in process.stdout:
        if line.startswith("64 utterances"):
            break
    while not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(0.5)  # into the only step of the epoch
    os.killpg(process.pid, signal.SIGINT)
    process.stderr.readline()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.strip() == "interrupted"
    assert {path.name for path in tmp_path.iterdir()} <= {"metrics.jsonl"}


def test_continuing_a_finished_training_with_more_epochs(corpus, uninterrupted, tmp_path):
    shorter = [*RANDOM, "--checkpoint", *into(tmp_path), "--num-workers", 0]
    assert train(corpus, *shorter, "--epochs", 2).returncode == 0
    done = train(corpus, *shorter, "--epochs", 2, "--continue-from", "latest")
    assert done.returncode == 0 and "nothing left to train" in done.stdout
    done = train(corpus, *shorter, "--continue-from", "latest")
    assert done.returncode == 0 and "not exactly" not in done.stdout, "--epochs decides nothing in the anneal schedule"
    assert_same_ending(uninterrupted, tmp_path)


OTHERWISE = [
    "--precision bf16 --opt-level O2 --loss-scale dynamic --lr-schedule onecycle --freeze-batch-norm 1",
    "--precision bf16 --opt-level O3 --optimizer sgd --lr 1e-4 --rnn-type lstm --lr-schedule cosine --no-bidirectional",
]


@pytest.mark.parametrize("flags", OTHERWISE)
def test_other_precisions_and_schedules_are_continued_exactly(corpus, tmp_path, flags):
    """From within an epoch, and from the end of its updates, which is where validation would be killed."""
    flags = f"{flags} --train-manifest some.csv --batch-size 4 --window-stride 0.02 --epochs 2 --num-workers 0".split()
    flags += ["--checkpoint", "--checkpoint-per-batch", 2]
    assert train(corpus, *flags, *into(tmp_path / "whole")).returncode == 0
    whole = torch.load(tmp_path / "whole" / "deepspeech_2.pth.tar", weights_only=True)
    for name in ("deepspeech_checkpoint_epoch_1_iter_4.pth", "deepspeech_checkpoint_epoch_2_iter_6.pth"):
        folder = tmp_path / name
        done = train(corpus, *flags, *into(folder), "--continue-from", tmp_path / "whole" / name)
        assert done.returncode == 0 and "not exactly" not in done.stdout, done.stderr
        again = torch.load(folder / "deepspeech_2.pth.tar", weights_only=True)
        for key in ("weights", "optimizer", "loss_scale", "history"):
            assert not differences(whole[key], again[key], key)


def test_twenty_bad_updates_in_a_row_end_the_run(corpus, tmp_path):
    done = train(corpus, "--batch-size", 2, "--lr", 1e30, "--num-workers", 0, *into(tmp_path))
    assert done.returncode == 1 and "20 updates in a row were left out" in done.stderr.splitlines()[-1]
    assert done.stderr.count("update left out: train.csv:") == 20 and "Traceback" not in done.stderr


def test_latest_passes_over_what_is_broken_and_starts_afresh_where_nothing_is(corpus, uninterrupted, tmp_path):
    done = train(corpus, *RANDOM, "--epochs", 1, *into(tmp_path), "--continue-from", "latest")
    assert done.returncode == 0 and "starting afresh" in done.stdout
    for epoch in (1, 2):
        shutil.copy(uninterrupted / f"deepspeech_{epoch}.pth.tar", tmp_path)
    whole = (tmp_path / "deepspeech_2.pth.tar").read_bytes()
    (tmp_path / "deepspeech_2.pth.tar").write_bytes(whole[:1000])
    done = train(corpus, *RANDOM, *into(tmp_path), "--checkpoint", "--continue-from", "latest")
    assert done.returncode == 0 and "deepspeech_2.pth.tar" in done.stderr and "passed over" in done.stderr
    assert f"continuing {tmp_path}/deepspeech_1.pth.tar in epoch 2" in done.stdout


def test_the_latest_is_the_one_that_got_furthest_whatever_the_clock_said(uninterrupted, tmp_path):
    for age, epoch in enumerate((3, 2, 1)):  # as a copy in another order leaves them
        shutil.copy(uninterrupted / f"deepspeech_{epoch}.pth.tar", tmp_path)
        os.utime(tmp_path / f"deepspeech_{epoch}.pth.tar", (1000 + age, 1000 + age))
    folder = CheckpointFolder(tmp_path)
    assert Path(folder.latest().path).name == "deepspeech_3.pth.tar"
    other = load_checkpoint(tmp_path / "deepspeech_3.pth.tar")
    other.history[0]["wer"] = 99.0  # another run's, which got further
    save_checkpoint(other, tmp_path / "deepspeech_3.pth.tar")
    os.utime(tmp_path / "deepspeech_3.pth.tar", (1000, 1000))
    assert Path(folder.latest().path).name == "deepspeech_2.pth.tar"
    (tmp_path / "deepspeech_9.pth.tar").mkdir()
    (tmp_path / "deepspeech_8.pth.tar").symlink_to(tmp_path / "nowhere")
    assert Path(folder.latest().path).name == "deepspeech_2.pth.tar"


def test_a_file_that_names_others_to_be_removed_is_not_believed(uninterrupted):
    checkpoint = load_checkpoint(uninterrupted / "deepspeech_3.pth.tar")
    checkpoint.progress["written"] = ["../id_rsa", "/etc/passwd", "deepspeech_1.pth.tar"]
    assert Progress.of(checkpoint).written == ["deepspeech_1.pth.tar"]
    for name, value in (
        ("position", {"epoch": "a"}),
        ("position", 5),
        ("written", 5),
        ("new_field", 1),
        ("updates", -1),
        ("best", None),
    ):
        checkpoint = load_checkpoint(uninterrupted / "deepspeech_3.pth.tar")
        checkpoint.progress[name] = value
        with pytest.raises(ValueError, match=r"deepspeech_3\.pth\.tar: where its training stood"):
            Progress.of(checkpoint)


def test_only_the_newest_checkpoints_are_kept(corpus, tmp_path):
    (tmp_path / "deepspeech_77.pth.tar").write_text("another run's")
    flags = ["--epochs", 2, "--checkpoint", "--checkpoint-per-batch", 3, *into(tmp_path)]
    assert train(corpus, *flags, "--keep-checkpoints", 2).returncode == 0
    left = {path.name for path in tmp_path.glob("deepspeech_*")}
    assert left == {"deepspeech_77.pth.tar", "deepspeech_checkpoint_epoch_2_iter_6.pth", "deepspeech_2.pth.tar"}
    newest = load_checkpoint(tmp_path / "deepspeech_2.pth.tar")
    assert set(newest.progress["written"][-2:]) == left - {"deepspeech_77.pth.tar"}
    # In another folder, files of these names are another run's; and so may be the best model.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "deepspeech_checkpoint_epoch_2_iter_6.pth").write_text("another run's")
    flags = ["--epochs", 3, "--checkpoint", "--keep-checkpoints", 1, "--lr", 1e-9, *into(elsewhere)]
    done = train(corpus, *flags, "--continue-from", tmp_path / "deepspeech_2.pth.tar")
    assert done.returncode == 0 and f"{elsewhere / 'best.pth'} is not there" in done.stdout
    names = {path.name for path in elsewhere.glob("*.p*")}
    assert names == {"best.pth", "deepspeech_3.pth.tar", "deepspeech_checkpoint_epoch_2_iter_6.pth"}


def test_another_batch_size_goes_on_at_the_same_utterance_and_says_so(corpus, tmp_path):
    flags = ["--epochs", 2, "--checkpoint-per-batch", 3, "--checkpoint", *into(tmp_path)]
    assert train(corpus, *flags).returncode == 0
    middle = tmp_path / "deepspeech_checkpoint_epoch_2_iter_3.pth"
    done = train(corpus, *flags, "--continue-from", middle, "--batch-size", 5, "--lr", 0.002)
    assert done.returncode == 0, done.stderr
    assert "24 utterances of it done" in done.stdout
    (note,) = re.findall(r"^not exactly as it would have gone on: (.*)$", done.stdout, re.MULTILINE)
    assert "--batch-size 5 (was 8)" in note and "--lr 0.002 (was 0.01)" in note and note.count("was") == 2
    assert load_checkpoint(tmp_path / "deepspeech_2.pth.tar").progress["updates"] == 8 + 3 + 8, "40 utterances, 5 by 5"


CONTRADICTIONS = [
    (["--hidden-size", 64], 2, "--hidden-size"),
    (["--no-bidirectional"], 2, "--no-bidirectional"),
    (["--window", "hann"], 2, "--window"),
    (["--optimizer", "sgd"], 2, "--optimizer sgd"),
    (["--labels-path", "other.json"], 2, "--labels-path"),
    (["--continue-from", "nix.pth"], 1, "nix.pth"),
    (["--continue-from", "labels.json"], 1, "labels.json"),
    (["--continue-from", "BEST"], 1, "holds no state of an optimizer"),
    (["--continue-from", "", "--finetune"], 2, "--finetune"),
]


@pytest.mark.parametrize("flags, status, named", CONTRADICTIONS, ids=str)
def test_what_contradicts_the_checkpoint_is_one_line(corpus, uninterrupted, tmp_path, flags, status, named):
    (corpus / "other.json").write_text('["_", "A", "B", "D", " "]')
    base = [*DATA, "--optimizer", "adamw", "--num-workers", 0, "--continue-from", uninterrupted / "deepspeech_3.pth.tar"]
    flags = [uninterrupted / "best.pth" if flag == "BEST" else flag for flag in flags]
    done = run("train.py", *base, *into(tmp_path), *flags, cwd=corpus)
    assert done.returncode == status
    assert done.stderr.count("\n") == 1 and named in done.stderr, done.stderr


def test_finetuning_onto_other_labels_keeps_what_fits_and_says_what_not(corpus, uninterrupted, tmp_path):
    (corpus / "more.json").write_text('["_", "X", "A", "B", "C", " "]')
    flags = ["--finetune", "--continue-from", uninterrupted / "deepspeech_3.pth.tar", "--labels-path", "more.json"]
    done = run("train.py", *DATA, *flags, "--epochs", 1, "--lr", 1e-9, "--num-workers", 0, *into(tmp_path), cwd=corpus)
    assert done.returncode == 0, done.stderr
    (line,) = re.findall(r"^finetuning .*$", done.stdout, re.MULTILINE)
    assert "X" in line.partition("started")[2]
    new = load_checkpoint(tmp_path / "best.pth")
    assert new.labels.symbols == ("_", "X", "A", "B", "C", " ") and new.epoch == 1 and len(new.history) == 1
    last = load_checkpoint(uninterrupted / "deepspeech_3.pth.tar")
    torch.testing.assert_close(new.weights["head.weight"][2:], last.weights["head.weight"][1:])
    torch.testing.assert_close(new.weights["rnns.1.forward_rnn.weight_hh_l0"], last.weights["rnns.1.forward_rnn.weight_hh_l0"])
    assert "Training Summary Epoch: [1]" in done.stdout


@needs_shared
@pytest.mark.parametrize("name", ["deepspeech_2.pth.tar", "deepspeech_checkpoint_epoch_2_iter_4.pth"])
def test_a_training_of_the_predecessor_goes_on_with_its_momentum(corpus, tmp_path, name):
    """Golden files know 29 labels, which the beeps' three are among."""
    source = GOLDEN / "bigru_64x3" / name
    finished = 2 if name == "deepspeech_2.pth.tar" else 1
    flags = ["--train-manifest", "train.csv", "--val-manifest", "val.csv", "--num-workers", 0, "--checkpoint"]
    flags += ["--lr", 1e-12, "--max-norm", 1e-12, "--weight-decay", 0]  # nothing but the old momentum moves
    done = run("train.py", *flags, *into(tmp_path), "--continue-from", source, "--epochs", finished + 1, cwd=corpus)
    assert done.returncode == 0, done.stderr
    assert f"in epoch {finished + 1}" in done.stdout
    assert ("begun anew" in done.stdout) == (finished == 1)
    old, new = load_checkpoint(source), load_checkpoint(tmp_path / f"deepspeech_{finished + 1}.pth.tar")
    assert new.epoch == finished + 1 and new.history[:finished] == old.history
    torch.testing.assert_close(new.weights["head.weight"], old.weights["head.weight"])
    assert new.progress["updates"] == 4
    for number, state in old.optimizer["state"].items():
        kept = 0.9**4 * state["momentum_buffer"]
        torch.testing.assert_close(new.optimizer["state"][number]["momentum_buffer"], kept, rtol=1e-4, atol=1e-9)
    assert new.optimizer["param_groups"][0]["lr"] == pytest.approx(1e-12 / 1.1**finished)


@needs_shared
@pytest.mark.parametrize("file", ["v12_bigru_64x2/deepspeech_2.pth", "bigru_64x3/v3_style.ckpt"])
def test_every_release_can_be_finetuned_and_what_cannot_go_on_says_so(corpus, tmp_path, file):
    flags = ["--train-manifest", "train.csv", "--val-manifest", "val.csv", "--num-workers", 0, "--epochs", 1]
    flags += ["--continue-from", GOLDEN / file, *into(tmp_path)]
    done = run("train.py", *flags, "--finetune", cwd=corpus)
    assert done.returncode == 0, done.stderr
    assert f"finetuning {GOLDEN / file}: kept convolution 1" in done.stdout
    if "v12" in file:
        done = run("train.py", *flags, cwd=corpus)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "release 1.x" in done.stderr


def test_only_what_the_dead_left_behind_is_swept(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    mine, dead = tmp_path / f".a.{os.getppid()}.tmp", tmp_path / f".b.pth.{child.pid}.tmp"
    for path in (mine, dead, tmp_path / ".c.tmp", tmp_path / "d.1.tmp"):
        path.touch()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, ".c.tmp", "d.1.tmp"}
