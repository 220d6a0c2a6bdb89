"""Files of deepspeech.pytorch 1.x to 3.x: each loads with the numbers it had, without the packages it was written with, and
without running anything it holds."""

import copy
import enum
import io
import os
import pickle
import sys
import tarfile
import types
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_data import GOLDEN, needs_shared
from torch import nn

from asr import predecessor
from asr.checkpoint import load_checkpoint, save_checkpoint
from config import ModelConfig
from model import DeepSpeech, output_frames

BIDIRECTIONAL = "bigru_64x3/deepspeech_2.pth.tar"
UNIDIRECTIONAL = "unigru_lookahead20_64x2/deepspeech_2.pth.tar"
MIDDLE = "bigru_64x3/deepspeech_checkpoint_epoch_2_iter_4.pth"


def golden(name: str) -> dict:
    return torch.load(GOLDEN / name, weights_only=True)


def same_weights(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def spects() -> list[torch.Tensor]:
    return [torch.from_numpy(np.load(GOLDEN / "audio" / f"{name}.spect.npy")) for name in "abc"]


@contextmanager
def packages():
    """The classes that 2.1 and 3.x pickled, at the places they had, while a file is written; when it is read, they are gone."""
    places = {
        "omegaconf.dictconfig": ("DictConfig",),
        "omegaconf.listconfig": ("ListConfig",),
        "omegaconf.base": ("ContainerMetadata", "Metadata"),
        "omegaconf.nodes": ("AnyNode", "EnumNode", "FloatNode", "IntegerNode"),
        "deepspeech_pytorch.configs.train_config": ("BiDirectionalConfig", "UniDirectionalConfig", "SpectConfig"),
        "pytorch_lightning.callbacks.model_checkpoint": ("ModelCheckpoint",),
    }
    classes = {}
    for module, names in places.items():
        classes |= {name: type(name, (), {"__module__": module}) for name in names}
    kinds = {"lstm": nn.LSTM, "rnn": nn.RNN, "gru": nn.GRU}
    enums = "deepspeech_pytorch.enums"
    classes["RNNType"] = enum.Enum("RNNType", kinds, module=enums)
    classes["SpectrogramWindow"] = enum.Enum("SpectrogramWindow", {"hamming": "hamming", "hann": "hann"}, module=enums)
    parsing = "pytorch_lightning.utilities.parsing"
    classes["AttributeDict"] = type("AttributeDict", (dict,), {"__module__": parsing})
    with pytest.MonkeyPatch.context() as patch:
        for name, cls in classes.items():
            parts = cls.__module__.split(".")
            for end in range(1, len(parts) + 1):
                module = ".".join(parts[:end])
                if module not in sys.modules:
                    patch.setitem(sys.modules, module, types.ModuleType(module))
            setattr(sys.modules[cls.__module__], name, cls)
        yield types.SimpleNamespace(**classes)


def configuration(p, kind: type, values: dict, parent: object = None) -> object:
    """A DictConfig of omegaconf as pickle sees it: nodes with metadata that name classes, each with its parent."""
    config = object.__new__(p.DictConfig)
    metadata = object.__new__(p.ContainerMetadata)
    metadata.__dict__ = {"ref_type": kind, "object_type": kind, "flags": {}, "element_type": float}
    config.__dict__ = {"_metadata": metadata, "_parent": parent, "_content": {}}
    nodes = {int: p.IntegerNode, float: p.FloatNode}
    for key, value in values.items():
        node = object.__new__(nodes.get(type(value), p.EnumNode if isinstance(value, enum.Enum) else p.AnyNode))
        node.__dict__ = {"_val": value, "_parent": config, "_metadata": object.__new__(p.Metadata)}
        config._content[key] = node
    return config


def spect_config(p) -> object:
    root = configuration(p, dict, {"backend": "nccl"})
    values = {"sample_rate": 16000, "window_size": 0.02, "window_stride": 0.01, "window": p.SpectrogramWindow.hann}
    return configuration(p, p.SpectConfig, values, parent=root)


def write_2_1(path: Path, old: str, zipped: bool = True, iteration: int | None = None) -> dict:
    content = golden(old)
    with packages() as p:
        changed = {"audio_conf": spect_config(p), "best_wer": 98.0, "iteration": iteration, "amp": None}
        flat = {key: value for key, value in content.items() if key != "version"} | changed
        torch.save(flat, path, _use_new_zipfile_serialization=zipped)
    return content


def write_3(path: Path, old: str, hyper_parameters: str = "dict") -> dict:
    content = golden(old)
    with packages() as p:
        bidirectional = content["bidirectional"]
        values = {"rnn_type": p.RNNType.gru, "hidden_size": 64, "hidden_layers": content["hidden_layers"]}
        kind = p.BiDirectionalConfig if bidirectional else p.UniDirectionalConfig
        settings = {
            "labels": content["labels"],
            "model_cfg": configuration(p, kind, values if bidirectional else values | {"lookahead_context": 20}),
            "precision": 32,
            "spect_cfg": spect_config(p),
        }
        betas = object.__new__(p.ListConfig)
        betas.__dict__ = {"_content": [0.9, 0.999], "_parent": None}
        states = {
            i: {"step": 6, "exp_avg": state["momentum_buffer"], "exp_avg_sq": state["momentum_buffer"] ** 2}
            for i, state in content["optim_dict"]["state"].items()
        }
        groups = [content["optim_dict"]["param_groups"][0] | {"betas": betas}]
        container = {
            "epoch": 2,
            "pytorch-lightning_version": "1.1.6",
            "callbacks": {p.ModelCheckpoint: {"monitor": "wer", "best_model_score": torch.tensor(3.0)}},
            "state_dict": content["state_dict"],
            "optimizer_states": [{"state": states, "param_groups": groups}],
            "hyper_parameters": p.AttributeDict(settings) if hyper_parameters == "AttributeDict" else settings,
        }
        torch.save(container, path)
    return content


@needs_shared
def test_the_recorded_lightning_file_is_the_same_model():
    new, old = load_checkpoint(GOLDEN / "bigru_64x3" / "v3_style.ckpt"), load_checkpoint(GOLDEN / BIDIRECTIONAL)
    assert same_weights(new.weights, old.weights)
    assert (new.model, new.audio, new.labels) == (old.model, old.audio, old.labels)
    assert (new.release, new.epoch, new.history, new.within_epoch) == ("deepspeech.pytorch 3.x", 1, [], False)
    assert "omegaconf" not in sys.modules and "pytorch_lightning" not in sys.modules


@needs_shared
@pytest.mark.parametrize("old", [BIDIRECTIONAL, UNIDIRECTIONAL])
@pytest.mark.parametrize("zipped", [True, False])
def test_release_2_1(tmp_path, old, zipped):
    write_2_1(tmp_path / "2.1.pth", old, zipped)
    new, same = load_checkpoint(tmp_path / "2.1.pth"), load_checkpoint(GOLDEN / old)
    assert same_weights(new.weights, same.weights)
    assert new.model == same.model and new.audio.window == "hann" and new.release == "deepspeech.pytorch 2.1"
    assert (new.epoch, new.history, new.within_epoch, new.loss_scale) == (2, same.history, False, None)
    assert new.optimizer["param_groups"] == same.optimizer["param_groups"]
    new.check_continuable()


@needs_shared
@pytest.mark.parametrize("old", [BIDIRECTIONAL, UNIDIRECTIONAL])
@pytest.mark.parametrize("hyper_parameters", ["dict", "AttributeDict"])
def test_release_3(tmp_path, old, hyper_parameters):
    write_3(tmp_path / "3.ckpt", old, hyper_parameters)
    new, same = load_checkpoint(tmp_path / "3.ckpt"), load_checkpoint(GOLDEN / old)
    assert same_weights(new.weights, same.weights)
    assert new.model == same.model and new.audio.window == "hann" and new.labels == same.labels
    assert new.epoch == 2 and new.optimizer["param_groups"][0]["betas"] == [0.9, 0.999]
    torch.optim.AdamW(new.build_model().parameters()).load_state_dict(new.optimizer)
    save_checkpoint(new, tmp_path / "ours.pth")
    assert same_weights(load_checkpoint(tmp_path / "ours.pth").weights, same.weights)


@needs_shared
@pytest.mark.parametrize("release", ["spring 2020", "2.1"])
def test_a_file_written_within_an_epoch_does_not_count_it(tmp_path, release):
    path = GOLDEN / MIDDLE
    if release == "2.1":
        path = tmp_path / "middle.pth"
        write_2_1(path, MIDDLE, iteration=3)
    middle = load_checkpoint(path)
    assert middle.within_epoch and middle.epoch == 1 and len(middle.history) == 1 and middle.history[0]["wer"] > 0
    assert "1, written within epoch 2" in middle.describe()
    middle.check_continuable()


@needs_shared
def test_labels_of_2_0_are_a_string_and_its_noise_probability_may_be_one(tmp_path):
    content = golden(BIDIRECTIONAL)
    content["labels"] = "".join(content["labels"])
    content["audio_conf"]["noise_prob"] = "0.5"
    content["state_dict"] = {f"module.{name}": weight for name, weight in content["state_dict"].items()}  # of DataParallel
    torch.save(content, tmp_path / "2.0.pth")
    new, same = load_checkpoint(tmp_path / "2.0.pth"), load_checkpoint(GOLDEN / BIDIRECTIONAL)
    assert new.release == "deepspeech.pytorch 2.0" and new.labels == same.labels and same_weights(new.weights, same.weights)


@needs_shared
def test_the_state_of_apex_is_our_loss_scale(tmp_path):
    content = golden(BIDIRECTIONAL)
    content["amp"] = {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 120}}
    torch.save(content, tmp_path / "amp.pth")
    assert load_checkpoint(tmp_path / "amp.pth").loss_scale == {"scale": 65536.0, "good_steps": 120}


