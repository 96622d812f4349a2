"""Fixtures that several tests share."""

import json
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).resolve().parent / "golden"
SHARED = Path(__file__).resolve().parents[2] / "shared"


# A shell starts background commands with SIGINT ignored, and child processes inherit this; some tests send SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _one_thread():
    """Use one thread: on the small images and grids of the tests, several threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def shared():
    """path -> the path in ../shared, the reference data beside the clone; skips the test if it does not exist."""

    def find(path):
        found = SHARED / path
        if not found.exists():
            pytest.skip(f"reference data ../shared/{path} is not here")
        return found

    return find


@pytest.fixture
def narrow(monkeypatch):
    """Give ResNets an eighth of their channels, for tests that do not depend on the values of features."""
    monkeypatch.setattr("models.backbones.resnet.WIDTHS", (8, 16, 32, 64))


@pytest.fixture
def golden():
    """name -> the arrays of tests/golden/<name>.npz as a dict; name ending in .json -> the content of this file."""

    def load(name):
        if name.endswith(".json"):
            return json.loads((GOLDEN / name).read_text())
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load


@pytest.fixture
def chromium(tmp_path):
    """Headless Chromium.  Downloads go to tmp_path/down; its logs hold errors and network requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="driving a browser needs the package selenium")
    browser, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (browser and driver):
        pytest.skip("chromium and chromedriver open the page; they are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    size = "--window-size=1300,1100"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--mute-audio", size):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "down")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driven = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield driven
    driven.quit()


@pytest.fixture
def called(monkeypatch, capsys):
    """A function that runs the main of a program with arguments -> (exit code, printed text)."""

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        told = capsys.readouterr()
        return code, told.out + told.err

    return call


@pytest.fixture
def program(called):
    """A function that runs infer_vos with arguments -> (exit code, printed text)."""
    import infer_vos

    return partial(called, infer_vos.main)
