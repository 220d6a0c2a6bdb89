"""Command-line flags, grouped by what they set; each default is read from the dataclass that owns it (config.py).

Nothing here imports torch, so that every script's --help answers at once.
"""

import argparse
import dataclasses
from typing import TypeVar

from config import (
    DECODERS,
    MOST_NOISE,
    RNN_TYPES,
    WINDOWS,
    AudioConfig,
    AugmentConfig,
    DecoderConfig,
    ModelConfig,
    OptimizerConfig,
)
from data.command_line import UsageError, number

Config = TypeVar("Config")


def config_from(cls: type[Config], args: argparse.Namespace, **known: object) -> Config:
    """Build a settings dataclass from the flags that carry its fields' names, and from what is known without a flag."""
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(cls) if hasattr(args, f.name)}
    try:
        return cls(**(given | known))
    except ValueError as error:
        raise UsageError(str(error)) from None


def add_batch_options(parser: argparse.ArgumentParser) -> None:
    size = parser.add_mutually_exclusive_group()
    # The default as text, or else argparse would take a 20 that is typed for the default, and not for a contradiction.
    size.add_argument("--batch-size", type=number(int, 1), default="20", help="utterances per batch")
    size.add_argument(
        "--batch-seconds",
        type=number(float, above=0),
        metavar="S",
        help="instead: as many utterances per batch as make S seconds of audio, padding included",
    )


