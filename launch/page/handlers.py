"""The handlers of the page: they take clicks and drawings, and return what the page shows next.

Legend: h w pixels of the picture that the page shows.
"""

import base64
import html
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import gradio as gr
import numpy as np

from core import devices, protocols
from core.errors import UserError
from core.palette import OVERLAY_PALETTE
from datasets.own_video import OwnVideo
from labelprop import Tracker
from launch.page.session import Session, Work, shrunk

#: {label: longest side in pixels at which frames are tracked, None = the video's own}; the first is the default on a
#: CPU, the second on a GPU
SIZES = {"480 px, quick": 480, "854 px, as DAVIS has": 854, "1280 px": 1280, "the video's own": None}
#: seconds between two updates of the page during work
PERIOD = 0.15


@contextmanager
def told():
    """Inside, a UserError becomes a message in the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), duration=20, print_exception=False) from error


class Page:
    """Handlers of the page's events.  Every open page has a session of its own, below `folder`.

    extractor, key, device: as for Tracker.  paths: whether videos of this machine can be opened by their path.
    """

    def __init__(self, extractor, folder: Path, key: str | None = None, device: str = "auto", paths: bool = True):
        self.extractor, self.folder, self.key, self.device, self.paths = extractor, folder, key, device, paths
        self.sessions: dict[str, Session] = {}
        self.on_cpu = self.tracker(next(iter(SIZES))).device.type == "cpu"

    def tracker(self, size: str) -> Tracker:
        protocol = protocols.on("video", self.extractor.protocol)
        propagation = protocols.named(protocol, self.extractor.changes)
        return Tracker(self.extractor, self.key, propagation, self.device, max_side=SIZES[size])

    def session(self, request: gr.Request) -> Session:
        name = str(request.session_hash)
        if name not in self.sessions:
            self.sessions[name] = Session(self.folder / "pages" / name)
        return self.sessions[name]

    def opened(self, request: gr.Request) -> Session:
        """The page's session.  Raises UserError where no video is open."""
        session = self.session(request)
        if session.video is None:
            raise UserError("there is no video yet: open one first")
        return session

    def close(self, request: gr.Request):
        if session := self.sessions.pop(str(request.session_hash), None):
            session.close()

    def upload(self, path: str, request: gr.Request):
        """Open an uploaded file; it is moved into the session's folder."""
        session = self.session(request)
        place = session.folder / "upload" / str(time.monotonic_ns()) / Path(path).name
        place.parent.mkdir(parents=True)
        opened = self._open(shutil.move(path, place), session)
        for other in place.parent.parent.iterdir():
            if other != place.parent:
                shutil.rmtree(other, ignore_errors=True)
        return opened

    def open(self, path: str, request: gr.Request):
        """Open a video by its path."""
        with told():
            if not self.paths or not path.strip():
                raise UserError("name a video file or a folder of frames" if self.paths else "upload a video file")
        return self._open(path.strip(), self.session(request))

    def _open(self, path, session):
        """-> picture, slider, status, files"""
        with told():
            video = OwnVideo(path)
            session.open(video)
            status = f"{video.path.name}: {video.count} frames of {video.size[1]}x{video.size[0]}. Draw its objects."
            if video.remark:
                status += f" The file {video.remark}."
            slider = gr.Slider(0, max(1, video.count - 1), 0, interactive=video.count > 1)
            return picture(0, *session.shown(0)) | {"fresh": True}, slider, html.escape(status), *files(session)

    def browse(self, t: int, request: gr.Request):
        """-> picture"""
        with told():
            return picture(t, *self.opened(request).shown(t))

    def drawn(self, event: gr.EventData, request: gr.Request):
        """Keep the drawing.  -> files"""
        with told():
            session = self.opened(request)
            session.draw(event.t, painted(event), event.serial)
            return files(session)

    def boxed(self, event: gr.EventData, request: gr.Request):
        """-> picture, with the object that GrabCut found in the box; files"""
        with told():
            session = self.opened(request)
            try:
                session.box(event.t, event.id, tuple(event.box), painted(event), event.serial)
            except UserError as error:
                gr.Warning(str(error))
            return picture(event.t, *session.shown(event.t)), *files(session)

    def follow(self, t: int, size: str, request: gr.Request) -> Iterator:
        """Yield (picture, slider, status, files) until the work ends."""
        memory = devices.enough_memory("a frame needs more memory than the device has; choose a smaller size")
        with told(), memory:
            session = self.opened(request)
            video = session.video
            work = session.begin("Following", session.follow(self.tracker(size), t), video.count - t)
            for status in watched(work):
                if work.latest and session.video is video:
                    t, frame, ids = work.latest
                    yield picture(t, *shrunk(frame, ids), drawable=False), t, status, *files(session)
            if session.video is not video:  # the user opened another video meanwhile
                return
            t = work.latest[0] if work.latest else t
            ended = "Followed to the end" if work.done == work.total else "Stopped"
            yield picture(t, *session.shown(t)), t, f"{ended}, at frame {t}.", *files(session)
            if work.error:
                raise work.error
            if work.done == work.total:
                yield from ((gr.skip(), gr.skip(), *rest) for rest in self.write(request))

    def write(self, request: gr.Request) -> Iterator:
        """Yield (status, files) until the work ends."""
        with told():
            session = self.opened(request)
            work = session.begin("Writing the files", session.write(), len(session.masked()))
            for status in watched(work):
                yield status, *files(session)
            if work.error:
                raise work.error
            ready = (
                "The files are ready." if session.written else "A mask was changed meanwhile: write the files again."
            )
            yield ("Stopped." if work.stopped else ready), *files(session)

    def stop(self, request: gr.Request):
        self.session(request).stop()


def watched(work: Work) -> Iterator[str]:
    """Yield the status of the work every PERIOD seconds until it ends."""
    while work.is_alive():
        work.join(PERIOD)
        rate = work.rate()
        left = f"{rate:.1f} frames/s, {clock((work.total - work.done) / rate)} left" if work.done else "starting"
        bar = f'<div class="bar"><div style="width: {100 * work.done / work.total:.1f}%"></div></div>'
        yield f"{work.name}: {work.done} of {work.total} frames, {left}{bar}"


def clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def picture(t: int, frame: np.ndarray, ids: np.ndarray, drawable: bool = True) -> dict:
    """The value of canvas.js: a frame, uint8 RGB [h,w,3], and its mask, ids uint8 [h,w].  "fresh": of another video."""
    flat = ids.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    counts = np.diff(starts, append=len(flat))
    jpeg = cv2.imencode(".jpg", frame[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 88))[1]
    return {
        "t": t,
        "frame": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode(),
        "width": ids.shape[1],
        "height": ids.shape[0],
        "ids": " ".join(f"{id}*{count}" for id, count in zip(flat[starts], counts)),
        "drawable": drawable,
        "fresh": False,
        "colours": OVERLAY_PALETTE.tolist(),
        "serial": time.monotonic_ns(),
    }


def painted(event: gr.EventData) -> np.ndarray:
    """The mask that canvas.js has sent, ids uint8 [h,w]."""
    runs = np.array([run.split("*") for run in event.ids.split()], int)
    return np.repeat(runs[:, 0], runs[:, 1]).astype(np.uint8).reshape(event.h, event.w)


def files(session: Session):
    """Updates of the film and of the two download buttons."""
    out = session.written
    film, masks = (out and out / name for name in ("overlay.mp4", "masks.zip"))
    buttons = (gr.DownloadButton(value=path, interactive=out is not None) for path in (masks, film))
    return gr.Video(film, visible=out is not None), *buttons
