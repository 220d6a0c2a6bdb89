"""What a run tells, read back from the files, by a reader of event files that shares no code with their writer."""

import argparse
import io
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from event_points import read_points
from torch import nn

from asr import loggers, options
from asr.loggers import Example, RunLog, draw
from data.command_line import UsageError, argument_parser

EPOCHS, STEPS = 2, 3
RUN = "Deepspeech training"


def flags(*typed: object) -> argparse.Namespace:
    parser = argument_parser("test")
    options.add_graph_options(parser)
    return parser.parse_args(list(map(str, typed)))


def with_tensorboard(folder: Path, *typed: object) -> argparse.Namespace:
    return flags("--tensorboard", "--log-dir", folder / "graphs", *typed)


def step_record(step: int) -> dict:
    loss = float("nan") if step == 2 else 30.0 / step
    return {
        "epoch": (step - 1) // STEPS + 1,
        "step": step,
        "loss": loss,
        "lr": 3e-4,
        "grad_norm": 1e39 if step == 4 else 0.1 * step,
    }


def epoch_record(epoch: int) -> dict:
    return {"epoch": epoch, "step": epoch * STEPS, "loss": 20.0 / epoch, "wer": 90.0 / epoch, "cer": 33.3 / epoch}


def example(epoch: int = 1) -> Example:
    spect = torch.linspace(-1, 1, 20 * 32).reshape(20, 32)
    return Example("ONE TWO", f"ONE TO{epoch}", spect, ["_", "O", "O", "_", "N", "E", " ", "_", *"TWO", *"_____"])