@needs_shared
def test_an_optimizer_that_names_parameters_by_address_is_mapped_by_order(tmp_path):
    content = golden(BIDIRECTIONAL)
    expected = copy.deepcopy(content["optim_dict"])
    address = {i: 140_000_000_000_000 + 7 * (i * 5 % 39) for i in expected["param_groups"][0]["params"]}
    content["optim_dict"]["param_groups"][0]["params"] = list(address.values())
    content["optim_dict"]["state"] = {address[i]: state for i, state in expected["state"].items()}
    torch.save(content, tmp_path / "old.pth")
    found = load_checkpoint(tmp_path / "old.pth").optimizer
    assert found["param_groups"] == expected["param_groups"]
    for i, state in expected["state"].items():
        assert torch.equal(found["state"][i]["momentum_buffer"], state["momentum_buffer"])


@needs_shared
def test_an_optimizer_of_another_network_is_left_out_and_continuing_refused(tmp_path):
    content = golden(BIDIRECTIONAL)
    content["optim_dict"]["state"][0]["momentum_buffer"] = torch.zeros(3)
    torch.save(content, tmp_path / "other.pth")
    found = load_checkpoint(tmp_path / "other.pth")
    assert found.optimizer is None
    with pytest.raises(ValueError, match=r"other\.pth: holds no state of an optimizer"):
        found.check_continuable()


