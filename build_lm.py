"""Build a language model: an ARPA file of n-grams, smoothed by modified Kneser-Ney, from text or from a manifest's transcripts.

    python build_lm.py --text corpus.txt.gz --labels-path labels.json --order 3 --prune 0 0 1 --output lm.arpa.gz
    python build_lm.py --manifest train_manifest.csv --order 2 --output lm.arpa

What it writes is what --lm-path takes (test.py, transcribe.py with --decoder beam), and KenLM, whose lmplz estimates the same
probabilities. A text has one sentence on each line, plain or gzip, in UTF-8. It is brought to the labels of the acoustic model
that it will be used with: their case, no punctuation; a line with a character that is no label (such as a digit) is left out,
and counted. Labels without a space (Japanese, Chinese) make every character a word. Transcripts are taken as they are.

A text too small to estimate discounts gets 0.5, 1 and 1.5 (lmplz --discount_fallback), and a line says so.
"""

import argparse
import os
import sys
from itertools import chain, pairwise

import numpy as np

from data.command_line import UsageError, argument_parser, number, run_script
from data.files import check_writable
from data.labels import Labels
from decoding.arpa_writer import write_arpa
from decoding.corpus_text import CorpusText
from decoding.kneser_ney import FALLBACK, Order, estimate
from decoding.ngram_counts import SPECIAL, Text, count_ngrams, read_sentences

MEGABYTE = 2**20


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--text", nargs="+", metavar="FILE", help="text, one sentence on each line, plain or gzip")
    parser.add_argument("--manifest", nargs="+", metavar="FILE", help="manifests whose transcripts are sentences")
    parser.add_argument("--labels-path", default="labels.json", help="JSON list of the acoustic model's labels, blank _ first")
    parser.add_argument("--output", required=True, metavar="FILE", help="ARPA file to write, compressed if it ends in .gz")
    parser.add_argument("--order", type=number(int, 1, 6), default=3, help="words in the longest n-grams")
    parser.add_argument(
        "--prune",
        nargs="+",
        type=number(int, 0),
        metavar="COUNT",
        help="leave out n-grams of 1, 2, ... words that occur at most so often; the last is for longer ones, too (default: 0)",
    )
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument("--vocab", metavar="FILE", help="leave out n-grams with words that are not in this file")
    vocabulary.add_argument("--limit-vocab", metavar="N", type=number(int, 1), help="leave out all but the N commonest words")
    parser.add_argument("--memory", type=number(int, 1), default=1024, help="megabytes for sorting; what is more goes to disk")
    parser.add_argument("--temp-dir", help="folder for temporary files (default: that of --output)")
    args = parser.parse_args(argv)
    args.text, args.manifest, args.prune = args.text or [], args.manifest or [], args.prune or [0]
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run_script(lambda: build(args))


def build(args: argparse.Namespace) -> None:
    """Raises: UsageError, OSError, ValueError naming the flag, or the file and its line."""
    labels = Labels.read(args.labels_path)
    check(args)
    folder, memory = args.temp_dir or os.path.dirname(os.path.realpath(args.output)), args.memory * MEGABYTE
    allowed = read_vocabulary(args.vocab, labels) if args.vocab else None
    corpus = CorpusText(labels)
    sentences = chain(*map(corpus.read_text, args.text), *map(corpus.read_manifest, args.manifest))
    text = read_sentences(sentences, args.order, folder)
    left_out = "; left out: " + ", ".join(corpus.left_out()) if corpus.left_out() else ""
    if not corpus.sentences:
        raise ValueError(f"{' '.join(args.text + args.manifest)}: no sentences{left_out}")
    print(f"{corpus.sentences} sentences, {corpus.words} words, {len(text.words) - len(SPECIAL)} different{left_out}")
    if args.order > text.longest:
        raise ValueError(
            f"--order {args.order}: expected at most {text.longest}, as the longest sentence has {text.longest - 2} words, "
            "a begin and an end"
        )
    tables = count_ngrams(text, args.order, memory, folder)
    thresholds = (args.prune + args.prune[-1:] * args.order)[: args.order]
    dropped = words_to_drop(text, tables[0].counts, allowed, args.limit_vocab)
    orders = estimate(tables, thresholds, dropped, memory, folder)
    if orders[0].pruned[len(SPECIAL) :].all():
        raise ValueError("no word of the text is left in the model: lower the first --prune, or check --vocab")
    tell_fallback(orders)
    kept = write_arpa(args.output, text.words, orders)
    told = (f"{count} of {len(order.keys)} {n}-grams" for n, (count, order) in enumerate(zip(kept, orders, strict=True), 1))
    print(f"{args.output}: {', '.join(told)}")


def check(args: argparse.Namespace) -> None:
    """Find out before the work what would stand in its way. Raises: UsageError, OSError."""
    if not args.text and not args.manifest:
        raise UsageError("no sentences: give --text or --manifest")
    if any(higher < lower for lower, higher in pairwise(args.prune)) or len(args.prune) > args.order:
        counts = " ".join(map(str, args.prune))
        raise UsageError(f"--prune {counts}: expected at most --order {args.order} counts, none below the one before it")
    if args.temp_dir and not os.path.isdir(args.temp_dir):
        raise UsageError(f"--temp-dir {args.temp_dir}: not a folder")
    if os.path.isdir(args.output):
        raise UsageError(f"--output {args.output}: a folder: expected the name of a file to write")
    for path in (*args.text, *args.manifest):
        if os.path.exists(path) and os.path.realpath(path) == os.path.realpath(args.output):
            raise UsageError(f"--output {args.output}: is read from; expected another path")
    for path in args.text:
        os.stat(path)
    check_writable(args.output)


def read_vocabulary(path: str, labels: Labels) -> set[str]:
    """The words of a file, brought to the labels as the text is. Raises: OSError, ValueError if there are none."""
    file = CorpusText(labels)
    words = {word for sentence in file.read_text(path) for word in sentence}
    if not words:
        raise ValueError(f"--vocab {path}: no words" + "".join(f"; left out: {kind}" for kind in file.left_out()))
    return words


def words_to_drop(text: Text, counts: np.ndarray, allowed: set[str] | None, most: int | None) -> np.ndarray:
    """Which words of a text are outside the vocabulary: (W,) bool. Of words equally common the first ones stay."""
    if allowed is not None:
        return np.array([word not in allowed for word in text.words])
    dropped = np.zeros(len(text.words), bool)
    if most is not None:
        commonest = np.argsort(-counts[len(SPECIAL) :], kind="stable")
        dropped[len(SPECIAL) + commonest[most:]] = True
    return dropped


def tell_fallback(orders: list[Order]) -> None:
    """Say which discounts were not estimated, and why: a model of a few sentences is as good as its writer's guess."""
    for n, order in enumerate(orders, 1):
        if not order.discounts.estimated:
            seen = ", ".join(map(str, order.discounts.seen))
            why = f"too few, or too regular, to estimate discounts (counts of 1, 2, 3, 4: {seen})"
            print(f"{n}-grams: {why}; taking {', '.join(f'{amount:g}' for amount in FALLBACK)}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