def add_audio_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("spectrogram")
    default = AudioConfig()
    group.add_argument("--sample-rate", type=number(int, 1), default=default.sample_rate, help="Hz of the model's audio")
    group.add_argument("--window-size", type=number(float, above=0), default=default.window_size, help="frame, seconds")
    group.add_argument("--window-stride", type=number(float, above=0), default=default.window_stride, help="hop, seconds")
    group.add_argument("--window", choices=WINDOWS, default=default.window, help="window function")
    group.add_argument(
        "--streaming-norm",
        action="store_true",
        help="normalise by what has been heard so far instead of by the whole utterance, as transcribing live has to",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    default = ModelConfig()
    group.add_argument("--rnn-type", choices=RNN_TYPES, default=default.rnn_type, help="recurrent cell")
    group.add_argument("--hidden-size", type=number(int, 1), default=default.hidden_size, help="width of a layer")
    group.add_argument("--hidden-layers", type=number(int, 1), default=default.hidden_layers, help="recurrent layers")
    group.add_argument(
        "--no-bidirectional",
        dest="bidirectional",
        action="store_false",
        help="unidirectional layers and a lookahead convolution",
    )
    group.add_argument(
        "--lookahead-context",
        type=number(int, 1),
        default=default.lookahead_context,
        help="output frames the lookahead sees, the present included",
    )
    group.add_argument(
        "--dropout",
        type=number(float, 0, 0.99),
        default=default.dropout,
        help="on the input of every recurrent layer but the first",
    )


def add_optimizer_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimizer and schedule")
    default = OptimizerConfig()
    group.add_argument("--optimizer", choices=("sgd", "adamw"), default=default.optimizer, help="sgd is with Nesterov")
    group.add_argument("--lr", "--learning-rate", type=number(float, above=0), default=default.lr, help="learning rate")
    group.add_argument("--momentum", type=number(float, 0, 0.9999), default=default.momentum, help="of SGD")
    group.add_argument("--weight-decay", type=number(float, 0), default=default.weight_decay, help="of both optimizers")
    group.add_argument("--max-norm", type=number(float, above=0), default=default.max_norm, help="gradient norm clip")
    group.add_argument(
        "--lr-schedule",
        choices=("anneal", "onecycle", "cosine"),
        default=default.lr_schedule,
        help="anneal: divide by --learning-anneal after each epoch; onecycle: rise to --lr and fall to zero; "
        "cosine: fall from --lr to zero",
    )
    group.add_argument(
        "--learning-anneal", type=number(float, above=0), default=default.learning_anneal, help="divisor per epoch"
    )
    group.add_argument(
        "--warmup",
        type=number(float, 0),
        default=default.warmup,
        help="epochs, fractions allowed, in which the rate rises; 0 with onecycle: 30%% of the run",
    )
    group.add_argument("--grad-accumulation", type=number(int, 1), default=default.grad_accumulation, help="batches per update")


def add_augment_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("augmentation of training samples")
    default = AugmentConfig()
    group.add_argument(
        "--speed-perturb",
        type=number(float, 0, 0.5),
        metavar="SHARE",
        default=default.speed_perturb,
        help="play each utterance up to this share faster or slower, pitch and all (0.1: speeds 0.9 to 1.1)",
    )
    group.add_argument(
        "--speed-volume-perturb",
        action="store_true",
        help="tempo 0.85 to 1.15 at the same pitch, and gain -6 to +8 dB, clipped at full scale",
    )
    group.add_argument("--reverb-dir", metavar="DIR", help="room responses: utterances are said in one of these rooms")
    group.add_argument("--reverb-prob", type=number(float, 0, 1), default=default.reverb_prob, help="how many of them, a share")
    group.add_argument("--noise-dir", metavar="DIR", help="noise recordings to mix in, of any format, also in folders below")
    group.add_argument(
        "--noise-prob",
        "--noise_prob",
        type=number(float, 0, 1),
        default=default.noise_prob,
        help="share of utterances that get noise",
    )
    level = number(float, 0, MOST_NOISE)
    group.add_argument("--noise-min", type=level, default=default.noise_min, help="lowest level: noise RMS over speech RMS")
    group.add_argument("--noise-max", type=level, default=default.noise_max, help="highest level")
    group.add_argument(
        "--codec-prob",
        type=number(float, 0, 1),
        default=default.codec_prob,
        help="share of utterances that pass a telephone: 8 kHz, mu-law",
    )
    _add_spec_augment_options(parser, default)


def _add_spec_augment_options(parser: argparse.ArgumentParser, default: AugmentConfig) -> None:
    group = parser.add_argument_group("SpecAugment", "flags also by the paper's letters; the policy is LibriSpeech double")
    whole = number(int, 0)
    group.add_argument("--spec-augment", action="store_true", help="time warping, frequency and time masks on training samples")
    group.add_argument("--time-warp", "--W", type=whole, default=default.time_warp, help="frames, at most; 0: no warping")
    group.add_argument("--num-freq-masks", "--m_F", type=whole, default=default.num_freq_masks, help="frequency masks")
    group.add_argument("--freq-mask-width", "--F", type=whole, default=default.freq_mask_width, help="bins per mask, at most")
    group.add_argument("--num-time-masks", "--m_T", type=whole, default=default.num_time_masks, help="time masks")
    group.add_argument("--time-mask-width", "--T", type=whole, default=default.time_mask_width, help="frames per mask, at most")
    group.add_argument(
        "--time-mask-share",
        "--p",
        type=number(float, 0, 1),
        default=default.time_mask_share,
        help="share of the utterance per mask, at most",
    )


def add_decoder_options(parser: argparse.ArgumentParser) -> None:
    """Flags whose values `decoder_config` takes."""
    group = parser.add_argument_group("decoder")
    default = DecoderConfig()
    group.add_argument(
        "--decoder",
        choices=DECODERS,
        default=default.decoder,
        help="greedy: the best label of each frame; beam: the best text, with a language model and hot words if given",
    )
    group.add_argument("--beam-width", type=number(int, 1), default=default.beam_width, help="texts kept in each frame")
    group.add_argument("--top-paths", type=number(int, 1), default=default.top_paths, help="readings to give, best first")
    group.add_argument("--lm-path", metavar="FILE", help="language model: ARPA, plain or gzipped, or KenLM binary")
    group.add_argument("--alpha", type=number(float), help=f"weight of the language model (default: {default.alpha:g})")
    group.add_argument("--beta", type=number(float), help=f"added to the score for each word (default: {default.beta:g})")
    group.add_argument(
        "--unk-penalty",
        type=number(float),
        help="taken off for each word that the language model does not know; inf: such words are never written "
        f"(default: {default.unk_penalty:g})",
    )
    group.add_argument(
        "--hotwords",
        metavar="WORDS|FILE",
        help="words to expect, as TANAKA:8,KYOTO with weights or without, or a file with one a line",
    )
    _add_pruning_options(group, default)
    group.add_argument("--lm-workers", type=number(int, 1), default=default.lm_workers, help="threads, an utterance each")


def _add_pruning_options(group: argparse._ArgumentGroup, default: DecoderConfig) -> None:
    group.add_argument(
        "--cutoff-top-n", type=number(int, 1), default=default.cutoff_top_n, help="labels looked at in a frame, at most"
    )
    group.add_argument(
        "--cutoff-prob",
        type=number(float),
        default=default.cutoff_prob,
        help="labels looked at in a frame: the most probable, until they add up to this",
    )
    group.add_argument(
        "--token-min-logp",
        type=number(float),
        default=default.token_min_logp,
        help="labels below this ln p are not looked at; =-inf: none",
    )
    group.add_argument(
        "--beam-prune-logp",
        type=number(float),
        default=default.beam_prune_logp,
        help="texts this far below the best one are dropped; =-inf: none",
    )


def decoder_config(args: argparse.Namespace) -> DecoderConfig:
    """The decoder as its flags say. Raises: UsageError if they contradict each other."""
    unset = {}
    for name in ("alpha", "beta", "unk_penalty"):
        if getattr(args, name) is None:
            unset[name] = getattr(DecoderConfig, name)
        elif args.lm_path is None:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} {getattr(args, name):g}: no language model is given; add --lm-path FILE")
    return config_from(DecoderConfig, args, **unset)


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """What test.py, transcribe.py and the server share."""
    add_network_options(parser)
    add_decoder_options(parser)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Which network, and where and how it runs."""
    parser.add_argument("--model-path", default="models/deepspeech_final.pth", help="model file")
    parser.add_argument(
        "--sample-rate", type=number(int, 1), help="Hz the model must have been trained at (default: whatever it was)"
    )
    parser.add_argument("--cuda", action="store_true", help="run on CUDA")
    parser.add_argument("--half", action="store_true", help="weights and activations in float16, with --cuda")
    parser.add_argument("--int8", action="store_true", help="weights in 8 bits, on a CPU: faster, in a quarter of the memory")
    parser.add_argument("--threads", type=number(int, 1, 1024), metavar="N", help="CPU threads (default: PyTorch's choice)")
    add_precision_option(parser)


def add_precision_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16"),
        help="numbers that the network is computed in; fp16 needs --cuda (default: fp32)",
    )


def add_training_precision_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("precision")
    add_precision_option(group)
    group.add_argument(
        "--opt-level",
        choices=("O0", "O1", "O2", "O3"),
        help="O0: float32; O1: autocast; O2: 16-bit weights with float32 master weights and batch norm; O3: all in 16 bits; "
        "the 16 bits are float16, or --precision bf16 (default: O0, with --precision O1)",
    )
    group.add_argument(
        "--keep-batchnorm-fp32",
        type=_true_or_false,
        nargs="?",
        const=True,
        metavar="True|False",
        help="override what the level does with batch norm",
    )
    group.add_argument("--loss-scale", default="1", help="lift float16 gradients by this number, or dynamic")


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected True or False")
    return text.lower() == "true"


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """One process of several that was started by hand; `python -m multiproc` and torchrun need none of these."""
    group = parser.add_argument_group("processes started by hand (python -m multiproc starts them for you)")
    group.add_argument("--dist-url", default="tcp://127.0.0.1:1550", help="where the processes meet")
    group.add_argument(
        "--dist-backend", "--dist_backend", choices=("nccl", "gloo"), help="how they talk (default: nccl on CUDA, else gloo)"
    )
    group.add_argument("--world-size", type=number(int, 1), default=1, help="how many they are")
    group.add_argument("--rank", type=number(int, 0), default=0, help="which one this is")
    group.add_argument("--gpu-rank", type=number(int, 0), help="which CUDA device is its own")


def add_bad_data_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-bad-data",
        choices=("fail", "skip"),
        default="fail",
        help="what to do about utterances that cannot be used: stop, or report them and go on without",
    )


def add_graph_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("graphs", "every run also writes metrics.jsonl to its --save-folder")
    group.add_argument("--tensorboard", action="store_true", help="write TensorBoard events to LOG_DIR/ID")
    group.add_argument("--log-dir", "--logdir", default="visualize/deepspeech_final", help="TensorBoard's --logdir")
    group.add_argument("--log-params", action="store_true", help="TensorBoard: histograms of parameters and gradients")
    group.add_argument("--visdom", action="store_true", help="show curves on a Visdom server, in the environment ID")
    group.add_argument("--visdom-server", metavar="URL", default="http://localhost:8097", help="where it listens")
    group.add_argument("--id", default="Deepspeech training", help="name of the run in both graphing tools")
