"""Does training fit, how fast is it, and where does the time go: the command, and the parts behind it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from watched_work import tells_and_fails

import benchmark
from asr import step_times
from asr.benchmarking import GIB, Report, as_json, describe, largest_that_fits, verdict
from asr.training import train_step
from asr.watched import TooLarge, available_memory, peak_resident_memory, resident_memory, watched
from config import AudioConfig
from data.command_line import UsageError
from data.labels import frames_needed
from model import output_frames

ROOT = Path(__file__).resolve().parents[1]
TINY = "--hidden-size 16 --hidden-layers 2 --seconds 0.5 --batch-size 2 --steps 2 --runs 2 --dry-runs 1".split()
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is watched through /proc")


def start(*args, **kwargs) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "benchmark.py"), *TINY, *map(str, args)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes, **kwargs)


def run(*args) -> tuple[int, str, str]:
    process = start(*args)
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


def told_by_measure(*flags: str) -> list:
    """What the process that trains tells, made in this one."""
    told = []
    step_times.measure(told.append, benchmark.parse_arguments([*TINY, *flags]))
    return told


# The steps


def test_it_times_train_step_itself(monkeypatch):
    calls = []

    def counted(*args):
        calls.append(args)
        return train_step(*args)

    monkeypatch.setattr(step_times, "train_step", counted)
    _, *steps = told_by_measure()
    assert len(calls) == len(steps) == 2 * 1 + 2 * 2
    assert [step.run for step in steps] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--rnn-type", "lstm", "--hidden-layers", "1", "--precision", "bf16"],
        ["--no-bidirectional", "--optimizer", "adamw"],
        ["--opt-level", "O2", "--precision", "bf16", "--dynamic-loss-scale"],
    ],
    ids=" ".join,
)
def test_every_part_of_a_step_takes_time_and_nothing_is_left_over(flags, monkeypatch):
    walls = []
    original = step_times.StepTimes.step

    def timed(*args):
        started = time.perf_counter()
        told = original(*args)
        walls.append(time.perf_counter() - started)
        return told

    monkeypatch.setattr(step_times.StepTimes, "step", timed)
    _, *steps = told_by_measure(*flags)
    for step, wall in zip(steps, walls, strict=True):
        assert not step.skipped
        assert set(step.seconds) == set(step_times.PARTS)
        assert all(seconds > 0 for seconds in step.seconds.values())
        assert sum(step.seconds.values()) <= wall


def test_the_parts_are_marked_in_the_order_in_which_they_happen(monkeypatch):
    marks = []

    def noted(_, *part):
        marks.append(part)
        original(_, *part)

    original = step_times.StepTimes._mark
    monkeypatch.setattr(step_times.StepTimes, "_mark", noted)
    told_by_measure("--dry-runs", "0", "--steps", "1", "--runs", "1")
    one = marks[: marks.index((step_times.OPTIMIZER, "update")) + 1]
    assert list(dict.fromkeys(one)) == [
        ("", ""),
        ("head and other", "forward"),
        ("convolution", "forward"),
        ("recurrent", "forward"),
        ("CTC", "forward"),
        ("CTC", "backward"),
        ("head and other", "backward"),
        ("recurrent", "backward"),
        ("convolution", "backward"),
        (step_times.OPTIMIZER, "clipping"),
        (step_times.OPTIMIZER, "update"),
    ]


def test_the_first_two_updates_are_never_timed():
    _, *steps = told_by_measure("--dry-runs", "0", "--steps", "1", "--runs", "1")
    assert [step.run for step in steps] == [0, 0, 1]


def test_num_samples_are_rounded_up_to_whole_batches():
    args = benchmark.parse_arguments([*TINY, "--num-samples", "7", "--dry-runs", "1", "--runs", "1"])
    args.steps, told = None, []
    step_times.measure(told.append, args)
    assert (told[0].untimed_steps, told[0].timed_steps, len(told) - 1) == (4, 4, 8)
    assert sum(step.utterances for step in told[1:] if step.run) == 8


def test_updates_that_overflow_for_ever_are_an_error():
    with pytest.raises(ValueError, match="--loss-scale"):
        told_by_measure("--static-loss-scale", "1e39")


def test_mixed_precision_on_a_cpu_is_told_the_way():
    with pytest.raises(UsageError, match="--precision bf16"):
        told_by_measure("--mixed-precision")


def test_synthetic_utterances_can_be_aligned():
    for seconds in ("0.02", "0.5", "15"):
        args = benchmark.parse_arguments([*TINY, "--seconds", seconds])
        batch = step_times.synthetic_batch(args, AudioConfig(), labels=2, rank=0)  # one label, always repeated
        assert batch.spects.shape == (2, 1, 161, batch.spect_lens[0])
        assert batch.target_lens.sum() == len(batch.targets)
        for length, labels in zip(batch.spect_lens.tolist(), batch.targets.view(2, -1).tolist(), strict=True):
            assert frames_needed("".join(map(str, labels))) <= output_frames(length)


def test_the_contract_defaults():
    args = benchmark.parse_arguments([])
    names = "batch_size seconds dry_runs runs num_samples hidden_size hidden_layers rnn_type sample_rate window_size loss_scale"
    assert [getattr(args, name) for name in names.split()] == [32, 15, 2, 5, 1024, 800, 5, "gru", 16000, 0.02, "1"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--mixed-precision"], ("O1", "1")),
        (["--static-loss-scale", "128"], (None, "128")),
        (["--mixed-precision", "--precision", "bf16", "--opt-level", "O1"], ("O1", "1")),
        (["--opt-level", "O2", "--dynamic-loss-scale"], ("O2", "dynamic")),
    ],
)
def test_old_names_of_flags(flags, expected):
    args = benchmark.parse_arguments(flags)
    assert (args.opt_level, args.loss_scale) == expected


# The search


@pytest.mark.parametrize("start", [1, 7, 32, 100])
def test_the_search_finds_the_largest_that_fits_with_few_trials(start):
    for largest in range(51):
        tried = []

        def fits(size, tried=tried, largest=largest):
            tried.append(size)
            return size <= largest

        assert largest_that_fits(fits, start, at_most=50) == largest
        assert len(tried) == len(set(tried)) <= 12
        assert all(1 <= size <= 50 for size in tried)


# The watch


def test_a_watched_process_tells_and_ends():
    assert list(watched(tells_and_fails, "nothing else")) == ["nothing else"]


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("usage", UsageError, "--flag: wrong"),
        ("dies", RuntimeError, f"status -{signal.SIGSEGV}"),
        ("out of memory", TooLarge, "None"),
        ("killed", TooLarge, "the system ended it"),
    ],
)
def test_what_goes_wrong_in_a_watched_process_is_raised_here(what, error, message):
    with pytest.raises(error, match=message):
        list(watched(tells_and_fails, what))


@needs_linux
def test_a_watched_process_that_grows_is_ended():
    with pytest.raises(TooLarge) as refusal:
        list(watched(tells_and_fails, "grows", limit=2**27))
    assert refusal.value.held == 2**27


def test_a_watched_process_ends_with_whoever_watches():
    told = watched(tells_and_fails, "stays")
    assert next(told) == "stays"
    pid = next(told)
    told.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@needs_linux
def test_memory_of_a_process():
    held = bytearray(os.urandom(2**24))
    assert len(held) < resident_memory(os.getpid()) <= peak_resident_memory()
    assert resident_memory(2**22 + 1) is None, "no such process"


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A /proc and a /sys/fs/cgroup of 1000 available bytes and what `files` say."""
    meminfo = "MemTotal: 9 kB\nMemAvailable: 8 kB\n"
    for name, text in {"proc/meminfo": meminfo, "proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = {"memory.max": "5000\n", "memory.current": "3000\n", "memory.stat": "anon 9\ninactive_file 500\n"}
V1 = {"memory.limit_in_bytes": "5000\n", "memory.usage_in_bytes": "3000\n", "memory.stat": "total_inactive_file 500\n"}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, 8192),
        ("0::/\n", {f"sys/{name}": text for name, text in V2.items()}, 2500),
        ("0::/a/b\n", {f"sys/a/{name}": text for name, text in V2.items()}, 2500),
        ("0::/a\n", {f"sys/a/{name}": text for name, text in {**V2, "memory.max": "max\n"}.items()}, 8192),
        ("3:cpu:/x\n2:memory:/hidden\n", {f"sys/memory/{name}": text for name, text in V1.items()}, 2500),
        (
            "2:memory:/a\n",
            {f"sys/memory/a/{name}": text for name, text in {**V1, "memory.limit_in_bytes": "9" * 18}.items()},
            8192,
        ),
    ],
)
def test_available_memory_is_what_machine_and_container_leave(tmp_path, groups, files, expected):
    root = system(tmp_path, groups, files)
    assert available_memory(root / "proc", root / "sys") == expected


