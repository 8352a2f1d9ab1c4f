"""What every command line of the project shares: option types, errors for users, exit.

`UserError`    a mistake that the user can mend; one line and status 2, no traceback
`MachineError` the disk, the GPU or the memory is at fault; ends the run likewise, so
               that no video gets an answer that it did not earn

Where one video of many is at fault, its error is reported and the run goes on. Any
other exception is a defect of this project and shows its traceback.
"""

import argparse
import io
import multiprocessing
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class UserError(ValueError):
    """A mistake in the user's files or arguments.

    The message names the file or option and says what to do.
    """


class MachineError(Exception):
    """The disk, the GPU or the memory stopped the work. The message says what to do."""


class HelpFormatter(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """`--help` with each option's default and the description as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        no_default = action.default in (None, []) or action.default is False
        return action.help if no_default else super()._get_help_string(action)


class Extend(argparse.Action):
    """The values of an option that is given several times add up.

    Unlike argparse's own "extend", the first use replaces the default.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence | None,
        option_string: str | None = None,
    ) -> None:
        earlier = getattr(namespace, self.dest, None)
        if earlier is None or earlier is self.default:
            earlier = []
        setattr(namespace, self.dest, [*earlier, *(values or ())])


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser whose `--help` begins with `description`, a docstring.

    Its `action="extend"` is `Extend`; give it to every option with `nargs="+"`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=HelpFormatter
    )
    parser.register("action", "extend", Extend)
    return parser


def positive_int(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    return int(_at_least(int(text), 1, text, "an integer of at least 1"))


def non_negative_int(text: str) -> int:
    """An argparse type: an integer of at least 0."""
    return int(_at_least(int(text), 0, text, "an integer of at least 0"))


def positive_float(text: str) -> float:
    """An argparse type: a number above 0."""
    return _at_least(float(text), sys.float_info.min, text, "a number above 0")


def non_negative_float(text: str) -> float:
    """An argparse type: a number of at least 0."""
    return _at_least(float(text), 0, text, "a number of at least 0")


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`KEY (OLD, now NEW)` of the settings that differ, also within groups of them.

    Settings that are in one of the two only do not count.
    """
    found = []
    for key in (key for key in new if key in old):
        if isinstance(old[key], dict) and isinstance(new[key], dict):
            inner = describe_changes(old[key], new[key])
            found += [f"{key}.{each}" for each in inner]
        elif old[key] != new[key]:
            found.append(f"{key} ({old[key]}, now {new[key]})")
    return found


def fraction(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a fraction from 0 to 1")
    return value


def one_line(message: object, width: int = 200) -> str:
    """A message in one line of at most `width` characters, cut between words."""
    printable = "".join(
        each if each.isprintable() or each.isspace() else "?" for each in str(message)
    )
    text = " ".join(printable.split())
    short = textwrap.shorten(text, width, placeholder=" …", break_on_hyphens=False)
    return f"{text[: width - 1]}…" if short == "…" else short  # a single long word


# Called before the process exits: what is in here owns other processes.
cleanups: list[Callable[[], None]] = []


def run_main(main: Callable[[], int]) -> None:
    """Run `main` and exit with its status.

    The status is 2 for a `UserError` or a `MachineError`, 130 for Ctrl-C.
    """
    _print_any_name()
    try:
        sys.exit(main())
    except (UserError, MachineError) as error:
        sys.exit(_print_error(f"error: {error}", status=2))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        message = (
            "\ninterrupted: what is finished is on disk; "
            "run the same command again to go on"
        )
        sys.exit(_print_error(message, status=130))
    finally:
        _end_children()


def _print_any_name() -> None:
    """Print what the terminal's encoding lacks as `\\xe9`, not as a traceback.

    File names may hold any character, and bytes that are no character.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _end_children() -> None:
    """End all child processes, which the interpreter would wait for."""
    for cleanup in [*cleanups]:
        cleanup()
    # PyTorch's DataLoader takes the end of its worker processes for an error
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        child.kill()


def _at_least(value: float, minimum: float, text: str, what: str) -> float:
    if not value >= minimum:
        raise argparse.ArgumentTypeError(f"{text} is not {what}")
    return value


def _print_error(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status
