"""The search for the decoder's weights as people type it, killed and interrupted, and the files that it reads and writes."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from beeps import ROOT, start
from PIL import Image
from shared_data import SHARED, needs_shared

import search_lm_params
import select_lm_params
from asr.checkpoint import Checkpoint, save_checkpoint
from asr.evaluation import count_errors
from asr.saved_output import read_saved_output, save_output
from config import AudioConfig, DecoderConfig, ModelConfig
from data.labels import Labels
from decoder import BeamDecoder, GreedyDecoder
from decoding.language_model import load_language_model
from model import DeepSpeech

WORKBENCH = SHARED / "data/decoding"
SYMBOLS = ("_", "A", "B", "C", " ")
WORDS = ("A", "B", "AB", "BA", "CAB", "ABC", "BB")
SMALL_GRID = "--lm-num-alphas 4 --lm-num-betas 3 --lm-beta-to 2".split()


def write_model(path: Path, words: tuple[str, ...] = WORDS) -> Path:
    """A bigram model in which each word is likely behind the one before it in the list."""
    lines = ["\\data\\", f"ngram 1={len(words) + 3}", f"ngram 2={len(words)}", "", "\\1-grams:"]
    lines += ["-2\t<unk>", "-99\t<s>\t-0.2", "-1.5\t</s>", *(f"-1\t{word}\t-0.3" for word in words)]
    lines += ["", "\\2-grams:", *(f"-0.2\t{a} {b}" for a, b in zip(words, words[1:] + words[:1], strict=True))]
    path.write_text("\n".join([*lines, "", "\\end\\", ""]))
    return path


def noisy_output(references: list[str], seed: int) -> list[torch.Tensor]:
    """Log probabilities (L, C) of each text: two frames for each character and one blank, hard to hear."""
    random = torch.Generator().manual_seed(seed)
    outputs = []
    for text in references:
        path = [label for c in text for label in (SYMBOLS.index(c), SYMBOLS.index(c), 0)]
        logits = 1.3 * torch.randn(len(path), len(SYMBOLS), generator=random) + 2.5 * torch.eye(len(SYMBOLS))[path]
        outputs.append(logits.log_softmax(-1))
    return outputs


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with val.npz and lm.arpa."""
    folder = tmp_path_factory.mktemp("shop")
    write_model(folder / "lm.arpa")
    rng = np.random.default_rng(5)
    starts = rng.integers(0, len(WORDS), 16)
    references = [" ".join(WORDS[(first + i) % len(WORDS)] for i in range(2 + first % 5)) for first in starts]
    save_output(folder / "val.npz", dict(enumerate(noisy_output(references, seed=1))), references, SYMBOLS)
    return folder


@pytest.fixture(scope="module")
def whole(shop):
    """What the default grid gives to a search that nobody ends."""
    files = {name: str(shop / name) for name in ("val.npz", "lm.arpa", "whole.json")}
    command = ["--saved-output", files["val.npz"], "--lm-path", files["lm.arpa"], "--output-path", files["whole.json"]]
    assert search_lm_params.main(command) == 0
    return json.loads((shop / "whole.json").read_text())


