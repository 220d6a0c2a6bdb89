"""What every command shares, corpus scripts included: how flags are read, and how a run ends that goes wrong."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from tqdm import tqdm

STATUS_FAILED, STATUS_USAGE, STATUS_INTERRUPTED = 1, 2, 130


class UsageError(ValueError):
    """What was typed cannot be meant: exit status 2, where a failure of the work itself is 1."""


class OneLineParser(argparse.ArgumentParser):
    """argparse, whose errors are one line without the usage before it, which for train.py fills a screen."""

    def error(self, message: str) -> NoReturn:
        self.exit(STATUS_USAGE, f"error: {message} (--help lists the flags)\n")


def argument_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring, as it stands, and the default of every flag that has one."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action: argparse.Action) -> str:
            plain = action.nargs == 0 or action.default in (None, "")
            return action.help if plain else super()._get_help_string(action)

    # Abbreviated flags are refused: a flag added later would change what an abbreviation means.
    return OneLineParser(description=doc, formatter_class=Formatter, allow_abbrev=False)


def parse_typed(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse, and keep in `typed` which flags were really typed, where a default and the same value typed are not the same."""
    args = parser.parse_args(argv)
    nothing = object()
    blank = argparse.Namespace(**dict.fromkeys(vars(args), nothing))
    typed = {name for name, value in vars(parser.parse_args(argv, blank)).items() if value is not nothing}
    args.typed = typed
    return args


def run_script(work: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run a script's work and turn what went wrong into one line on standard error and an exit status.

    ASR_TRACEBACK=1 in the environment shows the traceback instead, for whoever is debugging.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows ASCII only shows \\u65e5 rather than nothing
            stream.reconfigure(errors="backslashreplace")
    try:
        status = work() or 0
        sys.stdout.flush()  # here, where a full disk or a closed pipe is told in one line
        return status
    except KeyboardInterrupt:
        print(f"\n{interrupted}" if sys.stderr.isatty() else interrupted, file=sys.stderr)  # behind the terminal's ^C
        return STATUS_INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough; what is still buffered must not raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_FAILED
    except (ValueError, OSError, RuntimeError, MemoryError) as error:  # torch reports a full disk or memory by RuntimeError
        if os.environ.get("ASR_TRACEBACK"):
            raise
        print(f"error: {message(error)}", file=sys.stderr)
        return STATUS_USAGE if isinstance(error, UsageError) else STATUS_FAILED


def tell(text: str, error: bool = False) -> None:
    """Print a line, also if nobody reads it any more: work of days does not end because a pipe or a terminal is gone."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # what is still buffered must not raise again
        os.close(nowhere)


def message(error: Exception) -> str:
    """`path: what went wrong`, also for errors of the operating system, whose own text begins with a number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename) or repr('')}: {error.strerror}"
    text = str(error) or type(error).__name__
    return text if isinstance(error, ValueError) else text.partition("\n")[0]


def progress_bar(items: Iterable | None = None, desc: str | None = None, shown: bool = True, **kwargs: object) -> tqdm:
    """tqdm on a terminal, silence elsewhere, and where it is not to be `shown`."""
    return tqdm(items, desc=desc, leave=False, disable=None if sys.stderr and shown else True, **kwargs)


def number(kind: type, at_least: float | None = None, at_most: float | None = None, above: float | None = None) -> Callable:
    """An argparse type for numbers with bounds."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole number' if kind is int else 'a number'}") from None
        if at_least is not None and not value >= at_least:
            raise argparse.ArgumentTypeError(f"{text}: expected at least {at_least}")
        if at_most is not None and not value <= at_most:
            raise argparse.ArgumentTypeError(f"{text}: expected at most {at_most}")
        if above is not None and not above < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: expected more than {above}")
        return value

    return parse
