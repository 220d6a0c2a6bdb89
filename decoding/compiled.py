"""How the search is compiled by numba, two of whose habits would make it slow, or wrong after an update."""

from collections.abc import Callable, Iterable
from pathlib import Path

from numba import njit

# Without reference counts (_nrt): all arrays belong to the caller, for as long as a call lasts. Counting them at each of the
# millions of calls of small functions takes nine tenths of the time. So nothing that is compiled here may make an array.
OPTIONS = {"nogil": True, "error_model": "numpy", "_nrt": False}
compiled = njit(**OPTIONS, forceinline=True)  # or half of the rest goes into handing a few dozen arrays to each call


def entry_point(function: Callable) -> Callable:
    """What Python calls; its code is kept on disk, beside the file or in the user's cache folder, if either can be written."""
    try:
        return njit(**OPTIONS, cache=True)(function)
    except RuntimeError:  # numba found no such place
        return njit(**OPTIONS)(function)


def version(files: Iterable[str]) -> str:
    """What changes with any of these files.

    numba compiles an entry point anew when its own file has changed, and does not look at those of the functions it calls. But
    it also keeps the code apart by the values of the variables that a function has from one around it: this is for such a one.
    """
    return " ".join(f"{Path(file).name} {Path(file).stat().st_mtime_ns}" for file in files)
