"""A page in the browser: open a video, draw its objects, follow them, correct a mask, take the results away.

The page asks nothing of other machines.  Videos that are uploaded, masks and films lie in one folder: what belongs to a
page is removed when the page is closed, the rest when the program ends.
"""

import argparse
import base64
import html
import ipaddress
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr

import models
from core.errors import UserError, reported
from core.palette import OVERLAY_PALETTE
from datasets.browsed import Browsed
from labelprop import Tracker
from launch.session import Session, Work, shrunk

PARTS = Path(__file__).parent / "page"
EXAMPLE = models.ROOT / "data" / "sample" / "JPEGImages" / "480p" / "moss-beetles"
SIZES = {"480 px, quick": 480, "854 px, as DAVIS has": 854, "1280 px": 1280, "the video's own": None}
HELP = """# Follow objects in a video
**1** Open a video. **2** Choose a number and paint an object, or drag a box around it; every object has its own
number. **3** Follow. Where a mask goes wrong, stop, go to that frame, mend the mask, and follow from there."""
CSS = (
    ".bar { background: #8884; border-radius: 4px; margin-top: 6px; } .bar > div { background: #2563eb; height: 8px; }"
)
#: seconds between two pictures of a video that is being followed
PERIOD = 0.15


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="bash launch/app.sh")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, help="default: the first free one from 7860 on")
    add("--folder", default="results/app", metavar="DIR", help="for uploads, masks and films, until the program ends")
    add("--checkpoint", default=models.DEFAULT, metavar="PATH|timm:NAME", help="default: the weights that come along")
    add("--key", metavar="LAYER", help="feature layer (default: the network's first)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser.parse_args()


@contextmanager
def told():
    """A UserError is shown in the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), duration=20, print_exception=False) from error


class Page:
    """What the page does.  Every page that is open has a session of its own, below `folder`.

    paths: videos of this machine may be opened by their path.
    """

    def __init__(self, extractor, folder: Path, key: str | None = None, device: str = "auto", paths: bool = True):
        self.extractor, self.folder, self.key, self.device, self.paths = extractor, folder, key, device, paths
        self.sessions: dict[str, Session] = {}
        self.on_cpu = self.tracker(next(iter(SIZES))).device.type == "cpu"

    def tracker(self, size: str) -> Tracker:
        return Tracker(self.extractor, self.key, device=self.device, max_side=SIZES[size])

    def session(self, request: gr.Request) -> Session:
        name = str(request.session_hash)
        if name not in self.sessions:
            self.sessions[name] = Session(self.folder / "pages" / name)
        return self.sessions[name]

    def opened(self, request: gr.Request) -> Session:
        """The page's session, which must have a video."""
        session = self.session(request)
        if session.video is None:
            raise UserError("there is no video yet: open one first")
        return session

    def close(self, request: gr.Request):
        if session := self.sessions.pop(str(request.session_hash), None):
            session.close()

    def upload(self, path: str, request: gr.Request):
        """Open a file that was uploaded; it is moved into the session's folder."""
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
            video = Browsed(path)
            session.open(video)
            status = f"{video.path.name}: {video.length} frames of {video.size[1]}x{video.size[0]}. Draw its objects."
            slider = gr.Slider(0, max(1, video.length - 1), 0, interactive=video.length > 1)
            return picture(0, *session.shown(0)), slider, html.escape(status), *files(session)

    def browse(self, t: int, request: gr.Request):
        """-> picture"""
        with told():
            return picture(t, *self.opened(request).shown(t))

    def drawn(self, event: gr.EventData, request: gr.Request):
        """Keep what was drawn."""
        with told():
            runs = np.array([run.split("*") for run in event.ids.split()], int)
            session = self.opened(request)
            session.draw(event.t, np.repeat(runs[:, 0], runs[:, 1]).astype(np.uint8).reshape(event.h, event.w))

    def boxed(self, event: gr.EventData, request: gr.Request):
        """-> picture, with the object that was found in a box"""
        with told():
            session = self.opened(request)
            try:
                session.box(event.t, event.id, tuple(event.box))
            except UserError as error:
                gr.Warning(str(error))
            return picture(event.t, *session.shown(event.t))

    def follow(self, t: int, size: str, request: gr.Request) -> Iterator:
        """-> picture, slider, status, files, again and again until the end"""
        with told():
            session = self.opened(request)
            video = session.video
            work = session.begin("Following", session.follow(self.tracker(size), t), video.length - t)
            for status in watched(work):
                if work.latest and session.video is video:
                    t, frame, ids = work.latest
                    yield picture(t, *shrunk(frame, ids), drawable=False), t, status, *files(session)
            if session.video is not video:  # another one was opened meanwhile
                return
            t = work.latest[0] if work.latest else t
            ended = "Followed to the end" if work.done == work.total else "Stopped"
            yield picture(t, *session.shown(t)), t, f"{ended}, at frame {t}.", *files(session)
            if work.error:
                raise work.error
            if work.done == work.total:
                yield from ((gr.skip(), gr.skip(), *rest) for rest in self.write(request))

    def write(self, request: gr.Request) -> Iterator:
        """-> status, files, again and again until the end"""
        with told():
            session = self.opened(request)
            work = session.begin("Writing the files", session.write(), len(session.masked()))
            for status in watched(work):
                yield status, *files(session)
            if work.error:
                raise work.error
            yield ("Stopped." if work.stopped else "The files are ready."), *files(session)

    def stop(self, request: gr.Request):
        self.session(request).stop()


def watched(work: Work) -> Iterator[str]:
    """The status of work now and then, until it ends."""
    while work.is_alive():
        work.join(PERIOD)
        rate = work.rate()
        left = f"{rate:.1f} frames/s, {clock((work.total - work.done) / rate)} left" if work.done else "starting"
        bar = f'<div class="bar"><div style="width: {100 * work.done / work.total:.1f}%"></div></div>'
        yield f"{work.name}: {work.done} of {work.total} frames, {left}{bar}"


def clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def picture(t: int, frame: np.ndarray, ids: np.ndarray, drawable: bool = True) -> dict:
    """What launch/page/canvas.js shows: a frame and its mask, uint8 RGB [h,w,3] and ids uint8 [h,w]."""
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
        "colours": OVERLAY_PALETTE.tolist(),
        "serial": time.monotonic_ns(),
    }


