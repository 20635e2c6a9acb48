"""Names that a user gives: what becomes a folder stays a folder, and what is shown stays one line."""

from __future__ import annotations

import re

__all__ = ["RESERVED", "folder_problem", "text_problem"]

LONGEST = 200  # characters of a name that is shown
LONGEST_FOLDER = 120  # bytes of a name that becomes a folder, which gets endings of our own
RESERVED = ("domain_pretrain",)  # in models/, beside the studies


def text_problem(name: str) -> str:
    """What is wrong with a name that is shown and logged: ``must be ...``; empty where nothing is."""
    if not name.strip() or len(name) > LONGEST:
        return f"must be 1 to {LONGEST} characters"
    if not name.isprintable():
        return "must be of characters that can be printed"
    if "'" in name and '"' in name:
        return "must not hold both kinds of quotes, which a search in MLflow cannot express"
    return ""


def folder_problem(name: str) -> str:
    """What is wrong with a name that becomes that of a folder too."""
    if not re.fullmatch(r"\w([\w .+-]*[\w+-])?", name) or len(name.encode(errors="replace")) > LONGEST_FOLDER:
        return (
            f"becomes the name of a folder: must be of letters, digits, spaces and _ . + -, begin with a letter or a "
            f"digit, and take at most {LONGEST_FOLDER} bytes"
        )
    if name.casefold() in RESERVED:
        return f"must not be {name}, which is a folder of its own"
    return text_problem(name)
