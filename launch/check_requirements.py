"""Exit code 0 if this Python has every package that a requirements file asks for, in a version it allows."""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# opencv-python and opencv-python-headless are the same module; either will do.
SAME = {"opencv-python-headless": ("opencv-python-headless", "opencv-python", "opencv-contrib-python")}


def numbers(text):
    return [int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3]]


def allowed(found, clause):
    sign, wanted = re.fullmatch(r"(==|>=|<)\s*([\d.]+)", clause.strip()).groups()
    found, wanted = numbers(found), numbers(wanted)
    return {"==": found == wanted, ">=": found >= wanted, "<": found < wanted}[sign]


def missing(line):
    name, clauses = re.fullmatch(r"([\w.-]+)\s*(.*)", line).groups()
    for candidate in SAME.get(name, (name,)):
        try:
            found = version(candidate)
        except PackageNotFoundError:
            continue
        if all(allowed(found, clause) for clause in clauses.split(",") if clause):
            return None
        return f"{line} (found {found})"
    return f"{line} (not installed)"


lines = [line.split("#")[0].strip() for line in Path(sys.argv[1]).read_text().splitlines()]
absent = [problem for problem in map(missing, filter(None, lines)) if problem]
print("\n".join(absent))
sys.exit(bool(absent) or sys.version_info < (3, 10))