@needs_shared
def test_every_weight_that_cannot_be_mapped_is_named(tmp_path):
    content = golden(BIDIRECTIONAL)
    state = content["state_dict"]
    del state["rnns.1.rnn.weight_hh_l0_reverse"], state["rnns.2.rnn.bias_ih_l0"], state["fc.0.module.0.weight"]
    state |= {"attention.weight": torch.zeros(2), "fc.0.module.1.weight": torch.zeros(5, 64), "extra": torch.zeros(1)}
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError) as error:
        load_checkpoint(tmp_path / "odd.pth")
    for fault in (
        "rnns.1.rnn.weight_hh_l0_reverse (here rnns.1.backward_rnn.weight_hh_l0) is missing",
        "rnns.2.rnn.bias_ih_l0 (here rnns.2.forward_rnn.bias_ih_l0) is missing",
        *("fc.0.module.0.weight (here head_norm.weight) is missing", "attention.weight is unknown", "extra is unknown"),
        "fc.0.module.1.weight (here head.weight) is (5, 64), expected (29, 64)",
    ):
        assert fault in str(error.value)
    assert "\n" not in str(error.value) and "more" not in str(error.value)
    content["state_dict"] = {f"encoder.{name}": weight for name, weight in state.items()}
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"; and \d+ more$"):
        load_checkpoint(tmp_path / "odd.pth")


