"""Every setting of the toolkit and its default, each once.

Only the standard library is imported here, so that `python train.py --help` can show the defaults without waiting for
torch. The module that owns a behaviour imports its settings from here: `model.py` takes a ModelConfig, `data/features.py`
an AudioConfig, and `asr/options.py` turns the same fields into command-line flags.
"""

from dataclasses import dataclass, fields

RNN_TYPES = ("rnn", "gru", "lstm")
WINDOWS = ("hamming", "hann", "blackman", "bartlett")
DECODERS = ("greedy", "beam")
RATES = range(1000, 768001)  # Hz; what only a damaged file says could fill the memory, resampling from it or to it
DECODER_BOUNDS = (  # within which no factor of the search runs over
    ("alpha", 0.0, 10.0),
    ("beta", -100.0, 100.0),
    ("unk_penalty", 0.0, float("inf")),
    ("cutoff_prob", 0.0, 1.0),
    ("token_min_logp", float("-inf"), 0.0),
    ("beam_prune_logp", float("-inf"), 0.0),
)
HOTWORD_WEIGHT = 6.0  # added to the score for a hot word that is given without a weight
MOST_LAYERS = 100  # recurrent; so that no file can have thousands of them built
MOST_NOISE = 1000.0  # noise RMS over speech RMS: 60 dB below its noise, speech is not there


def check_types(config: object) -> None:
    """What a file says need not be of the type that its field has. Raises: ValueError."""
    for f in fields(config):
        kind = type(getattr(config, f.name))
        if kind is not f.type and not (f.type is float and kind is int):
            raise ValueError(f"{f.name.replace('_', ' ')} is a {kind.__name__}: expected {f.type.__name__}")


@dataclass(frozen=True)
class AudioConfig:
    """How a recording becomes a spectrogram; stored in every checkpoint, because a model only hears what it was taught."""

    sample_rate: int = 16000  # Hz
    window_size: float = 0.02  # seconds
    window_stride: float = 0.01  # seconds
    window: str = "hamming"
    streaming_norm: bool = False  # normalise by what has been heard so far, not by the whole utterance

    def __post_init__(self) -> None:
        check_types(self)
        if self.sample_rate not in RATES:
            raise ValueError(f"sample rate {self.sample_rate}: expected {RATES.start} to {RATES.stop - 1} Hz, such as 16000")
        if self.window not in WINDOWS:
            raise ValueError(f"window {self.window!r}: expected one of {', '.join(WINDOWS)}")
        if self.window_samples < 2 or self.hop_samples < 1:
            raise ValueError(
                f"window size {self.window_size} s and stride {self.window_stride} s are {self.window_samples} and "
                f"{self.hop_samples} samples at {self.sample_rate} Hz: expected at least 2 and 1"
            )

    @property
    def window_samples(self) -> int:
        return int(self.sample_rate * self.window_size)

    @property
    def hop_samples(self) -> int:
        return int(self.sample_rate * self.window_stride)

    @property
    def freq_bins(self) -> int:
        return self.window_samples // 2 + 1


