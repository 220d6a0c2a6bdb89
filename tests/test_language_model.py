import base64
import gzip
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from shared_data import SHARED, needs_shared

from decoding import ngram_cache
from decoding.kenlm_binary import KenlmModel
from decoding.language_model import load_language_model
from decoding.ngrams import LN_10, NgramModel, transition

ROOT = Path(__file__).resolve().parents[1]
FORTUNES = SHARED / "data" / "decoding" / "fortunes_3gram.arpa.gz"
MODELS = [FORTUNES, *sorted((SHARED / "data" / "lm").glob("*.arpa*"))]
TOY = """\\data\\
ngram 1=5
ngram 2=4
ngram 3=2

\\1-grams:
-2.0	<unk>
-99	<s>	-0.5
-0.7	</s>
-0.6	A	-0.3
-0.8	CAFÉ	-0.2

\\2-grams:
-0.2	<s> A	-0.1
-0.4	A CAFÉ	-0.25
-0.5	A </s>
-0.3	CAFÉ </s>

\\3-grams:
-0.1	<s> A CAFÉ
-0.05	A CAFÉ </s>

\\end\\
"""
# What KenLM's build_binary makes of TOY: `build_binary toy.arpa`, `build_binary trie toy.arpa`.
PROBING = (
    "c-qU&O)OBz$yLZGDJihh*U!#KO-##7%}LQq&d=3P&QD2INXswEO)OC;OD!tS%+FIW<zhg9274f}pAks>2Lg}?BUFYNOdhaD7Gs6dEKr(>0TqDc3+fd2TDFyf"
    "^{_W|`CsA^H3ylsSw}rW^4YCa7BoFvIp06l7C*>FHwz6M06CU{;n*RNdyS2aLGEgpHB-`l*36mv&YtnH2jYD&#T=iQGFmno3!go6#tx`#Ut`hR54F`btspf("
    "vAtsFy*{t2$&vt>1u+*t&}=imu;);-0?;lykb1Q*?R<Z1C+307LRJ@eWvW6-ymArHp1n4udD(UhHpM`!4<sBJoE_Z`cQOC~8}(!H"
)
TRIE = (
    "c-qU&O)OBz$yLZGDJihh*U!#KO-##7%}LQq&d=3P&QD2INXswEO)OC;OD!tS%+FIW<zhg9274f}pAks>2Lg}?BUFYNOdhajf{KAKD^!jJN;4su1QRQ$Q`~FW"
    "R?5KM(B*%LOVoU`j(UXTvs<ZLIp06l7C*>F(sBUg00j5gA&^^Oyje3P_s^O+b03U<_KeSdAl?UapRutqNNoeM8<5?B4l>iyKA9RDe_xcAmL|`@us|QE@dwB-"
    "GoYzJ0fq#aN)99~?^e#7xsn~(9GlX-Y&!;<Vmk&$24_dN!<`H^`ali<k^D-X"
)


def arpa(tmp_path, text, name="toy.arpa"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path_factory, monkeypatch):
    """The user's own is left alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user")))


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    return tmp_path_factory.mktemp("caches")


def walks(model, count, seed):
    """Sentences, of which about half the words continue a listed n-gram, and some are not listed at all."""
    rng, tables = random.Random(seed), model.tables
    for _ in range(count):
        state, words = model.begin, []
        for _ in range(rng.randrange(16)):
            first, end = tables.first[state : state + 2]
            word = int(tables.word[rng.randrange(first, end)]) if first < end and rng.random() < 0.6 else None
            if word is None:
                word = rng.randrange(len(model.words)) if rng.random() < 0.9 else 0
            if model.words[word] in ("<s>", "</s>"):
                continue
            words.append(model.words[word] if word else rng.choice(["<unk>", "ZZYZX", "ünbekannt"]))
            state = transition(tables, state, word)[1]
        yield " ".join(words)


def reference(path):
    """{(words): (log10 p, log10 backoff)} of an ARPA file, read by the plainest means."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().replace("\r", "")
    ngrams, order = {}, 0
    for line in text[text.index("\n\\data\\") if "\n\\data\\" in text else 0 :].split("\n"):
        fields = [field for field in re.split("[ \t]+", line) if field]
        if fields and fields[0].startswith("\\"):
            order += fields[0].endswith("-grams:")
        elif fields and order:
            words = tuple("<unk>" if word == "<UNK>" else word for word in fields[1 : order + 1])
            ngrams[words] = float(fields[0]), float(fields[order + 1]) if len(fields) > order + 1 else 0.0
    ngrams.setdefault(("<unk>",), (-100.0, 0.0))
    return ngrams, order


