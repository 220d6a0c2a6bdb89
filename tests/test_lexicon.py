import gzip
import json
import random
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from shared_data import SHARED, needs_shared

from decoding.language_model import load_language_model
from decoding.lexicon import build_lexicon

ENGLISH = json.loads((Path(__file__).resolve().parents[1] / "labels.json").read_text())
LOWER_CASE = SHARED / "data" / "lm" / "mfa_librispeech_trigram.arpa.gz"


def lexicon(words, symbols="_'ABCDE ", ln_p=None):
    return build_lexicon(words, np.array(ln_p or [-1.0 - i for i in range(len(words))], np.float32), list(symbols), "lm.arpa")


def node_of(tables, labels):
    """The node of a spelling, or None, found by looking at every child."""
    node = 0
    for label in labels:
        children = range(tables.first[node], tables.first[node + 1])
        found = [tables.child_node[entry] for entry in children if tables.child_label[entry] == label]
        if not found:
            return None
        (node,) = found
    return node


def assert_spells(tables, words, ln_p, symbols):
    """Every beginning of every word is a node, with the best of the words that begin so; and there are no other nodes."""
    label_of = {symbol: label for label, symbol in enumerate(symbols)}
    best, word_at = {(): -np.inf}, {}
    for index, word in words.items():
        labels = tuple(label_of[character] for character in word)
        word_at[labels] = index
        for length in range(len(labels) + 1):
            best[labels[:length]] = max(best.get(labels[:length], -np.inf), ln_p[index])
    assert {node_of(tables, labels) for labels in best} == set(range(len(best)))
    for labels, highest in best.items():
        node = node_of(tables, labels)
        assert tables.best[node] == np.float32(highest)
        assert tables.word[node] == word_at.get(labels, -1)
    assert len(tables.first) == len(best) + 1
    assert len(tables.child_label) == len(tables.child_node) == len(best) - 1
    for begin, end in zip(tables.first, tables.first[1:], strict=False):
        assert (np.diff(tables.child_label[begin:end]) > 0).all()


def test_a_trie_by_hand():
    words = ["<unk>", "<s>", "A", "AB", "'EM", "BAD", "</s>", "BA"]
    built = lexicon(words, "_'ABCDEM ", [-9.0, -99, -2, -5, -3, -1, -0.5, -4])
    assert (built.spellable, built.refused) == (5, ())
    tables = built.tables
    assert [array.dtype for array in tables] == [np.int32, np.int32, np.int32, np.int32, np.float32]
    assert all(array.flags.c_contiguous for array in tables)
    np.testing.assert_array_equal(tables.child_label[tables.first[0] : tables.first[1]], [1, 2, 3])  # ', A, B
    assert tables.word[0] == -1
    assert tables.best[0] == -1.0  # BAD: neither </s> nor <unk> counts
    assert_spells(tables, {2: "A", 3: "AB", 4: "'EM", 5: "BAD", 7: "BA"}, [-9.0, -99, -2, -5, -3, -1, -0.5, -4], "_'ABCDEM ")


def test_a_trie_of_random_words():
    rng = random.Random(0)
    words = list({"".join(rng.choices("ABCDE'", k=rng.randrange(1, 9))) for _ in range(2000)})
    ln_p = [-20 * rng.random() for _ in words]
    built = lexicon(words, ln_p=ln_p)
    assert built.spellable == len(words)
    assert_spells(built.tables, dict(enumerate(words)), ln_p, "_'ABCDE ")


@needs_shared
def test_the_words_of_a_real_model(tmp_path):
    model = load_language_model(SHARED / "data" / "decoding" / "fortunes_3gram.arpa.gz", tmp_path)
    built = build_lexicon(model.words, model.unigram_ln_p, ENGLISH)
    assert built.spellable == len(model.words) - 3
    for index in range(3, len(model.words), 97):
        labels = [ENGLISH.index(character) for character in model.words[index]]
        assert built.tables.word[node_of(built.tables, labels)] == index