@dataclass(frozen=True)
class ModelConfig:
    """The network's shape: with it and a state dict, a model is rebuilt from its checkpoint."""

    num_labels: int = 29
    freq_bins: int = 161
    rnn_type: str = "gru"
    hidden_size: int = 800
    hidden_layers: int = 5
    bidirectional: bool = True
    lookahead_context: int = 20  # frames seen by the lookahead convolution of unidirectional models, the present included
    dropout: float = 0.0  # on the input of every recurrent layer but the first, while training
    masked_batch_norm: bool = True  # leave padding out of the batch statistics; False is what the predecessor did
    release1: bool = False  # the network of deepspeech.pytorch 1.x: other convolution padding, recurrent layers without bias

    def __post_init__(self) -> None:
        check_types(self)
        if self.rnn_type not in RNN_TYPES:
            raise ValueError(f"RNN type {self.rnn_type!r}: expected one of {', '.join(RNN_TYPES)}")
        for name in ("num_labels", "freq_bins", "hidden_size", "hidden_layers", "lookahead_context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', ' ')} {getattr(self, name)}: expected at least 1")
        if self.hidden_layers > MOST_LAYERS:
            raise ValueError(f"hidden layers {self.hidden_layers}: expected at most {MOST_LAYERS}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout {self.dropout}: expected at least 0 and less than 1")


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to training samples, and only to those; everything is off by default."""

    speed_perturb: float = 0.0  # resample by 1 +- this much: tempo and pitch move together
    speed_volume_perturb: bool = False  # tempo 0.85 to 1.15 at the same pitch, gain -6 to +8 dB
    reverb_dir: str | None = None  # room responses
    reverb_prob: float = 0.4  # share of utterances said in one of the rooms
    noise_dir: str | None = None
    noise_prob: float = 0.4  # share of utterances that get noise
    noise_min: float = 0.0  # noise RMS over speech RMS
    noise_max: float = 0.5
    codec_prob: float = 0.0  # share of utterances that pass a telephone
    spec_augment: bool = False  # Park et al. 2019; the policy below is LibriSpeech double
    time_warp: int = 80  # frames, at most
    num_freq_masks: int = 2
    freq_mask_width: int = 27  # bins, at most
    num_time_masks: int = 2
    time_mask_width: int = 100  # frames, at most
    time_mask_share: float = 1.0  # of an utterance, at most, in one mask

    def __post_init__(self) -> None:
        if self.noise_min > self.noise_max:
            raise ValueError(f"--noise-min {self.noise_min:g}: expected at most the {self.noise_max:g} of --noise-max")


@dataclass(frozen=True)
class OptimizerConfig:
    """How the weights follow the gradient."""

    optimizer: str = "sgd"
    lr: float = 3e-4
    momentum: float = 0.9  # Nesterov; SGD only
    weight_decay: float = 1e-5
    max_norm: float = 400.0  # gradient norm is clipped to this
    lr_schedule: str = "anneal"
    learning_anneal: float = 1.1  # anneal: the rate is divided by this after each epoch
    warmup: float = 0.0  # epochs of linear rise from zero (onecycle: of its rising half; 0 means 30 % of the run)
    grad_accumulation: int = 1  # batches per update


@dataclass(frozen=True)
class DecoderConfig:
    """How log probabilities become text. A text's score is acoustic ln p + alpha * language model ln p + beta * its words."""

    decoder: str = "greedy"
    beam_width: int = 10  # prefixes kept in each frame
    top_paths: int = 1  # readings told of each utterance
    lm_path: str | None = None  # language model: ARPA or KenLM binary
    alpha: float = 0.8  # weight of the language model
    beta: float = 1.0  # added for each word; with a language model only
    unk_penalty: float = 10.0  # taken off for each word that the language model does not know; inf: there are no such words
    hotwords: str | None = None  # WORD:weight,WORD or a file of such, one a line
    cutoff_top_n: int = 40  # labels of a frame, at most
    cutoff_prob: float = 1.0  # labels of a frame, most probable first, until they add up to this
    token_min_logp: float = -5.0  # labels below this ln p in a frame are left out of it
    beam_prune_logp: float = -10.0  # prefixes this much below the best one are dropped
    lm_workers: int = 1  # threads, an utterance each

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder {self.decoder!r}: expected {' or '.join(DECODERS)}")
        for name in ("beam_width", "top_paths", "cutoff_top_n", "lm_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{_flag(name)} {getattr(self, name)}: expected at least 1")
        for name, least, most in DECODER_BOUNDS:
            if not least <= getattr(self, name) <= most:  # which is never true of NaN
                raise ValueError(f"{_flag(name)} {getattr(self, name):g}: expected {least:g} to {most:g}")
        if self.top_paths > self.beam_width:
            raise ValueError(f"--top-paths {self.top_paths}: expected at most the {self.beam_width} of --beam-width")
        if self.decoder == "greedy":
            for name in ("lm_path", "hotwords"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{_flag(name)} {getattr(self, name)}: greedy decoding cannot use it; --decoder beam can")
            if self.top_paths > 1:
                raise ValueError(f"--top-paths {self.top_paths}: greedy decoding knows one reading; --decoder beam knows more")


@dataclass(frozen=True)
class ServerConfig:
    """What a server does at a time, and how much one of its clients may ask for."""

    max_batch_size: int = 16  # pieces of recordings heard at once
    max_wait_ms: float = 10.0  # that the first of them waits for others
    max_queue: int = 128  # recordings under way
    max_streams: int = 16  # live connections
    timeout: float = 300.0  # seconds from a request's first byte to its answer
    max_upload_mb: float = 100.0
    max_audio_seconds: float = 3600.0  # of a recording, or a live connection
    allow_origin: tuple[str, ...] = ()  # web pages of elsewhere that may ask too

    @property
    def upload_bytes(self) -> int:
        return round(self.max_upload_mb * 2**20)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
