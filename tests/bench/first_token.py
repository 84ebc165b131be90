#!/usr/bin/env python3
"""P18: time to first token in the real vLLM on the CPU, with a prefix of 1,900 tokens that another engine stored; beside it the time with vLLM's own
prefix cache, in the same engine, and the time without either.  A random Llama of about 100 million parameters; one thread.

Run by `make bench BENCH=P18`, which prepares the environment as `make check-vllm` does.  Prints JSON lines, as the other programs here.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))

from tests.python.case import Daemon  # noqa: E402
from tests.python.vllm.test_engines import HERE, PYTHON, Engine, Factory, environment, prompt  # noqa: E402

PREFIX, QUESTION, ROUNDS, GOAL = 1900, 12, 7, 1.3
BLOCK = 32


def settings(model, socket):
    transfer = {"kv_connector": "KvbmdConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute", "kv_connector_extra_config": {"socket": socket}}
    more = {"kv_transfer_config": transfer} if socket else {}
    return dict(
        model=model, skip_tokenizer_init=True, enforce_eager=True, dtype="bfloat16", max_model_len=2048, block_size=BLOCK, seed=0, max_num_seqs=2,
        max_num_batched_tokens=2048, enable_prefix_caching=bool(socket), **more,
    )  # fmt: skip


def asked(engine, prefixes, salt, cached=None):
    """Seconds to the first token of each prefix with a question of its own."""
    engine.connection.settimeout(1800)
    got = engine.generate([p + prompt(salt + i, QUESTION) for i, p in enumerate(prefixes)], 1)
    if cached is not None and set(got["cached"]) != {cached}:
        raise SystemExit(f"P18: {got['cached']} tokens were cached, not {cached}")
    return got["seconds"]


def measure(folder, daemon):
    model = os.path.join(folder, "model")
    subprocess.run([PYTHON, os.path.join(HERE, "model.py"), model, "--big"], env=environment(), check=True, stdout=sys.stderr)
    factory = Factory(folder)
    try:
        prefixes = [prompt(1000 + i, PREFIX) for i in range(ROUNDS)]
        whole = PREFIX // BLOCK * BLOCK
        first = Engine(factory, settings(model, daemon.socket))
        asked(first, prefixes, 10000, 0)
        first.end()
        second = Engine(factory, settings(model, daemon.socket))
        asked(second, [prompt(1, PREFIX)], 20000, 0)
        ours, own = [], []
        for i, prefix in enumerate(prefixes):  # in turns, so that what else the machine does is in both
            ours += asked(second, [prefix], 30000 + i, whole)
            own += asked(second, [prefix], 40000 + i, whole)
        second.end()
        none = Engine(factory, settings(model, None))
        asked(none, [prompt(1, PREFIX)], 50000, 0)
        computed = asked(none, prefixes[:3], 60000, 0)
        none.close()
    finally:
        factory.end()
    return ours, own, computed


def record(variant, seconds, of=None, **more):
    """of: what the spread is of, if not of the seconds."""
    values = of or seconds
    spread = (max(values) - min(values)) / statistics.median(values)
    value = statistics.median(seconds) * 1000
    print(json.dumps(dict(name="P18", variant=variant, placement="1 thread", value=value, unit="ms", spread=spread, wide=spread > 0.2, **more)), flush=True)


def main():
    with tempfile.TemporaryDirectory(prefix="kvbmd-p18-") as folder:
        daemon = Daemon(size="512M")
        try:
            ours, own, computed = measure(folder, daemon)
        finally:
            daemon.remove()
    limit = statistics.median(own)
    ratios = [a / b for a, b in zip(ours, own)]
    ratio = statistics.median(ratios)
    record("first token, prefix stored by another engine", ours, ratios, limit=limit * 1000, limit_is="own hit, ms", ratio=ratio, goal=f"<= {GOAL}", met=ratio <= GOAL)
    record("first token, vLLM's own hit", own)
    record("first token, computed", computed)


if __name__ == "__main__":
    main()
