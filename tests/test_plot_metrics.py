"""The plotting script, typed as the README says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def plot(folder: Path, *args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", ROOT / "recipes" / "plot_metrics.py", *args]
    return subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False)


def write_metrics(path: Path, scale: float) -> Path:
    path.parent.mkdir(exist_ok=True)
    lines = [{"kind": "step", "epoch": 1, "step": s, "loss": scale / s, "lr": 3e-4, "grad_norm": scale} for s in range(1, 9)]
    lines[3].update(loss=None, grad_norm=None)
    lines.insert(4, {"kind": "epoch", "epoch": 1, "step": 4, "loss": scale, "wer": 50.0, "cer": 25.0, "examples": []})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "step", "epo')  # a run that goes on
    return path


def test_metrics_become_a_picture(tmp_path):
    write_metrics(tmp_path / "models" / "metrics.jsonl", 9.0)
    done = plot(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "metrics.png: 9 lines of models/metrics.jsonl\n"
    one = np.asarray(Image.open(tmp_path / "metrics.png").convert("RGB"))
    write_metrics(tmp_path / "other.jsonl", 99.0)
    done = plot(tmp_path, "--metrics", "models/metrics.jsonl", "other.jsonl", "--output", "new/two.png")
    assert (done.returncode, done.stderr) == (0, "")
    two = np.asarray(Image.open(tmp_path / "new" / "two.png").convert("RGB"))
    orange = (np.abs(two.astype(int) - (255, 127, 14)).max(axis=-1) < 30).sum()
    assert orange > 100 and (np.abs(one.astype(int) - (255, 127, 14)).max(axis=-1) < 30).sum() == 0


@pytest.mark.parametrize(
    ("content", "args", "status", "error"),
    [
        (None, [], 1, "models/metrics.jsonl: No such file or directory"),
        ("", ["--metrics", "m"], 1, "m: no line of metrics yet"),
        ('{"kind": "step", "step": 1}\nloss 3.5\n', ["--metrics", "m"], 1, "m:2: expected a line of metrics.jsonl"),
        ('[["kind"]]\n', ["--metrics", "m"], 1, "m:1: expected a line of metrics.jsonl"),
        ("", ["--metrics", "m", "--output", "m.pdf"], 2, "--output m.pdf: expected a name that ends in .png"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, content, args, status, error):
    if content is not None:
        (tmp_path / "m").write_text(content)
    done = plot(tmp_path, *args)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"error: {error}") and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*.png"))
