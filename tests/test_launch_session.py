"""The session of the app without its page: drawing, following, correcting, stopping, writing."""

import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from core.errors import UserError
from core.palette import read_ids
from datasets.own_video import Frame
from labelprop import Tracker
from launch.page import session as sessions
from launch.page.session import Session
from tests.test_labelprop_tracker import Colours, Normed
from tests.test_labelprop_video import DUL, moving


class Made:
    """A video of two moving squares; the second enters at frame 4."""

    def __init__(self, frames=9, size=(64, 48)):
        self.pictures, self.truth = zip(*moving(frames, *size, enters=4))
        self.count, self.size, self.fps = frames, self.truth[0].shape, 25.0

    def frame(self, t):
        return Frame(t, f"shot{t}", t / self.fps, self.pictures[t])

    def frames(self, start=0, end=None):
        yield from map(self.frame, range(start, self.count if end is None else end))


@pytest.fixture
def session(tmp_path):
    session = Session(tmp_path / "session")
    session.open(Made())
    yield session
    session.close()


@pytest.fixture
def tracker():
    return Tracker(Colours(), protocol=DUL, device="cpu")


def test_what_is_drawn_is_followed_to_the_end(session, tracker):
    truth = session.video.truth
    session.draw(0, truth[0])
    steps = list(session.follow(tracker, 0))
    assert [t for t, _, _ in steps] == [*range(9)] and all((session.ids(t) == ids).all() for t, _, ids in steps)
    plain = list(tracker.segment(session.video.pictures, {0: truth[0]}))
    assert all((session.ids(t) == plain[t]).all() for t in range(9))


def test_the_network_is_adapted_to_the_whole_video_wherever_following_starts(session):
    video = session.video
    session.draw(3, video.truth[3])
    tracker = Tracker(Normed(), protocol=replace(DUL, norm_frames=3), device="cpu")
    list(session.follow(tracker, 3))
    adapted = tracker.adapted(9, lambda t: video.pictures[t])
    for t, ids in enumerate(adapted.segment(video.pictures[3:], {0: video.truth[3]}), 3):
        np.testing.assert_array_equal(session.ids(t), ids)


def test_an_object_that_is_drawn_later_joins(session, tracker):
    truth = session.video.truth
    session.draw(4, np.where(truth[4] == 2, 2, 0).astype(np.uint8))
    session.draw(0, truth[0])
    list(session.follow(tracker, 0))
    assert set(np.unique(session.ids(3))) == {0, 1}
    assert ((session.ids(4) == 2) == (truth[4] == 2)).all() and {1, 2} <= set(np.unique(session.ids(6)))


def test_a_correction_changes_later_frames_and_no_earlier_ones(session, tracker):
    truth = session.video.truth
    session.draw(0, truth[0])
    list(session.follow(tracker, 0))
    before = [session.ids(t) for t in range(9)]
    mended = np.zeros_like(truth[0])
    mended[2:20, 2:20] = 1
    session.draw(5, mended)
    list(session.follow(tracker, 5))
    assert (session.ids(5) == mended).all() and (session.ids(7) != before[7]).any()
    assert all((session.ids(t) == before[t]).all() for t in range(5))
    list(session.follow(tracker, 0))  # a drawing also counts when following reaches its frame
    assert (session.ids(5) == mended).all() and (session.ids(4) == before[4]).all()


def test_only_what_was_changed_is_a_drawing(session, tracker):
    """If the drawing of a new object held the other objects, it would undo corrections of them in earlier frames."""
    truth = session.video.truth
    session.draw(0, truth[0])
    list(session.follow(tracker, 0))
    new = session.ids(5)
    new[:6, :6] = 7
    session.draw(5, new)
    drawn = read_ids(session.folder / "drawn" / "00005.png")
    assert set(np.unique(drawn)) == {0, 7} and (session.ids(5) == new).all()
    session.draw(5, np.where(new == 1, 0, new).astype(np.uint8))
    assert set(np.unique(session.ids(5))) == {0, 7}
    session.draw(5, np.zeros_like(new))
    assert not (session.folder / "drawn" / "00005.png").exists() and not session.ids(5).any()


def test_a_drawing_on_a_shrunk_picture_leaves_the_other_pixels(session, monkeypatch):
    monkeypatch.setattr(sessions, "SHOWN_PX", 32)
    fine = np.zeros(session.video.size, np.uint8)
    fine[10:31:2, 10:30] = 1
    session.draw(0, fine)
    frame, ids = session.shown(0)
    assert max(ids.shape) == 32 and frame.shape[:2] == ids.shape
    session.draw(0, ids)
    assert (session.ids(0) == fine).all()
    ids[-4:, -4:] = 2
    session.draw(0, ids)
    assert (session.ids(0)[-8:, -8:] == 2).all() and (session.ids(0)[:32, :32] == fine[:32, :32]).all()


