"""build_lm.py as people type it, against what KenLM's lmplz makes of the same text, and against what probabilities must do."""

import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from beeps import ROOT, run, start
from shared_data import AN4, SHARED, needs_shared

import build_lm
from data.labels import Labels
from decoding.corpus_text import CorpusText
from decoding.kneser_ney import estimate
from decoding.ngram_counts import count_ngrams, read_sentences

LABELS = ROOT / "labels.json"
LIBRISPEECH = SHARED / "data/lm/librispeech_dev_clean.txt.gz"
KENLM = "kenlm==0.3.0"  # its source distribution has lmplz in it
BOOST = ("boost/thread.hpp", "boost/program_options.hpp", "boost/test/unit_test.hpp", "zlib.h")

SMALL = """\
THE CAT SAT ON THE MAT
THE DOG SAT ON THE CAT
A CAT AND A DOG SAT DOWN
THE MAT WAS ON THE FLOOR
IT'S THE CAT'S MAT
"""
# lmplz -o 3 --prune 0 0 1 --discount_fallback, on SMALL; columns between |, a row for each n-gram.
SMALL_ARPA = """\
-1.3609564|<unk>|0
0|<s>|-0.07572073
-0.8636317|</s>|0
-1.013726|THE|-0.12909469
-1.2991041|CAT|-0.22184873
-1.2991041|SAT|-0.1153934
-1.2991041|ON|-0.07058106
-1.2991041|MAT|-0.1153934
-1.2991041|DOG|-0.07058106
-1.2991041|A|-0.22184873
-1.1535254|AND|-0.22184873
-1.1535254|DOWN|-0.22184873
-1.1535254|WAS|-0.22184873
-1.1535254|FLOOR|-0.22184873
-1.1535254|IT'S|-0.22184873
-1.1535254|CAT'S|-0.22184873
-0.6666199|CAT </s>|0
-0.688356|MAT </s>|0
-0.31683284|DOWN </s>|0
-0.31683284|FLOOR </s>|0
-1.0894468|<s> THE|0
-0.633847|ON THE|0
-0.33900812|IT'S THE|0
-1.0960149|THE CAT|0
-0.6380205|A CAT|0
-0.7865708|CAT SAT|0
-0.7151434|DOG SAT|0
-0.8585386|SAT ON|-0.30103
-0.3663969|WAS ON|0
-1.0960149|THE MAT|0
-0.3663969|CAT'S MAT|0
-1.0247943|THE DOG|0
-0.6380205|A DOG|0
-0.9129762|<s> A|0
-0.3663969|AND A|0
-0.7558054|CAT AND|0
-0.72776294|SAT DOWN|0
-0.72776294|MAT WAS|0
-0.9613483|THE FLOOR|0
-0.8570268|<s> IT'S|0
-0.9613483|THE CAT'S|0
-0.21029396|SAT ON THE
"""
# lmplz --discount_fallback with these flags on made_up_text(): D1, D2, D3+ of each order, then how many n-grams of each order,
# the sum of their log10 p, and that of their backoff weights.
ESTIMATED = [(0.5, 1, 1.5), (0.702359, 0.972157, 1.84111), (0.902494, 1.52776, 2.03734), (0.984436, 1.50778, 1.03113)]
MADE_UP = {
    "--order 1": (ESTIMATED[:1], [(98, -221.7436, 0)]),
    "--order 4": (
        ESTIMATED,
        [(98, -205.2263, -20.9009), (1113, -1738.1558, -49.8539), (1710, -1771.9871, -11.1222), (1536, -1379.286, 0)],
    ),
    "--order 3 --prune 0 1 2": (
        [*ESTIMATED[:2], (0.902384, 1.62226, 1.49603)],
        [(98, -205.2263, -10.622), (351, -493.7496, -3.1406), (34, -24.6376, 0)],
    ),
    "--order 4 --prune 1 1 2": (
        ESTIMATED,
        [(93, -190.8795, -10.622), (351, -493.4134, -1.9589), (34, -27.1952, -0.7763), (6, -2.843, 0)],
    ),
}


