"""The network of Deep Speech 2 (Amodei et al. 2015, arXiv 1512.02595): convolutions, a recurrent stack, a CTC head.

    python model.py --model-path models/deepspeech_final.pth      describe a model file
    python model.py --average A.pth B.pth --output C.pth          average the weights of several

Shapes: B utterances, F frequency bins, T spectrogram frames, L output frames, H hidden size, C labels.
The model returns logits; the softmax belongs to the loss and the decoders. An utterance's result never depends on what it
shares a batch with: every sub-layer sees zeros beyond an utterance's length, and the backward direction starts at its last
frame, not at the batch's.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from config import ModelConfig

CONV_CHANNELS = 32
CLIP = 20.0  # section 3.2 of the paper: clipped ReLU min(max(x, 0), 20)
TIME_KERNEL, TIME_STRIDE = 11, 2  # of the first convolution; the second has the same kernel and no stride
# Zeros around the input of the first and the second convolution, (frequency, time): ours, and those of deepspeech.pytorch 1.x.
PADDINGS, RELEASE1_PADDINGS = ((20, 5), (10, 5)), ((0, 10), (0, 0))


def output_frames(frames: int | Tensor, paddings: tuple[tuple[int, int], ...] = PADDINGS) -> int | Tensor:
    """Output frames L of T spectrogram frames: the one length formula, for ints and integer tensors alike."""
    (_, first), (_, second) = paddings
    return (frames + 2 * first - TIME_KERNEL) // TIME_STRIDE + 1 + 2 * second - (TIME_KERNEL - 1)


def clipped_relu(x: Tensor) -> Tensor:
    return F.hardtanh(x, 0.0, CLIP)


class MaskedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation that leaves padding out of the statistics, so that batching does not change what is learnt.

    The input's second dimension is the channel, as everywhere in torch, and the input is zero wherever `padding`, which
    broadcasts to it, is true. Not `masked`, it counts all positions, which is what the predecessor computed.
    """

    sum_over_processes: Callable[[Tensor], Tensor] | None = None  # given by whoever wants the statistics of all processes

    def __init__(self, channels: int, masked: bool = True):
        super().__init__(channels)
        self.masked = masked

    def _check_input_dim(self, x: Tensor) -> None:
        assert x.dim() >= 2

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        if not self.training or not (self.masked or self.sum_over_processes):
            return super().forward(x)
        over = [d for d in range(x.dim()) if d != 1]
        autocast, given = torch.is_autocast_enabled(x.device.type), x.dtype
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if not self.masked:  # then all counts, unless a process has nothing but padding, for want of an utterance
                padding = padding.all().view((1,) * x.dim())
            # Positions of one channel that count: padding has size 1 where it does not distinguish.
            valid = (~padding).sum() * (x[:, :1].numel() // padding.numel())
            total = x.sum(over, keepdim=True)
            if self.sum_over_processes is not None:
                valid, total = self.sum_over_processes(valid), self.sum_over_processes(total)
            valid = valid.clamp_min(1)
            mean = total / valid
            centred = (x - mean).masked_fill(padding, 0.0)
            total = centred.square().sum(over, keepdim=True)
            if self.sum_over_processes is not None:
                total = self.sum_over_processes(total)
            var = total / valid
            self._remember(mean, var * (valid / (valid - 1).clamp_min(1)))
            scale = self.weight.float().view_as(mean) * torch.rsqrt(var + self.eps)
            normalised = torch.addcmul(self.bias.float().view_as(mean), centred, scale)
        return normalised if autocast else normalised.to(given)  # autocast too returns float32 from what it keeps in it

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        self.running_mean.lerp_(mean.flatten().to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(var.flatten().to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


class ConvFrontEnd(nn.Module):
    """Two convolutions over frequency x time, each with batch norm and clipped ReLU (section 3.4 of the paper)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.paddings = RELEASE1_PADDINGS if config.release1 else PADDINGS
        self.conv1 = nn.Conv2d(1, CONV_CHANNELS, (41, TIME_KERNEL), (2, TIME_STRIDE), self.paddings[0])
        self.norm1 = MaskedBatchNorm(CONV_CHANNELS, config.masked_batch_norm)
        self.conv2 = nn.Conv2d(CONV_CHANNELS, CONV_CHANNELS, (21, TIME_KERNEL), (2, 1), self.paddings[1])
        self.norm2 = MaskedBatchNorm(CONV_CHANNELS, config.masked_batch_norm)
        self.to(memory_format=torch.channels_last)

    def output_size(self, freq_bins: int) -> int:
        """Features per output frame: channels x the frequency rows that two strides of 2 leave."""
        (first, _), (second, _) = self.paddings
        rows = (freq_bins + 2 * first - 41) // 2 + 1
        return CONV_CHANNELS * ((rows + 2 * second - 21) // 2 + 1)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """x (B, 1, F, T), zero beyond each length; padding (B, L) bool -> (B, 32, F', L), zero beyond each length."""
        padding = padding[:, None, None, :]  # (B, 1, 1, L)
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            # oneDNN convolves a single channel faster in float32.
            with torch.autocast("cpu", enabled=False) if conv is self.conv1 else contextlib.nullcontext():
                x = conv(x)
            beyond = F.pad(padding, (x.shape[-1] - padding.shape[-1], 0))  # release 1's first one has more frames than L
            x = x.masked_fill_(beyond, 0.0)
            x = clipped_relu(norm(x, beyond)).masked_fill_(beyond, 0.0)
        return x


class RecurrentLayer(nn.Module):
    """One recurrent layer, the two directions summed so that every layer is `hidden_size` wide; batch norm before it.

    Each direction is a dense run over the padded batch. The backward one reads each utterance reversed within its own length,
    so padding comes after the speech in both and cannot reach it: the same numbers as a packed sequence, at several times its
    speed on a CPU, where oneDNN serves dense LSTMs only.
    """

    def __init__(self, config: ModelConfig, input_size: int, first: bool):
        super().__init__()
        rnn = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[config.rnn_type]
        self.norm = None if first else MaskedBatchNorm(input_size, config.masked_batch_norm)
        self.dropout = None if first else nn.Dropout(config.dropout)
        size = {"input_size": input_size, "hidden_size": config.hidden_size, "bias": not config.release1}
        self.forward_rnn = rnn(**size)
        self.backward_rnn = rnn(**size) if config.bidirectional else None

    def forward(self, x: Tensor, padding: Tensor, reversal: Tensor) -> Tensor:
        """x (L, B, H), padding (L, B, 1) bool, reversal (L, B, 1) frame indices -> (L, B, H), zero beyond each length."""
        x = self._normalised(x, padding)
        if self._faster_in_float32(x):
            with torch.autocast("cpu", enabled=False):
                return self._directions(x.float(), padding, reversal)
        return self._directions(x, padding, reversal)

    def advance(self, x: Tensor, padding: Tensor, state: object | None) -> tuple[Tensor, object]:
        """Go on where the forward direction stood: x (L, B, H) and its padding, `state` as returned, None at the beginning."""
        return self.forward_rnn(self._normalised(x, padding), state)

    def _normalised(self, x: Tensor, padding: Tensor) -> Tensor:
        if self.norm is None:
            return x
        return self.dropout(self.norm(x.flatten(0, 1), padding.flatten(0, 1)).view_as(x))

    def _directions(self, x: Tensor, padding: Tensor, reversal: Tensor) -> Tensor:
        y, _ = self.forward_rnn(x)
        if self.backward_rnn is not None:
            back, _ = self.backward_rnn(x.gather(0, reversal.expand_as(x)))
            y = y + back.gather(0, reversal.expand_as(back))
        return y.masked_fill(padding, 0.0)

    def _faster_in_float32(self, x: Tensor) -> bool:
        """Whether bfloat16 would cost time: oneDNN adds up a bfloat16 LSTM's weight gradient step by step, which takes longer
        than it saves once the weights outgrow a core's cache (measured: 320 x 1312 backward 0.28 s, in float32 0.19 s)."""
        if not (self.training and isinstance(self.forward_rnn, nn.LSTM)):
            return False
        weight = self.forward_rnn.weight_ih_l0
        return weight.numel() > 2**19 and x.device.type == "cpu" and weight.dtype == torch.float32


class Lookahead(nn.Module):
    """A depthwise convolution over the present and the next frames, what a unidirectional model knows of the future.

    Section 3.6 of the paper.
    """

    def __init__(self, hidden_size: int, context: int):
        super().__init__()
        self.context = context
        self.conv = nn.Conv1d(hidden_size, hidden_size, context, groups=hidden_size, bias=False)
        # At first nearly the present frame alone: filters at random would smear the spikes that CTC has to learn (AN4, 3 x 320:
        # training loss after 3 epochs 53.6 instead of 60, CER 71 instead of 90).
        with torch.no_grad():
            self.conv.weight.mul_(0.1)
            self.conv.weight[:, :, 0] += 1.0

    def forward(self, x: Tensor) -> Tensor:
        """x (L, B, H), zero beyond each length -> (L, B, H)."""
        return self.over(F.pad(x.permute(1, 2, 0), (0, self.context - 1)))

    def over(self, x: Tensor) -> Tensor:
        """x (B, H, L + context - 1), what follows the last frames included -> (L, B, H)."""
        return clipped_relu(self.conv(x)).permute(2, 0, 1)


class DeepSpeech(nn.Module):
    """Spectrograms to logits."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.conv = ConvFrontEnd(config)
        sizes = [self.conv.output_size(config.freq_bins)] + [config.hidden_size] * (config.hidden_layers - 1)
        self.rnns = nn.ModuleList(RecurrentLayer(config, size, first=i == 0) for i, size in enumerate(sizes))
        self.lookahead = None if config.bidirectional else Lookahead(config.hidden_size, config.lookahead_context)
        self.head_norm = MaskedBatchNorm(config.hidden_size, config.masked_batch_norm)
        self.head = nn.Linear(config.hidden_size, config.num_labels, bias=False)

    def freeze_batch_norm(self) -> None:
        """Normalise by the running statistics until train() is called again, while everything else goes on learning.

        Batches of like length have statistics of their own (short words are mostly silence). A network that has seen only
        those misreads the lengths whose statistics are far from the running ones, and some training without them cures it.
        """
        for module in self.modules():
            if isinstance(module, MaskedBatchNorm):
                module.eval()

    def forward(self, spects: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Score every label in every output frame.

        spects (B, 1, F, T) float, zero beyond each length; lens (B,) integer frames.
        Returns: logits (B, L, C) float32, where frames beyond an utterance's length carry no meaning, and lengths (B,).
        """
        if self.config.release1:  # what is shorter than its unpadded convolution reaches is heard with silence behind it
            lens, spects = lens.clamp_min(TIME_KERNEL), F.pad(spects, (0, max(0, TIME_KERNEL - spects.shape[-1])))
        out_lens = output_frames(lens, self.conv.paddings)
        frames = output_frames(spects.shape[-1], self.conv.paddings)
        t = torch.arange(frames, device=spects.device)[:, None]  # (L, 1)
        padding = t >= out_lens  # (L, B)
        # Frame t of an utterance reversed within its own length; padding stays where it is, after the speech.
        reversal = torch.where(padding, t, out_lens - 1 - t)[:, :, None]
        x = self.conv(spects.to(self.conv.conv1.weight.dtype), padding.T)
        x = x.flatten(1, 2).permute(2, 0, 1).contiguous()  # (L, B, 32 x F')
        padding = padding[:, :, None]
        for layer in self.rnns:
            x = layer(x, padding, reversal)
        if self.lookahead is not None:
            x = self.lookahead(x).masked_fill(padding, 0.0)
        logits = self.head(self.head_norm(x.flatten(0, 1), padding.flatten(0, 1)))
        return logits.float().view(*x.shape[:2], -1).transpose(0, 1), out_lens


def main(argv: list[str] | None = None) -> int:
    # Only here: the module itself imports nothing but torch and its settings.
    from asr.checkpoint import load_checkpoint, save_checkpoint
    from asr.transfer import average_checkpoints
    from data.command_line import argument_parser, run_script
    from data.files import check_writable

    parser = argument_parser(__doc__)
    parser.add_argument("--model-path", default="models/deepspeech_final.pth", help="model file to describe")
    parser.add_argument("--average", nargs="+", metavar="FILE", help="model files of one network, to average the weights of")
    parser.add_argument("--output", metavar="FILE", help="model file to write the average to")
    args = parser.parse_args(argv)
    if args.average and len(args.average) < 2:
        parser.error(f"--average {args.average[0]}: expected two model files or more")
    if bool(args.average) != bool(args.output):
        parser.error("--average and --output belong together: expected both")

    def average() -> None:
        check_writable(args.output)
        save_checkpoint(average_checkpoints(args.average), args.output)
        print(f"Average of {len(args.average)} models: {args.output}")

    return run_script(average if args.average else lambda: print(load_checkpoint(args.model_path).describe()))


if __name__ == "__main__":
    raise SystemExit(main())
