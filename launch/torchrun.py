"""torchrun, without a traceback of its own after a failed process, which has said why, or a signal:

    python -m launch.torchrun [options of torchrun] PROGRAM [arguments]

Exit code: that of the process that failed first; 128 + N where signal N ended that process or came to torchrun.
"""

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def exit_code() -> int:
    """Run torchrun with this program's arguments, and return the exit code."""
    try:
        main()
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(exit_code())
