"""Model files of deepspeech.pytorch, every release of it, brought into the layout of ours.

Releases 1.x, 2.0 and spring 2020 are dicts of tensors and plain values. Release 2.1 keeps the audio settings, and 3.x (a
Lightning container) all settings, in objects of other packages. Those packages are not needed: torch's `weights_only` reader
is given a stand-in for each class of theirs that a file names. A stand-in keeps what the file says of an object and can do
nothing; torch refuses every other name, and nothing that a file names is ever imported or called.
"""

import pickletools
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from config import AudioConfig, ModelConfig
from data.labels import Labels

# What files of releases 2.1 and 3.x refer to besides tensors: settings, enumerations and callbacks of these packages, ...
PACKAGES = re.compile(r"(omegaconf|deepspeech_pytorch|pytorch_lightning|lightning|lightning_fabric)(\.\w+)+")
# ... and the types that they mention.
MENTIONED = (
    *(f"builtins.{name}" for name in "Ellipsis bool bytes dict float int list object str tuple".split()),
    *(f"typing.{name}" for name in "Any Dict List Optional Tuple Union".split()),
    *(f"torch.nn.modules.rnn.{name}" for name in "RNN GRU LSTM".split()),
    *("_operator.getitem", "collections.defaultdict"),
)
BUFFER = re.compile(r"running_(mean|var)$|num_batches_tracked$")  # what a state dict holds besides parameters


class StandIn:
    """An object of a class that is not here: what it was made from and what was stored of it, and nothing it could do."""

    def __new__(cls, *args: object) -> "StandIn":
        stand_in = super().__new__(cls)
        stand_in.args, stand_in.state = args, {}
        return stand_in

    def __setstate__(self, state: object) -> None:
        self.state = state


class DictStandIn:
    """A class derived from dict: its objects are plain dicts, which torch's reader can fill."""

    def __new__(cls, *args: object) -> dict:
        return {}


def stand_ins(path: str | Path) -> list[tuple[type, str]]:
    """A stand-in for each class that a file of release 2.1 or 3.x may name, in the form `safe_globals` of torch takes."""
    try:
        named = [name for name in _globals_in(path) if PACKAGES.fullmatch(name)]
    except (ValueError, LookupError, RuntimeError, UnpicklingError):  # no file of these releases
        return []
    return [(_stand_in(name.rpartition(".")[2]), name) for name in (*MENTIONED, *named)]


def _globals_in(path: str | Path) -> list[str]:
    """Full names of what a file of torch.save refers to, without loading it."""
    if zipfile.is_zipfile(path):
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    with open(path, "rb") as file:  # torch before 1.6: magic number, protocol, machine, content
        pickles = (pickletools.genops(file) for _ in range(4))
        return [name.replace(" ", ".") for operations in pickles for op, name, _ in operations if op.name == "GLOBAL"]


def _stand_in(name: str) -> type:
    return type(name, (DictStandIn if name in ("defaultdict", "AttributeDict") else StandIn,), {})


def stood_for(stand_in: StandIn) -> object:
    """What a configuration contains, and the value of a node or of an enumeration's member; else the name of the class."""
    held = stand_in.state if isinstance(stand_in.state, dict) else {}
    return held.get("_content", held.get("_val", stand_in.args[0] if stand_in.args else type(stand_in).__name__))


