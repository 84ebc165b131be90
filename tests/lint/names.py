#!/usr/bin/env python3
"""Names and words that hide things: drawer files, unowned marks, dead code, typedefs of structs."""

import os
import re
import sys

import source

DRAWERS = re.compile(r"(^|[_-])(util|utils|utility|misc|common|helper|helpers)([_-]|$)", re.I)
MARKS = [
    (re.compile(r"\b(TODO|FIXME|XXX)\b(?!\s*\(?#\d)"), "a mark without an issue number"),
    (re.compile(r"^[ \t]*#[ \t]*if[ \t]+0\b", re.M), "code that is switched off"),
    (re.compile(r"^[ \t]*#[ \t]*define[ \t]+NDEBUG\b", re.M), "assertions are never switched off"),
]
TYPEDEF = re.compile(r"\btypedef\s+(struct|union|enum)\b")
SUFFIXES = (".c", ".h", ".py", ".sh", ".proto", ".def", ".md")


def check_file(root, path):
    complaints = []
    for part in path.split("/"):
        if DRAWERS.search(part.split(".")[0]):
            complaints.append(f"{path}:1: '{part}' is a drawer: name it after what it holds")
    if not path.endswith((".c", ".h")):
        return complaints
    text = source.read(root, path)
    rules = MARKS + ([] if path.startswith("client/python/") else [(TYPEDEF, "struct x, not a typedef of it")])
    for pattern, problem in rules:
        for match in pattern.finditer(text if pattern is not TYPEDEF else source.bare(text)):
            complaints.append(f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {problem}")
    return complaints


def main():
    args = source.arguments(__doc__)
    paths = source.files(args.root, SUFFIXES)
    return source.finish("names", [line for path in paths for line in check_file(args.root, path)], len(paths))


if __name__ == "__main__":
    sys.exit(main())
