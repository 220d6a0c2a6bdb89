"""The network on spectrograms that still grow: what one call leaves unfinished, the next goes on with.

Each convolution keeps the frames that its next output needs again, each recurrent layer its hidden state, the lookahead those
recurrent outputs whose future is not there yet. At both ends there are zeros, as around a whole recording.

L output frames, T spectrogram frames, F frequency bins, H hidden size, C labels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.evaluation import log_probabilities
from asr.runtime import Runtime
from config import ModelConfig
from model import PADDINGS, RELEASE1_PADDINGS, TIME_KERNEL, TIME_STRIDE, DeepSpeech, clipped_relu


def frames_ahead(config: ModelConfig) -> int:
    """Spectrogram frames after those that an output frame stands for, without which it cannot be computed.

    They are most of the delay of live text: with the default lookahead of 20 output frames, 53 or 530 ms.
    """
    (_, first), (_, second) = RELEASE1_PADDINGS if config.release1 else PADDINGS
    reach = TIME_KERNEL - 1
    return TIME_STRIDE * (config.lookahead_context - 1 + reach - second) + reach - first


class NetworkStream:
    """A unidirectional network on its way through one recording, of which a fixed amount is kept."""

    def __init__(self, model: DeepSpeech, runtime: Runtime):
        """Raises: ValueError if the network is bidirectional."""
        config = model.config
        if config.bidirectional:
            raise ValueError(
                "a bidirectional network, which hears the end of a recording before it writes anything; to transcribe live, "
                "train one with --no-bidirectional --streaming-norm"
            )
        self.model, self.runtime = model, runtime
        self.frames = 0  # of the spectrogram, received
        zero = torch.zeros((), dtype=model.conv.conv1.weight.dtype, device=model.conv.conv1.weight.device)
        self._first, self._second = (
            _Window(TIME_KERNEL, conv.stride[1], padding, zero)
            for conv, (_, padding) in zip((model.conv.conv1, model.conv.conv2), model.conv.paddings, strict=True)
        )
        self._states: list[object | None] = [None] * len(model.rnns)
        self._lookahead = _Window(config.lookahead_context, 1, 0, zero)

    @torch.inference_mode()
    def feed(self, spect: Tensor, last: bool = False) -> Tensor:
        """Go on with frames (F, T); `last` says that none follow, and takes T = 0 as well.

        Rounding depends on how many frames there are in a call: who wants the same bits again has to call with the same.

        Returns: log probabilities (L, C) float32, on the CPU, of the output frames that are complete now. All of them together
            are as many as the network gives the whole recording.
        Raises: ValueError if they are no numbers.
        """
        self.frames += spect.shape[1]
        if last and self.model.config.release1:  # which hears what is too short with silence behind it
            spect = F.pad(spect, (0, max(0, TIME_KERNEL - self.frames)))
        with self.runtime.autocast():
            logits = self._logits(spect.to(self.model.conv.conv1.weight), last)
        if logits is None:
            return torch.empty(0, self.model.config.num_labels)
        return log_probabilities(logits)

    def _logits(self, spect: Tensor, last: bool) -> Tensor | None:
        """As DeepSpeech.forward, of one utterance without padding. Returns: (L, C), or nothing if no frame is complete."""
        conv = self.model.conv
        x = spect[None, None]
        with torch.autocast("cpu", enabled=False):  # as in the network itself
            x = self._convolve(self._first, conv.conv1, conv.norm1, x, last)
        x = None if x is None else self._convolve(self._second, conv.conv2, conv.norm2, x, last)
        if x is None:
            return None
        x = x.flatten(1, 2).permute(2, 0, 1).contiguous()  # (L, 1, 32 x F')
        for i, layer in enumerate(self.model.rnns):
            x, self._states[i] = layer.advance(x, _no_padding(x, (len(x), 1, 1)), self._states[i])
        x = self._lookahead.add(x.permute(1, 2, 0), self._lookahead.size - 1 if last else 0)  # (1, H, L + lookahead - 1)
        if x is None:
            return None
        x = self.model.lookahead.over(x).flatten(0, 1)
        return self.model.head(self.model.head_norm(x, _no_padding(x, (len(x), 1))))

    def _convolve(self, window: "_Window", conv: nn.Conv2d, norm: nn.Module, x: Tensor, last: bool) -> Tensor | None:
        """x (1, channels, F, T) -> (1, 32, F', T')."""
        x = window.add(x, window.padding if last else 0)
        if x is None:
            return None
        x = F.conv2d(x, conv.weight, conv.bias, conv.stride, (conv.padding[0], 0))
        return clipped_relu(norm(x, _no_padding(x, (1, 1, 1, x.shape[3]))))


class _Window:
    """What slides over a sequence that grows, and keeps what it will see again."""

    def __init__(self, size: int, stride: int, padding: int, zero: Tensor):
        self.size, self.stride, self.padding = size, stride, padding
        self._zero = zero
        self._kept: Tensor | None = None

    def add(self, x: Tensor, zeros: int) -> Tensor | None:
        """What the window slides over next, when x (..., T) and so many zeros follow; nothing where it is too short."""
        if self._kept is None:
            self._kept = self._zero.expand(*x.shape[:-1], self.padding)
        x = torch.cat([self._kept, x, self._zero.expand(*x.shape[:-1], zeros)], dim=-1)
        count = max(0, (x.shape[-1] - self.size) // self.stride + 1)
        self._kept = x[..., count * self.stride :]
        return x if count else None


def _no_padding(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=torch.bool, device=x.device)
