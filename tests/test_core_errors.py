"""How the programs report mistakes."""

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from core.errors import UserError, reported


@pytest.mark.parametrize(
    "error, told",
    [
        (UserError("optim.lr = 0: must be above 0"), "error: optim.lr = 0: must be above 0\n"),
        (PermissionError(13, "Permission denied", "/data/x"), "error: /data/x: Permission denied; name another path"),
        (BrokenProcessPool(), "a process of this program was killed"),
    ],
)
def test_mistakes_are_told_in_a_sentence_with_exit_code_2(capsys, error, told):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        reported(main)()
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_a_name_that_is_too_long_is_told(capsys):
    with pytest.raises(SystemExit):
        reported(lambda: Path("a" * 300).exists())()
    assert "File name too long; name another path" in capsys.readouterr().err


def test_other_errors_keep_their_traceback():
    with pytest.raises(BlockingIOError):
        reported(lambda: (_ for _ in ()).throw(BlockingIOError(11, "busy")).send(None))()
