"""Scores as a table for the terminal, as the two CSV files of the official program, and as JSON."""

import json
from pathlib import Path

from core.atomic import replacing
from core.evaluation.davis import overall

GLOBAL_CSV = "global_results-val.csv"
SEQUENCE_CSV = "per-sequence_results-val.csv"
SCORES_JSON = "scores.json"

GLOBAL_COLUMNS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")


def row(scores):
    """The values of the columns GLOBAL_COLUMNS for davis.Scores."""
    return (scores.jf_mean, *scores.J, *scores.F)


def table(scores) -> str:
    """A text with a line for every object and one for the mean over objects; in percent."""
    rows = [(s.name, row(s)) for s in scores]
    rows.append((f"mean of {len(scores)} object{'s' if len(scores) > 1 else ''}", row(overall(scores))))
    width = max(len(name) for name, _ in rows)
    head = f"{'percent':<{width}}" + "".join(f"{column:>10}" for column in ("J&F", *GLOBAL_COLUMNS[1:]))
    lines = [f"{name:<{width}}" + "".join(f"{100 * value:>10.1f}" for value in values) for name, values in rows]
    return "\n".join([head, *lines[:-1], "-" * len(head), lines[-1]])


def amount(scores) -> str:
    """The number of scored frames and sequences in words."""
    frames = {score.sequence: score.frames for score in scores}
    sequences = f"{len(frames)} sequence{'s' if len(frames) > 1 else ''}"
    return f"{sum(frames.values())} frames of {sequences} (the first and the last of each are not scored)"


def write(scores, folder) -> None:
    """Write the CSV files (three decimals) and scores.json (all digits) into a folder, as fractions of 1.

    scores.json: {"global": {column: value}, "objects": {name: {"frames": count, "J": {...}, "F": {...}}}}.
    """
    means = row(overall(scores))
    objects = {s.name: {"frames": s.frames, "J": s.J._asdict(), "F": s.F._asdict()} for s in scores}
    lines = [f"{s.name},{s.J.mean:.3f},{s.F.mean:.3f}\n" for s in scores]
    texts = {
        GLOBAL_CSV: f"{','.join(GLOBAL_COLUMNS)}\n{','.join(f'{value:.3f}' for value in means)}\n",
        SEQUENCE_CSV: "Sequence,J-Mean,F-Mean\n" + "".join(lines),
        SCORES_JSON: json.dumps({"global": dict(zip(GLOBAL_COLUMNS, means)), "objects": objects}, indent=1) + "\n",
    }
    for name, text in texts.items():
        with replacing(Path(folder) / name) as part:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")  # names may hold bytes that are no text
