"""The one direction: scripts -> serving -> asr -> {model, decoder -> decoding} | data -> config; no script imports another."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = {"model", "decoder", "decoding", "config", "asr", "data", "serving"}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - LIBRARY
MAY_IMPORT = {
    "config": set(),
    "model": {"config"},
    "decoder": {"config", "decoding"},
    "decoding": {"config", "data", "decoding"},
    "data": {"config", "data"},
    "asr": {"config", "data", "model", "decoder", "decoding", "asr"},
    "serving": {"config", "data", "model", "decoder", "decoding", "asr", "serving"},
    "recipes": {"config", "data"},
    **{script: {"config", "data", "model", "decoder", "decoding", "asr", "serving"} for script in SCRIPTS},
}
# The one function of a module that may reach up, when it is run: model.py's to print, the doctor's to ask a model.
REACHES_UP = {"model.py": "main", "data/verify_manifest.py": "model_side"}
FILES = sorted(
    path
    for pattern in ("*.py", "asr/*.py", "serving/*.py", "data/*.py", "decoding/*.py", "recipes/*.py")
    for path in ROOT.glob(pattern)
)


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_one_direction(path):
    tree = ast.parse(path.read_text())
    relative = path.relative_to(ROOT)
    tree.body = [node for node in tree.body if getattr(node, "name", "") != REACHES_UP.get(str(relative))]
    room = relative.parts[0] if len(relative.parts) > 1 else path.stem
    ours = imported(tree) & (LIBRARY | SCRIPTS)
    assert ours <= MAY_IMPORT[room], f"{relative} may not import {ours - MAY_IMPORT[room]}"


@pytest.mark.parametrize(
    "script",
    "train.py test.py transcribe.py server.py align.py export.py benchmark.py multiproc.py noise_inject.py "
    "build_lm.py search_lm_params.py select_lm_params.py "
    "data/synthetic.py data/an4.py data/ted.py data/voxforge.py data/common_voice.py data/librispeech.py "
    "data/merge_manifests.py data/convert_manifest.py data/verify_manifest.py".split(),
)
def test_help_needs_no_torch(script):
    """--help must answer at once: torch alone takes longer to import than a person waits."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{script!r}, '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code in (0, None)\n"
        "slow = sorted({'torch', 'scipy', 'librosa', 'numba'} & sys.modules.keys())\n"
        "assert not slow, slow\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
