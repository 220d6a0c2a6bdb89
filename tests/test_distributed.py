"""Several processes train one model: the same updates, the same scores, together to the end."""

import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from beeps import DATA, SMALL, make_corpus, run, start, train
from shared_data import GOLDEN, needs_shared

from asr.checkpoint import load_checkpoint

SLOWLY = "--optimizer sgd --lr 1e-5 --sync-bn --num-workers 0 --epochs 1 --checkpoint".split()  # so that rounding stays small


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def into(folder: Path) -> list[str]:
    return ["--save-folder", str(folder), "--model-path", str(folder / "best.pth")]


def launch(corpus: Path, processes: int, *args, launcher_flags=(), **kwargs):
    """train.py as several processes; their logs go beside the checkpoints."""
    folder = args[args.index("--save-folder") + 1]
    flags = ["--nproc", processes, "--rank-logs", Path(folder) / "logs", *launcher_flags]
    return run("multiproc.py", *flags, "train.py", *DATA, *SMALL, *args, cwd=corpus, **kwargs)


@pytest.fixture(scope="module", autouse=True)
def scripts(corpus):
    """train.py as it is typed, in the current folder."""
    root = Path(__file__).resolve().parents[1]
    (corpus / "train.py").write_text(f"import sys\nsys.path[0] = {str(root)!r}\nimport train\nraise SystemExit(train.main())\n")


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "step"]


def scores(output: str) -> list[str]:
    return re.findall(r"^Validation Summary.*\tAverage WER ([\d.]+)\tAverage CER ([\d.]+)$", output, re.MULTILINE)


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """A model that knows something, and one epoch from there in a single process with batches of 12."""
    start_from, folder = tmp_path_factory.mktemp("start"), tmp_path_factory.mktemp("alone")
    done = train(corpus, "--epochs", 6, "--lr-schedule", "onecycle", *into(start_from))
    assert done.returncode == 0, done.stderr
    flags = [*SLOWLY, "--spec-augment", "--finetune", "--continue-from", start_from / "best.pth"]
    done = train(corpus, *flags, "--batch-size", 12, *into(folder))
    assert done.returncode == 0, done.stderr
    return flags, folder, done.stdout


@pytest.mark.parametrize("processes", [2, 3])
def test_with_batch_norm_synchronised_several_processes_are_one_with_a_larger_batch(corpus, alone, tmp_path, processes):
    """64 utterances are five batches of 12 and one of 4: with three processes, the last shares are of 2, 1 and 1."""
    flags, folder, output = alone
    done = launch(corpus, processes, *flags, "--batch-size", 12 // processes, *into(tmp_path))
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path) == pytest.approx(losses(folder), rel=1e-4)
    assert scores(done.stdout) == scores(output) != [], "the same errors, whoever counts them"
    together, single = (load_checkpoint(path / "deepspeech_1.pth.tar").weights for path in (tmp_path, folder))
    for name, weight in single.items():
        torch.testing.assert_close(together[name], weight, rtol=1e-3, atol=1e-5, msg=name)


