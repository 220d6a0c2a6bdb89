"""The network's output on a data set, in a file: computed once by test.py --save-output, decoded hundreds of times by tuning.

N utterances, L output frames, C labels. What is read:
- our .npz, without pickled objects: log_probs (sum of all L, C) float16, utterance after utterance; lens (N,) frames of each;
  references (N,) and labels (C,) text. One with `probs` and `refs` for log_probs and references, or without labels, serves too.
- the list that test.py --save-output of deepspeech.pytorch 2.x makes by torch.save, a tuple for each batch: probabilities
  (B, L, C), frames of each utterance (B,), and its reference, in a list of its own. Arrays may be NumPy's or tensors.
What release 1.x made (np.save of pickled pairs) has no references, and is refused.
"""

import math
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asr.plain_file import stored_bytes, told
from asr.predecessor import StandIn
from data.files import whole_file
from data.labels import Labels, normalize_transcript

EXPECTED = "expected all of what test.py --save-output writes, here or in deepspeech.pytorch 2.x"
LEAST_LN_P, LEAST_P = -60000.0, 1e-30  # float16 ends below the one, and the logarithm of 0 is no number
MOST_OFF_ONE = 0.05  # by which probabilities may miss a sum of 1; they are rounded
MALFORMED = (  # errors of what finds something else in a file than it looks for
    *(ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
MOST_UNFOLDED = 100  # bytes from one byte of an .npz; output of a network is compressed to a half


@dataclass(frozen=True)
class SavedOutput:
    log_probs: list[np.ndarray]  # (L, C) float32 of each utterance
    references: list[str]
    labels: Labels | None  # None: the file does not tell


def save_output(path: str | Path, outputs: dict[int, Tensor], references: Sequence[str], symbols: Sequence[str]) -> None:
    """Write log probabilities (L, C) of utterances, in the order of their indices and of `references`."""
    ordered = [outputs[index].clamp(min=LEAST_LN_P).half().numpy() for index in sorted(outputs)]
    arrays = {
        "log_probs": np.concatenate(ordered),
        "lens": np.array([len(output) for output in ordered]),
        "references": np.array(references),
        "labels": np.array(symbols),
    }
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_saved_output(path: str | Path) -> SavedOutput:
    """Raises: OSError if it cannot be opened; ValueError naming it if it is something else, or holds nothing to tune on."""
    try:
        frames, references, labels = _read_npz(path) if _is_npz(path) else _read_list(path)
        log_probs = [_ln_p(output, f"utterance {i}") for i, output in enumerate(frames)]
    except MALFORMED as error:
        raise ValueError(f"{path}: no saved output that this toolkit reads: {told(error)}; {EXPECTED}") from None
    references = [normalize_transcript(reference) for reference in references]
    if not any(references):
        raise ValueError(f"{path}: {len(references)} utterances without a word in their references: nothing to tune on")
    return SavedOutput(log_probs, references, labels)


def _is_npz(path: str | Path) -> bool:
    """Told from a file of torch.save, which may be a zip too. Raises: ValueError, or the like, if it is cut, or unfolds."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    is_npz = any(record.filename.endswith(".npy") for record in records)
    unfolded, size = sum(record.file_size for record in records), os.path.getsize(path)
    if unfolded > (MOST_UNFOLDED if is_npz else 1) * size:  # torch.save does not compress
        raise ValueError(f"it unfolds from {size:,} to {unfolded:,} bytes")
    return is_npz


def _ln_p(output: np.ndarray, name: str) -> np.ndarray:
    """Probabilities, or logarithms of them, (L, C), as logarithms that add up to 1. Raises: ValueError if they are neither."""
    values = np.ascontiguousarray(output, np.float32)
    if not (values < 0).any():
        values = np.log(np.maximum(values, LEAST_P))
    with np.errstate(over="ignore"):
        totals = np.exp(values).sum(-1, keepdims=True)
    wrong = np.flatnonzero(~(np.abs(totals - 1) <= MOST_OFF_ONE))  # which NaN is, too
    if len(wrong):
        raise ValueError(f"{name}: frame {wrong[0]} adds up to {totals[wrong[0], 0]:g}, as probabilities do not")
    return values - np.log(totals)


def _read_npz(path: str | Path) -> tuple[list[np.ndarray], list[str], Labels | None]:
    with np.load(path, allow_pickle=False) as file:
        frames, lens, references, labels = (
            next((file[name] for name in names if name in file.files), None)
            for names in (("log_probs", "probs"), ("lens",), ("references", "refs"), ("labels",))
        )
    for name, array, kinds, dimensions in (
        ("log_probs", frames, "f", 2),
        ("lens", lens, "iu", 1),
        ("references", references, "U", 1),
        *([("labels", labels, "U", 1)] if labels is not None else []),
    ):
        if array is None:
            raise ValueError(f"{name} is missing")
        if array.dtype.kind not in kinds or array.ndim != dimensions:
            raise ValueError(f"{name} is {array.shape} of {array.dtype}")
    if len(lens) != len(references) or lens.min(initial=0) < 0 or lens.sum() != len(frames):
        raise ValueError(f"{len(references)} references, {len(lens)} lengths, of {lens.sum()} frames, for {len(frames)} frames")
    utterances = np.split(frames, np.cumsum(lens)[:-1]) if len(lens) else []
    return utterances, references.tolist(), Labels(labels.tolist()) if labels is not None else None


class StoredArray(StandIn):
    """An array of NumPy's in a pickle, which nothing of NumPy's is called to unpickle."""

    def array(self) -> np.ndarray:
        """Raises: ValueError, or the like, if the state is not that of an array of numbers."""
        _, shape, kind, by_columns, data = self.state
        code, byte_order = kind.args[0], kind.state[1]
        if not re.fullmatch(r"[fiu][1248]", code):
            raise ValueError(f"an array of {code!r}, expected numbers")
        flat = np.frombuffer(data, np.dtype(code).newbyteorder(byte_order))
        if math.prod(shape) != len(flat):
            raise ValueError(f"an array {shape} of {len(flat)} numbers")
        return flat.reshape(shape, order="F" if by_columns else "C")


class StoredKind(StandIn):
    """A dtype of NumPy's in a pickle."""


STAND_INS = (
    *((StoredArray, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),  # before NumPy 2, and since
    (StoredKind, "numpy.dtype"),
    (StandIn, "numpy.ndarray"),  # which arrays mention
)


def _read_list(path: str | Path) -> tuple[list[np.ndarray], list[str], None]:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(STAND_INS)):
            warnings.simplefilter("ignore")  # of an unexpected pickle protocol: the error that follows says more
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # an unpickler given what is no pickle may raise anything
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it refers to {found[1]}, which is not loaded for safety" if found else "it is of another kind, or cut short"
        raise ValueError(reason) from None
    frames, references = [], []
    for output, reference in _utterances(content, os.path.getsize(path)):
        frames.append(output)
        references.append(reference)
    return frames, references, None


def _utterances(batches: object, file_bytes: int) -> Iterator[tuple[np.ndarray, str]]:
    """The frames (L, C) and the reference of each utterance of a list of batches.

    Raises: ValueError, or the like, if it is no such list, or its arrays are larger than the file that they are from.
    """
    if not isinstance(batches, list | tuple):
        raise ValueError(f"it holds a {type(batches).__name__}, expected a list of batches")
    claimed = 0
    for i, batch in enumerate(batches):
        if not isinstance(batch, list | tuple) or len(batch) != 3:
            raise ValueError(f"batch {i} is no tuple of output, lengths and references")
        (output, size), (lens, more) = (_array(value, f"batch {i}") for value in batch[:2])
        claimed += size + more
        if claimed > file_bytes:
            raise ValueError(f"its arrays claim more than the {file_bytes:,} bytes of the file")
        if output.dtype.kind != "f" or output.ndim != 3 or lens.dtype.kind not in "iu" or lens.shape != output.shape[:1]:
            raise ValueError(f"batch {i}: output {output.shape} of {output.dtype}, lengths {lens.shape} of {lens.dtype}")
        for row, length, reference in zip(output, lens.tolist(), batch[2], strict=True):
            (text,) = [reference] if isinstance(reference, str) else reference
            if not isinstance(text, str) or not 0 <= length <= len(row):
                raise ValueError(f"batch {i}: a reference of {type(text).__name__}, {length} of {len(row)} frames")
            yield row[:length], text


def _array(value: object, name: str) -> tuple[np.ndarray, int]:
    """An array or tensor, and the bytes of the file that it claims. Raises: ValueError, or the like, if it is neither."""
    if isinstance(value, StoredArray):
        return value.array(), len(value.state[4])
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: a {type(value).__name__}, expected an array")
    size = stored_bytes(value, name)
    return (value.detach().float() if value.is_floating_point() else value).numpy(), size
