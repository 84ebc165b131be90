#!/usr/bin/env python3
"""Runs benchmark programs one after the other, passes their JSON lines on, and ends with a table of all figures.

    run.py PROGRAM...        $BENCH: the figures wanted (P1,P3); nothing: all

Where shared memory gets no huge pages, and this may change that, it does so while the programs run, as kvbmd.service does for the daemon
($KVBM_BENCH_AS_IS=1: it does not).

Exits with 1 if a program failed: something broke.  Times and goals are reported, never judged.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys


SHMEM = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"


@contextlib.contextmanager
def huge_pages():
    """As systemd/kvbmd.service has it; what was there before comes back."""
    try:
        with open(SHMEM, "r+", encoding="ascii") as setting:
            never = "[never]" in setting.read() and not os.environ.get("KVBM_BENCH_AS_IS")
            if never:
                setting.write("advise")
    except OSError:
        never = False
    try:
        yield
    finally:
        if never:
            with open(SHMEM, "w", encoding="ascii") as setting:
                setting.write("never")


def run(program, figures, remarks):
    """Passes the program's lines on.  True: it ended well."""
    with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            try:
                record = json.loads(line)
            except ValueError:
                print(line, end="", flush=True)
                continue
            if "machine" in record and remarks["machine"] is None:
                remarks["machine"] = record["machine"]
            elif "machine" in record:
                continue
            if "remark" in record:
                remarks["said"].append(record)
            elif "name" in record:
                figures.append(record)
            print(line, end="", flush=True)
    if process.returncode == 77:  # it said why
        return True
    if process.returncode:
        print(f"{program}: failed with {process.returncode}", file=sys.stderr)
    return process.returncode == 0


def number(value):
    """Four digits that matter."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def order(record):
    """P2 before P12, P12 before P12b."""
    digits = "".join(c for c in record["name"] if c.isdigit())
    return int(digits or 0), record["name"]


def row(record):
    has_limit = "limit" in record
    met = {True: "met", False: "MISSED"}.get(record.get("met"), "")
    return (
        record["name"],
        f"{record['variant']} [{record['placement']}]",
        f"{number(record['value'])} {record['unit']}",
        f"{number(record['limit'])} ({record['limit_is']})" if has_limit else "",
        f"{record['ratio']:.2f}" if has_limit else "",
        record.get("goal", ""),
        met,
        f"{100 * record['spread']:.0f} %{' wide' if record['wide'] else ''}" if "spread" in record else "",
    )


def table(figures, remarks):
    head = ("", "figure", "value", "limit", "ratio", "goal", "", "spread")
    rows = [head] + [row(f) for f in sorted(figures, key=order)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    print()
    if remarks["machine"]:
        print(", ".join(f"{key} {value}" for key, value in remarks["machine"].items()))
    for r in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(r, widths)).rstrip())
    for said in remarks["said"]:
        print(f"{said['name']}: {said['remark']}")
    missed = sum(f.get("met") is False for f in figures)
    wide = sum(f.get("wide", False) for f in figures)
    print(f"{len(figures)} figures, {missed} goals missed, {wide} with a wide spread")


def main():
    figures, remarks = [], {"machine": None, "said": []}
    with huge_pages():
        ok = [run(program, figures, remarks) for program in sys.argv[1:]]
    if figures:
        table(figures, remarks)
    elif all(ok):
        print(f"nothing was measured: is there a figure {os.environ.get('BENCH')}?")
    sys.exit(0 if all(ok) else 1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
