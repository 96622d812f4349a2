import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from core.evaluation import davis, folders, jf, page
from core.palette import write_indexed

#: A folder name with HTML in it.
BAD = '<b onclick="x">&amp;\' <!--<script>'
#: sequence -> shift of the result from the annotation in px, for each frame
OFF = {BAD: (0, 9, 2, 1, 7, 8, 0), "calm": (0, 0, 0, 0, 0, 0, 0), "pair": (0, 4, 3, 2, 1, 0, 0)}


@pytest.fixture
def scored(tmp_path):
    """(scores, pairs of folders) of three sequences in DAVIS layout; "calm" has masks, but no frames."""
    rng = np.random.default_rng(0)
    for name, shifts in OFF.items():
        for t, shift in enumerate(shifts):
            mask = np.zeros((54, 96), np.uint8)
            mask[10:30, 10:40] = 1
            if name == "pair":
                mask[30:50, 50:90] = 2
            write_indexed(tmp_path / "Annotations" / name / f"{t:05d}.png", mask)
            write_indexed(tmp_path / "res4_vos" / name / f"{t:05d}.png", np.roll(mask, shift, axis=1))
            if name != "calm":
                photo = tmp_path / "JPEGImages" / name / f"{t:05d}.jpg"
                photo.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (54, 96, 3), np.uint8)).save(photo)
    origin = {"protocol": "DUL", "propagation": {"radius": 12}, "network": "ResNet18", "remark": None}
    (tmp_path / "res4_origin.json").write_text(json.dumps(origin))
    pairs = [(tmp_path / "Annotations" / name, tmp_path / "res4_vos" / name) for name in OFF]
    return davis.evaluate_folders(pairs), pairs


def written(scored, path):
    """Write the page -> (its path, the data in it)."""
    scores, pairs = scored
    page.write(path, scores, pairs, {result.name: folders.photos(annotation) for annotation, result in pairs})
    return path, data_in(path)


def data_in(path):
    _, rest = path.read_text(encoding="utf-8").split('id="data">')
    return json.loads(rest.partition("</script>")[0])


class Elements(HTMLParser):
    """tags: the names of the page's elements, in order."""

    def __init__(self, path):
        super().__init__()
        self.tags = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)


def test_the_page_holds_the_scores_and_needs_nothing_else(scored, tmp_path, monkeypatch):
    monkeypatch.setattr(page.sys, "argv", ["evaluate.py", "--out", "</script><b>"])
    path, data = written(scored, tmp_path / "out/report.html")
    assert Elements(path).tags == Elements(page.TEMPLATE).tags  # no name is read as HTML
    told = dict(data["facts"])
    assert told["command"] == "python evaluate.py --out '</script><b>'" and told["protocol"] == "DUL: radius 12"
    assert told["network"] == "ResNet18" and "remark" not in told and "2017" in told["measure"]
    assert [s["name"] for s in data["sequences"]] == list(OFF)
    assert data["sequences"][0]["frames"] == ["00001", "00002", "00003", "00004", "00005"]
    entries = [entry for sequence in data["sequences"] for entry in sequence["objects"]]
    for score, entry in zip(scored[0], entries, strict=True):
        assert entry["id"] == score.id and entry["statistics"][0] == round(100 * score.jf_mean, 1)
        assert list(zip(entry["J"], entry["F"])) == [tuple(page.percent(values)) for values in score.by_frame]
    assert "http" not in path.read_text().replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert all(shown["truth"].startswith("data:image/jpeg;base64,") for shown in data["sequences"][1]["shown"])


def test_thirty_sequences_of_noise_stay_below_ten_megabytes(tmp_path):
    rng, frames = np.random.default_rng(0), 24
    for t in range(frames):
        mask = rng.integers(0, 2, (20, 36), np.uint8).repeat(9, 0).repeat(9, 1)
        write_indexed(tmp_path / f"truth/seq/{t:05d}.png", mask)
        Image.fromarray(rng.integers(0, 255, (180, 324, 3), np.uint8)).save(tmp_path / f"truth/seq/{t:05d}.jpg")
    photos = sorted((tmp_path / "truth/seq").glob("*.jpg"))
    pairs, scores = [], []
    for number in range(30):
        result = tmp_path / f"masks/seq{number:02d}"
        result.parent.mkdir(exist_ok=True)
        result.symlink_to(tmp_path / "truth/seq")
        by_frame = tuple(map(tuple, rng.random((frames - 2, 2)).tolist()))
        scores.append(davis.ObjectScores(*map(jf.statistics, np.transpose(by_frame)), result.name, 1, by_frame))
        pairs.append((tmp_path / "truth/seq", result))
    path = tmp_path / "report.html"
    page.write(path, scores, pairs, {result.name: photos for _, result in pairs})
    assert 5e6 < path.stat().st_size <= 10e6
    for sequence, score in zip(data_in(path)["sequences"], scores):
        assert int(np.mean(score.by_frame, axis=1).argmin()) in [shown["t"] for shown in sequence["shown"]]


