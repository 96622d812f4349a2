"""A video of one's own that is looked at in any order: any frame at once, and all frames from any frame on."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from core.errors import UserError
from datasets.own_video import Frame, OwnVideo
from datasets.readers import UnreadableFrame


class Browsed(OwnVideo):
    """A video file or a folder of frames whose number of frames, `count`, is sure.

    A file is read once, without decoding it, to find its frames.  Raises UserError where it cannot be read.
    """

    count: int

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._info: Any = None  # of a file: where its frames are
        if not self.path.is_dir():
            with _told(path) as videos:
                self._info = videos.examine(str(path))
            self.count, self.fps = self._info.frames, self._info.fps

    def frames(self, start: int = 0, end: int | None = None, every: int = 1) -> Iterator[Frame]:
        """Frames start, start + every, ... before `end` (None: all).  Raises UserError where one is damaged."""
        if self._info is None:
            yield from super().frames(start, end, every)
            return
        wanted = range(start, self.count if end is None else end, every)
        with _told(self.path) as videos, closing(videos.decode(str(self.path), self._info, wanted)) as found:
            for t in wanted:
                number, pixels = next(found, (-1, None))
                if number != t or pixels is None:
                    raise UserError(f"{self.path}: frame {t} of {self.count} is missing: the file is damaged")
                seconds = t / self.fps if self._info.times is None else float(self._info.times[t] - self._info.start)
                yield Frame(t, f"{t:05d}", seconds, pixels)


@contextmanager
def _told(path):
    """What keeps a video file from being read becomes a UserError."""
    from datasets.readers import videos  # needs a package that folders of frames do without

    try:
        yield videos
    except (UnreadableFrame, videos.av.FFmpegError, OSError) as error:
        why = error.reason if isinstance(error, UnreadableFrame) else videos.reason(error)
        raise UserError(f"{path}: cannot be read: {why}") from None
