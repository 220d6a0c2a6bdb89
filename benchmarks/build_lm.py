"""How long build_lm.py takes for a text of a million words, in how much memory, and where lmplz is at hand, beside that.

    python benchmarks/build_lm.py [--words 1000000] [--order 3] [--rounds 3] [--lmplz PATH] [--memory 64]

The text is a walk over a real text's word pairs: every next word is drawn from those that follow the last one there, as often
as they do, but for one in twenty from all of its words, and one in fifty is a new word, two of its words in one. So words and
pairs are as unequally common as in a real text, and new ones keep turning up, as they would not if it were merely repeated.
Both programs run in turns; what they say of each n-gram is compared.
"""

import argparse
import gzip
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT.parent / "shared" / "data" / "lm" / "librispeech_dev_clean.txt.gz"
ANYWHERE, NEW = 0.05, 0.02  # shares of words drawn from the whole text, and of new ones


def walk(text: Path, words: int, seed: int = 0) -> Iterator[str]:
    """Sentences of at least so many words together."""
    rng = random.Random(seed)
    following, everything = defaultdict(list), []
    with gzip.open(text, "rt", encoding="utf-8") as file:
        for line in file:
            sentence = line.split()
            everything += sentence
            for before, after in zip(["", *sentence], [*sentence, ""], strict=True):
                following[before].append(after)
    while words > 0:
        sentence, word = [], rng.choice(following[""])
        while word:
            sentence.append(word)
            chance = rng.random()
            word = rng.choice(everything if chance < ANYWHERE else following.get(word, everything))
            if chance < NEW:
                word += rng.choice(everything)
        words -= len(sentence)
        yield " ".join(sentence)


def measured(command: list[str]) -> tuple[float, float, float]:
    """Seconds by the clock, seconds of processors, and the most MB of memory that a command took."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def ngrams(path: Path) -> dict[str, list[float]]:
    """n-gram: log10 probability, and backoff weight if it has one."""
    with open(path, encoding="utf-8") as file:
        lines = (line.rstrip("\n").split("\t") for line in file)
        return {fields[1]: [float(fields[0]), *map(float, fields[2:])] for fields in lines if len(fields) > 1}


def farthest(path: Path, other: Path) -> float:
    ours, theirs = ngrams(path), ngrams(other)
    if ours.keys() != theirs.keys():
        raise SystemExit(f"{path} and {other} have different n-grams")
    return max(abs(a - b) for ngram, numbers in ours.items() for a, b in zip(numbers, theirs[ngram], strict=True))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=1_000_000)
    parser.add_argument("--order", type=int, default=3)
    parser.add_argument("--prune", nargs="+", default=["0"])
    parser.add_argument("--memory", type=int, default=1024, help="MB that both may sort in")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lmplz", help="KenLM's program; without it, only ours is measured")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        text, ours, theirs = (Path(folder, name) for name in ("text", "ours.arpa", "theirs.arpa"))
        text.write_text("".join(f"{sentence}\n" for sentence in walk(TEXT, args.words)), encoding="utf-8")
        shape = ["--order", str(args.order), "--prune", *args.prune]
        commands = {"build_lm.py": [sys.executable, str(ROOT / "build_lm.py"), "--text", str(text), *shape]}
        commands["build_lm.py"] += ["--labels-path", str(ROOT / "labels.json"), "--output", str(ours)]
        commands["build_lm.py"] += ["--memory", str(args.memory)]
        if args.lmplz:
            commands["lmplz"] = [args.lmplz, "--text", str(text), "--arpa", str(theirs), *shape, "-T", folder]
            commands["lmplz"] += ["-S", f"{args.memory}M", "--discount_fallback"]
        rounds = [{name: measured(command) for name, command in commands.items()} for _ in range(args.rounds)]
        for name in commands:
            clock, core, memory = map(statistics.median, zip(*(times[name] for times in rounds), strict=True))
            print(f"{name:12} {clock:6.2f} s, {core:6.2f} s of processors, at most {memory:.0f} MB")
        if args.lmplz:
            print(f"logarithms differ by {farthest(ours, theirs):.1g} at most")


if __name__ == "__main__":
    main()