@pytest.fixture
def here(shop, tmp_path, monkeypatch):
    """The working folder, with the files of the shop."""
    for name in ("val.npz", "lm.arpa"):
        shutil.copy(shop / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only_line(capsys: pytest.CaptureFixture) -> str:
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("error: ") and error.count("\n") == 1
    return error


def best_of(results: list[list[float]]) -> list[float]:
    return min(results, key=lambda row: (row[2], row[3], row[0]))


def write_network(path: Path, symbols: tuple[str, ...]) -> DeepSpeech:
    """An untrained network's model file."""
    torch.manual_seed(1)
    config = ModelConfig(num_labels=len(symbols), hidden_size=8, hidden_layers=1)
    network = DeepSpeech(config).eval()
    save_checkpoint(Checkpoint(config, AudioConfig(), Labels(symbols), network.state_dict()), path)
    return network


def search(*args: object, output: str = "tune_results.json", grid: list[str] = SMALL_GRID) -> list[list[float]]:
    command = ["--saved-output", "val.npz", "--lm-path", "lm.arpa", "--output-path", output, *grid, *map(str, args)]
    assert search_lm_params.main(command) == 0
    return json.loads(Path(output).read_text())


def rows_kept(output: str = "tune_results.json") -> list[dict]:
    return [json.loads(line) for line in Path(f"{output}.partial.jsonl").read_text().splitlines()]


def test_each_row_is_what_the_decoder_makes_of_its_weights(here, capsys):
    found = search()
    output, model = read_saved_output("val.npz"), load_language_model("lm.arpa")
    expected = []
    for alpha in (0.0, 1.0, 2.0, 3.0):
        for beta in (0.0, 1.0, 2.0):
            decoder = BeamDecoder(SYMBOLS, DecoderConfig(decoder="beam", alpha=alpha, beta=beta), model)
            texts = [decoder.decode(torch.from_numpy(x)[None], torch.tensor([len(x)]))[0][0].text for x in output.log_probs]
            errors = count_errors(output.references, texts)
            expected.append([alpha, beta, errors.wer, errors.cer])
    assert found == expected
    assert len({row[2] for row in found}) > 3, "weights that change nothing show nothing"
    alpha, beta, wer, cer = min(found, key=lambda row: (row[2], row[3], row[0]))
    assert capsys.readouterr().out == (
        f"tune_results.json: 12 rows\nAlpha: {alpha:g} Beta: {beta:g} WER: {wer:.3f} CER: {cer:.3f}\n"
        f"--decoder beam --alpha {alpha:g} --beta {beta:g} --unk-penalty 10 --beam-width 10 --lm-path=lm.arpa\n"
    )


def test_flags_that_were_typed_are_printed_with_those_found(here, capsys):
    search("--hotwords", "AB:2,A B", "--token-min-logp=-inf")
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.endswith(" --lm-path=lm.arpa --hotwords='AB:2,A B' --token-min-logp=-inf")


def test_the_default_grid_is_the_contracts(whole):
    assert [row[:2] for row in whole] == [[a, b] for a in np.linspace(0, 3, 45) for b in np.linspace(0, 0.5, 8)]


def test_a_finished_point_is_not_decoded_again(here, capsys):
    found = search()
    before = rows_kept()
    assert search("--num-workers", 1) == found and rows_kept() == before
    assert "12 rows, 12 of them known before" in capsys.readouterr().out
    wider = search("--lm-alpha-to", 6, "--lm-num-alphas", 7)
    assert wider[:12] == found and len(rows_kept()) == 7 * 3


def test_another_search_in_the_same_file_is_not_mixed_in(here):
    found = search()
    with_spaces = search("--cer-spaces")
    assert [row[:3] for row in with_spaces] == [row[:3] for row in found]
    assert [row[3] for row in with_spaces] != [row[3] for row in found]
    search("--beam-width", 3)
    write_model(Path("lm.arpa"), tuple(reversed(WORDS)))
    search()
    Path("hot").write_text("CAB:9\n")
    search("--hotwords", "hot")
    Path("hot").write_text("CAB:-9\n")
    search("--hotwords", "hot")
    assert len(rows_kept()) == 6 * 12
    assert len({row["search"] for row in rows_kept()}) == 5, "the beam width is told by the row itself"


def test_what_a_killed_search_or_a_power_failure_left_is_passed_over(here):
    found = search()
    kept = Path("tune_results.json.partial.jsonl")
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join([*lines[:5], b"\0\0\0\n", b'["search"]\n', lines[5][:40]]))
    assert search() == found
    assert sorted(kept.read_bytes().splitlines(keepends=True)[8:]) == sorted(lines[5:])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_search_that_is_ended_loses_no_finished_row(here, whole, number, status):
    options = ["--saved-output", "val.npz", "--lm-path", "lm.arpa"]
    kept = here / "tune_results.json.partial.jsonl"
    with start("search_lm_params.py", *options, cwd=here) as process:
        while process.poll() is None and (not kept.exists() or kept.read_bytes().count(b"\n") < 10):
            time.sleep(0.005)
        os.kill(process.pid, number)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "")
    told = "interrupted; the same command goes on from the finished rows in tune_results.json.partial.jsonl\n"
    assert error == (told if number == signal.SIGINT else "")
    assert not Path("tune_results.json").exists()
    finished = [line for line in kept.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert 10 <= len(finished) < len(whole)
    assert search(grid=[]) == whole
    assert kept.read_bytes().startswith(b"".join(finished))
    assert len(rows_kept()) == len(whole), "no row twice"


def test_rows_that_cannot_win_are_cut_short_and_left_out(here, capsys):
    pruned = search("--prune")
    cut = [row for row in rows_kept() if row["wer"] is None]
    assert cut and f"12 rows, {len(cut)} cut short" in capsys.readouterr().out
    assert search("--prune") == pruned and len(rows_kept()) == 12, "what is cut short is not tried again either"
    found = search(output="all.json")
    best = min(row[2] for row in found)
    assert len(pruned) == 12 - len(cut) and all(row in found for row in pruned)
    assert {tuple(row) for row in found if row[2] == best} <= {tuple(row) for row in pruned}
    assert search() == found, "without --prune, rows cut short are decoded to their end"
    assert len(rows_kept()) == 12 + len(cut)


def test_optuna_makes_the_same_trials_of_one_seed(here, capsys):
    pytest.importorskip("optuna", reason="optuna is absent (requirements-tuning.txt): its method is not tested")
    method = ["--method", "optuna", "--trials", "8", "--lm-beta-to", "2"]
    found = search(grid=method)
    rows = rows_kept()
    assert [[row["alpha"], row["beta"], row["wer"], row["cer"]] for row in rows] == found
    assert all(0 <= alpha <= 3 and 0 <= beta <= 2 for alpha, beta, *_ in found)
    assert len({row["unk_penalty"] for row in rows}) == 8 and len({row["beam_width"] for row in rows}) > 3
    kept = Path("tune_results.json.partial.jsonl")
    kept.write_bytes(b"".join(kept.read_bytes().splitlines(keepends=True)[:3]))
    assert search("--num-workers", 1, grid=method) == found and rows_kept() == rows
    assert search("--seed", 2, grid=method, output="other.json") != found
    search("--unk-penalty", "inf", "--beam-width", 20, grid=method, output="fixed.json")
    assert {(row["unk_penalty"], row["beam_width"]) for row in rows_kept("fixed.json")} == {(float("inf"), 20)}
    pruned = search("--prune", grid=method, output="pruned.json")
    assert best_of(pruned)[2] <= min(row["wer"] for row in rows_kept("pruned.json") if row["wer"] is not None)
    capsys.readouterr()
    assert select_lm_params.main(["--plot", "dots.png"]) == 0
    best = min(rows, key=lambda row: (row["wer"], row["cer"], row["alpha"]))
    assert capsys.readouterr().out.splitlines()[1] == (
        f"--decoder beam --alpha {best['alpha']:g} --beta {best['beta']:g} --unk-penalty {best['unk_penalty']:g} "
        f"--beam-width {best['beam_width']}"
    )


def test_without_optuna_one_line_says_what_to_install(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)  # as if it were not installed, where it is
    assert search_lm_params.main(["--saved-output", "val.npz", "--lm-path", "lm.arpa", "--method", "optuna"]) == 1
    assert "pip install -r requirements-tuning.txt" in only_line(capsys)


def test_select_breaks_ties_by_cer_then_alpha(tmp_path, capsys):
    rows = [[0.5, 0.1, 10.0, 4.0], [0.9, 0.1, 9.0, 3.0], [0.7, 0.3, 9.0, 2.0], [0.6, 0.4, 9.0, 2.0], [0, 0, 9.0, 2.5]]
    results = tmp_path / "results.json"
    results.write_text(json.dumps(rows))
    assert select_lm_params.main(["--input-path", str(results)]) == 0
    assert capsys.readouterr().out == "Alpha: 0.6 Beta: 0.4 WER: 9.000 CER: 2.000\n"
    Path(f"{results}.partial.jsonl").write_text("")
    assert select_lm_params.main(["--input-path", str(results)]) == 0
    assert capsys.readouterr().out.count("\n") == 1, "nothing tells the other settings"


def test_the_heat_map_has_a_cell_for_each_row(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    rows = [[alpha, beta, 10 * alpha + 5 * beta, 1.0] for alpha in (0.0, 1.0, 2.0) for beta in (0.0, 0.5) if alpha + beta < 2.5]
    colours = []
    for name, kept in (("five", rows), ("one", rows[:1])):
        (tmp_path / "results.json").write_text(json.dumps(kept))
        picture = tmp_path / f"{name}.PNG"
        assert select_lm_params.main(["--input-path", str(tmp_path / "results.json"), "--plot", str(picture)]) == 0
        pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
        found, counts = np.unique(pixels, axis=0, return_counts=True)
        white = (found == 255).all(1)
        colours.append(int((counts[~white] > 5000).sum()))
    assert colours == [3, 1], "three at or above the median share the last colour"
    assert capsys.readouterr().out.count("Alpha: 0 Beta: 0 WER: 0.000 CER: 1.000\n") == 2


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "No such file or directory"),
        ("[[0, 1", "not JSON"),
        ("[]", "an empty list"),
        ('{"alpha": 1}', "a dict"),
        ("[[0, 1, 2]]", "row 0 is [0, 1, 2]"),
        ("[[0, 1, 2, 3], [0, 1, null, 3]]", "row 1 is [0, 1, null, 3]"),
        ("[[0, 1, NaN, 3]]", "row 0"),
    ],
)
def test_select_refuses_what_is_no_result(tmp_path, capsys, content, error):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert select_lm_params.main(["--input-path", str(path)]) == 1
    line = only_line(capsys)
    assert str(path) in line and error in line
    assert select_lm_params.main(["--input-path", str(path), "--plot", "map.pdf"]) == 2
    assert "--plot map.pdf" in only_line(capsys)


