"""A page in the browser: open a video, draw its objects, follow them, correct a mask, download the results.

The page needs no other machine.  Uploaded videos, masks and films lie in one folder.  The files of a page are removed
when the page is closed, all others when the program ends.
"""

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import gradio as gr
import httpx

import models
from core.atomic import locked
from core.errors import UserError, reported
from launch.page.handlers import SIZES, Page

PARTS = Path(__file__).parent / "page"
EXAMPLE = models.ROOT / "data" / "sample" / "JPEGImages" / "480p" / "moss-beetles"
HELP = """# Follow objects in a video
**1** Open a video. **2** Choose a number and paint an object, or drag a box around it; every object has its own
number. **3** Follow. Where a mask goes wrong, stop, go to that frame, mend the mask, and follow from there."""
CSS = (
    ".bar { background: #8884; border-radius: 4px; margin-top: 6px; } .bar > div { background: #2563eb; height: 8px; }"
)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="bash launch/app.sh")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, help="default: the first free one from 7860 on")
    add("--folder", default="results/app", metavar="DIR", help="for uploads, masks and films, until the program ends")
    add("--checkpoint", default=models.DEFAULT, metavar="PATH|timm:NAME", help="default: the weights in the box")
    add("--key", metavar="LAYER", help="feature layer (default: the network's first)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser.parse_args()


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
                preset = sizes[0] if page.on_cpu else sizes[1]
                size = gr.Dropdown(sizes, value=preset, label="work at a size of", elem_id="size")
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
        canvas.input(page.drawn, None, files, trigger_mode="multiple", **whole)
        canvas.select(page.boxed, None, [canvas, *files], **whole)
        follow.click(page.follow, [t, size], [canvas, t, status, *files], trigger_mode="multiple", **whole)
        stop.click(page.stop, **whole)
        write.click(page.write, None, [status, *files], trigger_mode="multiple", **whole)
        blocks.unload(page.close)
    return blocks


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """A new folder below `folder`, removed at the end.  Folders that killed programs left are removed, too."""
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("open-page-*"):
            with suppress(UserError, OSError), locked(left) as held:  # a page that is open has the lock
                if held:
                    shutil.rmtree(left, ignore_errors=True)
        own = Path(tempfile.mkdtemp(prefix=".page-", dir=folder.absolute()))
    except OSError as error:
        raise UserError(f"--folder {folder}: cannot be written ({error.strerror})") from error
    try:
        with locked(own):
            own = own.rename(own.with_name(f"open-page-{own.name.removeprefix('.page-')}"))  # not before it is locked
            yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        if new:
            with suppress(OSError):  # another program's files are there
                folder.rmdir()


@contextmanager
def served(page: Page, host: str, port: int | None) -> Iterator[str]:
    """Inside, the page can be opened at the address that is yielded."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(page.folder / "received")}
    gr.set_static_paths([page.folder / "pages"])  # films are sent from there, without a copy that would stay
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    here = [*filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "localhost", host))]
    os.environ["no_proxy"] = ",".join(here)  # the page asks itself whether it is there
    blocks = build(page)
    try:
        socket.getaddrinfo(host, port)  # of an unknown host each port would be tried
        _, address, _ = blocks.launch(
            server_name=host, server_port=port, share=False, ssr_mode=False, footer_links=[], theme=theme, quiet=True,
            prevent_thread_lock=True, css=CSS,
        )  # fmt: skip
        yield address
    except (OSError, OverflowError, httpx.HTTPError, httpx.InvalidURL) as error:
        wanted = f"--host {host}" + (f" --port {port}" if port is not None else "")
        raise UserError(f"{wanted}: cannot be listened on; choose a free port, 1 to 65535, of this machine") from error
    finally:
        for session in [*page.sessions.values()]:
            session.close()
        blocks.close(verbose=False)


@reported
def main():
    args = parse()
    local = args.host in ("localhost", "127.0.0.1")
    with emptied(Path(args.folder)) as folder:
        page = Page(models.load(args.checkpoint), folder, args.key, args.device, paths=local)
        with served(page, args.host, args.port) as address:
            print(f"the page: {address}   (Ctrl-C ends it)")
            print(f"uploads, masks and films lie in {folder} until then", flush=True)
            threading.Event().wait()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