def test_a_box_keeps_other_objects(session):
    truth = session.video.truth[5]
    session.draw(5, np.where(truth == 2, 2, 0).astype(np.uint8))
    y, x = np.nonzero(truth == 1)
    around = (int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1)
    session.box(5, 1, around, session.shown(5)[1])
    found = session.ids(5)
    assert ((found == 1) == (truth == 1)).mean() > 0.95 and ((found == 2) == (truth == 2)).all()
    with pytest.raises(UserError, match="box"):
        session.box(5, 1, (0, 0, 0, 0), session.shown(5)[1])


def test_no_mask_to_follow_or_to_write(session, tracker):
    with pytest.raises(UserError, match="frame 3"):
        next(session.follow(tracker, 3))
    with pytest.raises(UserError, match="no mask"):
        next(session.write())


def test_one_piece_of_work_at_a_time_and_stopping_it(session, tracker):
    session.draw(0, session.video.truth[0])
    seen = threading.Event()

    def slowly():
        for step in session.follow(tracker, 0):
            yield step
            seen.wait(10)

    before = set(threading.enumerate())
    work = session.begin("Following", slowly(), 9)
    with pytest.raises(UserError, match="Following.*Stop"):
        session.begin("Following", session.follow(tracker, 0), 9)
    work.stopped = True
    seen.set()
    session.stop()
    assert work.done < 9 and work.error is None and not session.busy() and set(threading.enumerate()) <= before
    assert session.ids(0).any() and not session.ids(8).any()


def test_an_error_in_the_background_is_kept(session, tracker):
    work = session.begin("Following", session.follow(tracker, 3), 6)
    work.join()
    assert isinstance(work.error, UserError) and not session.busy()


def test_the_files(session, tracker):
    av = pytest.importorskip("av", reason="the package av is not here")
    session.draw(2, session.video.truth[2])
    list(session.follow(tracker, 2))
    assert session.masked() == [*range(2, 9)] and len(list(session.write())) == 7
    with zipfile.ZipFile(session.written / "masks.zip") as masks:
        assert masks.namelist() == [f"shot{t}.png" for t in range(2, 9)]
        masks.extract("shot6.png", session.folder)
    assert (read_ids(session.folder / "shot6.png") == session.ids(6)).all()
    with av.open(str(session.written / "overlay.mp4")) as film:
        assert len(list(film.decode(video=0))) == 7
    session.draw(3, session.video.truth[3])
    assert session.written is None


def test_another_video_and_the_end_leave_nothing(session):
    session.draw(0, session.video.truth[0])
    session.open(Made(3))
    assert not session.ids(0).any()
    session.draw(0, session.video.truth[0])
    session.close()
    assert not session.folder.exists()


def test_a_drawing_that_comes_after_its_successor_is_left_out(session):
    early, late = np.zeros((2, *session.shown(0)[1].shape), np.uint8)
    early[:20], late[:30] = 1, 2
    session.draw(0, late, serial=5)
    session.draw(0, early, serial=4)
    session.draw(1, early, serial=4)  # another frame
    assert [set(np.unique(session.ids(t))) for t in (0, 1)] == [{0, 2}, {0, 1}]


def test_a_box_brings_the_strokes_before_it(session):
    truth = session.video.truth[5]
    stroke = np.where(session.shown(5)[1] + truth == 2, 2, 0).astype(np.uint8)
    y, x = np.nonzero(truth == 1)
    around = (int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1)
    session.box(5, 1, around, stroke, serial=2)
    session.draw(5, stroke, serial=1)  # comes after the box
    assert set(np.unique(session.ids(5))) == {0, 1, 2}
    with pytest.raises(UserError, match="box"):
        session.box(4, 1, (0, 0, 0, 0), stroke, serial=3)
    assert set(np.unique(session.ids(4))) == {0, 2}


def test_files_are_out_of_date_where_something_is_drawn_while_they_are_written(session):
    session.draw(0, session.video.truth[0])
    list(session.write())
    assert session.written
    steps = session.write()
    next(steps)
    assert session.written is None  # the files before are gone
    session.draw(0, np.zeros_like(session.video.truth[0]))
    list(steps)
    assert session.written is None