@needs_shared
@pytest.mark.parametrize("old", [BIDIRECTIONAL, UNIDIRECTIONAL, "v12_bigru_64x2/deepspeech_2.pth"])
def test_a_missing_weight_is_told_by_the_name_that_the_file_would_have(old):
    content = golden(old)
    for prefix in ("", "module."):
        state = {prefix + name: weight for name, weight in content["state_dict"].items()}
        for missing in state:
            rest = {name: weight for name, weight in state.items() if name != missing}
            spoken = predecessor.own_names(content | {"state_dict": rest})
            ours = predecessor.renamed(missing.removeprefix("module."))
            assert spoken(ours) == f"{missing} (here {ours})"


@needs_shared
@pytest.mark.parametrize("name", ["deepspeech_2.pth", "v10_style_strays.pth"])
def test_release_1_computes_what_it_did(name):
    checkpoint = load_checkpoint(GOLDEN / "v12_bigru_64x2" / name)
    assert checkpoint.release == "deepspeech.pytorch 1.x" and "1.x" in checkpoint.describe()
    model = checkpoint.build_model()
    for letter, spect in zip("abc", spects(), strict=True):
        with torch.inference_mode():
            logits, lens = model(spect[None, None], torch.tensor([spect.shape[1]]))
        expected = np.load(GOLDEN / "v12_bigru_64x2" / f"eval_single_{letter}.npz")["probs"]
        assert lens.tolist() == [expected.shape[1]]
        assert np.abs(logits.softmax(-1).numpy() - expected).max() < 1e-5


@needs_shared
def test_release_1_saved_anew_is_still_that_model_and_is_not_continued(tmp_path):
    old = load_checkpoint(GOLDEN / "v12_bigru_64x2" / "deepspeech_2.pth")
    save_checkpoint(old, tmp_path / "new.pth")
    new = load_checkpoint(tmp_path / "new.pth")
    assert new.model == old.model and new.model.release1 and same_weights(new.weights, old.weights)
    for checkpoint in (old, new):
        with pytest.raises(ValueError, match=r"release 1\.x, another network"):
            checkpoint.check_continuable()


def test_a_batch_never_changes_an_utterance_of_release_1():
    torch.manual_seed(1)
    config = ModelConfig(num_labels=5, freq_bins=81, hidden_size=8, hidden_layers=2, bidirectional=False, release1=True)
    model = DeepSpeech(config).eval()
    spects = [torch.randn(81, frames) for frames in (60, 33, 12, 11, 10, 1)]
    batch = torch.zeros(len(spects), 1, 81, 60)
    for row, spect in zip(batch, spects, strict=True):
        row[0, :, : spect.shape[1]] = spect
    with torch.inference_mode():
        together, lens = model(batch, torch.tensor([spect.shape[1] for spect in spects]))
        for row, spect in enumerate(spects):
            alone, (length,) = model(spect[None, None], torch.tensor([spect.shape[1]]))
            frames = max(spect.shape[1], 11)  # anything shorter is heard with silence behind it
            assert length == lens[row] == alone.shape[1] == output_frames(frames, model.conv.paddings) >= 1
            torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=0)


