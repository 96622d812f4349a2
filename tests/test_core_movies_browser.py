"""The films play in a browser."""

import shutil
import time

import numpy as np
import pytest

from core import movies
from tests.film import numbered

pytest.importorskip("av", reason="films need the package av")
selenium = pytest.importorskip("selenium.webdriver", reason="driving a browser needs the package selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture
def browser(tmp_path, monkeypatch):
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium or chromedriver is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"):
        options.add_argument(option)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    driver = selenium.Chrome(options, selenium.ChromeService(DRIVER))
    yield driver
    driver.quit()


def until(question, seconds=30):
    """The answer once it is true, or the last one."""
    ends = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < ends:
        time.sleep(0.1)
    return answer


def test_an_overlay_of_odd_size_and_variable_rate_plays(browser, tmp_path):
    times = np.cumsum(np.where(np.arange(60) % 3, 0.04, 0.12))
    with movies.mp4(tmp_path / "a.mp4") as add:
        for number, seconds in enumerate(times):
            add(numbered(number, (321, 181)), float(seconds))
    page = tmp_path / "page.html"
    page.write_text("<video muted src='a.mp4'></video>")
    browser.get(page.as_uri())
    ask = lambda text: browser.execute_script(f"const v = document.querySelector('video'); return {text}")
    assert until(lambda: ask("v.readyState >= 2")), ask("v.error && v.error.message")
    assert ask("[v.videoWidth, v.videoHeight]") == [322, 182]
    assert abs(ask("v.duration") - (times[-1] - times[0] + 0.04)) < 0.1
    ask("v.play()")
    assert until(lambda: ask("v.currentTime") > 0.5), ask("[v.paused, v.currentTime, v.error && v.error.message]")
