"""The dict in a file of torch.save, read as what it is: data. Nothing in it is run, and it takes no more memory than the file.

A file that somebody else made may name code to call, or be small and unfold: compressed records, one number seen as a matrix
of millions, a list that holds another one twice, sixty times over.
"""

import os
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from asr import predecessor

PLAIN_TYPES = (type(None), bool, int, float, str, bytes)
MOST_VALUES = 2**20  # and characters of text, besides tensors: hundreds of times what a long training's file has
DEEPEST = 50  # containers within containers
LONGEST = 4000  # characters of an error


def check_plain(value: object, where: str) -> None:
    """A NumPy number among the settings would be saved without a word, and the file never read again. Raises: TypeError."""
    if isinstance(value, dict):
        for key, held in value.items():
            check_plain(key, f"a key of {where}")
            check_plain(held, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, held in enumerate(value):
            check_plain(held, f"{where}[{i}]")
    elif type(value) not in PLAIN_TYPES and not isinstance(value, Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}: model files hold tensors and plain values only")


def printable(text: str) -> str:
    """Text from a file, fit for a terminal: one line, and nothing that moves the cursor or hides what follows."""
    text = " ".join(text.split()) if not text.isprintable() else text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def told(error: Exception) -> str:
    """What an error says of a file that may have chosen the words."""
    text = printable(str(error))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def read_plain(path: str | Path) -> dict:
    """The dict in a file, of tensors and plain values; in a file of the predecessor's, of stand-ins too.

    Raises: OSError if it cannot be opened; ValueError naming it if it holds anything else, or more than its size allows.
    """
    _check_records(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unexpected pickle protocol: the error that follows says more
            content = _unpickle(path)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it refers to {found[1]}, which is not loaded for safety" if found else "it is no file of torch.save"
        if "Only persistent_load of storage" in str(error):
            reason = "it holds classes with their source code, as torch did before release 1.6; save it again with a later one"
        raise ValueError(f"{path}: not a model file this toolkit reads: {reason}") from None
    except OSError:
        raise
    except Exception as error:  # an unpickler given what is no pickle may raise anything
        reason = printable(str(error).partition("\n")[0]) or "it ends too early"
        raise ValueError(f"{path}: not a model file, or one cut short: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a model file: it holds a {type(content).__name__}, expected a dict")
    try:
        _check_extent(content, os.path.getsize(path))
    except (ValueError, RuntimeError) as error:  # nested tensors raise the latter when asked for their size
        raise ValueError(f"{path}: not a model file this toolkit reads: {told(error)}") from None
    return content


def _check_records(path: str | Path) -> None:
    """torch.save never compresses, and torch.load would inflate whatever a record holds."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":  # by which torch tells its zip from what it wrote before release 1.6
            return
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise ValueError(f"{path}: not a model file, or one cut short: {told(error)}") from None
    compressed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    if compressed or sum(record.file_size for record in records) > os.path.getsize(path):
        raise ValueError(f"{path}: not a model file this toolkit reads: it is compressed, which torch.save never does")


def _unpickle(path: str | Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # The predecessor's releases 2.1 and 3.x name classes of other packages; our own files name none.
        with torch.serialization.safe_globals(predecessor.stand_ins(path)):
            content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, dict) and "format" in content:
            raise
        return content


def _check_extent(content: dict, file_bytes: int) -> None:
    """Refuse what is larger in use than in the file, counting a value each time it is met: whoever walks through it later
    meets it as often.

    Raises: ValueError.
    """
    room, claimed = MOST_VALUES, 0
    stack = [(content, "", 0)]  # value, the key it is under, depth
    while stack:
        value, name, depth = stack.pop()
        if isinstance(value, predecessor.StandIn):
            held = [(predecessor.stood_for(value), name)]
        elif isinstance(value, dict):
            room -= 2 * len(value)
            held = [(key, name) for key in value]
            held += [(item, key if isinstance(key, str) else name) for key, item in value.items()]
        elif isinstance(value, list | tuple | set | frozenset):
            room -= len(value)
            held = [(item, name) for item in value]
        else:
            held = []
        if isinstance(value, Tensor):
            claimed += stored_bytes(value, name)
        elif isinstance(value, str | bytes | bytearray):
            room -= len(value)
        if room < 0 or depth > DEEPEST:
            raise ValueError("its values are nested or repeated without end")
        stack += [(item, under, depth + 1) for item, under in held]
    if claimed > file_bytes:
        raise ValueError(f"its tensors claim {claimed:,} bytes, and the whole file has {file_bytes:,}")


def stored_bytes(tensor: Tensor, name: str) -> int:
    """Raises: ValueError if not each number of a tensor is a number in the file."""
    kind = "meta" if tensor.is_meta else "nested" if tensor.is_nested else "quantized" if tensor.is_quantized else ""
    if kind or tensor.layout != torch.strided:
        raise ValueError(f"{name} is a {kind or str(tensor.layout).removeprefix('torch.')} tensor, expected a dense one")
    size = tensor.numel() * tensor.element_size()
    if tensor.untyped_storage().nbytes() < size:
        raise ValueError(f"{name} claims {size:,} bytes, and {tensor.untyped_storage().nbytes():,} are stored")
    return size
