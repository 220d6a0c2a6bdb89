"""A network whose recurrent and linear weights are 8 bits wide: a quarter of the memory, and several times the speed on a CPU.

Dynamic quantisation: weights are rounded once, each row by a scale of its own, activations by the range they have at the
moment; convolutions and batch norm stay in float32. The kernels are PyTorch's own, called by name: the module that wrapped
them, torch.ao.quantization, is on its way out, and its heir torchao knows no recurrent layers. For inference on a CPU only.
"""

import contextlib
import ctypes
import warnings

import torch
from torch import Tensor, nn

from model import DeepSpeech

# Before VNNI, a processor's sums of two products of 8 and 8 bits overflow: one factor must do with 7. PyTorch's wrappers take
# the bit from the activations, which suffer: their outliers set the scale of a whole batch. Weights hardly notice.
LARGEST_WEIGHT, NARROW_ACTIVATIONS = 63, False
SMALLEST = 1e-30  # magnitude of a row that has a scale; a row of zeros needs one too


class QuantizedLinear(nn.Module):
    """A matrix product with weights of 8 bits, which takes and gives float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        """weight (O, I), bias (O,)."""
        super().__init__()
        self.packed = _packed(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        return torch.ops.quantized.linear_dynamic(x, self.packed, NARROW_ACTIVATIONS)


class QuantizedRecurrent(nn.Module):
    """One direction of a GRU or an LSTM, called as the float32 one is: the whole sequence in one call."""

    def __init__(self, rnn: nn.GRU | nn.LSTM):
        super().__init__()
        self.hidden_size, self.states = rnn.hidden_size, 2 if isinstance(rnn, nn.LSTM) else 1
        biases = _biases(rnn)
        packed = [_packed(w, b) for w, b in zip((rnn.weight_ih_l0, rnn.weight_hh_l0), biases, strict=True)]
        self.cell = torch.ops.quantized.make_quantized_cell_params_dynamic(*packed, *biases, NARROW_ACTIVATIONS)

    def forward(self, x: Tensor, state: Tensor | tuple[Tensor, ...] | None = None) -> tuple[Tensor, object]:
        """x (L, B, I) and the state to begin with -> (L, B, H) and the last state, as the float32 one's."""
        start = x.new_zeros(1, x.shape[1], self.hidden_size) if state is None else state
        # What follows the weights: with bias, one layer, no dropout, not training, one direction, time first.
        shape = (True, 1, 0.0, False, False, False)
        if self.states == 1:
            return torch.quantized_gru(x, start, [self.cell], *shape)
        start = (start, start) if state is None else state
        y, *last = torch.quantized_lstm(x, start, [self.cell], *shape, dtype=torch.qint8, use_dynamic=True)
        return y, tuple(last)


class QuantizedTanh(nn.Module):
    """One direction of a tanh layer, for which PyTorch has no kernel of whole sequences."""

    def __init__(self, rnn: nn.RNN):
        super().__init__()
        bias_ih, bias_hh = _biases(rnn)
        self.input, self.state = QuantizedLinear(rnn.weight_ih_l0, bias_ih), QuantizedLinear(rnn.weight_hh_l0, bias_hh)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (L, B, I) and the state (1, B, H) to begin with -> (L, B, H) and the last state."""
        y = self.input(x)
        state = torch.zeros_like(y[0]) if state is None else state[0]
        for t, step in enumerate(y):
            y[t] = state = self.state(state).add_(step).tanh_()
        return y, state[None]


def quantized(model: DeepSpeech) -> DeepSpeech:
    """The same network with int8 weights, for inference.

    What stays in float32 is shared with `model`, whose other weights are no longer needed. Unlike in float32, an utterance's
    result depends, by rounding, on what it shares a batch with: the activations of a batch have one scale.

    Raises: ValueError if this build of torch has no int8 kernels, or a weight is not a number, which int8 would hide.
    """
    if torch.backends.quantized.engine in (None, "none"):
        raise ValueError(f"torch {torch.__version__} has no int8 kernels for this processor; leave --int8 out")
    with torch.device("meta"):
        small = DeepSpeech(model.config)
    small.conv, small.lookahead, small.head_norm = model.conv, model.lookahead, model.head_norm
    with warnings.catch_warnings():
        # torch 2.13 says so of the only numbers that its int8 kernels take.
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor, .* are deprecated", UserWarning)
        for layer, original in zip(small.rnns, model.rnns, strict=True):
            layer.norm, layer.forward_rnn = original.norm, _recurrent(original.forward_rnn)
            if original.backward_rnn is not None:
                layer.backward_rnn = _recurrent(original.backward_rnn)
        small.head = QuantizedLinear(model.head.weight, None)
    return small.eval()


def release_memory() -> None:
    """Give the system what the float32 weights took, once they are gone: glibc keeps it where blocks in use lie behind it."""
    with contextlib.suppress(OSError, AttributeError):  # other systems have no such function, or need none
        ctypes.CDLL(None).malloc_trim(0)


def _recurrent(rnn: nn.RNNBase) -> nn.Module:
    return QuantizedTanh(rnn) if isinstance(rnn, nn.RNN) else QuantizedRecurrent(rnn)


def _biases(rnn: nn.RNNBase) -> tuple[Tensor, Tensor]:
    """The layer's two biases; zeros for a layer without, as release 1.x has them."""
    if rnn.bias:
        return rnn.bias_ih_l0.detach(), rnn.bias_hh_l0.detach()
    nothing = rnn.weight_hh_l0.new_zeros(len(rnn.weight_hh_l0))
    return nothing, nothing


def _packed(weight: Tensor, bias: Tensor | None) -> torch.ScriptObject:
    """A weight (O, I) in 8 bits, in the layout that the kernels want; a row's largest magnitude becomes LARGEST_WEIGHT."""
    weight = weight.detach().float()
    scales = torch.linalg.vector_norm(weight, float("inf"), dim=1).clamp_min(SMALLEST) / LARGEST_WEIGHT
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    if not scales.isfinite().all():
        raise ValueError("the network's weights are not all numbers: its training diverged; train it anew with a lower --lr")
    rounded = torch.quantize_per_channel(weight, scales.double(), zeros, axis=0, dtype=torch.qint8)
    return torch.ops.quantized.linear_prepack(rounded, bias)
