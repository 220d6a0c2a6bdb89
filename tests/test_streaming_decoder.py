"""Decoding frames as they come: the pieces must not matter, and a long stream must not fill the memory."""

import tracemalloc

import numpy as np
import pytest
import torch

from config import DecoderConfig
from decoder import BeamDecoder, GreedyDecoder
from decoding.language_model import load_language_model

SYMBOLS = ("_", "A", "B", "C", " ")
WORDS = ("A", "B", "AB", "BA", "CAB", "ABC", "BB")
HOT = "CA:3,BB"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    rng = np.random.default_rng(0)
    lines = ["\\data\\", f"ngram 1={len(WORDS) + 3}", f"ngram 2={len(WORDS) ** 2}", "", "\\1-grams:"]
    lines += ["-2\t<unk>", "-99\t<s>\t-0.2", "-1.5\t</s>", *(f"{-rng.uniform(0.5, 2):.3f}\t{word}\t-0.3" for word in WORDS)]
    lines += ["", "\\2-grams:", *(f"{-rng.uniform(0.1, 2):.3f}\t{a} {b}" for a in WORDS for b in WORDS), "", "\\end\\", ""]
    path = tmp_path_factory.mktemp("lm") / "abc.arpa"
    path.write_text("\n".join(lines))
    return load_language_model(path)


def noisy(frames: int, seed: int, silence: float = 2.0) -> torch.Tensor:
    """Log probabilities (1, frames, labels) of something that is hard to tell."""
    logits = 2.5 * torch.randn(1, frames, len(SYMBOLS), generator=torch.Generator().manual_seed(seed))
    logits[..., 0] += silence
    return logits.log_softmax(-1)


def decoders(model) -> dict[str, GreedyDecoder | BeamDecoder]:
    narrow = {"decoder": "beam", "beam_width": 7, "top_paths": 5}
    wide = {"decoder": "beam", "beam_width": 200, "top_paths": 9, "beam_prune_logp": -30.0, "token_min_logp": -20.0}
    return {
        "greedy": GreedyDecoder(SYMBOLS),
        "plain": BeamDecoder(SYMBOLS, DecoderConfig(**narrow)),
        "wide": BeamDecoder(SYMBOLS, DecoderConfig(**wide)),
        "hot words": BeamDecoder(SYMBOLS, DecoderConfig(**narrow, hotwords=HOT)),
        "model": BeamDecoder(SYMBOLS, DecoderConfig(**narrow, hotwords=HOT, unk_penalty=2.0), model),
        "wide, model": BeamDecoder(SYMBOLS, DecoderConfig(**wide, unk_penalty=2.0), model),
        "closed": BeamDecoder(SYMBOLS, DecoderConfig(**narrow, unk_penalty=float("inf")), model),
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_pieces_do_not_matter(model, seed):
    rng = np.random.default_rng(seed)
    log_probs = noisy(300, seed)
    for name, decoder in decoders(model).items():
        (offline,) = decoder.decode(log_probs, torch.tensor([300]))
        for chunks in (rng.integers(0, 30, size=100), [1] * 300):
            stream, at = decoder.start(), 0
            for chunk in chunks:
                stream.feed(log_probs[0, at : at + chunk])
                at += chunk
                if rng.random() < 0.1:
                    stream.partial()
                    stream.finish()
            stream.feed(log_probs[0, at:])
            assert stream.finish() == offline, name
        assert all(np.diff(hypothesis.offsets).min() > 0 for hypothesis in offline), name


def test_partial_follows_what_is_said(model):
    path = [label for word in ("AB", "CAB", "A") for character in (*word, " ") for label in (SYMBOLS.index(character), 0)]
    for name, decoder in decoders(model).items():
        log_probs = torch.full((len(path), len(SYMBOLS)), 1e-4)
        log_probs[torch.arange(len(path)), torch.tensor(path)] = 1.0
        log_probs = (log_probs / log_probs.sum(-1, keepdim=True)).log()
        stream = decoder.start()
        assert (stream.partial().text, stream.partial().words) == ("", ())
        seen = []
        for frame in log_probs:
            stream.feed(frame[None])
            seen.append(stream.partial().text)
        said = "AB CAB A "
        assert seen[1::2] == [said[:n] for n in range(1, len(said) + 1)], name
        assert stream.finish()[0].text.strip() == "AB CAB A"
        word = stream.partial().words[1]
        assert (word.text, word.start, word.end) == ("CAB", 6, 11)


def test_a_stream_refuses_what_are_no_probabilities_and_goes_on(model):
    decoder = decoders(model)["model"]
    log_probs = noisy(60, 5)[0]
    stream = decoder.start()
    stream.feed(log_probs[:20])
    spoilt = log_probs[20:40].clone()
    spoilt[7, 2] = float("nan")
    with pytest.raises(ValueError, match=r"frame 27: .*nan"):
        stream.feed(spoilt)
    with pytest.raises(ValueError, match=r"\(20, 4\): expected .*5 labels"):
        stream.feed(log_probs[20:40, :4])
    stream.feed(log_probs[20:].numpy())
    assert stream.finish() == decoder.decode(log_probs[None], torch.tensor([60]))[0]


def test_a_long_stream_keeps_its_text_and_a_beam(model):
    """An hour in which hardly anything is said takes no more memory than a minute."""
    decoder = decoders(model)["wide, model"].with_weights(beam_width=20, beta=-4.0, top_paths=1)
    minute = noisy(3000, 1, silence=9.0)[0].numpy()
    stream = decoder.start()
    stream.feed(minute)
    tracemalloc.start()
    stream.feed(minute)
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(60):
        stream.feed(minute)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    characters = len(stream.partial().text)
    assert stream._search.frames == 62 * 3000
    assert after - before < 400 * characters + 100_000, (after - before, characters)


def test_a_long_text_survives_the_garbage_collection(model):
    """The tree is moved many times; the text is that of the pieces decoded with memory enough for all."""
    decoder = decoders(model)["model"]
    log_probs = torch.cat([noisy(3000, seed, silence=0.0) for seed in range(4)], 1)
    stream = decoder.start()
    stream.feed(log_probs[0])
    roomy = decoder.start()
    memory = roomy._search.memory
    nodes, steps = np.zeros(2_000_000, memory.nodes.dtype), np.zeros(500_000, memory.steps.dtype)
    nodes[:1], steps[:1] = memory.nodes[:1], memory.steps[:1]
    roomy._search.memory = memory._replace(nodes=nodes, steps=steps)
    roomy.feed(log_probs[0])
    assert roomy._search.memory.nodes is nodes, "was enough"
    assert len(stream._search.memory.nodes) < 100_000
    assert stream.finish() == roomy.finish() and len(stream.partial().text) > 1000
