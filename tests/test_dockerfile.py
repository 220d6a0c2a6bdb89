"""The Dockerfile and docs/deployment.md, as far as they can be judged without Docker; .ci/dockerfile runs what can be run."""

import fnmatch
import re
import runpy
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REHEARSAL = runpy.run_path(str(ROOT / ".ci" / "dockerfile"))
parse, ignored, sources = (REHEARSAL[name] for name in ("parse", "ignored", "sources"))
STAGES = {stage.name: stage for stage in parse((ROOT / "Dockerfile").read_text())}
IMAGES = ("training", "serving")
SENT = REHEARSAL["context"](ROOT)
REQUIRED = (ROOT / "requirements.txt").read_text().splitlines()


def of(stage, keyword):
    return [step for step in STAGES[stage].instructions if step.keyword == keyword]


def test_the_parser_reads_what_it_should_and_names_what_it_cannot():
    text = (
        "ARG V=1\n\n# note\nFROM a:${V} AS one\n"
        "RUN --mount=type=cache,target=/c \\\n    # inside\n    pip \\\n  && echo\nUSER me\n"
    )
    (stage,) = parse(text)
    assert (stage.name, stage.image) == ("one", "a:1")
    run, user = stage.instructions
    assert (run.line, run.flags, run.value) == (5, ("mount=type=cache,target=/c",), "pip && echo")
    assert (user.line, user.value) == (9, "me")
    with pytest.raises(ValueError, match=r"Dockerfile:2: 'RNU'"):
        parse("FROM a:1 AS one\nRNU x\n")
    with pytest.raises(ValueError, match=r"Dockerfile:1: FROM a:1"):
        parse("FROM a:1\n")


@pytest.mark.parametrize(
    ("path", "out"),
    [("a.txt", True), ("b.py", False), ("d/x.py", False), ("d/x.csv", True), ("d/e/x.py", True), ("d/.x/y.py", True)],
)
def test_dockerignore_as_docker_reads_it(path, out):
    assert ignored(path, ["*", "!*.py", "!d", "d/*", "!d/*.py", "**/.*"]) is out


def test_both_targets_are_there_and_every_base_image_has_a_tag():
    assert set(IMAGES) < set(STAGES)
    for stage in STAGES.values():
        assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", stage.image), stage.image


def test_every_torch_is_the_one_of_the_requirements():
    (torch,) = (line for line in REQUIRED if line.startswith("torch=="))
    base = re.fullmatch(r"pytorch/pytorch:([\d.]+)-cuda[\d.]+-cudnn9-runtime", STAGES["training"].image)
    assert f"torch=={base[1]}" == torch
    installed = [step.value for step in of("serving", "RUN") if "torch==" in step.value]
    assert [value.split()[-1] for value in installed] == [torch]
    assert "--index-url https://download.pytorch.org/whl/cpu" in installed[0]


def test_every_copied_file_is_there_and_sent():
    for stage in STAGES:
        for step in of(stage, "COPY"):
            for source, paths in sources(step, SENT).items():
                assert paths, f"Dockerfile:{step.line}: {source}"


def test_every_requirements_file_that_is_installed_was_copied():
    for image in IMAGES:
        copied = [word for step in of(image, "COPY") for word in step.value.split()[:-1]]
        for step in of(image, "RUN"):
            for name in re.findall(r"-r (\S+)", step.value):
                assert (ROOT / name).is_file()
                assert any(fnmatch.fnmatch(name, pattern) for pattern in copied), name


def test_what_is_sent_is_the_code_and_nothing_of_the_users():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout: whether all code is sent cannot be told")
    code = [path for path in tracked.stdout.split() if path.split("/")[0] in ("asr", "data", "decoding", "recipes")]
    code += [path for path in tracked.stdout.split() if "/" not in path and path.endswith((".py", ".json"))]
    assert {path for path in code if (ROOT / path).exists()} <= set(SENT)
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    private = (
        ".git/config .venv/bin/python .ci/run .env models/deepspeech_final.pth demo/corpus/1.wav keys.txt audio.wav key.pem "
        "data/an4_dataset/train/an4/wav/1.wav data/train_manifest.csv asr/__pycache__/a.pyc tests/test_model.py visualize/x "
        "anybody's/corpus.tar train_manifest.csv docs/deployment.md Dockerfile .dockerignore"
    )
    for path in private.split():
        assert ignored(path, patterns), path


