#!/usr/bin/env python3
"""Who may include whom, and which folder a library's headers may be seen in (daemon/README.md)."""

import os
import re
import sys

import source

# folder -> folders (or single headers) it may include; its own always.
MAY = {
    "daemon": {"base", "loop", "gpu", "block", "tier", "move", "server", "proto", "include"},
    # include/ because the codes in replies are those of the public header.
    "server": {"base", "loop", "block", "move", "proto", "tier/tier.h", "tier/device.h", "include"},
    "move": {"base", "block", "tier/tier.h"},
    "tier": {"base", "loop", "gpu"},
    "gpu": {"base", "loop"},
    "block": {"base", "proto/shm.h", "proto/shm_pin.h"},
    "loop": {"base"},
    "base": set(),
    "proto": {"include"},
    "include": set(),
    "client": {"proto", "include"},
    # The command line drives the daemon's own policy code for `simulate`, and reads G3's files with the daemon down; it never sees
    # loop/, server/ or a living tier.
    "kvbmctl": {"client", "proto", "include", "base", "block", "move", "tier/tier.h", "tier/nvme_file.h"},
    "python": {"include"},
    "examples": {"include"},
}

# library header -> where it may be included: folders, or patterns of paths with a slash.
HOMES = [
    (r"uv\.h|uv/.*|liburing.*", {"loop"}),
    (r"cuda.*|nvml\.h|nvrtc.*", {"gpu", r"client/gpu\.c"}),
    (r".*\.pb-c\.h|protobuf-c/.*", {"server", "client", "kvbmctl"}),
    (r"numa\.h|numaif\.h", {"tier"}),
    (r"systemd/.*", {"base", "server", "daemon"}),
    (r"curl/.*", {r"daemon/tier/remote_[a-z0-9]+\.c"}),
    (r"hiredis.*|valkey/.*", {r"daemon/tier/remote_[a-z0-9]+\.c"}),
    (r"ini\.h", {"daemon"}),
    (r"Python\.h", {"python"}),
    (r"check\.h", set()),
]

DAEMON_FOLDERS = {"base", "loop", "gpu", "block", "tier", "move", "server"}
# Time is an argument here: whoever read a clock could not be simulated.
PURE = {"block", "move"}
CLOCKS = re.compile(r"\b(clock_now_ns|clock_gettime|gettimeofday|time|uv_now|uv_hrtime)\s*\(")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"\n]+)[>"]', re.M)


def zone_of(path):
    """The row of the table a file belongs to; None for tests, which may see everything."""
    parts = path.split("/")
    if parts[0] == "daemon":
        return "daemon" if len(parts) == 2 else parts[1]
    if parts[0] == "client" and len(parts) > 2:
        return parts[1] if parts[1] in MAY else "client"
    return parts[0] if parts[0] in MAY else None


def target_of(root, path, name):
    """What an #include of ours means, as "folder/file"; None if it is not one of ours."""
    beside = os.path.normpath(os.path.join(os.path.dirname(path), name))
    for candidate in (beside, name, "daemon/" + name, "include/" + name):
        candidate = os.path.normpath(candidate)
        if candidate.split("/")[0] in source.TOP and os.path.isfile(os.path.join(root, candidate)):
            return candidate
    first = name.split("/")[0]
    if "/" in name and (first in DAEMON_FOLDERS or first in source.TOP):
        return ("daemon/" if first in DAEMON_FOLDERS else "") + name
    return None


def check_ours(path, zone, target):
    other = zone_of(target)
    short = target[len("daemon/") :] if target.startswith("daemon/") else target
    if target == "daemon/daemon.h" and zone != "daemon":
        return "only the daemon's root may see daemon.h"
    if other is None:
        return f"{zone}/ may not include tests"
    if other == zone or other in MAY[zone] or short in MAY[zone]:
        return None
    return f"{zone}/ may not include {short}"


def check_library(path, zone, name):
    for pattern, homes in HOMES:
        if not re.fullmatch(pattern, name):
            continue
        if zone in homes or any("/" in home and re.fullmatch(home, path) for home in homes):
            return None
        return f"<{name}> has its home in {', '.join(sorted(homes)) or 'tests'}"
    return None


def check_file(root, path):
    zone = zone_of(path)
    if zone is None:
        return []
    text = source.bare(source.read(root, path), strings=True)
    if zone not in MAY:
        return [f"{path}:1: daemon/{zone}/ is not in the layer table"]
    complaints = []
    for match in INCLUDE.finditer(text):
        name = match.group(2)
        target = target_of(root, path, name)
        problem = check_ours(path, zone, target) if target else check_library(path, zone, name)
        if problem:
            complaints.append(f"{path}:{text.count(chr(10), 0, match.start(2)) + 1}: {problem}")
    if zone in PURE:
        plain = source.bare(text)
        for match in CLOCKS.finditer(plain):
            line = plain.count("\n", 0, match.start()) + 1
            complaints.append(f"{path}:{line}: {zone}/ reads a clock ({match.group(1)}): time is an argument")
    return complaints


def main():
    args = source.arguments(__doc__)
    paths = source.files(args.root)
    complaints = [line for path in paths for line in check_file(args.root, path)]
    return source.finish("layers", complaints, len(paths))


if __name__ == "__main__":
    sys.exit(main())
