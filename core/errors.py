"""Mistakes that a person can mend, and how the programs report them."""

import functools
import sys


class UserError(Exception):
    """A path, key, value or file that the user gave cannot be used.

    The message names it, and says what is allowed and what to do.  Programs print it and exit with code 2.
    """


def reported(main):
    """Decorator for entry points: UserError -> one message and exit code 2, Ctrl-C -> exit code 130."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        for stream in (sys.stdout, sys.stderr):  # names of files may hold bytes that are no text
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return run
