"""KenLM's binary files, asked through the optional kenlm package: who has such a file need not look for its ARPA.

kenlm is imported when a binary is loaded, and not before.
"""

import mmap
import os
import struct
import threading
from pathlib import Path
from types import ModuleType

import numpy as np

from decoding.ngrams import BEGIN, END, LN_10, UNKNOWN

MAGIC = b"mmap lm http://kheafield.com/code"
HEADER = struct.Struct("<100x?7xQ")  # whether the words are in the file, and how many
AGAIN = "make it again by build_binary, or give the ARPA file"


class KenlmModel:
    """A language model in KenLM's own form. Words are numbered as its vocabulary lists them; word 0 is `<unk>`.

    A state is numbered when it is first met, and state 0 is no context. There are no more of them than the model has n-grams
    that others begin with; each takes about 250 bytes. Threads may share the model.

    Raises: ValueError naming the file if kenlm is missing, or the binary is damaged or has no words; OSError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        kenlm = _kenlm(path)
        self.name, self.words = Path(path).name, _words(path)
        try:
            self._model = kenlm.Model(os.fspath(path))
        except OSError as error:
            said = str(error).partition("\n")[0].rpartition("'. ")[2].rstrip(")")
            raise ValueError(f"{path}: a KenLM binary that KenLM does not read ({said}): {AGAIN}") from error
        for word in self.words[1:]:
            if word not in self._model:
                raise ValueError(f"{path}: a KenLM binary that does not know its own word {word!r}: {AGAIN}")
        self.order: int = self._model.order
        self._id_of = {word: index for index, word in enumerate(self.words)}
        self.end = self._id_of.get(END, -1)
        self._new_state, self._lock = kenlm.State, threading.Lock()
        nothing, begin, after = kenlm.State(), kenlm.State(), kenlm.State()
        self._model.NullContextWrite(nothing)
        self._model.BeginSentenceWrite(begin)
        self._states, self._number_of = [nothing], {nothing: 0}
        self.begin = self._number(begin) if BEGIN in self._id_of else 0
        log10_p = [self._model.BaseScore(nothing, word, after) for word in self.words]
        self.unigram_ln_p = np.array(log10_p, np.float32) * np.float32(LN_10)  # (words,)

    def word_id(self, word: str) -> int:
        return self._id_of.get(word, 0)

    def transition(self, state: int, word: int) -> tuple[float, int]:
        """What a word costs in a state: (ln p, next state)."""
        after = self._new_state()
        log10_p = self._model.BaseScore(self._states[state], self.words[word], after)
        return log10_p * LN_10, self._number(after)

    def _number(self, state: object) -> int:
        with self._lock:
            number = self._number_of.setdefault(state, len(self._states))
            if number == len(self._states):
                self._states.append(state)
        return number

    def score(self, sentence: str, bos: bool = True, eos: bool = True) -> float:
        """log10 p of a sentence, its words separated by white space."""
        return self._model.score(sentence, bos, eos)


def _kenlm(path: str | os.PathLike[str]) -> ModuleType:
    try:
        import kenlm
    except ImportError:
        raise ValueError(f"{path}: a KenLM binary: pip install kenlm, or give the ARPA file it was made from") from None
    return kenlm


def _words(path: str | os.PathLike[str]) -> list[str]:
    """The strings at the end of a binary, word 0 being `<unk>`, each closed by a zero byte."""
    with open(path, "rb") as file:
        begins = file.read(HEADER.size)
        if len(begins) < HEADER.size:
            raise ValueError(f"{path}: a KenLM binary that is cut: {AGAIN}")
        listed, count = HEADER.unpack(begins)
        if not listed:
            raise ValueError(f"{path}: a KenLM binary without its words: make it again without -v, or give the ARPA file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = data.rfind(UNKNOWN.encode() + b"\0")
            while at >= 0:  # the last place with as many words as the header tells, which may or may not count `<unk>`
                words = data[at:].split(b"\0")
                if words.pop() == b"" and len(words) in (count, count + 1):
                    break
                at = data.rfind(UNKNOWN.encode() + b"\0", 0, at)
    if at < 0:
        raise ValueError(f"{path}: a KenLM binary without the {count} words it should end with: {AGAIN}")
    try:
        return [word.decode() for word in words]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a KenLM binary whose words are not UTF-8 ({error}): convert its ARPA file") from error