def test_nothing_runs_as_root():
    for image in IMAGES:
        user = STAGES[image].last("USER")
        assert user.value.split(":")[0] not in ("root", "0")
        made = " ".join(step.value for step in of(image, "RUN"))
        assert re.search(rf"useradd .*\b{user.value}\b", made), "a user that the image does not have"
        later = [step for step in of(image, "RUN") + of(image, "COPY") if step.line > user.line]
        assert not later, "would be owned by root all the same, or fail"


def test_no_compiler_reaches_an_image():
    compilers = re.compile(r"\b(apt(-get)?|gcc|g\+\+|clang|cmake|make|build-essential|python3?-dev)\b")
    for image in IMAGES:
        for step in of(image, "RUN"):
            assert not compilers.search(step.value), f"Dockerfile:{step.line}"
        assert not STAGES[image].image.endswith("-devel")
    assert "-slim-" in STAGES["serving"].image
    wheels = [step for step in of("kenlm", "RUN") if "pip wheel" in step.value]
    pinned = re.search(r"kenlm==[\d.]+", wheels[0].value)[0]
    assert all(any(pinned in step.value for step in of(image, "RUN")) for image in IMAGES)
    assert pinned in (ROOT / "Makefile").read_text()


def test_training_is_run_as_it_always_was():
    command = STAGES["training"].last("CMD").exec_form
    assert command[0] == "jupyter"
    assert {"--ip=0.0.0.0", "--port=8888", "--no-browser"} <= set(command)
    assert not any("token" in word or "password" in word for word in command), "Jupyter's own token is what guards it"
    assert not [step for step in STAGES["training"].instructions if step.keyword == "ENTRYPOINT"]
    assert STAGES["training"].last("VOLUME").value == "/workspace/data"
    assert STAGES["training"].last("EXPOSE").value == "8888"


def test_serving_starts_and_stops_the_server():
    assert STAGES["serving"].last("CMD").exec_form == (
        "python server.py --host 0.0.0.0 --port 8888 --model-path /models/deepspeech_final.pth".split()
    )
    assert STAGES["serving"].last("STOPSIGNAL").value == "SIGTERM"
    assert STAGES["serving"].last("EXPOSE").value == "8888"


def health_check(port):
    """The image's own check, on another port than the one it is written for."""
    command = STAGES["serving"].last("HEALTHCHECK").value.removeprefix("CMD ")
    words = REHEARSAL["json"].loads(command)
    assert words[0] == "python"
    return subprocess.run([sys.executable, *words[1:-1], words[-1].replace("8888", str(port))], capture_output=True).returncode


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1), (404, 1)])
def test_the_health_check_asks_whether_it_is_ready(status, expected):
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert health_check(server.server_port) == expected
        thread.join()
    assert asked == ["/health/ready"]


def test_the_health_check_fails_where_nothing_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert health_check(taken.getsockname()[1]) == 1


def unit():
    return re.search(r"```ini\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text(), re.DOTALL)[1]


def test_the_unit_waits_for_the_server_as_long_as_docker_does():
    assert "KillSignal=SIGTERM\n" in unit()
    seconds = re.search(r"TimeoutStopSec=(\d+)", unit())[1]
    assert f"--stop-timeout {seconds}" in (ROOT / "docs" / "deployment.md").read_text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is absent: the unit is not verified")
def test_systemd_takes_the_unit(tmp_path):
    file = tmp_path / "deepspeech.service"
    file.write_text(unit().replace("/opt/deepspeech/.venv/bin/python", shutil.which("true")))
    verified = subprocess.run(["systemd-analyze", "--man=no", "verify", file], capture_output=True, text=True)
    assert file.name not in verified.stderr  # unknown keys are told there, with exit status 0
    assert verified.returncode == 0, verified.stderr
    # Its scale goes from 0.0, safe, to 10.0; here in tenths.
    judged = ["systemd-analyze", "security", "--offline=true", "--threshold=20", file]
    assert subprocess.run(judged, capture_output=True).returncode == 0


def test_the_requirements_of_the_documents_exist():
    text = (ROOT / "docs" / "deployment.md").read_text()
    for name in re.findall(r"-r (requirements\S*\.txt)", text):
        assert (ROOT / name).is_file()
    assert re.search(r"torch==[\d.]+", text)[0] in REQUIRED