@pytest.mark.parametrize(
    ("options", "status", "error"),
    [
        (["--saved-output", "no.npz"], 1, "no.npz: No such file"),
        (["--lm-path", "no.arpa"], 1, "no.arpa: No such file"),
        (["--model-path", "no.pth"], 1, "no.pth: No such file"),
        (["--labels-path", "other.json"], 1, "other.json: its labels are '_ABCD', those of val.npz '_ABC '"),
        (["--lm-path", "lower.arpa"], 1, "lower.arpa"),
        (["--output-path", "folder"], 1, "folder: a folder"),
        (["--lm-alpha-from", "2", "--lm-alpha-to", "1"], 2, "--lm-alpha-from 2: expected at most the 1 of --lm-alpha-to"),
        (["--lm-beta-from", "0.6"], 2, "--lm-beta-from 0.6"),
        (["--lm-alpha-to", "11"], 2, "--lm-alpha-to"),
        (["--lm-alpha-to", "nan"], 2, "--lm-alpha-to"),
        (["--lm-num-alphas", "0"], 2, "--lm-num-alphas"),
        (["--lm-num-betas", "2.5"], 2, "--lm-num-betas"),
        (["--decoder", "greedy"], 2, "--decoder greedy"),
        (["--alpha", "0.8"], 2, "--alpha"),
        (["--trials", "8"], 2, "--trials"),
        (["--method", "optuna", "--lm-num-betas", "8"], 2, "--lm-num-alphas"),
        (["--beam-width", "0"], 2, "--beam-width"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(here, capsys, options, status, error):
    write_model(Path("lower.arpa"), tuple(word.lower() for word in WORDS))
    Path("folder").mkdir()
    Path("other.json").write_text('["_", "A", "B", "C", "D"]')
    try:
        found = search_lm_params.main(["--saved-output", "val.npz", "--lm-path", "lm.arpa", *SMALL_GRID[:4], *options])
    except SystemExit as stop:  # argparse's own way
        found = stop.code
    assert found == status
    assert error in only_line(capsys)
    assert not Path("tune_results.json").exists()


def test_a_language_model_is_needed(here, capsys):
    assert search_lm_params.main(["--saved-output", "val.npz"]) == 2
    assert "--lm-path" in only_line(capsys)


def test_labels_come_from_the_model_where_the_output_has_none(here, capsys):
    found = search()
    stored = dict(np.load("val.npz"))
    del stored["labels"]
    np.savez("val.npz", **stored)
    capsys.readouterr()
    assert search_lm_params.main(["--saved-output", "val.npz", "--lm-path", "lm.arpa"]) == 1
    assert "--model-path" in only_line(capsys)
    write_network(Path("model.pth"), SYMBOLS)
    assert search("--model-path", "model.pth", output="again.json") == found
    capsys.readouterr()
    write_network(Path("model.pth"), ("_", *"ABCDEF"))
    assert search_lm_params.main(["--saved-output", "val.npz", "--lm-path", "lm.arpa", "--model-path", "model.pth"]) == 1
    assert "7 labels, and val.npz has output for 5" in only_line(capsys)


@needs_shared
def test_the_workbench(tmp_path, capsys):
    """30 noisy utterances and a 3-gram: a fourth of the words is wrong without it."""
    model = tmp_path / "fortunes.arpa.gz"
    shutil.copy(WORKBENCH / "fortunes_3gram.arpa.gz", model)
    options = ["--saved-output", WORKBENCH / "emissions.npz", "--labels-path", ROOT / "labels.json", "--lm-path", model]
    options += ["--output-path", tmp_path / "r.json", *"--lm-num-alphas 3 --lm-alpha-to 1 --lm-num-betas 1".split()]
    assert search_lm_params.main([str(option) for option in options]) == 0
    output = read_saved_output(WORKBENCH / "emissions.npz")
    greedy = GreedyDecoder(Labels.read(ROOT / "labels.json").symbols)
    texts = [greedy.decode(torch.from_numpy(x)[None], torch.tensor([len(x)]))[0][0].text for x in output.log_probs]
    plain = count_errors(output.references, texts).wer
    assert 20 < plain < 35
    assert min(row[2] for row in json.loads((tmp_path / "r.json").read_text())) < plain / 3
