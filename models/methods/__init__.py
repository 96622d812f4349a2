"""The methods by name.  A new one is a file beside this one and a line in the table."""

from models.methods import crw, dul, ino

METHODS = {"dul": dul, "ino": ino, "crw": crw}
