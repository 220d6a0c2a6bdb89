"""How the search is compiled by numba, two of whose habits would make it slow, or wrong after an update."""

from collections.abc import Callable, Iterable
from pathlib import Path

from numba import njit

# Without reference counts (_nrt): all arrays belong to the caller, for as long as a call lasts. Counting them at each of the
# millions of calls of small functions takes nine tenths of the time. So nothing that is compiled here may make an array.
compiled = njit(nogil=True, error_model="numpy", _nrt=False)


def entry_point(function: Callable) -> Callable:
    """Compile what Python calls, and keep it on disk if there is a place: a read-only container without a home has none."""
    try:
        return njit(nogil=True, error_model="numpy", _nrt=False, cache=True)(function)
    except RuntimeError:  # numba's way to say so, before it compiles anything
        return compiled(function)


def version(files: Iterable[str]) -> str:
    """What changes with any of these files.

    numba compiles an entry point anew when its own file has changed, and does not look at those of the functions it calls. But
    it also keeps the code apart by the values of the variables that a function has from one around it: this is for such a one.
    """
    return " ".join(f"{Path(file).name} {Path(file).stat().st_mtime_ns}" for file in files)
