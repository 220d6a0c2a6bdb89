"""What all searches of a decoder share, put together from the model, the hot words and the settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from config import DecoderConfig
from decoding.hotwords import HotWords, build_hot_words
from decoding.kenlm_binary import KenlmModel
from decoding.language import ANSWERS, MOST_GAIN, NGRAMS, NO_LABEL, NO_MODEL, Language
from decoding.lexicon import Lexicon, LexiconTables, build_lexicon
from decoding.ngrams import NgramModel, NgramTables
from decoding.search import Limits

SPACE = " "
NO_SUCH_WORD = -99 * math.log(10)  # ln p: what stands for <unk> in models without one is no probability


@dataclass(frozen=True)
class Vocabulary:
    """A language model and hot words, spelled in labels; the settings may change around them."""

    symbols: tuple[str, ...]
    model: NgramModel | KenlmModel | None
    lexicon: Lexicon | None
    hot: HotWords


@dataclass(frozen=True)
class Setup:
    limits: Limits
    language: Language
    model: NgramModel | KenlmModel | None
    beam_width: int
    num_labels: int
    first_state: int
    first_hot: int


def build_vocabulary(
    symbols: Sequence[str], model: NgramModel | KenlmModel | None, hot_words: Mapping[str, float]
) -> Vocabulary:
    """Raises: ValueError if model or hot words are not in these labels."""
    lexicon = build_lexicon(model.words, model.unigram_ln_p, symbols, model.name) if model else None
    return Vocabulary(tuple(symbols), model, lexicon, build_hot_words(hot_words, symbols))


def build_setup(vocabulary: Vocabulary, config: DecoderConfig) -> Setup:
    symbols, model, hot = vocabulary.symbols, vocabulary.model, vocabulary.hot
    limits = Limits(config.cutoff_top_n, config.cutoff_prob, config.token_min_logp, math.exp(config.beam_prune_logp), floor=0.0)
    return Setup(
        limits,
        build_language(vocabulary, config),
        model,
        config.beam_width,
        len(symbols),
        model.begin if model else 0,
        hot.start,
    )


def build_language(vocabulary: Vocabulary, config: DecoderConfig) -> Language:
    symbols, model, hot = vocabulary.symbols, vocabulary.model, vocabulary.hot
    space = symbols.index(SPACE) if SPACE in symbols else NO_LABEL
    nothing = Language(
        kind=NO_MODEL,
        alpha=0.0,
        beta=0.0,
        unk_penalty=0.0,
        least_ln_p=0.0,
        unlisted=0.0,
        unlisted_hot=0.0,
        most_gain=_factor(hot.most),
        end=-1,
        space=space,
        word_of=_read_only(np.zeros(len(symbols), np.int32)),
        ngrams=NO_NGRAMS,
        lexicon=NO_LEXICON,
        hot=_read_only_tables(hot.tables),
    )
    if model is None:
        return nothing
    alpha, beta, unk_penalty = float(config.alpha), float(config.beta), float(config.unk_penalty)
    unknown, least = _unknown_ln_p(model.unigram_ln_p)
    likeliest = float(vocabulary.lexicon.tables.best[0]) if space != NO_LABEL else 0.0
    return nothing._replace(
        kind=NGRAMS if isinstance(model, NgramModel) else ANSWERS,
        alpha=alpha,
        beta=beta,
        unk_penalty=unk_penalty,
        least_ln_p=least,
        unlisted=alpha * unknown - unk_penalty,
        unlisted_hot=alpha * unknown,
        most_gain=_factor(max(0.0, beta + alpha * max(likeliest, unknown)) + hot.most),
        end=model.end,
        word_of=_read_only(np.array([model.word_id(symbol) for symbol in symbols], np.int32)),
        ngrams=_read_only_tables(model.tables) if isinstance(model, NgramModel) else NO_NGRAMS,
        lexicon=_read_only_tables(vocabulary.lexicon.tables),
    )


def _factor(gain: float) -> float:
    return math.exp(min(gain, MOST_GAIN))


def _unknown_ln_p(unigram_ln_p: np.ndarray) -> tuple[float, float]:
    """ln p of an unknown word without context, and the least it is taken for: that of the rarest word, in models without it."""
    unknown = float(unigram_ln_p[0])
    if unknown > NO_SUCH_WORD:
        return unknown, -math.inf
    real = unigram_ln_p[unigram_ln_p > NO_SUCH_WORD]
    rarest = float(real.min()) if len(real) else 0.0
    return rarest, rarest


def _read_only(array: np.ndarray) -> np.ndarray:
    """A view, so that the search is compiled once for arrays of any origin."""
    view = np.ascontiguousarray(array).view(np.ndarray)
    view.flags.writeable = False
    return view


def _read_only_tables(tables: NamedTuple) -> NamedTuple:
    return type(tables)(*(_read_only(array) for array in tables))


def _zeros(kind: type, *dtypes: type) -> NamedTuple:
    return kind(*(_read_only(np.zeros(2, dtype)) for dtype in dtypes))


NO_NGRAMS = _zeros(NgramTables, np.int32, np.float32, np.int32, np.int32, np.int32, np.float32)
NO_LEXICON = _zeros(LexiconTables, np.int32, np.int32, np.int32, np.int32, np.float32)
