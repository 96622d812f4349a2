"""The mp4 files of core.movies play in a browser."""

import time

import numpy as np
import pytest

from core import movies
from tests.film import numbered

pytest.importorskip("av", reason="films need the package av")


def until(question, seconds=30):
    """Ask until the answer is true or the time is over; return the last answer."""
    ends = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < ends:
        time.sleep(0.1)
    return answer


def test_an_overlay_of_odd_size_and_variable_rate_plays(chromium, tmp_path):
    times = np.cumsum(np.where(np.arange(60) % 3, 0.04, 0.12))
    with movies.mp4(tmp_path / "a.mp4") as add:
        for number, seconds in enumerate(times):
            add(numbered(number, (321, 181)), float(seconds))
    page = tmp_path / "page.html"
    page.write_text("<video muted src='a.mp4'></video>")
    chromium.get(page.as_uri())
    ask = lambda text: chromium.execute_script(f"const v = document.querySelector('video'); return {text}")
    assert until(lambda: ask("v.readyState >= 2")), ask("v.error && v.error.message")
    assert ask("[v.videoWidth, v.videoHeight]") == [322, 182]
    assert abs(ask("v.duration") - (times[-1] - times[0] + 0.04)) < 0.1
    ask("v.play()")
    assert until(lambda: ask("v.currentTime") > 0.5), ask("[v.paused, v.currentTime, v.error && v.error.message]")
