"""Draws what benchmarks/scaling.py measured: two panels with one scale of seconds, one legend."""

import math

from PIL import Image, ImageDraw, ImageFont

from core.atomic import replacing

SIZE, FINER = (1200, 520), 3  # of the picture in pixels; drawn so many times larger, for smooth lines
TOP, BOTTOM, PANELS = 96, 424, ((84, 640), (690, 1160))  # px: rows of both panels, columns of each
NAMES = {"dense": "dense", "windowed": "windowed (this project)", "int8": "windowed, 8-bit candidates (this project)"}
COLOURS = {"dense": "#d55e00", "windowed": "#0072b2", "int8": "#009e73"}  # told apart by colour-blind eyes too
INK, GREY, GRID = "#222222", "#666666", "#dddddd"


class Canvas:
    """A picture addressed in final pixels."""

    def __init__(self):
        self.picture = Image.new("RGB", tuple(side * FINER for side in SIZE), "white")
        self.pen = ImageDraw.Draw(self.picture)

    def line(self, points, colour, width=1.0):
        points = [(x * FINER, y * FINER) for x, y in points]
        self.pen.line(points, colour, round(width * FINER), joint="curve")

    def dot(self, x, y, colour, radius):
        self.pen.ellipse([side * FINER for side in (x - radius, y - radius, x + radius, y + radius)], colour)

    def text(self, x, y, words, anchor="la", size=14, colour=INK):
        """anchor: as in Pillow, e.g. "la" = x, y is the left upper corner, "mm" the middle."""
        self.pen.text((x * FINER, y * FINER), words, colour, ImageFont.load_default(size * FINER), anchor)

    def save(self, path):
        with replacing(path) as part:
            self.picture.resize(SIZE, Image.Resampling.LANCZOS).save(part, format="PNG", optimize=True)


def draw(numbers, path):
    """numbers: as benchmarks/scaling.py writes them.  Writes a PNG."""
    canvas = Canvas()
    seconds = [s for panel in ("length", "resolution") for row in numbers[panel].values() for s in row["wall_s"]]
    down, marks = scale(seconds)
    ways = list(numbers["length"])
    canvas.text(PANELS[0][0], 16, "Label propagation: seconds for one frame, DUL's geometry", size=19)
    legend(canvas, ways)

    length, heights = numbers["length"], [int(height) for height in numbers["cells"]]
    last = max(x for row in length.values() for x in row["x"])
    along = lambda t: between(PANELS[0], (t - 1) / max(1, last - 1))
    ticks = {along(t): str(t) for t in (1, *range(10, last + 1, 10))}
    grid(canvas, PANELS[0], down, marks, ticks, "frame of the video, 480p (60x107 cells)")
    curves(canvas, length, along, down)

    column = lambda height: between(PANELS[1], heights.index(height) / max(1, len(heights) - 1))
    ticks = {column(height): f"{height}p\n{numbers['cells'][str(height)]}" for height in heights}
    grid(canvas, PANELS[1], down, marks, ticks, "height of the video and its cells, 21 frames of context")
    curves(canvas, numbers["resolution"], column, down)
    ratios(canvas, numbers["resolution"], column, down)

    repeats = f"medians of {numbers['repeats']} runs" if numbers["repeats"] > 1 else "one run"
    canvas.text(
        PANELS[0][0], SIZE[1] - 14, f"{numbers['machine']}, {numbers['threads']} threads, {repeats}, "
        f"{numbers['date']}.  Numbers beside points: times faster than dense.", "ls", 12, GREY,
    )
    canvas.save(path)


def legend(canvas, ways):
    """One row under the title."""
    x = PANELS[0][0]
    for way in ways:
        canvas.line([(x, 62), (x + 34, 62)], COLOURS[way], 2.5)
        canvas.dot(x + 17, 62, COLOURS[way], 4)
        canvas.text(x + 44, 62, NAMES[way], "lm")
        x += 44 + canvas.pen.textlength(NAMES[way], ImageFont.load_default(14 * FINER)) / FINER + 36


def scale(seconds):
    """A function of seconds, the row in pixels, logarithmic; and the seconds that stand beside it."""
    steps = [a * 10**b for b in range(-4, 5) for a in (1, 2, 5)]
    low = max(step for step in steps if step <= 0.8 * min(seconds))
    high = min(step for step in steps if step >= max(seconds))
    row = lambda s: BOTTOM - (BOTTOM - TOP) * math.log(s / low) / math.log(high / low)
    return row, [step for step in steps if low <= step <= high]


def between(sides, share):
    """A place inside a panel, 24 px from its sides at 0 and 1."""
    left, right = sides[0] + 24, sides[1] - 24
    return left + share * (right - left)


def grid(canvas, sides, down, marks, ticks, title):
    """Axes of one panel, and what is written at them.  ticks: {column: words}."""
    for s in marks:
        canvas.line([(sides[0], down(s)), (sides[1], down(s))], GRID)
        canvas.text(sides[0] - 8, down(s), f"{s:g} s", "rm", 13)
    canvas.line([(sides[0], TOP), (sides[0], BOTTOM), (sides[1], BOTTOM)], INK)
    for x, words in ticks.items():
        canvas.line([(x, BOTTOM), (x, BOTTOM + 5)], INK)
        for n, line in enumerate(words.split("\n")):
            canvas.text(x, BOTTOM + 9 + 16 * n, line, "ma", 13, GREY if n else INK)
    canvas.text(sum(sides) / 2, BOTTOM + 44, title, "ma")


def curves(canvas, table, along, down):
    for way, row in table.items():
        points = [(along(x), down(s)) for x, s in zip(row["x"], row["wall_s"])]
        canvas.line(points, COLOURS[way], 2.5)
        for x, y in points:
            canvas.dot(x, y, COLOURS[way], 4 if len(points) < 20 else 2)


def ratios(canvas, table, along, down):
    """How many times faster than dense, beside the points of the other ways."""
    for way in [way for way in table if way != "dense" and "dense" in table]:
        offset, anchor = (8, "ma") if way == "int8" else (-8, "mb")  # int8 runs below windowed
        for x, slow, fast in zip(table[way]["x"], table["dense"]["wall_s"], table[way]["wall_s"]):
            canvas.text(along(x), down(fast) + offset, f"{slow / fast:.1f}x", anchor, 13, COLOURS[way])
