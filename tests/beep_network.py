"""A network that reads beeps, made without training, and beeps for it to read."""

from pathlib import Path

import numpy as np
import torch
from beeps import TONES

from asr.checkpoint import Checkpoint, save_checkpoint
from config import AudioConfig, ModelConfig
from data.features import RunningNorm, spectrogram
from data.labels import Labels
from model import DeepSpeech

SYMBOLS = ["_", "A", "B", "C", " "]
NOTES = {**TONES, " ": 2800}  # Hz; a dot is half a second's pause
RATE = 16000


def sound(text: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A wave, and the label of each of its samples."""
    parts, labels = [np.zeros(3200)], [np.zeros(3200, int)]
    for character in text:
        beep = 0.3 * np.sin(2 * np.pi * NOTES.get(character, 0) * np.arange(3200) / RATE)
        silence = np.zeros(1600 if character in NOTES else 4800)
        parts += [beep, silence]
        labels += [np.full(3200, SYMBOLS.index(character) if character in NOTES else 0), np.zeros(len(silence), int)]
    wave = np.concatenate([*parts, np.zeros(3200)])
    wave += np.random.default_rng((len(text), seed)).normal(0, 0.001, len(wave))
    return wave.astype(np.float32), np.concatenate([*labels, np.zeros(3200, int)])


def sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join("".join(rng.choice(list("ABC"), rng.integers(1, 4))) for _ in range(words))


def pauses(labels: np.ndarray) -> list[int]:
    """Spectrogram frames with at least 0.15 s of silence on both sides."""
    return [frame for frame in range(15, len(labels) // 160 - 15) if not labels[160 * (frame - 15) : 160 * (frame + 15)].any()]


def save_beep_network(path: Path, bidirectional: bool = True, streaming_norm: bool = False) -> Path:
    """Random weights but the last layer's, which make it write a letter for each beep: least squares find them."""
    rng = np.random.default_rng(0)
    texts = [*("".join(rng.choice(list("AABBCC  ."), 20)) for _ in range(8)), ".....", *"ABC ."]
    return fit_network(path, [sound(text) for text in texts], bidirectional, streaming_norm)


def fit_network(
    path: Path, sounds: list[tuple[np.ndarray, np.ndarray]], bidirectional: bool = True, streaming_norm: bool = False
) -> Path:
    """The same of any waves and the labels of their samples."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same network everywhere, to the bit
    shape = {"num_labels": 5, "rnn_type": "lstm", "hidden_size": 128, "hidden_layers": 1}
    model = DeepSpeech(ModelConfig(**shape, bidirectional=bidirectional, lookahead_context=8)).eval()
    if not bidirectional:
        model.lookahead.conv.weight.data[:] = torch.tensor([0.6, 0.2, 0.1, 0.05, 0.02, 0.01, 0.01, 0.01])
    audio = AudioConfig(streaming_norm=streaming_norm)
    hidden, wanted, rng = [], [], np.random.default_rng(0)
    hook = model.head_norm.register_forward_hook(lambda *passed: hidden.append(passed[2]))
    heard = RunningNorm()  # of what came before, as after a pause
    for (wave, labels), norm in [*((s, None) for s in sounds), *((s, heard) for s in sounds if streaming_norm)]:
        spect = spectrogram(wave, audio, norm)
        quiet = pauses(labels)
        for begin in [0, *rng.choice(quiet, 4)] if norm and quiet else [0]:  # after a pause the network starts anew
            with torch.no_grad():
                model(spect[None, None, :, begin:], torch.tensor([spect.shape[1] - begin]))
            samples = np.arange(len(hidden[-1])) * 320 + begin * 160
            wanted.append(12 * torch.eye(5)[labels[np.minimum(samples, len(labels) - 1)]])
    hook.remove()
    ridge = torch.cat([*hidden, 1e-2 * torch.eye(128)]), torch.cat([*wanted, torch.zeros(128, 5)])
    model.head.weight.data = torch.linalg.lstsq(*ridge).solution.T.contiguous()
    torch.set_num_threads(threads)
    save_checkpoint(Checkpoint(model.config, audio, Labels(SYMBOLS), model.state_dict()), path)
    return path