def files(session: Session):
    """Updates of the film and of the two buttons."""
    out = session.written
    film, masks = (out and out / name for name in ("overlay.mp4", "masks.zip"))
    buttons = (gr.DownloadButton(value=path, interactive=out is not None) for path in (masks, film))
    return gr.Video(film, visible=out is not None), *buttons


def build(page: Page) -> gr.Blocks:
    """The page, wired to its handlers."""
    part = lambda suffix: (PARTS / f"canvas.{suffix}").read_text(encoding="utf-8")
    example = str(EXAMPLE.relative_to(models.ROOT)) if EXAMPLE.exists() else ""
    with gr.Blocks(title="Follow objects in a video", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gr.Markdown(HELP)
        with gr.Row():
            with gr.Column(scale=4):
                canvas = gr.HTML(
                    html_template=part("html"), css_template=part("css"), js_on_load=part("js"),
                    apply_default_css=False, elem_id="canvas",
                )  # fmt: skip
                t = gr.Slider(0, 1, 0, step=1, label="frame", interactive=False, elem_id="frame")
                film = gr.Video(visible=False, label="overlay", height=420, elem_id="film")
            with gr.Column(scale=1, min_width=250):
                upload = gr.UploadButton("Open a video file", file_types=["video"], elem_id="upload")
                with gr.Group(visible=page.paths):
                    path = gr.Textbox(
                        example, label="or a path on this machine", info="a video file, or a folder of frames",
                        elem_id="path",
                    )  # fmt: skip
                    named = gr.Button("Open the path", elem_id="open")
                sizes = [*SIZES]
                size = gr.Dropdown(sizes, value=sizes[not page.on_cpu], label="work at a size of", elem_id="size")
                follow = gr.Button("Follow from here", variant="primary", elem_id="follow")
                stop = gr.Button("Stop", elem_id="stop")
                status = gr.HTML("Open a video.", elem_id="status")
                write = gr.Button("Write the files", elem_id="write")
                masks = gr.DownloadButton("Download masks", interactive=False, elem_id="masks")
                overlay = gr.DownloadButton("Download overlay", interactive=False, elem_id="overlay")
        files = [film, masks, overlay]
        whole = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        upload.upload(page.upload, upload, [canvas, t, status, *files], **whole)
        gr.on([named.click, path.submit], page.open, path, [canvas, t, status, *files], **whole)
        t.input(page.browse, t, canvas, trigger_mode="always_last", **whole)
        canvas.input(page.drawn, trigger_mode="multiple", **whole)
        canvas.select(page.boxed, None, canvas, **whole)
        follow.click(page.follow, [t, size], [canvas, t, status, *files], trigger_mode="multiple", **whole)
        stop.click(page.stop, **whole)
        write.click(page.write, None, [status, *files], trigger_mode="multiple", **whole)
        blocks.unload(page.close)
    return blocks


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """A folder below `folder` for this program alone, which is removed at the end; so are those of killed programs."""
    for left in folder.glob("page-*"):
        with suppress(ValueError, PermissionError):
            try:
                os.kill(int(left.name.removeprefix("page-")), 0)
            except ProcessLookupError:
                shutil.rmtree(left, ignore_errors=True)
    own = folder.absolute() / f"page-{os.getpid()}"
    try:
        own.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--folder {folder}: cannot be written ({error.strerror})") from error
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


@contextmanager
def served(page: Page, host: str, port: int | None) -> Iterator[str]:
    """The address at which the page is open meanwhile."""
    os.environ["GRADIO_TEMP_DIR"] = str(page.folder / "received")
    gr.set_static_paths([page.folder / "pages"])  # films are sent from there, without a copy that would stay
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    blocks = build(page)
    try:
        _, address, _ = blocks.launch(
            server_name=host, server_port=port, share=False, ssr_mode=False, footer_links=[], theme=theme, quiet=True,
            prevent_thread_lock=True, css=CSS,
        )  # fmt: skip
        yield address
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot be listened on ({error}); choose another") from error
    finally:
        blocks.close(verbose=False)
        for session in page.sessions.values():
            session.close()


@reported
def main():
    args = parse()
    try:
        local = ipaddress.ip_address(args.host).is_loopback
    except ValueError:
        local = args.host == "localhost"
    with emptied(Path(args.folder)) as folder:
        page = Page(models.load(args.checkpoint), folder, args.key, args.device, paths=local)
        with served(page, args.host, args.port) as address:
            print(f"the page: {address}   (Ctrl-C ends it)")
            print(f"uploads, masks and films lie in {folder} until then", flush=True)
            threading.Event().wait()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
