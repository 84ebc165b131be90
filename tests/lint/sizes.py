#!/usr/bin/env python3
"""The hard limits on size: .c 800 lines, .h 300, a function 100, six parameters.

Named exemptions with their reasons are in tests/lint/exemptions, one a line:
    file PATH LIMIT REASON...      function PATH:NAME LIMIT REASON...      params PATH:NAME LIMIT REASON...
An exemption without a reason, or one that is not needed, is a complaint too.
"""

import re
import sys

import source

LIMITS = {"c": 800, "h": 300, "function": 100, "params": 6}
NOT_FUNCTIONS = {"if", "for", "while", "switch", "do", "else", "return", "sizeof"}


def functions(text):
    """(name, parameters, first line, lines) of each function defined in a C text."""
    text = source.bare(text)
    text = re.sub(r"^[ \t]*#(?:[^\n\\]|\\\n|\\.)*", lambda m: re.sub(r"[^\n]", " ", m.group(0)), text, flags=re.M)
    text = re.sub(r'extern\s+"[^"]*"\s*\{', lambda m: re.sub(r"[^\n]", " ", m.group(0)), text)
    found = []
    depth = 0
    start = 0  # where the current top-level declaration begins
    opened = None
    for at, char in enumerate(text):
        if char == "{":
            if depth == 0:
                opened = signature(text[start:at])
            depth += 1
        elif char == "}":
            depth = max(0, depth - 1)
            if depth == 0:
                if opened:
                    first = start + len(text[start:]) - len(text[start:].lstrip())
                    line = text.count("\n", 0, first) + 1
                    found.append((*opened, line, text.count("\n", 0, at) + 2 - line))
                opened = None
                start = at + 1
        elif char == ";" and depth == 0:
            start = at + 1
    return found


def signature(head):
    """(name, number of parameters) of what stands before a brace, or None if it is no function."""
    head = re.sub(r"__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)", " ", head).strip()
    if not head.endswith(")") or re.search(r"=\s*[^()]*$", head):
        return None
    depth = 0
    for at in range(len(head) - 1, -1, -1):
        depth += (head[at] == ")") - (head[at] == "(")
        if depth == 0:
            break
    name = re.search(r"(\w+)\s*$", head[:at])
    if not name or name.group(1) in NOT_FUNCTIONS:
        return None
    inside = head[at + 1 : -1].strip()
    if name.group(1).startswith("START_TEST") or name.group(1).startswith("START_LOOP"):
        return inside or "test", 0
    if inside in ("", "void"):
        return name.group(1), 0
    depth = commas = 0
    for char in inside:
        depth += (char in "([") - (char in ")]")
        commas += char == "," and depth == 0
    return name.group(1), commas + 1


def measure(root, paths):
    """(kind, what, size, limit) of everything that has a limit."""
    for path in paths:
        text = source.read(root, path)
        yield "file", path, text.count("\n"), LIMITS[path.rsplit(".", 1)[1]]
        for name, params, _, lines in functions(text):
            yield "function", f"{path}:{name}", lines, LIMITS["function"]
            yield "params", f"{path}:{name}", params, LIMITS["params"]


def exemptions(root):
    """{(kind, what): limit} and the complaints about the file itself."""
    allowed, complaints = {}, []
    try:
        lines = source.read(root, "tests/lint/exemptions").splitlines()
    except FileNotFoundError:
        return allowed, complaints
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] not in ("file", "function", "params") or len(words) < 4 or not words[2].isdigit():
            complaints.append(f"tests/lint/exemptions:{number}: want: KIND WHAT LIMIT REASON")
            continue
        allowed[words[0], words[1]] = int(words[2])
    return allowed, complaints


def main():
    args = source.arguments(__doc__, top=0)
    paths = source.files(args.root)
    allowed, complaints = exemptions(args.root)
    needed = set()
    sizes = list(measure(args.root, paths))
    for kind, what, size, limit in sizes:
        if size <= limit:
            continue
        needed.add((kind, what))
        limit = allowed.get((kind, what), limit)
        if size > limit:
            unit = "parameters" if kind == "params" else "lines"
            complaints.append(f"{what}: {kind} of {size} {unit}, limit {limit}")
    for kind, what in sorted(set(allowed) - needed):
        complaints.append(f"tests/lint/exemptions: {kind} {what} needs no exemption")
    if args.top:
        for wanted in ("file", "function", "params"):
            rows = sorted((row for row in sizes if row[0] == wanted), key=lambda row: -row[2] / row[3])
            for kind, what, size, limit in rows[: args.top]:
                print(f"  {kind:8} {size:4} of {limit:3}  {what}")
    return source.finish("sizes", complaints, len(paths))


if __name__ == "__main__":
    sys.exit(main())