def tell(log: RunLog, first: int, last: int, model: nn.Module | None = None) -> None:
    """What a training tells of its updates from `first` to `last`, and of the epochs that end among them."""
    for step in range(first, last + 1):
        log.step(step_record(step))
        if step % STEPS == 0:
            log.epoch(epoch_record(step // STEPS), [example(step // STEPS)], model)


def read_metrics(folder: Path) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curve(points: list[tuple[str, int, object]], tag: str) -> dict[int, object]:
    found = [(step, value) for name, step, value in points if name == tag]
    assert len(found) == len(dict(found)), f"{tag}: a double point"
    return dict(found)


def test_the_contracts_flags_and_defaults():
    args = flags()
    assert (args.tensorboard, args.visdom, args.log_params) == (False, False, False)
    assert (args.log_dir, args.id) == ("visualize/deepspeech_final", "Deepspeech training")
    assert flags("--logdir", "x").log_dir == flags("--log-dir", "x").log_dir == "x"


def test_metrics_are_json_line_by_line(tmp_path):
    log = RunLog.open(flags(), tmp_path, epoch=0, step=0)
    log.step({"epoch": 1, "step": 1, "loss": float("nan"), "grad_norm": float("inf"), "skipped": 1})
    assert read_metrics(tmp_path) == [{"kind": "step", "epoch": 1, "step": 1, "loss": None, "grad_norm": None, "skipped": 1}], (
        "a line is there as soon as it is told"
    )
    log.epoch({"epoch": 1, "step": 1, "loss": 2.5, "wer": 50.0, "cer": 25.0}, [example()], None)
    log.close()
    last = read_metrics(tmp_path)[-1]
    assert last["kind"] == "epoch" and last["wer"] == 50.0
    assert last["examples"] == [{"reference": "ONE TWO", "hypothesis": "ONE TO1"}]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"], "no graph that was not asked for"


def test_event_files_hold_curves_texts_images_and_histograms(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0](torch.ones(3)).sum().backward()  # the second layer has no gradient
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
        model[1].bias.fill_(float("inf"))
    log = RunLog.open(with_tensorboard(tmp_path, "--log-params"), tmp_path, epoch=0, step=0)
    tell(log, 1, EPOCHS * STEPS, model)
    log.close()
    points = read_points(tmp_path / "graphs" / RUN)
    assert curve(points, "step/loss") == pytest.approx({step: 30 / step for step in (1, 3, 4, 5, 6)})  # 2: not a number
    assert set(curve(points, "step/grad_norm")) == {1, 2, 3, 5, 6}, "1e39 is infinite to a float32"
    assert curve(points, "step/lr") == pytest.approx(dict.fromkeys(range(1, 7), 3e-4))
    assert curve(points, "epoch/wer") == {1: 90.0, 2: 45.0} and curve(points, "epoch/loss") == {1: 20.0, 2: 10.0}
    assert set(curve(points, "epoch/cer")) == {1, 2}
    texts = curve(points, "examples/text_summary")
    assert b"ONE TWO" in texts[2] and b"ONE TO1" in texts[1] and b"ONE TO2" in texts[2]
    assert all(b"\x89PNG" in image for image in curve(points, "examples/1").values())
    histograms = {tag for tag, _, _ in points if tag.startswith(("parameters/", "gradients/"))}
    names = {"parameters/0.weight", "parameters/0.bias", "parameters/1.weight", "gradients/0.weight", "gradients/0.bias"}
    assert histograms == names, "what is there and finite"
    assert not {"step/step", "step/epoch", "epoch/step", "epoch/epoch"} & {tag for tag, _, _ in points}


def test_a_fresh_run_leaves_an_earlier_one_as_it_is(tmp_path, capsys):
    for expected in (1, 2, 3):
        log = RunLog.open(with_tensorboard(tmp_path), tmp_path, epoch=0, step=0)
        tell(log, 1, expected)
        log.close()
    assert "metrics.jsonl is of another run: now" in capsys.readouterr().out
    counts = {path.name: len(path.read_text().splitlines()) for path in tmp_path.glob("*.jsonl")}
    assert counts == {"metrics.1.jsonl": 1, "metrics.2.jsonl": 2, "metrics.jsonl": 4}
    graphs = tmp_path / "graphs"
    updates = {folder.name: list(curve(read_points(folder), "step/lr")) for folder in graphs.iterdir()}
    assert updates == {f"{RUN}.1": [1], f"{RUN}.2": [1, 2], RUN: [1, 2, 3]}
    other = RunLog.open(with_tensorboard(tmp_path, "--id", "v1.5/a"), tmp_path / "other", epoch=0, step=0)
    other.close()
    assert (graphs / "v1.5_a").is_dir() and len(list(graphs.iterdir())) == 4, "another name is another run beside it"


def reference_run(folder: Path) -> tuple[list[dict], list]:
    log = RunLog.open(with_tensorboard(folder), folder, epoch=0, step=0)
    tell(log, 1, EPOCHS * STEPS)
    log.close()
    return read_metrics(folder), read_points(folder / "graphs" / RUN)


def test_continuing_drops_what_the_checkpoint_does_not_know(tmp_path):
    expected = reference_run(tmp_path / "whole")
    for epoch, step in ((1, 3), (1, 5), (0, 2), (0, 3), (2, 6)):  # the checkpoints of epochs, and some between them
        folder = tmp_path / f"{epoch}-{step}"
        reference_run(folder)
        log = RunLog.open(with_tensorboard(folder), folder, epoch=epoch, step=step)
        known = read_points(folder / "graphs" / RUN)
        assert list(curve(known, "step/lr")) == list(range(1, step + 1))
        assert list(curve(known, "epoch/wer")) == list(curve(known, "examples/1")) == list(range(1, epoch + 1))
        if (epoch, step) == (0, 3):  # killed between the last update of an epoch and its validation
            log.epoch(epoch_record(1), [example(1)], None)
        tell(log, step + 1, EPOCHS * STEPS)
        log.close()
        assert (read_metrics(folder), read_points(folder / "graphs" / RUN)) == expected
        assert len(list((folder / "graphs").rglob("*tfevents*"))) == 1


def test_an_entry_cut_anywhere_is_dropped(tmp_path):
    log = RunLog.open(with_tensorboard(tmp_path), tmp_path, epoch=0, step=0)
    log.step(step_record(1))
    events = next((tmp_path / "graphs" / RUN).iterdir())
    metrics = tmp_path / "metrics.jsonl"
    before = [path.read_bytes() for path in (metrics, events)]
    log.step(step_record(3))
    log.close()
    after = [path.read_bytes() for path in (metrics, events)]
    for length in range(max(map(len, after))):
        for path, short, long in zip((metrics, events), before, after, strict=True):
            path.write_bytes(long[: max(len(short), min(length, len(long) - 1))])
        RunLog.open(with_tensorboard(tmp_path), tmp_path, epoch=0, step=1).close()
        events = next((tmp_path / "graphs" / RUN).iterdir())
        assert [line["step"] for line in read_metrics(tmp_path)] == [1]
        assert curve(read_points(events.parent), "step/loss") == {1: 30.0}


def test_a_run_that_got_its_graphs_late_has_whole_curves(tmp_path):
    for first, last, asked in ((1, 1, False), (2, 3, True), (4, 4, False), (5, 6, True)):
        args = with_tensorboard(tmp_path) if asked else flags()
        log = RunLog.open(args, tmp_path, epoch=(first - 1) // STEPS, step=first - 1)
        tell(log, first, last)
        log.close()
    points = read_points(tmp_path / "graphs" / RUN)
    assert list(curve(points, "step/lr")) == [1, 2, 3, 4, 5, 6] and list(curve(points, "epoch/wer")) == [1, 2]


def test_event_files_of_another_run_are_not_taken_for_ones_own(tmp_path, capsys):
    """Two runs share --log-dir and --id; the first is continued after the second has taken the place."""
    for folder, loss in ((tmp_path / "a", 1.0), (tmp_path / "b", 2.0)):
        log = RunLog.open(with_tensorboard(tmp_path), folder, epoch=0, step=0)
        for step in (1, 2, 3):
            log.step({"epoch": 1, "step": step, "loss": loss})
        log.close()
    log = RunLog.open(with_tensorboard(tmp_path), tmp_path / "a", epoch=0, step=2)
    log.step({"epoch": 1, "step": 3, "loss": 1.0})
    log.close()
    graphs = tmp_path / "graphs"
    losses = {folder.name: list(curve(read_points(folder), "step/loss").values()) for folder in graphs.iterdir()}
    assert losses == {f"{RUN}.1": [1.0] * 3, f"{RUN}.2": [2.0] * 3, RUN: [1.0] * 3}
    assert "is of another run" in capsys.readouterr().out


def test_a_run_continued_in_another_folder_takes_its_metrics_along(tmp_path, capsys):
    expected, _ = reference_run(tmp_path / "old")
    reference_run(tmp_path / "new")
    history = tmp_path / "old" / "metrics.jsonl"
    log = RunLog.open(flags(), tmp_path / "new", epoch=1, step=4, history=history)
    tell(log, 5, 6)
    log.close()
    assert read_metrics(tmp_path / "new") == read_metrics(tmp_path / "old") == expected
    assert (tmp_path / "new" / "metrics.1.jsonl").exists(), "what was in the way is kept"
    RunLog.open(flags(), tmp_path / "old", epoch=1, step=9, history=history).close()
    assert "metrics.jsonl ends at update 6, the checkpoint at 9: the curves have a gap" in capsys.readouterr().err


class Killed(io.FileIO):
    """A file whose process dies in the middle of a write, if it is told to die then."""

    countdown = 0

    def write(self, data) -> int:
        if Killed.countdown == 1:
            super().write(data[: len(data) // 2])
        die_when_due()
        return super().write(data)


def die_when_due() -> None:
    Killed.countdown -= 1
    if Killed.countdown == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(folder: Path, moment: int) -> int:
    """A training that tells of its updates and writes a checkpoint after every second one, in a process of its own.

    It gets kill -9 at the given moment: before its n-th write, rename, or wait for the disk; 0: never.
    Returns: how many moments there were, if it lived.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process that has threads: none of them is needed
        child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) == bool(moment), f"status {status}"
        return 0 if moment else int((folder / "moments").read_text())
    try:
        sys.stdout = sys.stderr = io.StringIO()
        Killed.countdown = moment
        io.FileIO = Killed
        for name in ("replace", "rename", "unlink", "fsync"):
            setattr(os, name, dying(getattr(os, name)))
        checkpoint = folder / "checkpoint"
        epoch, done = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, 0)
        log = RunLog.open(with_tensorboard(folder), folder, epoch=epoch, step=done)
        for step in range(done + 1, EPOCHS * STEPS + 1):
            tell(log, step, step)
            if step % 2 == 0:
                log.flush()
                (folder / "new").write_text(json.dumps([step // STEPS, step]))
                (folder / "new").rename(checkpoint)
        log.close()
        (folder / "moments").write_text(str(-Killed.countdown))
        os._exit(0)
    finally:
        os._exit(1)


def dying(function):
    def call(*args, **kwargs):
        die_when_due()
        return function(*args, **kwargs)

    return call


@pytest.fixture
def quick_drawing(monkeypatch):
    image = draw(example())
    monkeypatch.setattr(loggers, "draw", lambda _: image)


def test_killed_at_any_moment_and_continued_the_graphs_are_those_of_a_run_never_interrupted(tmp_path, quick_drawing):
    whole = tmp_path / "whole"
    whole.mkdir()
    moments = train_until_killed(whole, 0)
    expected = read_metrics(whole), read_points(whole / "graphs" / RUN)
    assert moments >= 40 and len(expected[0]) == EPOCHS * (STEPS + 1)
    for moment in range(1, moments + 1):
        folder = tmp_path / str(moment)
        folder.mkdir()
        train_until_killed(folder, moment)
        continued = (folder / "checkpoint").exists()
        if continued:
            train_until_killed(folder, 1 + moment % 9)  # killed once more, where the files are cut back
            seen = read_points(folder / "graphs" / RUN, whole=False)
            assert seen == expected[1][: len(seen)], "whoever looks now sees no gap and no double point"
        train_until_killed(folder, 0)
        assert (read_metrics(folder), read_points(folder / "graphs" / RUN)) == expected, f"killed at moment {moment}"
        if continued:
            assert len(list((folder / "graphs").rglob("*tfevents*"))) == 1
            assert len(list(folder.glob("*.jsonl"))) == 1


def test_killed_from_outside_while_it_writes(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            log = RunLog.open(with_tensorboard(tmp_path), tmp_path, epoch=0, step=0)
            for step in range(1, 10**6):
                log.step({"epoch": 1, "step": step, "loss": 1.0 / step})
        finally:
            os._exit(1)
    metrics = tmp_path / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 300:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    log = RunLog.open(with_tensorboard(tmp_path), tmp_path, epoch=0, step=250)
    for step in range(251, 401):
        log.step({"epoch": 1, "step": step, "loss": 1.0 / step})
    log.close()
    expected = {step: pytest.approx(1.0 / step) for step in range(1, 401)}
    assert {line["step"]: line["loss"] for line in read_metrics(tmp_path)} == expected
    assert curve(read_points(tmp_path / "graphs" / RUN), "step/loss") == expected


@pytest.mark.parametrize(
    ("typed", "error"),
    [
        (["--log-params"], "--log-params: .*add --tensorboard"),
        (["--id", ""], "--id '': expected a name"),
        (["--id", ".."], r"--id '\.\.': expected a name"),
    ],
)
def test_flags_that_cannot_be_meant(tmp_path, typed, error):
    with pytest.raises(UsageError, match=error):
        RunLog.open(flags(*typed), tmp_path, epoch=0, step=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "package", "file"),
    [
        ("--tensorboard", "tensorboardX", "requirements-graphs.txt"),
        ("--tensorboard", "matplotlib", "requirements-graphs.txt"),
        ("--visdom", "visdom", "requirements-visdom.txt"),
    ],
)
def test_a_missing_package_is_told_with_how_to_get_it(tmp_path, monkeypatch, flag, package, file):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"{flag} needs {package} .*: pip install -r {file}"):
        RunLog.open(flags(flag), tmp_path, epoch=0, step=0)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    log = RunLog.open(flags(), tmp_path, epoch=0, step=0)
    log._metrics._file.close()
    monkeypatch.setattr(log._metrics, "_file", io.FileIO("/dev/full", "w"))
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        log.step(step_record(1))
    log._metrics.close()


def test_the_picture_shows_spectrogram_and_path():
    spect = torch.zeros(161, 300)
    spect[40:80, 100:200] = 3.0
    silent = draw(Example("A", "", spect, ["_"] * 150))
    assert silent.dtype == np.uint8 and silent.ndim == 3 and silent.shape[2] == 3
    assert silent.shape[1] > 300, "each frame has its pixels"
    spoken = draw(Example("A", "", spect, ["_"] * 75 + ["A"] * 2 + ["_"] * 73))
    columns = np.flatnonzero((silent != spoken).any(axis=(0, 2)))
    middle = (columns.min() + columns.max()) / 2 / silent.shape[1]
    assert 0.45 < middle < 0.65 and len(columns) < 0.1 * silent.shape[1], "only above and over the frames of the label"
    assert len(np.unique(silent.reshape(-1, 3), axis=0)) > 10


def test_the_picture_of_odd_labels_is_drawn_without_a_word(capfd):
    draw(Example("日 $ $", "\\x $ _", torch.randn(81, 7, dtype=torch.bfloat16), ["日", "$", "$", " "]))
    draw(Example("", "", torch.zeros(81, 1), []))
    assert capfd.readouterr().err == ""