def test_rank_0_tells_and_the_others_log(corpus, alone, tmp_path):
    done = launch(corpus, 2, *alone[0], *into(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Training Summary") == done.stdout.count("Validation Summary") == 1
    (log,) = (tmp_path / "logs").rglob("*.log")
    assert "[rank 1] Training Summary" in log.read_text() and "Validation Summary" not in log.read_text()


def test_fewer_utterances_than_processes(corpus, tmp_path):
    """A process whose share of a batch is empty takes part in the update all the same."""
    lines = (corpus / "train.csv").read_text().splitlines(keepends=True)
    (corpus / "five.csv").write_text("".join(lines[:5]))
    (corpus / "one.csv").write_text(lines[64 - 1])
    flags = ["--train-manifest", "five.csv", "--val-manifest", "one.csv", "--batch-size", 2, "--epochs", 2, "--num-workers", 0]
    ends = []
    for synchronised in ([], ["--sync-bn"]):
        folder = tmp_path / f"sync{len(synchronised)}"
        done = launch(corpus, 2, *flags, *synchronised, *into(folder))
        assert done.returncode == 0, done.stderr
        ends.append(len(losses(folder)))
    assert ends == [4, 4]


@needs_shared
@pytest.mark.parametrize("synchronised", [[], ["--sync-bn"]], ids=str)
def test_an_empty_share_with_the_batch_norm_of_the_predecessor(corpus, tmp_path, synchronised):
    """It counts every position, and a batch without any would be an error, or count for something."""
    lines = (corpus / "train.csv").read_text().splitlines(keepends=True)
    (corpus / "single.csv").write_text(lines[0])
    flags = ["--train-manifest", "single.csv", "--val-manifest", "single.csv", "--num-workers", 0, "--epochs", 5]
    flags += ["--continue-from", GOLDEN / "bigru_64x3" / "deepspeech_2.pth.tar", *synchronised, "--no-shuffle", "--lr", 1e-5]
    place = ["--nproc", 2, "--rank-logs", tmp_path / "logs"]
    done = run("multiproc.py", *place, "train.py", *flags, "--batch-size", 1, *into(tmp_path / "two"), cwd=corpus)
    assert done.returncode == 0, done.stderr
    done = run("train.py", *flags, "--batch-size", 2, *into(tmp_path / "one"), cwd=corpus)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert len(losses(tmp_path / "two")) == 3


def test_processes_that_would_not_train_the_same_are_told_so(corpus, tmp_path):
    """Two machines with manifests of their own, one of them old."""
    lines = (corpus / "train.csv").read_text().splitlines(keepends=True)
    (corpus / "old.csv").write_text("".join(lines[:40]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = ["--dist-url", f"tcp://127.0.0.1:{probe.getsockname()[1]}", "--world-size", 2, "--num-workers", 0]
    processes = [
        start("train.py", *DATA, *SMALL, *place, *into(tmp_path), "--rank", rank, *flags, cwd=corpus)
        for rank, flags in enumerate(([], ["--train-manifest", "old.csv"]))
    ]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "--train-manifest: rank 1 has 40 utterances" in errors and "rank 0 has 64 utterances" in errors


def test_a_restarted_group_continues_by_itself_and_exactly(corpus, tmp_path):
    """A rank is killed; the group starts again, and ends with the weights of a group that never was killed."""
    flags = "--epochs 3 --dropout 0.2 --hidden-layers 2 --spec-augment --checkpoint --checkpoint-per-batch 2".split()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = launch(corpus, 2, *flags, "--num-workers", 0, "--batch-size", 4, *into(whole))
    assert done.returncode == 0, done.stderr
    command = ["--nproc", 2, "--max-restarts", 1, "--rank-logs", killed / "logs", "train.py", *DATA, *SMALL, *flags]
    process = start("multiproc.py", *command, "--num-workers", 0, "--batch-size", 4, *into(killed), cwd=corpus)
    while process.poll() is None and not (killed / "deepspeech_checkpoint_epoch_1_iter_4.pth").exists():
        time.sleep(0.01)
    os.kill(rank_process(process.pid, 1), signal.SIGKILL)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "continuing" in output and "not exactly" not in output
    ends = [load_checkpoint(folder / "deepspeech_3.pth.tar") for folder in (whole, killed)]
    assert all(torch.equal(ends[0].weights[name], ends[1].weights[name]) for name in ends[0].weights)
    assert ends[0].history == ends[1].history and losses(whole) == losses(killed)


def rank_process(launcher: int, rank: int) -> int:
    """The process of a launcher that is a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"\0RANK={rank}\0".encode() in b"\0" + (folder / "environ").read_bytes():
                return int(folder.name)
        except (OSError, ValueError):
            continue
    raise AssertionError(f"no process of rank {rank}")


def test_a_signal_to_the_launcher_ends_in_good_order_and_one_process_may_go_on(corpus, tmp_path):
    flags = [*DATA, *SMALL, "--epochs", 2, "--num-workers", 0, *into(tmp_path)]
    process = start("multiproc.py", "--nproc", 2, "--rank-logs", tmp_path / "logs", "train.py", *flags, cwd=corpus)
    while process.poll() is None and not ((tmp_path / "metrics.jsonl").exists() and losses(tmp_path)):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    (checkpoint,) = tmp_path.glob("deepspeech_checkpoint_*.pth")
    assert f"wrote {checkpoint}; to continue:" in output
    done = run("train.py", *flags, "--continue-from", checkpoint, cwd=corpus)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^not exactly as it would have gone on: .*processes 1 \(was 2\)", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("how", ["by hand", "torchrun"])
def test_processes_started_otherwise(corpus, alone, tmp_path, how):
    flags, folder, _ = alone
    flags = [*DATA, *SMALL, *flags, "--batch-size", 6, *into(tmp_path)]
    if how == "by hand":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        place = ["--dist-url", f"tcp://127.0.0.1:{port}", "--world-size", 2, "--rank"]
        processes = [start("train.py", *flags, *place, rank, cwd=corpus) for rank in range(2)]
    else:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
        processes = [start("multiproc.py", cwd=corpus, command=[sys.executable, *torchrun, *map(str, flags)])]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert losses(tmp_path) == pytest.approx(losses(folder), rel=1e-4)


ONE_BAD_RANK = """
import sys
sys.path[0] = {root!r}
import argparse, os, torch
from asr.runtime import Precision, joined
from asr.training import Learner, train_step
from config import ModelConfig, OptimizerConfig
from data.dataset import Batch
from model import DeepSpeech

args = argparse.Namespace(cuda=False, dist_backend=None, gpu_rank=None)
with joined(args, Precision()) as runtime:
    torch.manual_seed(0)
    model = DeepSpeech(ModelConfig(num_labels=5, freq_bins=33, hidden_size=8, hidden_layers=1)).train()
    learner = Learner(model, OptimizerConfig(lr=0.1), runtime)
    def batch(value):
        lens, target_lens = torch.full((2,), 40), torch.full((2,), 3)
        targets = torch.ones(6, dtype=torch.int64)
        return Batch(torch.randn(2, 1, 33, 40) * value, lens, targets, target_lens, torch.arange(2))
    for step, bad in enumerate(["", "nan", "inf", ""]):
        value = float(bad or 1) if runtime.rank == 1 else 1.0
        result = train_step(learner, [batch(value)])
        found = runtime.gather((result.skipped, len(result.culprits), sum(w.double().sum().item() for w in learner.parameters)))
        assert found[0][0] == found[1][0] == bool(bad), found
        assert not bad or (found[0][1], found[1][1]) == (0, 2), found
        assert found[0][2] == found[1][2], "the ranks parted ways"
        assert all(torch.isfinite(b).all() for b in learner.model.buffers())
print("together")
"""


def test_a_loss_that_is_bad_in_one_process_is_left_out_in_all(tmp_path):
    root = str(Path(__file__).resolve().parents[1])
    (tmp_path / "script.py").write_text(ONE_BAD_RANK.format(root=root))
    done = run("multiproc.py", "--nproc", 2, "script.py", cwd=tmp_path)
    assert done.returncode == 0 and "together" in done.stdout, done.stderr


WRONG = [
    (["--world-size", "2", "--rank", "2"], 2, "--rank 2"),
    (["--dist-backend", "nccl", "--world-size", "2"], 2, "--dist-backend nccl"),
    (["--dist-url", "nonsense", "--world-size", "2"], 1, "--dist-url nonsense"),
]


@pytest.mark.parametrize("flags, status, named", WRONG, ids=str)
def test_wrong_places_are_one_line(corpus, flags, status, named):
    done = train(corpus, *flags)
    assert done.returncode == status and done.stderr.count("\n") == 1 and named in done.stderr, done.stderr
