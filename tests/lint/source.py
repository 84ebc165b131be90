"""What the lint checks share: which files there are, and C text without comments and strings."""

import argparse
import os
import re

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOP = ("daemon", "client", "proto", "include", "tests")


def arguments(doc, **flags):
    """The command line all checks have: --root, and boolean or integer flags by keyword."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--root", default=ROOT, help="tree to check")
    for name, default in flags.items():
        if default is False:
            parser.add_argument("--" + name, action="store_true")
        elif isinstance(default, int):
            parser.add_argument("--" + name, type=int, default=default)
        else:
            parser.add_argument(name, nargs="*")
    return parser.parse_args()


def files(root, suffixes=(".c", ".h")):
    """Paths relative to root of our own sources, sorted."""
    found = []
    for top in TOP:
        for folder, folders, names in os.walk(os.path.join(root, top)):
            folders[:] = [f for f in folders if f not in ("__pycache__", "build") and not f.endswith(".egg-info")]
            found += [os.path.relpath(os.path.join(folder, n), root) for n in names if n.endswith(tuple(suffixes))]
    return sorted(found)


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as f:
        return f.read()


_TOKEN = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)


def bare(text, strings=False):
    """Comments (and, unless asked to stay, strings) blanked out; every newline stays where it was."""

    def blank(match):
        token = match.group(0)
        if token[0] in "\"'":
            return token if strings else token[0] + re.sub(r"[^\n]", " ", token[1:-1]) + token[-1]
        return re.sub(r"[^\n]", " ", token)

    return _TOKEN.sub(blank, text)


def finish(name, complaints, n_files):
    """Print the complaints and a closing line; the exit status."""
    for line in complaints:
        print(line)
    print(f"{name}: {n_files} files, {len(complaints)} complaints")
    return 1 if complaints else 0
