"""multiproc.py with real processes: who writes where, who stops whom, and two machines as two network namespaces."""

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from beeps import SMALL, make_corpus

import multiproc
from asr import launch

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = ("10.77.0.1", "10.77.0.2")  # of the two machines
STARTED: list[subprocess.Popen] = []
PATIENCE = 120  # seconds, for what takes a few on an idle machine
# Ranks that compute together, as a training does.
TOGETHER = """
import os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor(dist.get_rank() + 1)
dist.all_reduce(total)
print(f"rank {dist.get_rank()} local {os.environ['LOCAL_RANK']}: sum {total.item()}", sys.argv[1:])
print("err", dist.get_rank(), file=sys.stderr)
dist.destroy_process_group()
"""
# Rank 1 dies in the manner of its first argument; the others go by themselves only if asked to.
DYING = """
import os, signal, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
deaths = {"raise": "raise KeyError('gone')", "exit": "sys.exit(1)", "_exit": "os._exit(3)", "kill": "os.kill(os.getpid(), 9)"}
if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    print(*range(1000), "last words", sep=chr(10))
    exec(deaths[sys.argv[1]])
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    time.sleep(600)
"""
# Ranks that take a while to stop when they are told to, and write down how often that was.
STOPPING = """
import os, signal, sys, time
told = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: told.append(number))
path = os.path.join(sys.argv[1], "rank" + os.environ["RANK"])
open(path, "w").close()
while not told:
    time.sleep(0.05)
time.sleep(float(sys.argv[2]))
with open(path, "w") as file:
    print(*(number.name for number in map(signal.Signals, told)), file=file)
sys.exit(128 + told[0])
"""