def test_words_that_labels_lack_are_left_out():
    built = lexicon(["A", "B", "C4", "BAD", "A_B", "A-B", "E"], ln_p=[-1.0, -2, -3, -4, -6, -5, -7])
    assert built.spellable == 4
    assert built.refused == ("C4", "A-B", "A_B")  # the blank's symbol spells nothing either
    assert_spells(built.tables, {0: "A", 1: "B", 3: "BAD", 6: "E"}, [-1.0, -2, -3, -4, -6, -5, -7], "_'ABCDE ")


def test_a_word_spelled_in_two_ways_of_unicode_is_the_most_probable_one():
    apart, joined = unicodedata.normalize("NFD", "CAFÉ"), "CAFÉ"
    assert apart != joined
    for ln_p, word in (([-1.0, -2.0], 0), ([-2.0, -1.0], 1)):
        tables = lexicon([apart, joined], "_ACFÉ ", ln_p).tables
        node = node_of(tables, [2, 1, 3, 4])
        assert (tables.word[node], tables.best[node], len(tables.word)) == (word, -1.0, 5)


def test_labels_without_a_space_have_words_of_one_character():
    built = lexicon(["<s>", "日", "本", "語", "日本"], "_日本語")
    assert (built.spellable, built.refused) == (3, ("日本",))
    assert len(built.tables.word) == 4
    with pytest.raises(
        ValueError, match=r"no space and spell 1 of its 3 words, not '日本': .* a space between all characters\Z"
    ):
        lexicon(["日本", "本", "日本語", "</s>"], "_日本語")


@pytest.mark.parametrize(
    ("words", "symbols", "said"),
    [
        ("a bad cab", "_ABCDE ", r"are in upper case and spell 0 of its 3 words, not 'a': make the model from upper-case text"),
        ("A BAD CAB", "_abcde ", r"are in lower case and spell 0 of its 3 words, not 'A': make the model from lower-case text"),
        ("B a Bad", "_ABCDE ", r"are in upper case and spell 1 of its 3 words, not 'a': "),
        ("A жд дж", "_ABCDE ", r"lack 'ж', 'д' and spell 1 of its 3 words, not 'жд': give a model of the language"),
        ("1 2 3 A", "_ABCDE ", r"lack '1', '2', '3' and spell 1 of its 4 words, not '1': give a model of the language"),
    ],
)
def test_a_model_that_does_not_fit_the_labels_is_refused(words, symbols, said):
    with pytest.raises(ValueError, match=rf"\Alm\.arpa: the labels {said}[^\n]*\Z"):
        lexicon(["<unk>", "<s>", *words.split(), "</s>"], symbols)


def test_a_model_without_words_is_refused():
    with pytest.raises(ValueError, match=r"\Alm\.arpa: has no words\Z"):
        lexicon(["<unk>", "<s>", "</s>"])


@needs_shared
@pytest.mark.skipif(not shutil.which("sed"), reason="no sed: the command of the message is not tried")
@pytest.mark.parametrize("back", [False, True], ids=["to upper case", "and back"])
def test_the_command_that_the_message_gives_mends_the_model(back, tmp_path):
    """A real model in lower case, and one in upper case for lower-case labels."""
    text, labels = gzip.decompress(LOWER_CASE.read_bytes()).decode(), ENGLISH
    if back:
        labels = [symbol.lower() for symbol in ENGLISH]
        text = re.sub(r"(?m)^-.*$", lambda line: line[0].upper().replace("S>", "s>"), text)
    (tmp_path / "lm.arpa").write_text(text)
    model = load_language_model(tmp_path / "lm.arpa")
    with pytest.raises(ValueError, match="convert the ARPA file: sed ") as refused:
        build_lexicon(model.words, model.unigram_ln_p, labels, model.name)
    command = str(refused.value).partition("ARPA file: ")[2]
    with open(tmp_path / "mended.arpa", "w") as mended:
        subprocess.run(["sh", "-c", f"{command} lm.arpa"], cwd=tmp_path, stdout=mended, check=True)
    again = load_language_model(tmp_path / "mended.arpa")
    assert build_lexicon(again.words, again.unigram_ln_p, labels).spellable == len(again.words) - 3
    sentence = "one chapter" if back else "ONE CHAPTER"
    assert again.score(sentence) == pytest.approx(model.score(sentence.swapcase()))
    assert again.end >= 0 and again.begin > 0
