"""Check whether this Python can run the project: python launch/check_requirements.py requirements.txt

Exit code 0: everything in the file is installed.  Exit code 3: the project runs, with the differences that are printed.
Exit code 1: the project does not run; what is missing is printed.  Exact versions and upper bounds are for the .venv of
the launchers; elsewhere torch may be any version from OLDEST on, if its torchvision imports.  A package may be missing
if its line has a comment "# optional: ...".
"""

import importlib
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OLDEST = {"torch": "2.8", "torchvision": "0.23"}
# {package: packages that install the same module}
SAME = {"opencv-python-headless": (
    "opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless",
)}  # fmt: skip


def numbers(text):
    """A version as a list: "2.11.0+cu130" -> [2, 11, 0]."""
    return [int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3]]


def installed(name):
    """The version of a package, or None."""
    for candidate in SAME.get(name, (name,)):
        try:
            return version(candidate)
        except PackageNotFoundError:
            continue
    return None


def check(lines):
    """Two lists of texts: why this Python cannot run the project, and how its packages differ from the file's lines."""
    lacks, differences = [], []
    too_old = sys.version_info < (3, 10)
    if too_old:
        lacks.append("Python 3.10 or later is needed")
    for line in lines:
        wanted, _, comment = (part.strip() for part in line.partition("#"))
        if not wanted:
            continue
        name, clauses = re.fullmatch(r"([\w.-]+)\s*(.*)", wanted).groups()
        bounds = dict(re.fullmatch(r"(==|>=|<)\s*([\d.]+)", clause.strip()).groups() for clause in clauses.split(","))
        found, least, below = installed(name), bounds.get(">=") or OLDEST[name], bounds.get("<")
        if found is None or numbers(found) < numbers(least):
            lack = f"{name} {least} or later" + (f" (found {found})" if found else "")
            if comment.startswith("optional: "):
                differences.append(f"without {lack}, which is {comment.removeprefix('optional: ')}")
            else:
                lacks.append(f"{lack} is needed")
        elif numbers(found) != numbers(bounds.get("==", found)) or (below and numbers(found) >= numbers(below)):
            differences.append(f"{name} {found} where requirements.txt has {clauses}")
    if not lacks and any(text.startswith("torch") for text in differences):
        try:
            importlib.import_module("torchvision")
        except Exception as error:  # with another torch than its own it may raise anything
            lacks.append(f"torchvision does not import: {error}")
    return lacks, differences


if __name__ == "__main__":
    lacks, differences = check(Path(sys.argv[1]).read_text().splitlines())
    print("\n".join(lacks or differences))
    if lacks:
        sys.exit(1)
    sys.exit(3 if differences else 0)
