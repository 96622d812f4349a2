"""A file is written completely or not at all; the error names a file that cannot be written."""

import os

import pytest

from core.atomic import replacing
from core.errors import UserError


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as part:
        part.write_text("first")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text("second")
        raise ZeroDivisionError
    assert path.read_text() == "first" and os.listdir(path.parent) == ["file.txt"]


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(UserError, match="below.txt: cannot be written .*/file"),
        replacing(tmp_path / "file" / "below.txt"),
    ):
        raise AssertionError("there is no folder to write into")
    with (
        pytest.raises(UserError, match="full.txt: cannot be written .*No space left"),
        replacing(tmp_path / "full.txt") as part,
        open("/dev/full", "w") as full,
    ):
        part.write_text("half")
        full.write("half")
    assert os.listdir(tmp_path) == ["file"]
