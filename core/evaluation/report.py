"""Scores -> a table for the terminal, the official tool's two CSV files, JSON."""

import json
from pathlib import Path

from core.atomic import replacing
from core.evaluation.davis import overall

GLOBAL_CSV = "global_results-val.csv"
SEQUENCE_CSV = "per-sequence_results-val.csv"
SCORES_JSON = "scores.json"

GLOBAL_COLUMNS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")


def global_row(scores):
    """The seven overall numbers in the order of GLOBAL_COLUMNS."""
    total = overall(scores)
    return (total.jf_mean, *total.J, *total.F)


def table(scores):
    """Every object and the mean over objects, one line each, as text; in percent."""
    rows = [(s.name, ((s.J.mean + s.F.mean) / 2, *s.J, *s.F)) for s in scores]
    rows.append((f"mean of {len(scores)} object{'s' * (len(scores) > 1)}", global_row(scores)))
    width = max(len(name) for name, _ in rows)
    head = f"{'percent':<{width}}" + "".join(f"{column:>10}" for column in ("J&F", *GLOBAL_COLUMNS[1:]))
    lines = [f"{name:<{width}}" + "".join(f"{100 * value:>10.1f}" for value in values) for name, values in rows]
    return "\n".join([head, *lines[:-1], "-" * len(head), lines[-1]])


def amount(scores):
    """How much was scored, as text."""
    frames = {score.sequence: score.frames for score in scores}
    return (
        f"{sum(frames.values())} frames of {len(frames)} sequence{'s' * (len(frames) > 1)} "
        "(the first and the last of each are not scored)"
    )


def write(scores, folder):
    """Write both CSV files (three decimals, official form) and scores.json (all digits) into folder.

    All three hold fractions of 1, as the official tool writes them.
    """
    values = ",".join(f"{value:.3f}" for value in global_row(scores))
    lines = [f"{s.name},{s.J.mean:.3f},{s.F.mean:.3f}\n" for s in scores]
    texts = {
        GLOBAL_CSV: f"{','.join(GLOBAL_COLUMNS)}\n{values}\n",
        SEQUENCE_CSV: "Sequence,J-Mean,F-Mean\n" + "".join(lines),
        SCORES_JSON: json.dumps(as_dict(scores), indent=1) + "\n",
    }
    for name, text in texts.items():
        with replacing(Path(folder) / name) as part:
            part.write_text(text)


def as_dict(scores):
    """Fractions of 1: {"global": {column: value}, "objects": {name: {"frames", "J": {...}, "F": {...}}}}."""
    objects = {s.name: {"frames": s.frames, "J": s.J._asdict(), "F": s.F._asdict()} for s in scores}
    return {"global": dict(zip(GLOBAL_COLUMNS, global_row(scores))), "objects": objects}
