"""The page in headless Chromium, from the upload to the download, and its functions without a browser."""

import importlib
import json
import time
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from core import protocols
from core.errors import UserError
from core.movies import mp4
from tests.test_labelprop_tracker import Colours
from tests.test_labelprop_video import moving

gr = pytest.importorskip("gradio", reason="the page needs gradio: pip install -r requirements-optional.txt")
av = pytest.importorskip("av", reason="video files need the package av")
app, handlers = (importlib.import_module(f"launch.{name}") for name in ("app", "page.handlers"))
FRAMES, SIZE, SECONDS = 12, (128, 192), 180


@pytest.fixture
def page(tmp_path):
    with app.emptied(tmp_path / "work") as folder:
        yield handlers.Page(Colours(), folder, device="cpu")


class Driven:
    """Operates the page in Chromium."""

    def __init__(self, browser, page):
        self.browser, self.page = browser, page

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def click(self, selector):
        self.find(selector).click()

    def until(self, holds, what):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if found := holds():
                return found
            time.sleep(0.1)
        raise AssertionError(f"{what}: not within {SECONDS} s; the page says {self.said()!r}")

    def said(self):
        return self.find("#status").text

    def says(self, word):
        self.until(lambda: word in self.said(), word)

    def told(self, word):
        """Wait for a message that holds the word."""
        text = "return [...document.querySelectorAll('.toast-body')].map((toast) => toast.textContent).join()"
        shown = self.until(lambda: word in (text_now := self.browser.execute_script(text)) and text_now, word)
        assert "Traceback" not in shown

    def drag(self, *corners):
        """Press the mouse button at the first corner, move to the others, release it.  corners: (x, y) from 0 to 1."""
        from selenium.webdriver import ActionChains

        canvas = self.find("#canvas canvas")
        width, height = canvas.size["width"], canvas.size["height"]
        places = [(round((x - 0.5) * width), round((y - 0.5) * height)) for x, y in corners]
        actions = (
            ActionChains(self.browser, duration=50).move_to_element_with_offset(canvas, *places[0]).click_and_hold()
        )
        for x, y in places[1:]:
            actions.move_to_element_with_offset(canvas, x, y)
        actions.release().perform()

    def go_to(self, t):
        field = self.find("#frame input[type=number]")
        field.send_keys("\ue009a\ue000" + str(t) + "\ue007")  # Ctrl-A, the number, Enter
        self.until(lambda: self.browser.execute_script("return arguments[0].value", field) == str(t), f"frame {t}")

    def session(self):
        (session,) = self.page.sessions.values()
        return session

    def addresses(self):
        """The hosts to which the browser has sent requests."""
        messages = (json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance"))
        sent = (
            m["params"] for m in messages if m["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated")
        )
        urls = [m["request"]["url"] if "request" in m else m["url"] for m in sent]
        return {url.split("/")[2].split(":")[0] for url in urls if not url.startswith(("data:", "blob:"))}


@pytest.fixture
def driven(page, chromium):
    with app.served(page, "127.0.0.1", None) as address:
        try:
            chromium.get(address)
            driven = Driven(chromium, page)
            driven.until(lambda: chromium.find_elements("css selector", "#follow"), "the page")
            yield driven
        finally:
            chromium.quit()


@pytest.fixture
def clip(tmp_path):
    """An mp4 file: a red square (object 1) and a green one (2) move right."""
    with mp4(tmp_path / "clip.mp4") as add:
        for t, (frame, _) in enumerate(moving(FRAMES, *SIZE)):
            add(frame, t / 25)
    return tmp_path / "clip.mp4"


def in_object(number, *points, t=0):
    """Points (x, y) in frame t of `clip`.  points: (x, y) in the square of the object.  Both from 0 to 1."""
    y, x = np.nonzero([*moving(t + 1, *SIZE)][t][1] == number)
    return [((x.min() + a * 16) / SIZE[1], (y.min() + b * 16) / SIZE[0]) for a, b in points]


def test_from_upload_to_download(driven, clip, tmp_path):
    driven.click("#follow")
    driven.told("no video")
    driven.find("input[type=file]").send_keys(str(clip))
    driven.says(f"clip.mp4: {FRAMES} frames of {SIZE[1]}x{SIZE[0]}")
    session, truth = driven.session(), next(moving(1, *SIZE))[1]
    driven.click("#follow")
    driven.told("no object at frame 0")

    driven.drag(*in_object(1, (0.2, 0.2), (0.8, 0.8)))
    driven.until(lambda: 1 in session.ids(0), "a stroke")
    assert (truth[session.ids(0) == 1] == 1).mean() > 0.8
    driven.click("#canvas [data-object='2']")
    driven.click("#canvas [data-tool=box]")
    driven.drag(*in_object(2, (-0.2, -0.2), (1.2, 1.2)))
    driven.until(lambda: 2 in session.ids(0), "an object in a box")
    assert ((session.ids(0) == 2) == (truth == 2)).mean() > 0.98
    driven.click("#follow")
    driven.says("files are ready")
    before = [session.ids(t) for t in range(FRAMES)]
    assert all(2 in ids for ids in before)

    driven.go_to(6)
    driven.click("#canvas [data-tool=brush]")
    driven.drag((0.6, 0.7), (0.8, 0.7))
    driven.until(lambda: (session.ids(6) != before[6]).any(), "another stroke")
    driven.click("#canvas .undo")
    driven.until(lambda: (session.ids(6) == before[6]).all(), "the stroke is undone")
    driven.click("#canvas [data-object='1']")
    driven.click("#canvas [data-tool=box]")
    driven.drag(*in_object(1, (-0.2, -0.2), (1.2, 1.2), t=6))
    driven.until(lambda: (session.ids(6) == 1).sum() > 200, "the whole square is object 1")
    first = session.written
    driven.click("#follow")
    driven.until(lambda: session.written not in (None, first), "files of the second time")
    driven.says("files are ready")
    assert all((session.ids(t) == before[t]).all() for t in range(6))
    assert (session.ids(8) == 1).sum() > 2 * (before[8] == 1).sum() > 0

    driven.click("#masks")
    driven.click("#overlay")
    masks, overlay = (tmp_path / "down" / name for name in ("masks.zip", "overlay.mp4"))
    driven.until(lambda: masks.exists() and overlay.exists(), "the downloads")
    assert len(zipfile.ZipFile(masks).namelist()) == FRAMES
    with av.open(str(overlay)) as container:
        assert len(list(container.decode(video=0))) == FRAMES
    ready = "const film = document.querySelector('#film video'); return film ? film.readyState : 0"
    driven.until(lambda: driven.browser.execute_script(ready) > 1, "the film plays")
    assert driven.addresses() == {"127.0.0.1"}


def test_stopping_and_closing_the_page_in_the_middle(driven, clip, monkeypatch):
    def slowly(*arguments, forward=Colours.forward):
        time.sleep(0.5)
        return forward(*arguments)

    monkeypatch.setattr(Colours, "forward", slowly)
    driven.find("#path textarea, #path input").clear()
    driven.find("#path textarea, #path input").send_keys(str(clip))
    driven.click("#open")
    driven.says(f"{FRAMES} frames")
    driven.drag(*in_object(1, (0.2, 0.2), (0.8, 0.8)))
    session = driven.session()
    driven.until(lambda: session.ids(0).any(), "a stroke")
    driven.click("#follow")
    driven.says("left")
    driven.click("#follow")
    driven.told("still going on")
    driven.click("#stop")
    driven.says("Stopped")
    assert not session.busy() and 0 < len(session.masked()) < FRAMES
    driven.click("#follow")
    driven.says("left")
    driven.browser.get("about:blank")
    driven.until(lambda: not driven.page.sessions and not session.busy(), "the work ends")
    driven.until(lambda: not session.folder.exists(), "what belongs to the page is removed")


def test_paths_are_for_pages_of_this_machine(page, clip):
    request = SimpleNamespace(session_hash="a")
    page.open(str(clip), request)
    page.paths = False
    with pytest.raises(gr.Error, match="upload"):
        page.open(str(clip), request)


def test_videos_are_followed_by_the_best_protocol(page):
    page.extractor.protocol = "DUL"
    assert page.tracker("854 px, as DAVIS has").propagation == replace(protocols.named("best"), max_side=854)


def test_mistakes_are_told(page, clip, tmp_path):
    request = SimpleNamespace(session_hash="a")
    for call in (
        page.browse,
        lambda t, r: next(page.follow(t, [*handlers.SIZES][0], r)),
        lambda t, r: next(page.write(r)),
    ):
        with pytest.raises(gr.Error, match="no video"):
            call(0, request)
    for path in ("", " ", str(tmp_path / "none.mp4"), __file__):
        with pytest.raises(gr.Error):
            page.open(path, request)
    page.open(str(clip), request)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(gr.Error, match="broken.mp4"):
        page.upload(str(broken), request)
    assert page.browse(2, request)["t"] == 2  # the earlier video is still open
    with pytest.raises(gr.Error, match="no mask"):
        list(page.write(request))
    assert page.sessions["a"].written is None


def test_too_little_memory_is_told(page, clip, monkeypatch):
    def too_large(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(handlers.Tracker, "segment", too_large)
    request = SimpleNamespace(session_hash="a")
    page.open(str(clip), request)
    page.sessions["a"].draw(0, np.ones(SIZE, np.uint8))
    with pytest.raises(gr.Error, match="choose a smaller size"):
        list(page.follow(0, [*handlers.SIZES][0], request))


def test_the_picture_tells_the_mask_exactly(page, clip):
    request, rng = SimpleNamespace(session_hash="a"), np.random.default_rng(0)
    page.open(str(clip), request)
    ids = rng.integers(0, 4, SIZE, dtype=np.uint8)
    told = handlers.picture(3, np.zeros((*SIZE, 3), np.uint8), ids)
    page.drawn(SimpleNamespace(t=3, w=told["width"], h=told["height"], ids=told["ids"], serial=1), request)
    assert (page.sessions["a"].ids(3) == ids).all()
    assert (
        handlers.picture(0, np.zeros((2, 3, 3), np.uint8), np.array([[0, 0, 7], [7, 7, 0]], np.uint8))["ids"]
        == "0*2 7*3 0*1"
    )


def test_the_folder_is_emptied_and_nothing_else(tmp_path):
    dead = tmp_path / "open-page-abc"
    for folder in (dead / "a", tmp_path / "page-mine", tmp_path / "other"):
        folder.mkdir(parents=True)
    with app.emptied(tmp_path) as own:
        (own / "a").mkdir()
        with app.emptied(tmp_path) as second:  # of another program
            assert (own / "a").exists() and second != own
        assert not dead.exists() and {path.name for path in tmp_path.iterdir()} == {own.name, "page-mine", "other"}
    assert {path.name for path in tmp_path.iterdir()} == {"page-mine", "other"}
    with app.emptied(tmp_path / "new"):
        assert (tmp_path / "new").exists()
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--folder"), app.emptied(tmp_path / "file"):
        pass


def test_a_port_that_is_taken_is_told(page):
    with app.served(page, "127.0.0.1", None) as address:
        again = app.served(page, "127.0.0.1", int(address.split(":")[-1].strip("/")))
        with pytest.raises(UserError, match="--port"):
            again.__enter__()
