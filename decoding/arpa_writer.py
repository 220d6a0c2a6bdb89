"""A model as an ARPA file, which every decoder reads: log10 probability, words, log10 backoff weight."""

import gzip
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from data.command_line import progress_bar
from data.files import whole_file
from decoding.columns import parts
from decoding.kneser_ney import Order
from decoding.ngram_counts import BEGIN

GZIP_LEVEL = 6  # 9 takes nearly twice as long for a file one per cent smaller


def write_arpa(path: str, words: Sequence[str], orders: Sequence[Order]) -> list[int]:
    """Write a model whole or not at all, compressed if the name ends in .gz; the same model gives the same bytes.

    Returns: how many n-grams of each length there are in it.
    Raises: OSError naming the file.
    """
    kept = [sum(int(np.count_nonzero(~order.pruned[part])) for part in parts(len(order.keys))) for order in orders]
    spelled = np.array(words, dtype=object)
    with whole_file(path) as temporary, _text_file(temporary, str(path).endswith(".gz")) as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={count}\n" for n, count in enumerate(kept, 1))
        with progress_bar(desc="writing", total=sum(kept), unit="n-gram", unit_scale=True) as progress:
            for n in range(1, len(orders) + 1):
                file.write(f"\n\\{n}-grams:\n")
                for lines in _lines(orders[:n], spelled):
                    file.writelines(lines)
                    progress.update(len(lines))
        file.write("\n\\end\\\n")
    return kept


@contextmanager
def _text_file(path: Path, compressed: bool) -> Iterator[TextIO]:
    with ExitStack() as stack:
        file = stack.enter_context(open(path, "wb"))
        if compressed:  # without a name or a time in it
            file = stack.enter_context(gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(file, "utf-8", newline="\n"))


def _lines(orders: Sequence[Order], spelled: np.ndarray) -> Iterator[list[str]]:
    """The lines of the n-grams of the last of these orders, the shorter ones being there to spell them."""
    order = orders[-1]
    for part in parts(len(order.keys)):
        rows = part.start + np.flatnonzero(~order.pruned[part])
        log_p = np.minimum(np.log10(order.probabilities[rows]), 0)
        if len(orders) == 1:
            log_p[rows == BEGIN] = 0  # as lmplz has it: never asked for, and harmless in sums over whole sentences
        columns = []
        ends = rows
        for shorter in reversed(orders):
            ends, first = np.divmod(shorter.keys[ends], len(spelled))
            columns.append(spelled[first].tolist())
        grams = zip(log_p.tolist(), map(" ".join, zip(*columns, strict=True)), strict=True)
        if order.backoffs is None:
            yield [f"{p:.7g}\t{gram}\n" for p, gram in grams]
        else:
            backoffs = np.log10(order.backoffs[rows]).tolist()
            yield [f"{p:.7g}\t{gram}\t{backoff:.7g}\n" for (p, gram), backoff in zip(grams, backoffs, strict=True)]