def backed_off(ngrams, context, word):
    if (*context, word) in ngrams:
        return ngrams[(*context, word)][0]
    return ngrams.get(context, (0, 0.0))[1] + backed_off(ngrams, context[1:], word)


def by_definition(ngrams, order, sentence):
    words = ["<s>", *(word if (word,) in ngrams else "<unk>" for word in sentence.split()), "</s>"]
    return sum(backed_off(ngrams, tuple(words[max(0, i - order + 1) : i]), words[i]) for i in range(1, len(words)))


def for_kenlm(path, to):
    """The same model as KenLM insists on seeing it: no words before it, and tabs."""
    ngrams, order = reference(path)
    with open(to, "w") as file:
        by_order = [[words for words in ngrams if len(words) == n] for n in range(1, order + 1)]
        file.write("\\data\\\n" + "".join(f"ngram {n}={len(listed)}\n" for n, listed in enumerate(by_order, 1)))
        for n, listed in enumerate(by_order, 1):
            file.write(f"\n\\{n}-grams:\n")
            for words in listed:
                p, backoff = ngrams[words]
                file.write(f"{p!r}\t{' '.join(words)}" + (f"\t{backoff!r}\n" if n < order else "\n"))
        file.write("\n\\end\\\n")
    return to


def assert_same(ours, theirs):
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-5)


@needs_shared
@pytest.mark.parametrize(("path", "count"), [(path, 10_000 if path == FORTUNES else 1000) for path in MODELS], ids=str)
def test_scores_are_kenlms(path, count, caches, tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="kenlm is absent: scores are not compared with its")
    model = load_language_model(path, caches)
    if model.order < 2:
        pytest.skip("KenLM reads no models of order 1")
    if path.name.startswith(("fortunes", "mfa")):  # as they are
        (tmp_path / "theirs.arpa").write_bytes(gzip.decompress(path.read_bytes()))
    else:
        for_kenlm(path, tmp_path / "theirs.arpa")
    theirs = kenlm.Model(str(tmp_path / "theirs.arpa"))
    assert model.order == theirs.order
    assert all(word in theirs for word in model.words[1:])
    ngrams = 0
    for sentence in walks(model, count, seed=1):
        scores = list(theirs.full_scores(sentence))
        assert_same(model.score(sentence), sum(log10_p for log10_p, _, _ in scores))
        ngrams += sum(length > 1 for _, length, _ in scores)
    assert ngrams > count or path.name == "an4_unigram.arpa"  # not a test of unigrams
    for bos, eos in itertools.product([False, True], repeat=2):
        assert_same(model.score(sentence, bos, eos), theirs.score(sentence, bos, eos))


@needs_shared
@pytest.mark.parametrize("path", MODELS, ids=str)
def test_scores_are_those_of_the_definition(path, caches):
    model = load_language_model(path, caches)
    ngrams, order = reference(path)
    assert (model.order, sorted(model.words)) == (order, sorted(words[0] for words in ngrams if len(words) == 1))
    for sentence in walks(model, 300, seed=2):
        assert_same(model.score(sentence), by_definition(ngrams, order, sentence))


def random_arpa(rng, path, order, share, as_in_kenlm):
    """A model from which n-grams are missing that begin or end others that are there; KenLM bears only a few of the latter."""
    words = ["<unk>", "<s>", "</s>", *"ABCD"][rng.randrange(2) :]
    levels = [[(word,) for word in words]]
    for _ in range(order - 1):
        contexts = levels[-1] if as_in_kenlm else itertools.product(words, repeat=len(levels))
        longer = [(*context, word) for context in contexts for word in words]
        longer = [ngram for ngram in longer if "<s>" not in ngram[1:] and "</s>" not in ngram[:-1]]
        if as_in_kenlm:
            shorter = set(levels[-1])
            longer = [ngram for ngram in longer if ngram[1:] in shorter or rng.random() < 0.03]
        levels.append(rng.sample(longer, min(len(longer), max(2, int(share * len(longer))))))
    rng.shuffle(levels[0])
    lines = ["\\data\\", *(f"ngram {n}={len(level)}" for n, level in enumerate(levels, 1))]
    for n, level in enumerate(levels, 1):
        lines += ["", f"\\{n}-grams:"]
        for ngram in level:
            backoff = f"\t{rng.uniform(-1, 0.3):.4f}" if n < order and rng.random() < 0.7 else ""
            lines.append(f"{-1 - 2 * rng.random():.4f}\t{' '.join(ngram)}{backoff}")
    path.write_text("\n".join([*lines, "", "\\end\\", ""]))
    return words