def made_up_text() -> str:
    """400 sentences of 90 words, some far more common than others.

    The last word that is new comes once: lmplz takes the very last n-gram of each order by its count, not by its adjusted
    count, when it estimates discounts, and only where both are the same does it estimate what its authors' paper says.
    """
    rng = random.Random(7)
    words = [chr(65 + n // 26) + chr(65 + n % 26) for n in range(90)]
    lines = [" ".join(words[int(90 * rng.random() ** 3)] for _ in range(1 + int(9 * rng.random()))) for _ in range(400)]
    return "\n".join([*lines, "THE LAST NEW WORD ONCE\n"])


def build(folder: Path, *args: object, **kwargs) -> subprocess.CompletedProcess:
    """build_lm.py with the English labels, which writes lm.arpa unless it is told otherwise."""
    defaults = {"--labels-path": LABELS, "--output": "lm.arpa"}
    more = [part for flag in defaults.items() if flag[0] not in args for part in flag]
    return run("build_lm.py", *args, *more, cwd=folder, **kwargs)


def built(folder: Path, text: str, *args: object) -> dict[str, tuple[float, ...]]:
    """The n-grams of a model of a text, which is made in this process, as there are many."""
    (folder / "text.txt").write_text(text, encoding="utf-8")
    files = ["--text", folder / "text.txt", "--labels-path", LABELS, "--output", folder / "lm.arpa"]
    assert build_lm.main([str(arg) for arg in (*files, *args)]) == 0
    return ngrams((folder / "lm.arpa").read_text(encoding="utf-8"))


def ngrams(arpa: str) -> dict[str, tuple[float, ...]]:
    """The n-grams of an ARPA file: log10 p, and the backoff weight's log10 if there is one."""
    head, *sections = arpa.split("-grams:\n")
    promised = [int(line.partition("=")[2]) for line in head.splitlines() if line.startswith("ngram ")]
    assert head.startswith("\\data\\\n") and arpa.endswith("\n\\end\\\n")
    found = {}
    for length, section in enumerate(sections, 1):
        rows = [line.split("\t") for line in section.splitlines() if "\t" in line]
        assert len(rows) == promised[length - 1]
        assert all(row[1].count(" ") == length - 1 for row in rows)
        assert all(len(row) == 2 + (length < len(sections)) for row in rows)
        found |= {row[1]: tuple(map(float, (row[0], *row[2:]))) for row in rows}
    assert len(found) == sum(promised)
    return found


def log_p(model: dict[str, tuple[float, ...]], context: tuple[str, ...], word: str) -> float:
    """log10 p of a word after other words, by backing off."""
    ngram = " ".join((*context, word))
    if ngram in model:
        return model[ngram][0]
    backoff = model.get(" ".join(context), (0, 0))[1]
    return backoff + log_p(model, context[1:], word)


def differs(model: dict[str, tuple[float, ...]], other: dict[str, tuple[float, ...]]) -> float:
    assert model.keys() == other.keys()
    return max(abs(a - b) for ngram, numbers in model.items() for a, b in zip(numbers, other[ngram], strict=True))


# What lmplz makes of a text.


def test_a_few_sentences_as_lmplz_estimates_them(tmp_path):
    (tmp_path / "text.txt").write_text(SMALL)
    done = build(tmp_path, "--text", "text.txt", "--order", 3, "--prune", 0, 0, 1)
    assert (done.returncode, done.stdout) == (
        0,
        "5 sentences, 29 words, 13 different\nlm.arpa: 16 of 16 1-grams, 25 of 25 2-grams, 1 of 28 3-grams\n",
    )
    assert done.stderr.startswith("3-grams: too few, or too regular, to estimate discounts (counts of 1, 2, 3, 4: 27, 1, 0, 0)")
    assert done.stderr.endswith("; taking 0.5, 1, 1.5\n") and done.stderr.count("\n") == 1
    rows = [row.split("|") for row in SMALL_ARPA.splitlines()]
    recorded = {row[1]: tuple(map(float, (row[0], *row[2:]))) for row in rows}
    assert differs(ngrams((tmp_path / "lm.arpa").read_text()), recorded) < 2e-6


@pytest.mark.parametrize("flags", MADE_UP)
def test_discounts_and_sums_as_lmplz_estimates_them(tmp_path, flags):
    discounts, sums = MADE_UP[flags]
    model = built(tmp_path, made_up_text(), *flags.split())
    for length, (count, p, backoff) in enumerate(sums, 1):
        numbers = [values for ngram, values in model.items() if ngram.count(" ") == length - 1]
        assert len(numbers) == count
        assert sum(values[0] for values in numbers) == pytest.approx(p, abs=2e-3)
        assert sum(sum(values[1:]) for values in numbers) == pytest.approx(backoff, abs=1e-3)
    orders = estimated(tmp_path, made_up_text(), len(sums), flags)
    for order, amounts in zip(orders, discounts, strict=True):
        assert order.discounts.amounts[1:] == pytest.approx(amounts, abs=1e-5)


def estimated(folder: Path, text: str, order: int, flags: str = "", memory: int = 2**20) -> list:
    """What build_lm.py does between reading and writing."""
    counted = read_sentences((line.split() for line in text.splitlines()), order, str(folder))
    thresholds = [*map(int, flags.partition("--prune")[2].split()), *[0] * order]
    thresholds = np.maximum.accumulate(thresholds)[:order].tolist()
    tables = count_ngrams(counted, order, memory, str(folder))
    return estimate(tables, thresholds, np.zeros(len(counted.words), bool), memory, str(folder))


@pytest.fixture(scope="session")
def lmplz() -> str:
    """KenLM's program: that of the PATH, or built once, into the user's cache."""
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "deepspeech-toolkit", "lmplz-0.3.0")
    found = shutil.which("lmplz") or (str(cached) if cached.exists() else None)
    if found:
        return found
    missing = [tool for tool in ("cmake", "make", "c++") if shutil.which(tool) is None]
    missing += [header for header in BOOST if not Path("/usr/include", header).exists()]
    if missing:
        pytest.skip(f"lmplz is neither installed nor can it be built: no {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        sources = "--no-binary kenlm --no-deps --retries 1 -d .".split()
        steps = (
            [sys.executable, "-m", "pip", "download", *sources, KENLM],
            ["tar", "xzf", KENLM.replace("==", "-") + ".tar.gz"],
            ["cmake", "-S", KENLM.replace("==", "-"), "-B", "build", "-DCMAKE_BUILD_TYPE=Release"],
            ["make", "-C", "build", "-j", str(os.cpu_count()), "lmplz"],
        )
        for step in steps:
            done = subprocess.run(step, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                pytest.skip(f"lmplz cannot be built: {' '.join(step[:4])}: {(done.stderr or done.stdout).strip()[-300:]}")
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_name(f"{cached.name}.{os.getpid()}")
        shutil.copy(Path(folder, "build/bin/lmplz"), partial)
        partial.replace(cached)
    return str(cached)


def librispeech() -> str:
    return gzip.decompress(LIBRISPEECH.read_bytes()).decode()


def an4() -> str:
    return "".join(line.partition(",")[2] + "\n" for line in (AN4 / "train.csv").read_text().splitlines()[1:])


@pytest.mark.parametrize(
    "text, flags",
    [
        (made_up_text, "--order 5 --prune 0 1"),
        pytest.param(librispeech, "--order 3", marks=needs_shared),
        pytest.param(librispeech, "--order 5 --prune 0 0 1", marks=needs_shared),
        pytest.param(librispeech, "--order 2 --vocab some", marks=needs_shared),
        pytest.param(an4, "--order 3 --prune 0 0 1", marks=needs_shared),
    ],
)
def test_texts_as_lmplz_estimates_them(tmp_path, lmplz, text, flags):
    content = text()
    (tmp_path / "some").write_text("\n".join(sorted(set(content.split()))[::2]))
    model = built(tmp_path, content, *flags.replace("some", str(tmp_path / "some")).split())
    theirs = flags.replace("--vocab", "--limit_vocab_file").split()
    command = [
        lmplz,
        *theirs,
        "--text",
        "text.txt",
        "--arpa",
        "theirs",
        "--discount_fallback",
        "-S",
        "200M",
        "-T",
        str(tmp_path),
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert differs(model, ngrams((tmp_path / "theirs").read_text())) < 1e-4


# What probabilities must do.


@pytest.mark.parametrize("prune", ["0", "0 0 1", "2"])
@pytest.mark.parametrize("order", range(1, 6))
def test_after_every_context_probabilities_sum_to_one(tmp_path, order, prune):
    model = built(tmp_path, made_up_text(), "--order", order, "--prune", *prune.split()[:order])
    words = [ngram for ngram in model if " " not in ngram and ngram != "<s>"]
    contexts = [tuple(ngram.split()) for ngram in model if ngram.count(" ") < order - 1 and not ngram.endswith("</s>")]
    contexts = random.Random(0).sample(contexts, min(100, len(contexts)))
    for context in [(), *contexts]:
        assert sum(10 ** log_p(model, context, word) for word in words) == pytest.approx(1, abs=2e-5), context


def test_a_limited_vocabulary_leaves_out_every_ngram_with_another_word(tmp_path):
    text = made_up_text()
    often = Counter(text.split())
    for flags in (["--vocab", tmp_path / "vocab.txt"], ["--limit-vocab", 20]):
        allowed = {word for word, _ in often.most_common(20)}
        (tmp_path / "vocab.txt").write_text("\n".join(sorted(allowed)).lower())
        model = built(tmp_path, text, *flags)
        assert {word for ngram in model for word in ngram.split()} == allowed | {"<unk>", "<s>", "</s>"}
        for context in [(), ("<s>",), ("AA",), ("AA", "AB")]:
            words = [*allowed, "<unk>", "</s>"]
            assert sum(10 ** log_p(model, context, word) for word in words) == pytest.approx(1, abs=2e-5)


@pytest.mark.parametrize("flags", ["--order 2", "--order 5 --prune 0 1 2"])
def test_kenlm_reads_it_and_scores_the_same(tmp_path, flags):
    kenlm = pytest.importorskip("kenlm")
    model = built(tmp_path, made_up_text(), *flags.split())
    order = int(flags.split()[1])
    loaded = kenlm.Model(str(tmp_path / "lm.arpa"))
    assert loaded.order == order
    for line in [*made_up_text().splitlines()[:50], "AA NEVER HEARD OF AB AA"]:
        words = ["<s>", *line.split(), "</s>"]
        known = [word if word in model else "<unk>" for word in words]
        scores = [log_p(model, tuple(known[max(0, n - order + 1) : n]), known[n]) for n in range(1, len(known))]
        assert loaded.score(line) == pytest.approx(sum(scores), abs=1e-4)


# Memory, bytes.


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_little_memory_and_another_day_give_the_same_bytes(tmp_path, name):
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("ABCDEFGHIJ"), 4)) for _ in range(3000)])
    lines = [" ".join(words[(3000 * rng.random(30) ** 4).astype(int)]) for _ in range(3000)]
    (tmp_path / "text.txt").write_text("\n".join(lines))  # 90,000 words; a megabyte sorts 26,214 n-grams
    for folder, memory in (("first", 1), ("second", 1000)):
        (tmp_path / folder).mkdir()
        done = build(tmp_path, "--text", "text.txt", "--order", 4, "--memory", memory, "--output", f"{folder}/{name}")
        assert done.returncode == 0, done.stderr
        assert [path.name for path in (tmp_path / folder).iterdir()] == [name]
    assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_runs_of_a_few_ngrams_merge_to_the_same_numbers(tmp_path):
    plenty = estimated(tmp_path, made_up_text(), 4, "--prune 0 1")
    little = estimated(tmp_path, made_up_text(), 4, "--prune 0 1", memory=2000)  # 50 keys, 83 contexts
    for one, other in zip(plenty, little, strict=True):
        for name in ("keys", "pruned", "probabilities", "backoffs"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_counts_are_those_of_plain_counting(tmp_path):
    sentences = [line.split() for line in made_up_text().splitlines()]
    text = read_sentences(sentences, 4, str(tmp_path))
    tables = count_ngrams(text, 4, 4000, str(tmp_path))
    plain: dict[int, Counter] = defaultdict(Counter)
    for sentence in sentences:
        tokens = ["<s>", *sentence, "</s>"]
        for length in range(2, 5):
            plain[length].update(tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1))
    spelled = [(word,) for word in text.words]
    for length, table in enumerate(tables[1:], 2):
        spelled = [(text.words[key % len(text.words)], *spelled[key // len(text.words)]) for key in table.keys.tolist()]
        assert dict(zip(spelled, table.counts.tolist(), strict=True)) == plain[length]


# Text, labels, manifests.


def sentences(labels: list[str], text: str | bytes, folder: Path) -> tuple[list[list[str]], list[str]]:
    path = folder / "some.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    corpus = CorpusText(Labels(labels))
    return list(corpus.read_text(str(path))), corpus.left_out()


def test_labels_say_what_becomes_of_a_text(tmp_path):
    text = "\ufeffWell-known, isn\u2019t it?\r\n\n  \u00bfqu\u00e9?\t \nIn 1984\n---\nthe end".encode()
    english = json.loads(LABELS.read_text())
    found, left_out = sentences(english, text, tmp_path)
    assert found == [["WELL", "KNOWN", "ISN'T", "IT"], ["THE", "END"]]
    assert left_out == [
        "2 lines without words",
        "2 sentences with characters that are not labels ('1' in 1, '4' in 1, '8' in 1, '9' in 1, '\u00c9' in 1)",
    ]
    lower = [label.lower() for label in english] + ["\u00e9", *"0123456789"]
    found, left_out = sentences(lower, text, tmp_path)
    assert found == [["well", "known", "isn't", "it"], ["qu\u00e9"], ["in", "1984"], ["the", "end"]]
    assert left_out == ["2 lines without words"]
    both = [*lower, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    assert sentences(both, "In Paris\n", tmp_path)[0] == [["In", "Paris"]]
    assert sentences(["_", "A", "B", "\u1e9e", "\u00df"], "abba", tmp_path)[0] == [list("ABBA")], (
        "sharp s has no case of its own"
    )


def test_labels_without_a_space_make_every_character_a_word(tmp_path):
    labels = ["_", "\u4eca", "\u65e5", "\u306f", "\u6674", "\u308c"]
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    (tmp_path / "text.txt").write_text("\u4eca\u65e5 \u306f\u3002\n\u6674\u308c\n\u6674\u308c\u305f\n", encoding="utf-8")
    done = build(tmp_path, "--text", "text.txt", "--labels-path", "labels.json", "--order", 2)
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        0,
        "2 sentences, 5 words, 5 different; left out: 1 sentences with characters that are not labels ('\u305f' in 1)",
    )
    model = ngrams((tmp_path / "lm.arpa").read_text(encoding="utf-8"))
    assert {"\u4eca \u65e5", "\u65e5 \u306f", "<s> \u6674", "\u308c </s>"} <= model.keys()


def test_manifests_and_texts_together(tmp_path):
    first, second = SMALL.splitlines()[:2], SMALL.splitlines()[2:4]
    for number, line in enumerate(first):
        (tmp_path / f"{number}.txt").write_text(line + "\n")
    (tmp_path / "train.csv").write_text("".join(f"{n}.wav,{n}.txt\n" for n in range(len(first))))
    entries = [{"audio_filepath": "a.wav", "duration": 1, "text": line} for line in second]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (tmp_path / "rest.txt.gz").write_bytes(gzip.compress(SMALL.splitlines()[4].lower().encode()))
    whole = built(tmp_path, SMALL)
    done = build(tmp_path, "--manifest", "train.csv", "train.jsonl", "--text", "rest.txt.gz")
    assert done.returncode == 0 and "5 sentences, 29 words" in done.stdout
    assert differs(ngrams((tmp_path / "lm.arpa").read_text()), whole) == 0


# Mistakes.


@pytest.fixture
def mistakes(tmp_path):
    files = {"good.txt": SMALL, "empty.txt": "", "digits.txt": "1 2\n", "bad.txt": b"GOOD\nB\xffD\n", "none.txt": "--\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "cut.gz").write_bytes(gzip.compress(SMALL.encode())[:50])
    (tmp_path / "lm.arpa").write_text("an earlier one")
    (tmp_path / "reserved.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 1, "text": "A <s>"}\n')
    (tmp_path / "angles.json").write_text('["_", "A", "s", "<", ">", " "]')
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "flags, status, told",
    [
        ("--text nix.txt", 1, "nix.txt: No such file or directory"),
        ("--text good.txt nix.txt", 1, "nix.txt: No such file or directory"),
        ("--manifest nix.csv", 1, "nix.csv: no such manifest"),
        ("--text folder", 1, "folder: Is a directory"),
        ("--text bad.txt", 1, "bad.txt:2: not text in UTF-8"),
        ("--text cut.gz", 1, "cut.gz: damaged gzip file"),
        ("--text empty.txt", 1, "empty.txt: no sentences"),
        (
            "--text none.txt digits.txt",
            1,
            "none.txt digits.txt: no sentences; left out: 1 lines without words, 1 sentences with",
        ),
        ("--manifest reserved.jsonl --labels-path angles.json", 1, "<s>: a word that a text cannot have"),
        ("--text good.txt --order 0", 2, "--order: 0: expected at least 1"),
        ("--text good.txt --order 7", 2, "--order: 7: expected at most 6"),
        ("--text good.txt --prune 1 0", 2, "--prune 1 0: expected"),
        ("--text good.txt --prune 0 0 0 1", 2, "--prune 0 0 0 1: expected at most --order 3 counts"),
        ("--text good.txt --prune -1", 2, "--prune"),
        ("--text good.txt --prune 9", 1, "no word of the text is left"),
        ("--text good.txt --memory 0", 2, "--memory"),
        ("--text good.txt --labels-path nix.json", 1, "nix.json: No such file"),
        ("--text good.txt --vocab none.txt", 1, "--vocab none.txt: no words"),
        ("--text good.txt --vocab good.txt --limit-vocab 3", 2, "--limit-vocab: not allowed with"),
        ("--text good.txt --temp-dir nix", 2, "--temp-dir nix: not a folder"),
        ("--text good.txt --output good.txt", 2, "--output good.txt: is read from"),
        ("--text good.txt --output folder", 2, "--output folder: a folder"),
        ("--text good.txt --output good.txt/lm.arpa", 1, "good.txt"),
        ("--order 2", 2, "give --text or --manifest"),
    ],
)
def test_mistakes_get_one_line_and_change_nothing(mistakes, flags, status, told):
    before = {path: path.is_file() and path.read_bytes() for path in mistakes.rglob("*")}
    done = build(mistakes, *flags.split())
    assert (done.returncode, done.stderr.count("\n")) == (status, 1), done.stderr
    assert told in done.stderr
    assert {path: path.is_file() and path.read_bytes() for path in mistakes.rglob("*")} == before


def test_an_order_that_no_sentence_has_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("ONE TWO\nONE\n")
    done = build(tmp_path, "--text", "text.txt", "--order", 5)
    assert (done.returncode, done.stderr) == (
        1,
        "error: --order 5: expected at most 4, as the longest sentence has 2 words, a begin and an end\n",
    )
    assert build(tmp_path, "--text", "text.txt", "--order", 4).returncode == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(mistakes):
    (mistakes / "folder").chmod(0o500)
    done = build(mistakes, "--text", "good.txt", "--output", "folder/lm.arpa")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "folder" in done.stderr


@pytest.mark.parametrize("size, name, told", [(100, "lm.arpa", ""), (1000, "lm.arpa", "/lm.arpa"), (460, "lm.gz", "/lm.gz")])
def test_a_full_disk_leaves_the_earlier_model(mistakes, size, name, told):
    """A limit on the size of files stands for it; a temporary file reaches it, or the model."""
    limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}
    done = build(mistakes, "--text", "good.txt", "--output", name, **limited)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"error: {mistakes.resolve()}{told}: File too large")
    assert (mistakes / "lm.arpa").read_text() == "an earlier one" and not (mistakes / "lm.gz").exists()
    assert not list(mistakes.glob(".*"))


def test_interrupted_it_leaves_nothing(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    process = start("build_lm.py", "--text", "pipe", "--labels-path", LABELS, "--output", "new/lm.arpa", cwd=tmp_path)
    with open(tmp_path / "pipe", "w") as pipe:  # opens when the other end is read
        pipe.write(SMALL)
        pipe.flush()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert not list((tmp_path / "new").iterdir())
