"""From what a corpus wrote down to what is said: the one policy on case, punctuation and digits for every corpus.

1. Unicode NFC; white space to single spaces (`normalize_transcript`).
2. Upper case, unless case is kept: the letters of `labels.json` are upper case. Scripts without case stay as they are.
3. Typographic apostrophes, and accents standing alone, are apostrophes. One stays where it is part of a word (IT'S,
   DOGS', 'TIS); those around one word, and typographic ones around several, are quotation marks.
4. All other punctuation becomes a space, hyphens too: "well-known, isn't it?" is WELL KNOWN ISN'T IT.
5. Digits and signs that stand for words ($ % & + = @ # ° and their like) have no one reading: whether 1984 was said
   as a year or as a number only the recording knows. Such a transcript is dropped, or with `--digits keep` left so.
"""

import re
import unicodedata

from data.labels import normalize_transcript

APOSTROPHES = "'\u2019\u02bc`\u00b4"
SIGNS = "%‰&@#§°"  # together with all currency and mathematical signs
JOINERS = "\u200c\u200d"  # invisible, but part of the spelling in Persian and Indic scripts


def written_signs(text: str) -> str:
    """The characters of a text that stand for words, each once: digits and signs."""
    return "".join(dict.fromkeys(filter(_stands_for_words, text)))


def spoken_text(text: str, keep_case: bool = False, keep_signs: bool = False) -> str:
    """A transcript by the policy above. Returns: the words, "" if there are none."""
    text = normalize_transcript(text)
    text = re.sub("\u2018(.*?)\u2019(?!\\w)", r" \1 ", text)
    text = text.translate(_WITH_SIGNS if keep_signs else _WITHOUT_SIGNS)
    text = re.sub(r"(?<!\S)'+(?!\S)", " ", text)
    text = re.sub(r"(?<!\S)'(\S+)'(?!\S)", r"\1", text)
    return normalize_transcript(text if keep_case else text.upper())


def changed_beyond_case(before: str, after: str) -> bool:
    """Whether more than case and white space has changed."""
    return normalize_transcript(before).casefold() != after.casefold()


def _stands_for_words(character: str) -> bool:
    return character in SIGNS or unicodedata.category(character) in ("Nd", "Nl", "No", "Sc", "Sm")


class _Table(dict):
    """For `str.translate`: what becomes of each character, worked out when it first occurs."""

    def __init__(self, keep_signs: bool) -> None:
        self._keep_signs = keep_signs

    def __missing__(self, code: int) -> str:
        self[code] = self._becomes(chr(code))
        return self[code]

    def _becomes(self, character: str) -> str:
        if character in APOSTROPHES:
            return "'"
        kind = unicodedata.category(character)
        if kind[0] in "LM" or character in JOINERS or (self._keep_signs and _stands_for_words(character)):
            return character
        return "" if kind == "Cf" else " "  # Cf: soft hyphens and their like


_WITH_SIGNS, _WITHOUT_SIGNS = _Table(keep_signs=True), _Table(keep_signs=False)