@pytest.mark.parametrize("order", range(1, 6))
def test_pruned_models_score_by_definition(order, tmp_path):
    rng = random.Random(order)
    for trial, share in enumerate([0.02, 0.1, 0.3, 0.7] * 5):
        path = tmp_path / f"{trial}.arpa"
        words = random_arpa(rng, path, order, share if order < 5 else share / 10, as_in_kenlm=False)
        model, (ngrams, _) = load_language_model(path, tmp_path), reference(path)
        for _ in range(50):
            sentence = " ".join(rng.choices([*words[3:], "E"], k=rng.randrange(9)))
            assert_same(model.score(sentence), by_definition(ngrams, order, sentence))


@pytest.mark.parametrize("order", range(2, 6))
def test_pruned_models_score_as_in_kenlm_and_share_its_states(order, tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="kenlm is absent: scores are not compared with its")
    rng, compared = random.Random(order), 0
    for trial, share in enumerate([0.2, 0.4, 0.6, 0.9] * 4):
        path = tmp_path / f"{trial}.arpa"
        words = random_arpa(rng, path, order, share, as_in_kenlm=True)
        model = load_language_model(path, tmp_path)
        try:
            theirs = kenlm.Model(str(path))
        except OSError as error:  # it has little room for contexts that it has to make up
            assert "ProbingSizeException" in str(error)
            continue
        compared += 1
        pairs = set()
        for _ in range(40):
            state, their_state = model.begin, kenlm.State()
            theirs.BeginSentenceWrite(their_state)  # which it keeps even where nothing begins with <s>
            for word in rng.choices([*words[3:], "E"], k=8):
                after = kenlm.State()
                ln_p, state = transition(model.tables, state, model.word_id(word))
                assert_same(ln_p / LN_10, theirs.BaseScore(their_state, word, after))
                their_state = after
                pairs.add((state, their_state))
        assert len(pairs) == len({state for _, state in pairs})  # what it takes to be one, is one
    assert compared > 8


def test_what_a_transition_answers(tmp_path):
    model = load_language_model(arpa(tmp_path, TOY))
    assert isinstance(model, NgramModel)
    assert (model.name, model.order, model.words) == ("toy.arpa", 3, ["<unk>", "<s>", "</s>", "A", "CAFÉ"])
    assert [model.word_id(word) for word in ("CAFÉ", "cafe", "</s>")] == [4, 0, model.end]
    np.testing.assert_allclose(model.unigram_ln_p / LN_10, [-2, -99, -0.7, -0.6, -0.8], rtol=1e-6)
    ln_p, state = transition(model.tables, model.begin, model.word_id("A"))
    assert ln_p == pytest.approx(-0.2 * LN_10)
    ln_p, state = transition(model.tables, state, 0)
    assert ln_p == pytest.approx((-0.1 - 0.3 - 2.0) * LN_10)
    assert state == 0  # nothing begins with <unk>
    assert model.score("A CAFÉ") == pytest.approx(-0.2 - 0.1 - 0.05, abs=1e-6)
    assert model.score("") == pytest.approx(-0.5 - 0.7)


WRITTEN_OTHERWISE = {
    "as it is": lambda text: text,
    "crlf": lambda text: text.replace("\n", "\r\n"),
    "blanks for tabs": lambda text: text.replace("\t", "  "),
    "blanks around": lambda text: text.replace("\n", " \n\t"),
    "blank lines": lambda text: text.replace("\n", "\n\n \n"),
    "no last line break": lambda text: text.rstrip(),
    "words before": lambda text: f"Data mark: \\data\\\n\\1-grams:\n-1 X\n\n{text}",
    "byte order mark": lambda text: f"\ufeff{text}",
    "numbers": lambda text: text.replace("0.7\t", "7.E-1\t").replace("0.8\t", ".08e+1\t").replace("0.1", f"0.1{'0' * 40}"),
    "zero weights": lambda text: text.replace("A </s>\n", "A </s>\t+0.0000\n").replace("CAFÉ </s>\n", "CAFÉ </s>\t-0\n"),
    "weights nobody needs": lambda text: text.replace("<s> A CAFÉ\n", "<s> A CAFÉ\t-0.5\n"),
    "<UNK>": lambda text: text.replace("<unk>", "<UNK>"),
    "an empty order": lambda text: text.replace("\n\n\\1", "\nngram 4=0\n\n\\1").replace("\\end", "\\4-grams:\n\n\\end"),
}