def plain(value: object) -> object:
    """A value free of stand-ins, and a class as its name."""
    if isinstance(value, StandIn):
        return plain(stood_for(value))
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, dict):
        return {plain(key): plain(held) for key, held in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value


def is_predecessors(content: dict) -> bool:
    return "state_dict" in content and ("audio_conf" in content or "hyper_parameters" in content)


def as_ours(content: dict) -> dict:
    """What a file of any release holds, under the names and in the layout that our own files have.

    Parameters are renamed; their numbers stay what they were. Raises: KeyError, ValueError and their like if the file is
    not what its release wrote.
    """
    release, content = _release(content), _without_lightning(content)
    weights = _renamed_weights(content["state_dict"])
    audio, labels = plain(content["audio_conf"]), plain(content["labels"])
    audio = AudioConfig(**{key: audio[key] for key in ("sample_rate", "window_size", "window_stride", "window")})
    model = ModelConfig(
        num_labels=len(Labels(labels)),
        freq_bins=audio.freq_bins,
        rnn_type=str(plain(content["rnn_type"])).lower(),
        hidden_size=content["hidden_size"],
        hidden_layers=content["hidden_layers"],
        # Release 3 tells it by the class of its settings, 1.0 not at all; the weights do in every release.
        bidirectional=any("backward_rnn" in name for name in weights),
        lookahead_context=weights["lookahead.conv.weight"].shape[-1] if "lookahead.conv.weight" in weights else 20,
        masked_batch_norm=False,
        release1=release == "1.x",
    )
    # In a file written within an epoch that epoch is counted already, though it has no results yet.
    within_epoch = content.get("iteration") is not None
    epoch = int(content.get("epoch") or 0) - within_epoch
    return {
        "release": f"deepspeech.pytorch {release}",
        "model": asdict(model),
        "audio": asdict(audio),
        "labels": list(labels),
        "weights": weights,
        "epoch": epoch,
        "within_epoch": within_epoch,
        "history": _history(content, epoch),
        "optimizer": None if model.release1 else _optimizer_by_order(content.get("optim_dict")),
        "loss_scale": _loss_scale(content.get("amp")),
    }


def _release(content: dict) -> str:
    if "hyper_parameters" in content:
        return "3.x"
    if any(re.match(r"(module\.)?conv\.\d", name) for name in content["state_dict"]):
        return "1.x"
    if "version" not in content:
        return "2.1"
    return "2.0" if isinstance(content["labels"], str) else "2.0 (spring 2020)"


def _without_lightning(content: dict) -> dict:
    """A Lightning container as the flat dict that earlier releases wrote; other content as it is."""
    if "hyper_parameters" not in content:
        return content
    settings = plain(content["hyper_parameters"])
    return {
        **{key: settings["model_cfg"][key] for key in ("rnn_type", "hidden_size", "hidden_layers")},
        "labels": settings["labels"],
        "audio_conf": settings["spect_cfg"],
        "state_dict": content["state_dict"],
        "epoch": content.get("epoch"),  # Lightning, up to its 1.5, writes the number of finished epochs
        "optim_dict": next(iter(content.get("optimizer_states") or ()), None),
    }


# Parameter names of the releases, and what ours are called.
RENAMED = (
    (r"conv\.(seq_module\.)?0\.", "conv.conv1."),
    (r"conv\.(seq_module\.)?1\.", "conv.norm1."),
    (r"conv\.(seq_module\.)?3\.", "conv.conv2."),
    (r"conv\.(seq_module\.)?4\.", "conv.norm2."),
    (r"rnns\.(\d+)\.batch_norm\.module\.", r"rnns.\1.norm."),
    (r"rnns\.(\d+)\.rnn\.(.*)_reverse$", r"rnns.\1.backward_rnn.\2"),
    (r"rnns\.(\d+)\.rnn\.", r"rnns.\1.forward_rnn."),
    (r"lookahead\.0\.(conv\.)?", "lookahead.conv."),
    (r"fc\.0\.module\.0\.", "head_norm."),
    (r"fc\.0\.module\.1\.", "head."),
)


UNRENAMED = (
    (r"conv\.conv1\.", "conv.seq_module.0."),
    (r"conv\.norm1\.", "conv.seq_module.1."),
    (r"conv\.conv2\.", "conv.seq_module.3."),
    (r"conv\.norm2\.", "conv.seq_module.4."),
    (r"rnns\.(\d+)\.norm\.", r"rnns.\1.batch_norm.module."),
    (r"rnns\.(\d+)\.forward_rnn\.", r"rnns.\1.rnn."),
    (r"lookahead\.conv\.", "lookahead.0.conv."),
    (r"head_norm\.", "fc.0.module.0."),
    (r"head\.", "fc.0.module.1."),
)


def renamed(name: str) -> str:
    for old, new in RENAMED:
        name, hits = re.subn("^" + old, new, name)
        if hits:
            break
    return name


def own_names(content: dict) -> Callable[[str], str]:
    """How to speak of a weight to whoever has the file: by the file's own name for it, ours behind it."""
    theirs = {renamed(name.removeprefix("module.")): name for name in content["state_dict"]}
    prefix = "module." if any(name.startswith("module.") for name in content["state_dict"]) else ""
    release1 = _release(content) == "1.x"

    def spoken(name: str) -> str:
        own = theirs.get(name)
        if own is None:  # missing: what its release would have called it
            own = prefix + _unrenamed(name, release1)
        return name if own == name else f"{own} (here {name})"

    return spoken


def _unrenamed(name: str, release1: bool) -> str:
    """The inverse of `renamed`."""
    name = re.sub(r"\.backward_rnn\.(.*)$", r".forward_rnn.\1_reverse", name)
    for ours, theirs in UNRENAMED:
        name, hits = re.subn("^" + ours, theirs, name)
        if hits:
            break
    return re.sub(r"seq_module\.|(?<=^lookahead\.0\.)conv\.", "", name) if release1 else name


def _renamed_weights(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {renamed(name.removeprefix("module.")): weight for name, weight in state_dict.items()}
    # The first recurrent layer has no batch norm, but release 1.0 stored one.
    weights = {name: weight for name, weight in weights.items() if not name.startswith("rnns.0.norm.")}
    if "lookahead.conv.weight" in weights and weights["lookahead.conv.weight"].dim() == 2:  # 1.x: (H, context)
        weights["lookahead.conv.weight"] = weights["lookahead.conv.weight"].unsqueeze(1)
    for name in [name for name in weights if name.endswith("running_var")]:  # torch before 0.4.1 did not count batches
        weights.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return weights


def _history(content: dict, epochs: int) -> list[dict[str, float]]:
    """Results of the finished epochs; the lists are as long as the training was meant to be, with anything at their ends."""
    results = {key: content.get(f"{key}_results") for key in ("loss", "wer", "cer")}
    results = {key: values for key, values in results.items() if values is not None}
    known = min([epochs, *map(len, results.values())]) if results else 0
    return [{key: float(values[i]) for key, values in results.items()} for i in range(known)]


def _optimizer_by_order(optimizer: dict | None) -> dict | None:
    """An optimizer's state with its parameters numbered in their order, which is also that of our network.

    Very old files name parameters by their addresses in memory. A state of parameters that it does not list is left out.
    """
    if not optimizer:
        return None
    keys = [key for group in optimizer["param_groups"] for key in group["params"]]
    number = {key: i for i, key in enumerate(keys)}
    if not optimizer["state"].keys() <= number.keys():
        return None
    state = {number[key]: entries for key, entries in optimizer["state"].items()}
    groups = [plain(group) | {"params": [number[key] for key in group["params"]]} for group in optimizer["param_groups"]]
    return {"state": state, "param_groups": groups}


def _loss_scale(amp: dict | None) -> dict | None:
    """Of a dynamic loss scale; 1 is what apex left where there was none."""
    scaler = (amp or {}).get("loss_scaler0")
    if not scaler or scaler["loss_scale"] == 1:
        return None
    return {"scale": float(scaler["loss_scale"]), "good_steps": int(scaler["unskipped"])}
