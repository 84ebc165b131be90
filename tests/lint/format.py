#!/usr/bin/env python3
"""All C files are as .clang-format has them; --fix [FILE...] makes them so.

Versions of clang-format disagree with each other, so only the one of Debian 12 is asked; without it the check is skipped.
"""

import os
import re
import shutil
import subprocess
import sys

import source

MAJOR = "14"
SKIPPED = 77


def program():
    for name in ("clang-format-" + MAJOR, "clang-format"):
        path = shutil.which(name)
        if path and re.search(rf"version {MAJOR}\.", subprocess.check_output([path, "--version"], text=True)):
            return path
    return None


def main():
    args = source.arguments(__doc__, fix=False, files=None)
    clang_format = program()
    if not clang_format:
        print(f"format: skipped, no clang-format {MAJOR} here")
        return SKIPPED
    paths = args.files or source.files(args.root)
    if not paths:
        return source.finish("format", [], 0)
    style = "--style=file:" + os.path.join(source.ROOT, ".clang-format")
    if args.fix:
        return subprocess.call([clang_format, style, "-i", *paths], cwd=args.root)
    complaints = []
    for path in paths:
        want = subprocess.check_output([clang_format, style, path], cwd=args.root, text=True)
        have = source.read(args.root, path)
        if want != have:
            pairs = zip(want.splitlines(), have.splitlines())
            line = next((n for n, (w, h) in enumerate(pairs, 1) if w != h), 1)
            complaints.append(f"{path}:{line}: not as .clang-format has it; `make format` mends it")
    return source.finish("format", complaints, len(paths))


if __name__ == "__main__":
    sys.exit(main())
