"""What a language model costs at run time: seconds and memory to load it, and to ask it, beside KenLM's Python package.

    python benchmarks/language_model.py [--words 200000] [--ngrams 1800000 1700000 1300000] [--arpa FILE]

Without --arpa, one as large as LibriSpeech's is made up in a temporary folder: words and contexts are spread like those of a
language, and n-grams are listed by their last words, so that neighbours share no context. Each load is a process of its own;
the first one finds no cache. Asking is a walk of which half follows listed n-grams: by compiled code, as in the search, and
from Python. kenlm, if installed, loads and is asked from Python. It needs Linux.
"""

import argparse
import importlib.util
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # also when run as a file of this folder

ROUNDS = 5  # of asking, of which the fastest counts


def write_arpa(path: Path, counts: list[int], seed: int) -> None:
    """A model of so many n-grams of each order, in which every n-gram begins and ends with shorter ones that are listed."""
    rng = np.random.default_rng(seed)
    words = ["<unk>", "<s>", "</s>", *(spelled(number) for number in range(counts[0] - 3))]
    listed = np.arange(counts[0])[:, None]
    with open(path, "w") as file:
        file.write("\\data\\\n" + "".join(f"ngram {order}={count}\n" for order, count in enumerate(counts, 1)))
        for order, count in enumerate(counts, 1):
            if order > 1:
                listed = longer(listed, count, counts[0], rng)
            log10_p, weights = -1 - 4 * rng.random(count), -rng.random(count)
            file.write(f"\n\\{order}-grams:\n")
            for row, p, weight in zip(listed.tolist(), log10_p.tolist(), weights.tolist(), strict=True):
                ending = "\n" if order == len(counts) else f"\t{weight:.6f}\n"
                file.write(f"{p:.6f}\t{' '.join([words[word] for word in row])}{ending}")
        file.write("\n\\end\\\n")


def longer(listed: np.ndarray, count: int, words: int, rng: np.random.Generator) -> np.ndarray:
    """So many n-grams (count, order + 1) from overlapping ones of the listed (n, order), sorted by their last words."""
    powers = words ** np.arange(listed.shape[1] - 1)
    beginnings = listed[:, :-1] @ powers
    by_beginning = listed[np.argsort(beginnings, kind="stable")]
    beginnings.sort()
    contexts = listed[(len(listed) * rng.random(4 * count) ** 2).astype(int)]
    low, high = (np.searchsorted(beginnings, contexts[:, 1:] @ powers, side) for side in ("left", "right"))
    last = by_beginning[np.minimum(low + ((high - low) * rng.random(len(low)) ** 2).astype(int), len(listed) - 1), -1:]
    found = np.unique(np.concatenate([last, contexts[:, ::-1]], 1)[high > low], axis=0)[:, ::-1]
    if len(found) < count:
        raise SystemExit(f"--ngrams {count}: there are no more than {len(found)} such n-grams")
    return found[np.sort(rng.permutation(len(found))[:count])]


def spelled(number: int) -> str:
    letters = "ING"
    while number >= 0:
        letters = chr(65 + number % 26) + letters
        number = number // 26 - 1
    return letters


def in_own_process(work: Callable, *arguments: object) -> object:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def load(kind: str, path: Path, cache: str) -> object:
    if kind == "kenlm":
        import kenlm

        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its progress
        return kenlm.Model(str(path))
    from decoding.language_model import load_language_model

    return load_language_model(path, cache)


def measure_load(kind: str, path: Path, cache: str) -> tuple[float, float, float]:
    """Seconds by the clock and of the core, from the first import on, and the process's most memory in MB."""
    clock, core = time.perf_counter(), time.process_time()
    model = load(kind, path, cache)
    times = time.perf_counter() - clock, time.process_time() - core
    assert model is not None
    status = Path("/proc/self/status").read_text()
    return *times, int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1000


def measure_asking(kind: str, how: str, path: Path, cache: str, words: list[str]) -> float:
    """Nanoseconds of a core for a word."""
    model = load(kind, path, cache)
    if how == "compiled":
        from decoding.ngrams import score_words

        ids = np.array([model.word_id(word) for word in words])
        ask = partial(score_words, model.tables, 0, ids)
    else:
        ask = partial(python_walk if kind == "ours" else kenlm_walk, model, words)
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        ask()
        seconds.append(time.process_time() - started)
    return min(seconds) / len(words) * 1e9


def python_walk(model: object, words: list[str]) -> None:
    from decoding.ngrams import transition

    state = 0
    for word in words:
        _, state = transition(model.tables, state, model.word_id(word))


def kenlm_walk(model: object, words: list[str]) -> None:
    import kenlm

    state, after = kenlm.State(), kenlm.State()
    for word in words:
        model.BaseScore(state, word, after)
        state, after = after, state


def walk(path: Path, cache: str, count: int, seed: int) -> list[str]:
    """Words to ask for, in a row."""
    from decoding.ngrams import transition

    model, rng = load("ours", path, cache), np.random.default_rng(seed)
    state, words = 0, []
    for follow, choice in rng.random((count, 2)).tolist():
        first, end = model.tables.first[state : state + 2].tolist()
        listed = follow < 0.5 and end > first
        word = int(model.tables.word[first + int(choice * (end - first))]) if listed else int(choice**3 * len(model.words))
        words.append(model.words[word])
        _, state = transition(model.tables, state, word)
    return words


def report(path: Path, cache: str, asked: int) -> None:
    kinds = ["ours", "kenlm"] if importlib.util.find_spec("kenlm") else ["ours"]
    print(
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; python "
        f"{platform.python_version()}, numpy {np.__version__}; {path.name}, {path.stat().st_size / 1e6:.0f} MB"
    )
    for kind, how in (("ours", "first"), ("ours", "cached"), ("kenlm", "ARPA")):
        if kind in kinds:
            clock, core, peak = in_own_process(measure_load, kind, path, cache)
            print(f"load {kind:5} {how:11} {clock:6.1f} s by the clock, {core:5.1f} s of a core, {peak:4.0f} MB", flush=True)
    words = in_own_process(walk, path, cache, asked, 1)
    for kind, how in (("ours", "compiled"), ("ours", "from Python"), ("kenlm", "from Python")):
        if kind in kinds:
            nanoseconds = in_own_process(measure_asking, kind, how, path, cache, words)
            print(f"ask  {kind:5} {how:11} {nanoseconds:6.0f} ns a word", flush=True)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=200_000)
    parser.add_argument("--ngrams", type=int, nargs="+", default=[1_800_000, 1_700_000, 1_300_000], help="of orders 2, 3, ...")
    parser.add_argument("--arpa", type=Path, help="a model to take instead")
    parser.add_argument("--asked", type=int, default=200_000, help="words to ask for")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = args.arpa or Path(folder, "made_up.arpa")
        if not args.arpa:
            in_own_process(write_arpa, path, [args.words, *args.ngrams], 1)
        report(path, folder, args.asked)


if __name__ == "__main__":
    main()
