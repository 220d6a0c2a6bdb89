"""int8: close to float32 in every kind of network, really smaller, and asked for by a flag that contradicts others."""

import argparse
import runpy
import subprocess
import sys

import pytest
import torch
from beeps import ROOT
from shared_data import GOLDEN, needs_shared
from test_golden import batch
from test_model import KINDS, padded

from asr import options
from asr.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from asr.evaluation import count_errors
from asr.quantization import QuantizedLinear, quantized
from asr.recognizer import Recognizer
from config import AudioConfig, ModelConfig
from data.labels import Labels
from decoder import GreedyDecoder
from model import DeepSpeech


def network(**kwargs) -> DeepSpeech:
    torch.manual_seed(3)
    model = DeepSpeech(ModelConfig(num_labels=7, hidden_size=24, hidden_layers=2, **kwargs))
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 1, 161, 60) * 2, torch.tensor([60, 47, 33, 20]))
    return model.eval()


@pytest.mark.parametrize("release1", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_int8_follows_float32_alone_and_in_a_batch(kind, release1):
    model = network(**kind, release1=release1)
    spects = [torch.randn(161, frames) for frames in (90, 61, 20, 7)]
    with torch.inference_mode():
        before, lens = model(*padded(spects))
        small = quantized(model)
        after, small_lens = small(*padded(spects))
        torch.testing.assert_close(model(*padded(spects))[0], before, atol=0, rtol=0, msg="the original is left as it was")
        assert small_lens.tolist() == lens.tolist()
        for row, (spect, n) in enumerate(zip(spects, lens, strict=True)):
            expected = before[row, :n].softmax(-1)
            alone, _ = small(spect[None, None], torch.tensor([spect.shape[1]]))
            for found in (after[row, :n], alone[0]):
                difference = (found.softmax(-1) - expected).abs().max()
                assert 0 < difference < 0.05, "rounded, and not by much"


@needs_shared
@pytest.mark.parametrize("name", ["bigru_64x3", "unigru_lookahead20_64x2", "v12_bigru_64x2"])
def test_other_networks_say_nearly_the_same(name):
    checkpoint = load_checkpoint(next((GOLDEN / name).glob("*.pth*")))
    model = checkpoint.build_model()
    spects, lens, _, _ = batch()
    with torch.inference_mode():
        (exact, out_lens), (rounded, _) = model(spects, lens), quantized(model)(spects, lens)
    decoder = GreedyDecoder(checkpoint.labels.symbols)
    before, after = (
        [hypotheses[0].text for hypotheses in decoder.decode(logits.log_softmax(-1), out_lens)] for logits in (exact, rounded)
    )
    assert count_errors(before, after).cer < 10


def test_a_process_keeps_about_a_quarter_of_the_memory(tmp_path):
    labels = Labels(["_", "A", " "])
    config = ModelConfig(num_labels=3, hidden_size=640, hidden_layers=3)
    path = tmp_path / "model.pth"
    save_checkpoint(Checkpoint(config, AudioConfig(), labels, DeepSpeech(config).state_dict()), path)
    grown = [
        int(subprocess.run([sys.executable, "-c", GROWTH, str(path), flag], cwd=ROOT, capture_output=True, text=True).stdout)
        for flag in ("", "int8")
    ]
    assert path.stat().st_size == pytest.approx(grown[0], rel=0.15)
    assert grown[1] < 0.4 * grown[0]


GROWTH = """
import os, sys
import torch
from asr.quantization import quantized
from asr.recognizer import Recognizer
from asr.runtime import Runtime
from asr.watched import resident_memory
from config import DecoderConfig, ModelConfig
from model import DeepSpeech

quantized(DeepSpeech(ModelConfig(hidden_size=8, hidden_layers=1)))  # what code and kernels take
before = resident_memory(os.getpid())
recognizer = Recognizer(sys.argv[1], DecoderConfig(), Runtime.choose(cuda=False), int8=sys.argv[2] == "int8")
print(resident_memory(os.getpid()) - before)
"""


@pytest.fixture
def model_path(tmp_path):
    labels = Labels(["_", *"ABCDE", " "])
    save_checkpoint(Checkpoint(network().config, AudioConfig(), labels, network().state_dict()), tmp_path / "model.pth")
    return tmp_path / "model.pth"


def recognizer(*flags: object) -> Recognizer:
    parser = argparse.ArgumentParser()
    options.add_inference_options(parser)
    return Recognizer.from_options(parser.parse_args(list(map(str, flags))))


def test_the_flags_reach_the_network(model_path):
    before = torch.get_num_threads()
    try:
        assert isinstance(recognizer("--model-path", model_path, "--int8", "--threads", 2).model.head, QuantizedLinear)
        assert torch.get_num_threads() == 2
        assert not isinstance(recognizer("--model-path", model_path, "--threads", 1).model.head, QuantizedLinear)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("script", ["test.py", "transcribe.py"])
@pytest.mark.parametrize(
    "flags",
    [["--int8", "--cuda"], ["--int8", "--half", "--cuda"], ["--int8", "--precision", "bf16"], ["--threads", "0"]],
    ids=str,
)
def test_contradictions_are_one_line(script, flags, capsys):
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(runpy.run_path(str(ROOT / script), run_name="script")["main"](flags))
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.err.count("\n") == 1 and flags[0] in printed.err, printed


def test_what_is_no_number_is_not_rounded_away():
    model = network()
    with torch.no_grad():
        model.rnns[1].forward_rnn.weight_hh_l0[3, 4] = float("nan")
    with pytest.raises(ValueError, match="diverged"):
        quantized(model)


def test_without_kernels_there_is_no_int8(monkeypatch):
    monkeypatch.setattr(torch.backends, "quantized", argparse.Namespace(engine="none"))  # a build for another processor
    with pytest.raises(ValueError, match="leave --int8 out"):
        quantized(network())