@pytest.fixture
def scripts(tmp_path):
    for name, text in {"together.py": TOGETHER, "dying.py": DYING, "stopping.py": STOPPING}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def start(folder, *words, machine=(), **options):
    """Start multiproc as a terminal would: its own group of processes, and signals that arrive."""

    def from_a_terminal():
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [*machine, sys.executable, "-m", "multiproc", "--rank-logs", folder / "logs", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RES_OPTIONS": "timeout:1 attempts:1"}  # no name server is there
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment} | options
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        text=True,
        start_new_session=True,
        preexec_fn=from_a_terminal,
        **settings,
    )
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def none_is_left():
    """A test that fails leaves no process behind to slow the next one down."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def end(process):
    """Wait for the end. Returns: exit status, standard output, standard error."""
    out, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in err.replace("    Traceback", ""), err
    return process.returncode, out, err


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def log_of(folder, rank):
    (path,) = folder.glob(f"logs/*/rank{rank}.log")
    return path.read_text()


def is_alive(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_ranks_compute_together_and_write_where_they_should(scripts):
    """Two launches at once do not meet; arguments arrive as they were typed."""
    words = ["--seed=3", "a b", "'\"", "$HOME $$ ${local_rank}", "", "-x", "--", "--nproc", "7"]
    first = start(scripts, "--nproc", 2, scripts / "together.py", *words)
    second = start(scripts / "second", scripts / "together.py", "--max-restarts=1", "one", "--nproc", 3, "two")
    status, out, err = end(first)
    assert (status, out) == (0, f"rank 0 local 0: sum 3 {words}\n")
    assert log_of(scripts, 1) == f"rank 1 local 1: sum 3 {words}\nerr 1\n"
    where, *rest = err.splitlines()
    assert str(scripts / "logs") in where
    assert rest == ["err 0"]
    assert end(second)[:2] == (0, "rank 0 local 0: sum 6 ['one', 'two']\n")
    assert log_of(scripts / "second", 2) == "rank 2 local 2: sum 6 ['one', 'two']\nerr 2\n"


def test_rank_0_is_on_the_terminal_itself(tmp_path):
    """So that progress bars move: nothing stands between."""
    (tmp_path / "script.py").write_text("import sys; print(sys.stdout.isatty(), sys.stderr.isatty())")
    ours, theirs = pty.openpty()
    process = start(tmp_path, "--nproc", 2, tmp_path / "script.py", stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert process.wait(timeout=PATIENCE) == 0
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert shown.splitlines()[-1] == "True True"
    assert log_of(tmp_path, 1) == "False False\n"


def test_a_death_stops_the_others(scripts):
    manners = {how: "exited with status 1" for how in ("raise", "exit")}
    manners |= {"_exit": "exited with status 3", "kill": "was killed by SIGKILL"}
    launches = {how: start(scripts / how, "--nproc", 2, scripts / "dying.py", how) for how in manners}
    for how, told in manners.items():
        status, _, err = end(launches[how])
        assert status == 1
        _where, report, *lines = err.splitlines()
        assert report.startswith(f"error: rank 1 {told}"), err
        assert len(lines) == launch.REPORTED_LINES, err
        assert "    last words" in lines, err
        assert lines[-1] == ("    KeyError: 'gone'" if how == "raise" else "    last words")


def test_ranks_that_would_not_stop_are_killed(scripts):
    started = time.monotonic()
    status, _, err = end(start(scripts, "--nproc", 3, scripts / "dying.py", "exit", "stubborn"))
    assert status == 1 and "error: rank 1 exited with status 1" in err
    assert time.monotonic() - started < 60  # they sleep for 600 s


def test_a_restarted_group_is_told_and_finishes(scripts):
    dying = scripts / "dying.py"
    dying.write_text(DYING.replace("time.sleep(600)", "pass") + TOGETHER)
    status, out, err = end(start(scripts, "--nproc", 2, "--max-restarts", 1, dying, "_exit"))
    assert (status, out) == (0, "rank 0 local 0: sum 3 ['_exit']\n"), err
    assert "error: rank 1 exited with status 3" in err and "restart 1 of 1" in err
    assert "last words" in log_of(scripts, 1)  # the restart has a file of its own
    assert "sum 3" in log_of(scripts, "1-restart1")


def test_a_signal_reaches_each_rank_once_and_is_waited_for(scripts):
    launches = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = scripts / number.name
        folder.mkdir()
        launches[number] = start(folder, "--nproc", 2, scripts / "stopping.py", folder, launch.STOP_SECONDS + 1)
    for number, process in launches.items():
        files = [scripts / number.name / rank for rank in ("rank0", "rank1")]
        wait_for(lambda files=files: all(file.exists() for file in files))
        os.kill(process.pid, number)
    for number, process in launches.items():
        status, _, err = end(process)
        assert status == 128 + number
        assert "error" not in err
        assert [(scripts / number.name / rank).read_text() for rank in ("rank0", "rank1")] == [f"{number.name}\n"] * 2


def test_patience_has_an_end_and_a_second_ctrl_c_ends_it_too(scripts):
    launches = {}
    for name, grace in {"grace": 1, "twice": 500}.items():
        (scripts / name).mkdir()
        launches[name] = start(scripts / name, "--nproc", 2, scripts / "stopping.py", scripts / name, 600, "--grace", grace)
    for name, process in launches.items():
        wait_for(lambda name=name: all((scripts / name / rank).exists() for rank in ("rank0", "rank1")))
        os.kill(process.pid, signal.SIGINT)
    status, _, err = end(launches["grace"])
    assert status == 130 and "rank 1 did not stop within 1 s and was killed" in err
    os.kill(launches["twice"].pid, signal.SIGINT)
    assert end(launches["twice"])[0] == 130


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can promise it")
def test_no_rank_outlives_a_killed_launcher(tmp_path):
    (tmp_path / "script.py").write_text(
        "import os, sys, time\nopen(sys.argv[1] + os.environ['RANK'], 'w').write(str(os.getpid()) + '\\n')\ntime.sleep(600)"
    )
    process = start(tmp_path, "--nproc", 2, tmp_path / "script.py", tmp_path / "pid")
    files = [tmp_path / "pid0", tmp_path / "pid1"]
    wait_for(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files))
    process.kill()
    assert end(process)[0] == -signal.SIGKILL
    wait_for(lambda: not any(is_alive(int(file.read_text())) for file in files))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no script: expected"),
        (["--nprocs", "2", "SCRIPT"], "--nprocs: expected a Python script"),
        (["--nproc", "2", "absent.py"], "absent.py: no such file"),
        (["--nproc", "0", "SCRIPT"], "--nproc"),
        (["SCRIPT", "--nproc"], "--nproc"),
        (["--device-ids", "0,,1", "SCRIPT"], "--device-ids"),
        (["SCRIPT", "--device-ids=0,0"], "--device-ids"),
        (["--nproc", "2", "--device-ids", "0", "SCRIPT"], "one of them"),
        (["--nproc", "2", "SCRIPT", "--cuda"], "--nproc"),
        (["--nproc", "2", "--nnodes", "2", "SCRIPT"], "--rdzv-endpoint"),
        (["--nproc", "2", "--node-rank", "1", "SCRIPT"], "--node-rank 1"),
        (["SCRIPT", "--cuda"], "--nproc N"),
        (["SCRIPT", "--cuda", "--device-ids", "0,1"], "--device-ids 0,1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_was_typed_wrong_is_told_in_a_line(scripts, words, told, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # on machines that have some, too
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = [str(scripts / "together.py") if word == "SCRIPT" else word for word in words]
    try:
        status = multiproc.main([*words, *([] if words[-1:] == ["--nproc"] else ["--rank-logs", str(scripts / "logs")])])
    except SystemExit as stop:  # argparse's own
        status = stop.code
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and told in line
    assert not (scripts / "logs").exists()


def test_help_needs_no_torch():
    code = "import sys, multiproc\ntry: multiproc.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--rdzv-endpoint" in done.stdout


@pytest.fixture(scope="module")
def two_machines():
    """Two network namespaces joined by a cable, as the words to put before a command that is to run in each."""
    missing = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"two machines need {', '.join(missing)} (Debian: iproute2, util-linux)")

    def namespace(command):
        before = os.readlink("/proc/self/ns/net")
        holder = subprocess.Popen([*command, "sleep", "1000"], stderr=subprocess.PIPE, text=True)
        while holder.poll() is None and os.readlink(f"/proc/{holder.pid}/ns/net") == before:
            time.sleep(0.01)
        holders.append(holder)
        if holder.poll() is not None:
            pytest.skip(f"network namespaces are not permitted here: {holder.communicate()[1].strip()}")
        return holder.pid

    holders = []
    try:
        first = namespace(["unshare", "--user", "--map-root-user", "--net"])
        enter = ["nsenter", "--user", "--preserve-credentials", "--target"]
        second = namespace([*enter, str(first), "unshare", "--net"])
        machines = [[*enter, str(pid), "--net"] for pid in (first, second)]
        cable = [*machines[0], "ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(second)]
        made = subprocess.run(cable, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            pytest.skip(f"no cable between network namespaces here: {made.stderr.strip()}")
        for machine, address in zip(machines, ADDRESSES, strict=True):
            for words in (f"addr add {address}/24 dev cable", "link set cable up", "link set lo up"):
                subprocess.run([*machine, "ip", *words.split()], check=True)
        yield machines
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def start_on(machines, folder, *words, nproc=1):
    """The same command on both machines, the second one first: its rank is its --node-rank's all the same."""
    shared = ["--nproc", nproc, "--nnodes", 2, "--rdzv-endpoint", f"{ADDRESSES[0]}:29400"]
    launches = [
        start(folder / f"machine{rank}", *shared, "--node-rank", rank, *words, machine=machines[rank]) for rank in (1, 0)
    ]
    return launches[::-1]