def test_available_memory_is_unknown_without_proc(tmp_path):
    assert available_memory(tmp_path, tmp_path) is None


# The command


@pytest.fixture(scope="module")
def told_in_json() -> dict:
    """What the command says of steps with one utterance of 10 seconds."""
    status, stdout, stderr = run("--json", *ONE_UTTERANCE)
    assert (status, stderr) == (0, "")
    return json.loads(stdout)


ONE_UTTERANCE = "--batch-size 1 --seconds 10 --dry-runs 0 --runs 2 --steps 1".split()


def test_the_report_of_a_trial_shows_a_table():
    setting, *steps = told_by_measure()
    report = Report(benchmark.parse_arguments(TINY), GIB, setting, steps)
    assert verdict(report).startswith("Training fits: yes, peak memory ")
    lines = describe(report).splitlines()
    for part in ("convolution", "recurrent", "CTC", "head and other", "optimizer", "step"):
        assert any(line.startswith(part) for line in lines)
    assert "utterances/s" in describe(report) and "seconds of audio/s" in describe(report)


def test_json_is_one_object_whose_split_adds_up(told_in_json):
    told = told_in_json
    assert told["fits"] is True and told["interrupted"] is False
    assert told["configuration"]["batch_size"] == 1 and told["configuration"]["numbers"] == "fp32"
    assert told["memory"]["peak_bytes"] > 0
    speed, split = told["throughput"], told["split_seconds"]
    assert speed["steps"] == 2 and len(speed["runs_utterances_per_second"]) == 2
    assert speed["audio_seconds_per_second"] == pytest.approx(10 * speed["utterances_per_second"])
    assert speed["utterances_per_second"] == pytest.approx(1 / speed["step_seconds"])
    assert sum(sum(part.values()) for part in split.values()) == pytest.approx(speed["step_seconds"])
    assert set(split) == {"convolution", "recurrent", "CTC", "head and other", "optimizer"}