@needs_shared
def test_the_lookahead_of_release_1_sees_the_present_and_its_context(tmp_path):
    """Its weight is (H, context + 1): output t is the sum over k of input t + k times weight k, zeros after the end."""
    content = golden("v12_bigru_64x2/deepspeech_2.pth")
    state = {name: weight for name, weight in content["state_dict"].items() if not name.endswith("_reverse")}
    state["lookahead.0.weight"] = torch.randn(64, 4)
    torch.save(content | {"state_dict": state, "bidirectional": False}, tmp_path / "uni.pth")
    checkpoint = load_checkpoint(tmp_path / "uni.pth")
    assert checkpoint.model.lookahead_context == 4 and not checkpoint.model.bidirectional
    x = torch.randn(9, 1, 64)
    later = torch.cat([x, torch.zeros(3, 1, 64)])
    expected = sum(later[k : k + 9] * state["lookahead.0.weight"][:, k] for k in range(4)).clamp(0, 20)
    with torch.inference_mode():
        torch.testing.assert_close(checkpoint.build_model().lookahead(x), expected)


class Call:
    """Pickled as a call, which pickle's own reader would make."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def hostile_calls(marker: str) -> dict[str, Call]:
    return {
        "system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, f"open({marker!r}, 'w')"),
        "exec": Call(exec, f"open({marker!r}, 'w')"),
        "open": Call(open, marker, "w"),
        "getattr": Call(getattr, "text", "upper"),
        "torch.load": Call(torch.load, marker),
        "torch.save": Call(torch.save, 1, marker),
        "Module": Call(nn.Linear, 2, 2),
    }


def test_the_hostile_calls_would_be_made_by_pickle(tmp_path):
    pickle.loads(pickle.dumps(hostile_calls(str(tmp_path / "marker"))["system"]))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", hostile_calls(""))
def test_a_hostile_object_is_refused_wherever_it_hides(tmp_path, name):
    path, marker = tmp_path / "evil.pth", tmp_path / "marker"
    evil = hostile_calls(str(marker))[name]
    with packages() as p:
        values = {"sample_rate": 16000, "window_size": 0.02, "window_stride": 0.01, "window": "hann"}
        in_settings = configuration(p, p.SpectConfig, values | {"window": evil})
        as_state = configuration(p, p.SpectConfig, values)
        as_state._content["window"].__dict__ = {"_val": "hann", "_parent": evil}
        in_metadata = configuration(p, p.SpectConfig, values)
        in_metadata._metadata.ref_type = evil
        in_callbacks = {"audio_conf": configuration(p, p.SpectConfig, values), "callbacks": {p.ModelCheckpoint: evil}}
        places = [evil, {"format": evil}, *({"audio_conf": c} for c in (in_settings, as_state, in_metadata)), in_callbacks]
        for zipped in (True, False):
            for content in places:
                torch.save(content, path, _use_new_zipfile_serialization=zipped)
                with pytest.raises(ValueError, match=r"evil\.pth: not a model file") as error:
                    load_checkpoint(path)
                assert "\n" not in str(error.value)
                assert not marker.exists()


def before_1_6(operations: bytes) -> bytes:
    """A file of torch before 1.6 around hand-written pickle operations."""
    magic, protocol = torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION
    machine = {"protocol_version": protocol, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    return b"".join(pickle.dumps(value, 2) for value in (magic, protocol, machine)) + operations + pickle.dumps([], 2)


def raw_pickles(marker: str) -> dict[str, bytes]:
    touch = b"X" + len(f"touch {marker}").to_bytes(4, "little") + f"touch {marker}".encode()
    make = b"comegaconf.dictconfig\nDictConfig\n)\x81"
    return {
        "a dotted name that ends in another module": b"\x80\x02comegaconf\nos.system\n" + touch + b"\x85R.",
        "a dotted name through an allowed module": b"\x80\x02ctyping\nsys.modules\n.",
        "a function beside an allowed class": b"\x80\x02ctorch.nn.modules.rnn\nwarnings.warn\n" + touch + b"\x85R.",
        "a name of Python 2": b"\x80\x02c__builtin__\neval\n" + touch + b"\x85R.",
        "a call by INST": b"\x80\x02(" + touch + b"ios\nsystem\n.",
        "a call by OBJ": b"\x80\x02(cos\nsystem\n" + touch + b"o.",
        "a name from the stack": b"\x80\x04X\x02\0\0\0osX\x06\0\0\0system\x93" + touch + b"\x85R.",
        "an extension": b"\x80\x02\x82\x01.",
        "a stand-in with another class": b"\x80\x02" + make + b"}X\x09\0\0\0__class__cbuiltins\ndict\nsb.",
        "a stand-in whose state is no dict": b"\x80\x02" + make + b"K\x05b.",
        "a stand-in with slots": b"\x80\x02" + make + b"}}X\x09\0\0\0__class__cbuiltins\ndict\ns\x86b.",
        "a call of a stand-in": b"\x80\x02" + make + touch + b"\x85R.",
        "a persistent object": b"\x80\x02" + touch + b"Q.",
    }


@pytest.mark.parametrize("name", raw_pickles(""))
def test_hand_written_pickles_run_nothing(tmp_path, name):
    path, marker = tmp_path / "evil.pth", tmp_path / "marker"
    path.write_bytes(before_1_6(raw_pickles(str(marker))[name]))
    with pytest.raises(ValueError, match=r"evil\.pth: not a model file") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and not marker.exists()


@needs_shared
def test_stand_ins_where_values_belong_are_refused(tmp_path):
    """Each entry of a file of each kind in turn is an object of another package, which holds itself."""
    path = tmp_path / "evil.pth"
    write_3(path, BIDIRECTIONAL)
    lightning_keys = ("state_dict", "hyper_parameters")
    for key in (*golden(BIDIRECTIONAL), *lightning_keys):
        with packages() as p:
            inside = configuration(p, dict, {"x": 1})
            inside._content["x"] = inside
            base = torch.load(path, weights_only=False) if key in lightning_keys else golden(BIDIRECTIONAL)
            torch.save(base | {key: inside}, tmp_path / f"{key}.pth")
        try:
            load_checkpoint(tmp_path / f"{key}.pth")
        except ValueError as error:
            assert str(error).startswith(str(tmp_path)) and "\n" not in str(error)
        else:
            assert key in ("version", "bidirectional", "epoch", "avg_loss", "amp", "iteration"), key


@needs_shared
def test_our_own_files_name_no_other_package(tmp_path):
    save_checkpoint(load_checkpoint(GOLDEN / BIDIRECTIONAL), tmp_path / "ours.pth")
    content = torch.load(tmp_path / "ours.pth", weights_only=True)
    with packages() as p:
        torch.save(content | {"settings": configuration(p, dict, {"x": 1})}, tmp_path / "ours.pth")
    with pytest.raises(ValueError, match=r"ours\.pth: not a model file.*omegaconf\.dictconfig\.DictConfig"):
        load_checkpoint(tmp_path / "ours.pth")


def test_other_containers_of_torch_are_refused(tmp_path):
    for name, member in (("script.pth", "script/constants.pkl"), ("plain.pth", "plain/notes.txt")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(member, b"\x80\x02cos\nsystem\n.")
    with tarfile.open(tmp_path / "tar.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    for name in ("script.pth", "plain.pth", "tar.pth"):
        with pytest.raises(ValueError, match=rf"{name}: not a model file") as error:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value)


@needs_shared
def test_classes_with_their_source_code_are_refused_with_the_way_out(tmp_path):
    torch.save(golden(BIDIRECTIONAL) | {"rnn_type": nn.GRU}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"old\.pth: .*save it again with a later one"):
        load_checkpoint(tmp_path / "old.pth")
    torch.save(golden(BIDIRECTIONAL) | {"rnn_type": nn.GRU}, tmp_path / "new.pth")
    assert load_checkpoint(tmp_path / "new.pth").model.rnn_type == "gru"
