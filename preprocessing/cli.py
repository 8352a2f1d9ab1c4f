"""What every command line of the project shares: errors meant for users, and how a `main` ends.

A mistake that the user can mend is raised as `UserError`; it ends the program with one line and status 2, without
a traceback. Where one video of many is at fault, the error is reported and the run goes on; where the disk or the GPU is
at fault it is a `MachineError`, which ends the run, so that no video gets an answer that it did not earn. Anything else is
a defect of ours and shows its traceback.
"""

import argparse
import multiprocessing
import signal
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake in the user's files or arguments. The message names the file and says what to do."""


class MachineError(Exception):
    """The disk, the GPU or the memory, not a file of the user's, stopped the work. The message says what to do."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """`--help` with each option's default, where it has one, and the module's text as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str:
        nothing = action.default is None or action.default is False or action.default == []
        return action.help if nothing else super()._get_help_string(action)


def make_parser(description: str) -> argparse.ArgumentParser:
    """An argument parser whose `--help` begins with `description` (a module's docstring)."""
    return argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    return _at_least(int, 1, text, "a whole number of at least 1")


def whole_number(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    return _at_least(int, 0, text, "a whole number of at least 0")


def positive(text: str) -> float:
    """An argparse type: a number above 0."""
    return _at_least(float, sys.float_info.min, text, "a number above 0")


def at_least_0(text: str) -> float:
    """An argparse type: a number of at least 0."""
    return _at_least(float, 0, text, "a number of at least 0")


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return value


cleanups: list[Callable[[], None]] = []  # called before the process is left: what is in here holds other processes


def run_main(main: Callable[[], int]) -> None:
    """Run `main` and leave the process with its status: 2 for a `UserError` or a `MachineError`, 130 for Ctrl-C."""
    try:
        sys.exit(main())
    except (UserError, MachineError) as error:
        sys.exit(_say(f"error: {error}", status=2))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(_say("\ninterrupted: what is finished is on disk; run the same command again to go on", status=130))
    finally:
        _end_others()


def _end_others() -> None:
    """End what other processes are left, for which leaving would wait."""
    for cleanup in [*cleanups]:
        cleanup()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's loader takes the end of its processes for an error
    for child in multiprocessing.active_children():
        child.kill()


def _at_least(kind: type, least: float, text: str, what: str) -> float:
    value = kind(text)
    if not value >= least:
        raise argparse.ArgumentTypeError(f"{text} is not {what}")
    return value


def _say(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status