@needs_linux
def test_what_does_not_fit_is_an_answer():
    status, stdout, stderr = run("--memory-limit", 0.1)
    assert (status, stderr) == (1, "")
    assert stdout.splitlines()[0] == (
        "Training fits: no, batch size 2 of 0.5 s, gru 16 x 2 needs more than 0.10 GiB (--memory-limit)"
    )


@needs_linux
def test_the_search_of_the_command(told_in_json):
    # A limit between what one utterance needs and what two do.
    limit = (told_in_json["memory"]["peak_bytes"] + 3 * 2**23) / GIB
    search = [*ONE_UTTERANCE, "--find-batch-size", "--memory-limit", limit, "--max-batch-size", 2]
    status, stdout, stderr = run(*search, "--batch-size", 2)
    assert (status, stderr) == (0, "")
    *trials, answer = stdout.splitlines()
    assert trials[0].startswith("batch size 2: too large, needs more than")
    assert trials[1].startswith("batch size 1: fits")
    assert answer.startswith("Largest batch that fits: 1 ") and "of 10 s, gru 16 x 2, peak memory" in answer


@needs_linux
def test_a_search_that_finds_nothing_is_an_answer_too():
    status, stdout, _ = run("--find-batch-size", "--memory-limit", 0.1, "--batch-size", 1, "--json")
    told = json.loads(stdout)
    assert status == 1 and told["largest_batch_size"] is None and told["smallest_too_large"] == 1
    assert [(trial["batch_size"], trial["fits"]) for trial in told["trials"]] == [(1, False)]
    assert told["verdict"].startswith("Largest batch that fits: none of 0.5 s, gru 16 x 2: even one utterance needs more")


def test_ctrl_c_ends_in_order():
    process = start("--runs", 10000, start_new_session=True)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the process that trains gets it too
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == ""
    assert stdout.startswith("Training fits: ") and "interrupted" in stdout


@pytest.mark.parametrize(
    ("steps", "fits", "words"),
    [
        (1, None, "unknown, interrupted before its second update"),
        (2, True, "interrupted before the first timed step: these are steps of the warm-up"),
        (3, True, "interrupted: 1 of 4 timed steps"),
        (5, True, "interrupted: 3 of 4 timed steps"),
    ],
)
def test_an_interrupted_report_says_what_it_stands_on(steps, fits, words):
    setting, *told = told_by_measure()
    report = Report(benchmark.parse_arguments(TINY), GIB, setting, told[:steps], interrupted=True)
    assert report.fits is fits
    assert words in verdict(report) + describe(report)
    assert len(report.run_speeds()) == (steps >= 4) + (steps >= 6)
    assert len(report.counted) == {1: 0, 2: 1, 3: 1, 5: 3}[steps]
    json.dumps(as_json(report))


def test_processes_add_up_and_the_main_one_tells():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    together = ["--dist-url", f"tcp://127.0.0.1:{port}", "--dist_backend", "gloo", "--world-size", 2, "--json"]
    other = start(*together, "--rank", 1)
    status, stdout, stderr = run(*together, "--rank", 0)
    assert (status, stderr) == (0, "")
    assert other.communicate(timeout=60) == ("", "") and other.returncode == 0
    speed = json.loads(stdout)["throughput"]
    assert speed["processes"] == 2
    assert speed["utterances_per_second"] == pytest.approx(4 / speed["step_seconds"])


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--batch-size", "0"], 2, "--batch-size: 0: expected at least 1"),
        (["--find-batch-size", "--world-size", "2"], 2, "--find-batch-size: "),
        (["--mixed-precision", "--precision", "fp32"], 2, "--mixed-precision and --precision fp32 contradict each other"),
        (["--mixed-precision", "--opt-level", "O2"], 2, "--mixed-precision and --opt-level O2 contradict each other"),
        (["--seconds", "0.0199"], 2, "--seconds 0.0199: expected at least a window, 0.02 seconds"),
        (["--sample-rate", "1600000000"], 2, "sample rate 1600000000: expected 1000 to 768000 Hz"),
        (["--labels-path", "nowhere.json"], 1, "nowhere.json"),
    ],
)
def test_mistakes_get_one_line(flags, status, message, capsys):
    def outcome() -> int:
        try:
            return benchmark.main([*TINY, *flags])
        except SystemExit as stop:
            return stop.code

    assert outcome() == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err and captured.err.count("\n") == 1 and captured.err.startswith("error: ")


def test_help_needs_no_torch():
    code = "import sys, benchmark\ntry: benchmark.main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--find-batch-size" in done.stdout