def test_the_worst_frames_come_first_and_lie_apart():
    scores = np.linspace(1, 0, 100)
    scores[10] = -1
    assert page.chosen(scores) == [10, 0, 99, 20, 94, 40, 89, 59, 84, 79]
    assert page.chosen(np.ones(1)) == [0] and sorted(page.chosen(np.zeros(3))) == [0, 1, 2]


def test_void_is_not_drawn_and_a_damaged_photo_is_black(scored, tmp_path):
    (tmp_path / "JPEGImages/pair/00001.jpg").write_bytes(b"no picture")
    _, data = written(scored, tmp_path / "report.html")
    assert len(data["sequences"][2]["shown"]) == 5
    photo, ids = np.full((40, 40, 3), 128, np.uint8), np.zeros((40, 40), np.uint8)
    assert page.thumbnail(photo, ids + 255) == page.thumbnail(photo, ids) != page.thumbnail(photo, ids + 1)


def test_a_page_that_cannot_be_written_is_named(scored, tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match="report.html.*cannot be written"):
        written(scored, tmp_path / "report.html")
    assert not list(tmp_path.glob(".report.html*"))


@pytest.fixture
def browser(chromium):
    """Chromium in a narrow window."""
    narrow = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
    return chromium


def test_the_page_is_operated_in_a_browser(scored, tmp_path, browser):
    path, _ = written(scored, tmp_path / "report.html")
    browser.get(path.as_uri())
    all_of = lambda selector: browser.find_elements("css selector", selector)
    text_of = lambda selector: [element.get_property("textContent") for element in all_of(selector)]
    column = lambda number: text_of(f"#scores tbody td:nth-child({number})")

    assert text_of("h1") == ["J&F of 4 objects in 3 sequences"] and text_of("#sequence")[0].startswith(BAD)
    J_and_F = [float(value) for value in column(4)]
    assert J_and_F == sorted(J_and_F) and column(1)[0] == BAD and column(1)[-1] == "calm"
    all_of("#scores th button")[3].click()
    assert [float(value) for value in column(4)] == J_and_F[::-1]
    all_of("#scores th button")[0].click()
    assert column(1) == sorted([*OFF, "pair"])
    all_of("#by-sequence")[0].click()
    assert column(1) == sorted(OFF) and column(2) == ["1", "1", "2"]

    (slider,), seen = all_of("#slider"), {}
    assert "frame 00001 (1 of 5" in text_of("#frame")[0]  # the worst frame
    for _ in range(5):
        pair = tuple(all_of(side)[0].get_property("src") for side in ("#truth", "#result"))
        seen[text_of("#frame")[0]] = pair
        slider.send_keys("\ue014")  # arrow to the right
    assert len(seen) == len({result for _, result in seen.values()}) == 5
    assert all(src.startswith("data:image/jpeg") for pair in seen.values() for src in pair)

    all_of("#scores tbody button")[2].click()
    assert text_of("#sequence")[0].startswith("pair: J&F") and len(all_of("#curves polyline")) == 4
    curves = lambda: [line.get_attribute("points") for line in all_of("#curves polyline")]
    before = curves()
    all_of("#measure option")[1].click()
    assert curves() != before
    worst = [float(score) for score in text_of("#gallery b")]
    assert len(worst) == 12 and worst == sorted(worst)
    all_of("#more")[0].click()
    assert len(all_of("#gallery img")) == 15 and not all_of("#more")[0].is_displayed()
    all_of("#gallery button")[0].click()
    assert text_of("#sequence")[0].startswith(BAD) and "frame 00001" in text_of("#frame")[0]

    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith("data:") for name in fetched) and browser.get_log("browser") == []