@pytest.mark.parametrize("how", WRITTEN_OTHERWISE)
def test_what_tools_write_differently_is_the_same_model(how, tmp_path):
    expected = load_language_model(arpa(tmp_path, TOY))
    text = WRITTEN_OTHERWISE[how](TOY)
    assert (text == TOY) == (how == "as it is")
    for name, data in {"plain": text.encode(), "zipped": gzip.compress(text.encode())}.items():
        model = load_language_model(arpa(tmp_path, data, name))
        assert model.words == expected.words
        for sentence in ("A CAFÉ", "A B A", "CAFÉ A CAFÉ", ""):
            assert model.score(sentence) == expected.score(sentence)


@pytest.mark.parametrize("word", ["日本", "🙂", "C\u00a0A\u3000F\u2028E\x85\x0b\x00", "É" * 30_000, "-1", "\\data\\", "<unk"])
def test_words_of_any_kind(word, tmp_path):
    """Only blank, tab and the ends of lines part words: Unicode has other spaces, which are letters like others."""
    model = load_language_model(arpa(tmp_path, TOY.replace("CAFÉ", word)))
    assert model.words == ["<unk>", "<s>", "</s>", "A", word]
    state = transition(model.tables, model.begin, 3)[1]
    assert transition(model.tables, state, model.word_id(word))[0] == pytest.approx(-0.1 * LN_10)


def test_a_model_of_many_words(tmp_path):
    """More text than is looked at at once, so that lines and words lie across the ends of blocks."""
    rng = random.Random(3)
    words = [f"{i:x}" * rng.randrange(1, 20) for i in range(80_000, 140_000)]
    pairs = sorted({(rng.randrange(50), rng.randrange(len(words))) for _ in range(60_000)}, key=lambda pair: pair[::-1])
    p = [round(-4 * rng.random(), 4) for _ in range(len(words) + len(pairs))]
    lines = ["\\data\\", f"ngram 1={len(words)}", f"ngram 2={len(pairs)}", "\\1-grams:"]
    lines += [f"{x} {word} -0.25" for x, word in zip(p, words, strict=False)]
    lines += [
        "\\2-grams:",
        *(f"{x} {words[a]} {words[b]}" for x, (a, b) in zip(p[len(words) :], pairs, strict=True)),
        "\\end\\\n",
    ]
    path = arpa(tmp_path, "\n".join(lines))
    assert path.stat().st_size > 3 * 2**20
    model = load_language_model(path)
    assert model.words == ["<unk>", *words]
    np.testing.assert_allclose(model.unigram_ln_p[1:] / LN_10, p[: len(words)], rtol=1e-6, atol=1e-7)
    for (a, b), log10_p in zip(pairs, p[len(words) :], strict=True):
        assert transition(model.tables, transition(model.tables, 0, 1 + a)[1], 1 + b)[0] == pytest.approx(log10_p * LN_10)


def test_a_gzip_file_of_several_parts(tmp_path):
    data = TOY.encode()
    model = load_language_model(arpa(tmp_path, gzip.compress(data[:99]) + gzip.compress(data[99:])))
    assert model.score("A CAFÉ") == pytest.approx(-0.35, abs=1e-6)


def test_a_model_without_unknown_words_or_sentence_marks(tmp_path):
    text = "\\data\\\nngram 1=2\nngram 2=1\n\\1-grams:\n-0.3 A -0.1\n-0.4 B\n\\2-grams:\n-0.2 A B\n\\end\\\n"
    model = load_language_model(arpa(tmp_path, text))
    assert (model.words, model.begin, model.end) == (["<unk>", "A", "B"], 0, -1)
    assert model.score("A B", eos=False) == pytest.approx(-0.5)
    assert model.score("A C", eos=False) == pytest.approx(-0.3 - 0.1 - 100)
    assert model.score("B") == pytest.approx(-0.4 - 100)


def replaced(old, new, text=TOY):
    assert old in text
    return text.replace(old, new).encode()


