"""What every command line of the project shares: errors meant for users, and how a `main` ends.

A mistake that the user can mend is raised as `UserError`; it ends the program with one line and status 2, without
a traceback. Anything else is a defect of ours and shows its traceback.
"""

import argparse
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake in the user's files or arguments. The message names the file and says what to do."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """`--help` with each option's default and the module's text as it is written."""


def make_parser(description: str) -> argparse.ArgumentParser:
    """An argument parser whose `--help` begins with `description` (a module's docstring)."""
    return argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return value


def run_main(main: Callable[[], int]) -> None:
    """Run `main` and leave the process with its status: 2 for a `UserError`, 130 for Ctrl-C."""
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(_say(f"error: {error}", status=2))
    except KeyboardInterrupt:
        sys.exit(_say("\ninterrupted: what is finished is on disk; run the same command again to go on", status=130))


def _say(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status
