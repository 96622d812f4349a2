"""Mistakes that a person can mend, and how the programs report them."""

import errno
import functools
import sys
from concurrent.futures.process import BrokenProcessPool

#: of a path that cannot be used, wherever it is asked for
UNUSABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


class UserError(Exception):
    """A path, key, value or file that the user gave cannot be used.

    The message names it, and says what is allowed and what to do.  Programs print it and exit with code 2.
    """


def reported(main):
    """Decorator for entry points: UserError -> one message and exit code 2, Ctrl-C -> exit code 130.

    A path that the system refuses is the user's mistake, too, wherever a program asks for it.
    """

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
        except OSError as error:
            if error.errno not in UNUSABLE or error.filename is None:
                raise
            print(f"error: {error.filename}: {error.strerror}; name another path, or mend this one", file=sys.stderr)
            sys.exit(2)
        except BrokenProcessPool:
            print("error: a process of this program was killed, as where memory runs out: free some", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return run
