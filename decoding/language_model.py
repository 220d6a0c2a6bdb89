"""Language model files: which kind one is, told by its content, and the model in it."""

import os
import stat
from typing import BinaryIO

from decoding.kenlm_binary import MAGIC as KENLM_MAGIC
from decoding.kenlm_binary import KenlmModel
from decoding.ngram_cache import read_through_cache
from decoding.ngrams import NgramModel

FOREIGN = {  # what a file begins with, and what is then said of it
    b"PK\x03\x04": "a zip archive, as model checkpoints are",
    b"RIFF": "a RIFF recording",
    b"fLaC": "a FLAC recording",
    b"OggS": "an Ogg recording",
    b"\x80\x02": "a pickle, as old model checkpoints are",
    b"BZh": "compressed by bzip2: decompress it, or compress it by gzip",
    b"\xfd7zXZ": "compressed by xz: decompress it, or compress it by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: decompress it, or compress it by gzip",
    b"iARPA": "IRSTLM's own ARPA: convert it by compile-lm --text=yes",
    b"blmt": "an IRSTLM binary: convert it by compile-lm --text=yes",
    b"\xff\xfe": "UTF-16: convert it by iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16: convert it by iconv -f UTF-16 -t UTF-8",
}
EXPECTED = "expected a language model in ARPA format, plain or gzipped, or a KenLM binary"


def load_language_model(
    path: str | os.PathLike[str], cache_folder: str | os.PathLike[str] | None = None
) -> NgramModel | KenlmModel:
    """Load a language model, so that whatever file a person has serves: ARPA, plain or gzipped, or a KenLM binary.

    An ARPA file is parsed once and then mapped from a cache beside it, or in `cache_folder`, or where nothing can be
    written, in the user's cache folder. KenLM binaries need the kenlm package.

    Raises: ValueError, naming file and line, if it is something else, cut or not well formed; OSError if it cannot be read.
    """
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path}: not a regular file: {EXPECTED}")
        begins = _beginning(file, path)
        if begins.startswith(KENLM_MAGIC):
            return KenlmModel(path)
        return read_through_cache(file, path, cache_folder)


def _beginning(file: BinaryIO, path: str | os.PathLike[str]) -> bytes:
    """The first bytes of a file. Raises: ValueError if they are those of another kind."""
    begins = file.read(len(KENLM_MAGIC))
    file.seek(0)
    if not begins:
        raise ValueError(f"{path}:1: empty: {EXPECTED}")
    for magic, kind in FOREIGN.items():
        if begins.startswith(magic):
            raise ValueError(f"{path}:1: {kind}; {EXPECTED}")
    return begins