REFUSED = {  # the file, and what is said of it behind its name
    "empty": (b"", r"1: empty: expected a language model in ARPA format"),
    "a blank line": (b"\n", r"1: no line \\data\\: this is no ARPA language model"),
    "a manifest": (b"a.wav,a.txt\n" * 200_000, r"1: no line \\data\\"),
    "zeros": (bytes(3_000_000), r"1: a line of more than a million bytes"),
    "zipped zeros": (gzip.compress(bytes(50_000_000)), r"1: a line of more than a million bytes"),
    "zipped nothing": (gzip.compress(b""), r"1: no line \\data\\"),
    "the beginning of gzip": (b"\x1f\x8b", r"1: the gzip file is cut or damaged"),
    "gzip cut": (gzip.compress(TOY.encode())[:-30], r"1: the gzip file is cut or damaged \(.*\): fetch or make it again"),
    "gzip without its checksum": (gzip.compress(TOY.encode())[:-4], r"1: the gzip file is cut or damaged"),
    "gzip damaged": (gzip.compress(TOY.encode())[:-8] + b"\0" * 8, r"1: the gzip file is cut or damaged \(CRC check failed"),
    "a zip archive": (b"PK\x03\x04" + bytes(99), r"1: a zip archive, as model checkpoints are; expected a language model"),
    "UTF-16": (TOY.encode("utf-16"), r"1: UTF-16: convert it by iconv"),
    "Latin-1": (TOY.encode("latin-1"), r"11: b'CAF\\xc9' is not UTF-8: convert the file, as by iconv"),
    "cut in the header": (TOY[:20].encode(), r"3: 'ngr': expected ngram 2=COUNT"),
    "cut between lines": (TOY[: TOY.index("-0.4")].encode(), r"15: the file ends after 1 of the 4 2-grams that the header pro"),
    "cut in a line": (TOY[: TOY.index("\\3-") - 7].encode(), r"17: the file ends in '-0.3 CAFÉ', before \\end\\: it is cut"),
    "cut in a number": (TOY[: TOY.index("0.4")].encode(), r"15: the file ends in '-', before \\end\\: it is cut"),
    "no end": (replaced("\\end\\\n", ""), r"23: the file ends here, before \\end\\: it is cut"),
    "more behind the end": (TOY.encode() + b"class 1 A\n", r"24: text after \\end\\: 'class 1 A'"),
    "too few": (
        replaced("ngram 2=4", "ngram 2=5"),
        r"19: '\\3-grams:' comes after 4 of the 5 2-grams that the header promises",
    ),
    "too few words": (replaced("ngram 1=5", "ngram 1=6"), r"13: '\\2-grams:' comes after 5 of the 6 1-grams"),
    "too many": (replaced("ngram 3=2", "ngram 3=1"), r"21: '-0.05 A CAFÉ </s>': one more than the 1 3-grams that the header"),
    "too many words": (replaced("ngram 1=5", "ngram 1=4"), r"11: '-0.8 CAFÉ -0.2': one more than the 4 1-grams"),
    "too many to hold": (replaced("2=4", "2=4000000000"), r"3: 'ngram 2=4000000000': a file of this size cannot hold so many"),
    "no words": (b"\\data\\\nngram 1=0\n\\1-grams:\n\\end\\\n", r"3: a model without words"),
    "no counts": (b"\\data\\\n\\1-grams:\n-1 A\n\\end\\\n", r"2: a model without words"),
    "counts in disorder": (replaced("ngram 2", "ngram 3"), r"3: 'ngram 3=4': expected ngram 2=COUNT"),
    "orders in disorder": (replaced("\\2-grams:", "\\3-grams:"), r"13: '\\3-grams:': expected \\2-grams:"),
    "an order unannounced": (replaced("ngram 3=2\n", ""), r"18: '\\3-grams:': expected \\end\\"),
    "an order missing": (TOY[: TOY.index("\\3")].encode() + b"\\end\\\n", r"19: '\\end\\': expected \\3-grams:"),
    "not a number": (replaced("-0.4", "nan"), r"15: 'nan A CAFÉ -0.25': a number is not finite or not one"),
    "impossible": (replaced("-0.4", "-inf"), r"15: '-inf A CAFÉ -0.25': a number is not finite"),
    "beyond all numbers": (replaced("-0.25", "-1e39"), r"15: .*: a number is not finite"),
    "a comma": (replaced("-0.4", "-0,4"), r"15: .*: a number is not finite or not one"),
    "half a number": (replaced("-0.4", "-0.4e"), r"15: .*: a number is not finite or not one"),
    "above one": (replaced("-0.4", "0.4"), r"15: '0.4 A CAFÉ -0.25': a probability above 1: expected its log10, at most 0"),
    "no log": (replaced("-0.6\tA", "0.25\tA"), r"10: '0.25 A -0.3': a probability above 1"),
    "too few fields": (replaced("-0.5\tA </s>", "-0.5\tA"), r"16: '-0.5 A': expected a log10 probability, 2 word"),
    "too many fields": (replaced("A </s>\n", "A </s> B C\n"), r"16: .*: expected a log10 probability, 2 word"),
    "a stranger": (replaced("-0.5\tA </s>", "-0.5\tA TEA\u00a0ROOM"), r"16: .*: 'TEA\\xa0ROOM' is not among the 1-grams"),
    "a word twice": (replaced("CAFÉ\t-0.2", "A\t-0.2"), r"11: '-0.8 A -0.2': listed a second time"),
    "an n-gram twice": (replaced("-0.5\tA </s>", "-0.5\tA CAFÉ"), r"16: a 2-gram that is listed a second time"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_model_is_refused_in_one_line(kind, tmp_path):
    data, said = REFUSED[kind]
    path = arpa(tmp_path, data)
    with pytest.raises(ValueError, match=rf"\A{re.escape(str(path))}:{said}[^\n]*\Z"):
        load_language_model(path)
    assert os.listdir(tmp_path) == ["toy.arpa"]  # no cache


@needs_shared
def test_recordings_checkpoints_and_texts_are_refused(tmp_path):
    wav = next((SHARED / "data" / "zoo").rglob("*.wav"))
    checkpoint = next((SHARED / "golden").rglob("*.pth*"))
    text = SHARED / "data" / "lm" / "librispeech_dev_clean.txt.gz"
    for path, said in ((wav, "RIFF recording"), (checkpoint, "checkpoint"), (text, "no ARPA"), (ROOT / "README.md", "no ARPA")):
        with pytest.raises(ValueError, match=rf"\A{re.escape(str(path))}:1: .*{said}.*\Z"):
            load_language_model(path, tmp_path)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_language_model(tmp_path / "none.arpa")
    with pytest.raises(IsADirectoryError):
        load_language_model(tmp_path)
    with pytest.raises(ValueError, match="/dev/null: not a regular file: expected a language model"):
        load_language_model("/dev/null")


# The cache.


def cache_of(path):
    return path.with_name(f"{path.name}.cache")


def test_what_is_mapped_is_what_was_read(tmp_path):
    rng = random.Random(0)
    path = tmp_path / "random.arpa"
    words = random_arpa(rng, path, 4, 0.3, as_in_kenlm=False)
    read = load_language_model(path)
    mapped = load_language_model(path)
    for ours, theirs in zip(read.tables, mapped.tables, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert (read.words, read.begin, read.end, read.order) == (mapped.words, mapped.begin, mapped.end, 4)
    assert set(words) | {"<unk>"} == set(mapped.words)


@needs_shared
def test_a_settled_file_is_read_once(tmp_path):
    first = load_language_model(FORTUNES, tmp_path)
    (cache,) = tmp_path.iterdir()
    written = cache.stat()
    again = load_language_model(FORTUNES, tmp_path)
    assert (cache.stat().st_ino, cache.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert again.score("THE CAT") == first.score("THE CAT")


@pytest.mark.parametrize("how", ["in place", "renamed"])
def test_another_file_of_the_same_name_size_and_time_is_read_anew(how, tmp_path):
    path = arpa(tmp_path, TOY)
    assert load_language_model(path).score("A") == pytest.approx(-0.8)
    before = path.stat()
    other = arpa(tmp_path, TOY.replace("-0.2\t<s> A", "-0.9\t<s> A"), "other.arpa" if how == "renamed" else path.name)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert load_language_model(path).score("A") == pytest.approx(-1.5)


def test_a_copied_cache_serves_a_copied_file(tmp_path):
    """As in an image of a container: other inodes and times, the same bytes."""
    load_language_model(arpa(tmp_path, TOY))
    shutil.copytree(tmp_path, tmp_path / "copy")
    copy = tmp_path / "copy" / "toy.arpa"
    os.chmod(copy.parent, 0o555)
    written = cache_of(copy).stat()
    try:
        assert load_language_model(copy).score("A CAFÉ") == pytest.approx(-0.35, abs=1e-6)
        assert cache_of(copy).stat().st_mtime_ns == written.st_mtime_ns
    finally:
        os.chmod(copy.parent, 0o755)


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "turned", "foreign", "pickle"])
def test_a_damaged_cache_is_made_anew(damage, tmp_path):
    path = arpa(tmp_path, TOY)
    load_language_model(path)
    good = cache_of(path).read_bytes()
    bad = {
        "empty": [b""],
        "cut": [good[:length] for length in range(1, len(good), 97)],
        "longer": [good + b"\0"],
        "turned": [good[:at] + bytes([good[at] ^ 0x81]) + good[at + 1 :] for at in range(0, len(good), 13)],
        "foreign": [TOY.encode(), bytes(len(good)), good[:22] + b"\n" + good[22:]],
        "pickle": [b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR."],
    }[damage]
    for data in bad:
        cache_of(path).write_bytes(data)
        assert load_language_model(path).score("A CAFÉ") == pytest.approx(-0.35, abs=1e-6)
        assert len(cache_of(path).read_bytes()) == pytest.approx(len(good), abs=3)
    assert sorted(os.listdir(tmp_path)) == ["toy.arpa", "toy.arpa.cache"]


@pytest.mark.parametrize("field", ["word", "next", "first", "link", "ln_p"])
@pytest.mark.parametrize("value", [-5, 10**9])
def test_a_forged_cache_cannot_lead_compiled_code_astray(field, value, tmp_path):
    path = arpa(tmp_path, TOY)
    model = load_language_model(path)
    with open(path, "rb") as file:
        digest, stamp = ngram_cache._digest(file), ngram_cache._stamp(file)
    array = getattr(model.tables, field).copy()
    array[len(array) // 2] = value if field != "ln_p" else np.nan
    forged = NgramModel("toy.arpa", 3, model.words, model.tables._replace(**{field: array}))
    ngram_cache._write(cache_of(path), forged, {"digest": digest, "stamp": stamp, "began": 2**62})
    assert load_language_model(path).score("A CAFÉ") == pytest.approx(-0.35, abs=1e-6)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    path = arpa(tmp_path, TOY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    os.chmod(tmp_path, 0o555)
    try:
        assert load_language_model(path).score("A CAFÉ") == pytest.approx(-0.35, abs=1e-6)
        (cache,) = (tmp_path / "user").rglob("*.cache")
        assert cache.name.startswith("toy.arpa.")
        assert not cache_of(path).exists()
        monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
        assert load_language_model(path).score("A CAFÉ") == pytest.approx(-0.35, abs=1e-6)
        with pytest.raises(PermissionError, match=re.escape(str(tmp_path))):
            load_language_model(path, tmp_path)
    finally:
        os.chmod(tmp_path, 0o755)


def test_a_cache_that_cannot_be_written_is_told(tmp_path, capsys):
    path = arpa(tmp_path, TOY)
    cache_of(path).mkdir()
    assert load_language_model(path).score("A CAFÉ") == pytest.approx(-0.35, abs=1e-6)
    told = capsys.readouterr().err
    assert told.startswith(f"not cached: {cache_of(path)}: ")
    assert told.count("\n") == 1


def test_models_of_one_name_have_caches_of_their_own(tmp_path):
    for name, score in (("a", -0.8), ("b", -1.5)):
        (tmp_path / name).mkdir()
        path = arpa(tmp_path / name, TOY.replace("-0.2\t<s> A", "-0.9\t<s> A") if name == "b" else TOY)
        assert load_language_model(path, tmp_path / "caches").score("A") == pytest.approx(score)
    assert len(os.listdir(tmp_path / "caches")) == 2


def test_processes_that_start_together(tmp_path):
    path = tmp_path / "big.arpa"
    random_arpa(random.Random(1), path, 5, 0.4, as_in_kenlm=True)
    (tmp_path / ".big.arpa.cache.999999.tmp").write_bytes(b"left by a process that was killed")
    code = (
        "import sys\n"
        "from decoding.language_model import load_language_model\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "for _ in range(3): print(load_language_model(sys.argv[1]).score('A B C D A'))\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, path]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=60) for process in started]
    assert [err for _, err in ended] == [""] * 3
    assert len({line for out, _ in ended for line in out.splitlines()}) == 1
    assert sorted(os.listdir(tmp_path)) == ["big.arpa", "big.arpa.cache"]


# KenLM's binaries.


def unpacked(text):
    return zlib.decompress(base64.b85decode(text))


@pytest.fixture
def kenlm():
    return pytest.importorskip("kenlm", reason="kenlm is absent: its binaries are not read")


@pytest.mark.parametrize("data", [PROBING, TRIE], ids=["probing", "trie"])
def test_a_kenlm_binary_is_the_model_it_was_made_from(data, kenlm, tmp_path):
    path, model = arpa(tmp_path, unpacked(data), "toy.bin"), load_language_model(arpa(tmp_path, TOY))
    theirs = load_language_model(path)
    assert isinstance(theirs, KenlmModel)
    assert (theirs.name, theirs.order, theirs.words[0], sorted(theirs.words)) == ("toy.bin", 3, "<unk>", sorted(model.words))
    assert [theirs.words[theirs.word_id(word)] for word in ("A", "CAFÉ", "TEA")] == ["A", "CAFÉ", "<unk>"]
    assert theirs.words[theirs.end] == "</s>"
    np.testing.assert_allclose(
        theirs.unigram_ln_p, [model.unigram_ln_p[model.word_id(word)] for word in theirs.words], rtol=1e-6
    )
    assert theirs.unigram_ln_p.dtype == np.float32
    pairs = {(model.begin, theirs.begin), (0, 0)}
    for words in itertools.product(["A", "CAFÉ", "TEA", "</s>"], repeat=4):
        state, their_state = model.begin, theirs.begin
        for word in words:
            ln_p, state = transition(model.tables, state, model.word_id(word))
            their_ln_p, their_state = theirs.transition(their_state, theirs.word_id(word))
            assert_same(their_ln_p, ln_p)
            pairs.add((state, their_state))
        assert_same(theirs.score(" ".join(words), eos=False), model.score(" ".join(words), eos=False))
    assert len(pairs) == len({state for state, _ in pairs}) == len({state for _, state in pairs})


@needs_shared
@pytest.mark.skipif(not shutil.which("build_binary"), reason="KenLM's build_binary is not on the PATH: no large binary is read")
@pytest.mark.parametrize("kind", [["probing"], ["trie"], ["-q", "8", "-b", "8", "-a", "22", "trie"]], ids=" ".join)
def test_a_large_kenlm_binary(kind, kenlm, caches, tmp_path):
    (tmp_path / "fortunes.arpa").write_bytes(gzip.decompress(FORTUNES.read_bytes()))
    command = ["build_binary", *kind, "fortunes.arpa", "fortunes.bin"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    model, theirs = load_language_model(FORTUNES, caches), load_language_model(tmp_path / "fortunes.bin")
    assert sorted(theirs.words) == sorted(model.words)
    for sentence in walks(model, 500, seed=4):
        state, total = theirs.begin, 0.0
        for word in [theirs.word_id(word) for word in sentence.split()] + [theirs.end]:
            ln_p, state = theirs.transition(state, word)
            total += ln_p
        assert_same(total / LN_10, theirs.score(sentence))
        if kind[0] != "-q":  # which rounds
            assert_same(total / LN_10, model.score(sentence))


def test_damaged_kenlm_binaries_are_refused(kenlm, tmp_path):
    for data in (unpacked(PROBING), unpacked(TRIE)):
        for length in range(40, len(data), 7):
            path = arpa(tmp_path, data[:length], "toy.bin")
            with pytest.raises(ValueError, match=rf"\A{re.escape(str(path))}: a KenLM binary [^\n]*\Z"):
                load_language_model(path)
        cut = data[:150] + data[data.rindex(b"<unk>\0") :]  # its words are there, its tables are not
        with pytest.raises(ValueError, match=r"KenLM does not read \(.*should be at least"):
            load_language_model(arpa(tmp_path, cut, "toy.bin"))
        with pytest.raises(ValueError, match="does not know its own word 'CAFE"):
            load_language_model(arpa(tmp_path, data.replace("CAFÉ".encode(), b"CAFEE"), "toy.bin"))
        with pytest.raises(ValueError, match="words are not UTF-8"):
            load_language_model(arpa(tmp_path, data.replace("CAFÉ".encode(), b"CAF\xff\xff"), "toy.bin"))
        with pytest.raises(ValueError, match="without its words: make it again without -v"):
            load_language_model(arpa(tmp_path, data[:100] + b"\0" + data[101:], "toy.bin"))


def test_a_kenlm_binary_without_kenlm_says_what_to_install(tmp_path):
    path = arpa(tmp_path, unpacked(TRIE), "toy.bin")
    code = (
        "import sys; sys.modules['kenlm'] = None\n"
        "from decoding.language_model import load_language_model\n"
        "try: load_language_model(sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: a KenLM binary: pip install kenlm, or give the ARPA file it was made from\n"
