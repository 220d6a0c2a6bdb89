import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data.labels import BLANK, BLANK_INDEX, Labels, normalize_transcript

ENGLISH = Labels.read(Path(__file__).resolve().parents[1] / "labels.json")


def test_english_labels():
    assert len(ENGLISH) == 29
    assert ENGLISH.symbols[BLANK_INDEX] == BLANK == "_"
    assert Labels("_'ABCDEFGHIJKLMNOPQRSTUVWXYZ ") == ENGLISH
    assert hash(ENGLISH) == hash(Labels("_'ABCDEFGHIJKLMNOPQRSTUVWXYZ "))
    assert Labels("_AB") != ENGLISH
    assert ENGLISH.symbols != ENGLISH


def test_encode():
    indices = ENGLISH.encode("IT'S A")
    assert indices.dtype == np.int64
    assert indices.tolist() == [10, 21, 1, 20, 28, 2]
    assert ENGLISH.encode("").shape == (0,)
    assert ENGLISH.encode("").dtype == np.int64


def test_unknown_characters_are_refused_by_name():
    with pytest.raises(ValueError, match=r"characters 'o', '3' of 'Noo3' are not among the labels"):
        ENGLISH.encode("Noo3")
    assert ENGLISH.unknown("Noo3") == ["o", "o", "3"]
    assert ENGLISH.unknown("NO") == []


def test_the_blank_in_a_text_is_refused():
    with pytest.raises(ValueError, match="'_'"):
        ENGLISH.encode("A_B")
    assert ENGLISH.unknown("A_B") == ["_"]


def test_accents_are_one_label_however_they_are_spelled():
    labels = Labels(["_", "E\u0301", " "])
    assert labels.symbols == ("_", "É", " ")
    assert labels == Labels("_É ")
    assert labels.encode(unicodedata.normalize("NFD", "É É")).tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("_ABC", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"_": 0}', "JSON dict"),
        ('"_AB"', "JSON str"),
        ("[]", "0 labels"),
        ('["_"]', "1 labels"),
        ('["A", "_"]', "first label 'A'"),
        ('["_", "A", "BC"]', "'BC' is 2 characters"),
        ('["_", ""]', "'' is 0 characters"),
        ('["_", 1]', "1 is a int"),
        ('["_", "A", "B", "A"]', "'A' come more than once"),
        ('["_", "A", "_"]', "'_' come more than once"),
        ('["_", "\\u00c9", "E\\u0301"]', "'É' come more than once"),
    ],
)
def test_a_bad_labels_file_is_named(tmp_path, content, message):
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        Labels.read(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_labels_file_not_utf8_is_named(tmp_path):
    path = tmp_path / "labels.json"
    path.write_bytes('["_", "É"]'.encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8") as raised:
        Labels.read(path)
    assert str(path) in str(raised.value)


def test_labels_file_with_byte_order_mark(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(["_", "é"]), encoding="utf-8-sig")
    assert Labels.read(path).symbols == ("_", "é")


def test_missing_labels_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        Labels.read(tmp_path / "absent.json")


def test_normalize_transcript():
    assert normalize_transcript("  ONE\nTWO\r\n\tTHREE\u00a0FOUR \n") == "ONE TWO THREE FOUR"
    assert normalize_transcript("E\u0301") == "É"
    assert normalize_transcript(" \n") == ""
