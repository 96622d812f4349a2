"""Whether this Python can run the project: python launch/check_requirements.py requirements.txt

Exit code 0: it has all that the file asks for.  Exit code 3: it will do as it is, and the differences are printed.
Exit code 1: it will not do, and what it lacks is printed.  Exact versions and upper bounds are for the .venv that the
launchers make: another torch will do from OLDEST on, if its torchvision imports.  A package whose line has a comment
"# optional: ..." may be missing.
"""

import importlib
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OLDEST = {"torch": "2.8", "torchvision": "0.23"}
# opencv-python and opencv-python-headless are the same module; either will do.
SAME = {"opencv-python-headless": ("opencv-python-headless", "opencv-python", "opencv-contrib-python")}


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


def judge(line):
    """One line of the file -> (what keeps this Python from being used, what differs), each a text or None."""
    wanted, _, comment = (part.strip() for part in line.partition("#"))
    name, clauses = re.fullmatch(r"([\w.-]+)\s*(.*)", wanted).groups()
    bounds = dict(re.fullmatch(r"(==|>=|<)\s*([\d.]+)", clause.strip()).groups() for clause in clauses.split(","))
    found, least = installed(name), bounds.get(">=") or OLDEST[name]
    if found is None or numbers(found) < numbers(least):
        lack = f"{name} {least} or later" + (f" (found {found})" if found else "")
        optional = re.match("optional: (.*)", comment)
        return (None, f"without {lack}, which is {optional[1]}") if optional else (f"{lack} is needed", None)
    exact, bound = bounds.get("=="), bounds.get("<")
    if exact and numbers(found) != numbers(exact) or bound and numbers(found) >= numbers(bound):
        return None, f"{name} {found} where requirements.txt has {wanted[len(name) :]}"
    return None, None


def check(lines):
    """The lines of a requirements file -> (what keeps this Python from being used, what differs), lists of texts."""
    judged = [judge(line) for line in lines if line.split("#")[0].strip()]
    lacks, differences = ([text for text in column if text] for column in zip(*judged))
    too_old = sys.version_info < (3, 10)
    if too_old:
        lacks.append("Python 3.10 or later is needed")
    if not lacks and any(text.startswith("torch") for text in differences):
        try:
            importlib.import_module("torchvision")
        except Exception as error:  # built for another torch it raises what it likes
            lacks.append(f"torchvision does not import: {error}")
    return lacks, differences


if __name__ == "__main__":
    lacks, differences = check(Path(sys.argv[1]).read_text().splitlines())
    print("\n".join(lacks or differences))
    sys.exit(1 if lacks else 3 if differences else 0)