def test_two_machines_compute_together(two_machines, scripts):
    first, second = start_on(two_machines, scripts, scripts / "together.py", nproc=2)
    status, out, err = end(first)
    assert (status, out) == (0, "rank 0 local 0: sum 10 []\n"), err
    assert end(second)[:2] == (0, "")
    assert "rank 1 local 1: sum 10" in log_of(scripts / "machine0", 1)
    assert "rank 3 local 1: sum 10" in log_of(scripts / "machine1", 3)


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_death_on_one_machine_stops_or_restarts_the_other(two_machines, scripts, restarts):
    dying = scripts / "dying.py"
    dying.write_text(DYING + TOGETHER)
    first, second = start_on(two_machines, scripts, "--max-restarts", restarts, dying, "exit", "stubborn")
    (status, out, err), (other_status, _, other_err) = end(first), end(second)
    assert "error: rank 1 exited with status 1" in other_err
    if restarts:
        assert (status, other_status, out) == (0, 0, "rank 0 local 0: sum 3 ['exit', 'stubborn']\n"), err
    else:
        assert (status, other_status) == (1, 1)
        assert "another machine has stopped" in err


def test_two_machines_train_one_model(two_machines, tmp_path):
    """Without a folder that both see: the second machine's checkpoints and its manifests are its own."""
    corpora = [make_corpus(tmp_path / f"corpus{rank}") for rank in range(2)]
    launches = []
    for rank in (1, 0):
        corpus, results = corpora[rank], tmp_path / f"machine{rank}"
        data = ["--train-manifest", corpus / "train.csv", "--val-manifest", corpus / "val.csv"]
        files = ["--labels-path", corpus / "labels.json", "--save-folder", results, "--model-path", results / "best.pth"]
        place = ["--nproc", 1, "--nnodes", 2, "--node-rank", rank, "--rdzv-endpoint", f"{ADDRESSES[0]}:29401"]
        flags = [*SMALL, "--batch-size", 4, "--epochs", 2, "--checkpoint", "--continue-from", "latest", "--num-workers", 0]
        launches.append(start(results, *place, "train.py", *data, *files, *flags, machine=two_machines[rank]))
    status, out, err = end(launches[1])
    assert status == 0 and "2 processes" in out and "Validation Summary Epoch: [2]" in out, err
    assert end(launches[0])[:2] == (0, "")
    assert "[rank 1] Training Summary Epoch: [2]" in log_of(tmp_path / "machine1", 1)
    assert {path.name for path in (tmp_path / "machine0").iterdir()} >= {"best.pth", "deepspeech_2.pth.tar"}
    assert {path.name for path in (tmp_path / "machine1").iterdir()} == {"logs"}
