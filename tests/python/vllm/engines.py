"""A process that has vLLM imported, and forks an engine for each connection to its socket: an engine is there in two seconds instead of ten.

usage: engines.py SOCKET

Lines of JSON both ways.  First {"environment": .., "settings": ..} -> {"version": ..}, then any of
    {"do": "generate", "prompts": [[token]], "new": n, "together": bool} -> {"tokens": .., "cached": .., "finish": .., "seconds": ..}
    {"do": "abort in load", "prompt": [token], "at": FIFO, "go": FIFO} -> {"steps": n}
    {"do": "stats"} -> {name: n}
    {"do": "end"} -> {}, and the engine shuts down.
The end of the connection ends the engine as well, at once.
"""

import gc
import json
import os
import socket
import sys
import time
import traceback

READY = os.dup(1)
os.dup2(2, 1)  # vLLM's own words go into the log

os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
    OMP_NUM_THREADS="1", VLLM_ENABLE_V1_MULTIPROCESSING="0",
)  # fmt: skip

import vllm  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402

gc.freeze()


class Engine:
    def __init__(self, settings):
        keep = settings.pop("keep_stats", False)
        self.llm = LLM(**settings)
        self.engine = self.llm.llm_engine
        self.totals, self.n = {}, 0
        if keep:
            self._watch()

    def _watch(self):
        """Adds up what the connector tells vLLM's loggers and its publisher of events."""
        core = self.engine.engine_core.engine_core
        original = core.scheduler.make_stats

        def make_stats(*args, **keywords):
            stats = original(*args, **keywords)
            for name, value in (getattr(stats, "kv_connector_stats", None) or {}).items():
                self.totals[name] = self.totals.get(name, 0) + value
            sources = getattr(stats, "connector_prefix_cache_stats", None)
            if sources is not None:
                self.totals["external_hits"] = self.totals.get("external_hits", 0) + sources.hits
            return stats

        core.scheduler.make_stats = make_stats
        connector = core.scheduler.connector
        take_events = connector.take_events

        def count_events():
            events = list(take_events())
            told = sum(len(e.block_hashes) for e in events if type(e).__name__ == "BlockStored" and e.medium == "CPU")
            self.totals["events"] = self.totals.get("events", 0) + told
            return events

        connector.take_events = count_events

    def sampling(self, new):
        return SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, detokenize=False)

    def generate(self, command):
        requests = [{"prompt_token_ids": p} for p in command["prompts"]]
        sampling = self.sampling(command["new"])
        out, seconds = [], []
        for several in [requests] if command.get("together") else [[r] for r in requests]:
            began = time.monotonic()
            out += self.llm.generate(several, sampling, use_tqdm=False)
            seconds.append(time.monotonic() - began)
        return {
            "tokens": [list(o.outputs[0].token_ids) for o in out],
            "finish": [o.outputs[0].finish_reason for o in out],
            "cached": [o.num_cached_tokens for o in out],
            "seconds": seconds,
        }

    def abort_in_load(self, command):
        self.n += 1
        name = f"aborted-{self.n}"
        given = self.engine.add_request(name, {"prompt_token_ids": command["prompt"]}, self.sampling(4))
        self.engine.step()
        with open(command["at"], "rb"):  # the load has begun
            pass
        self.engine.abort_request([given or name])
        for _ in range(3):
            self.engine.step()
        with open(command["go"], "wb"):
            pass
        steps = 0
        scheduler = self.engine.engine_core.engine_core.scheduler
        while scheduler.requests and steps < 100000:
            self.engine.step()
            steps += 1
        return {"steps": steps, "left": len(scheduler.requests)}


def serve(connection):
    lines = connection.makefile("rw", encoding="utf-8")

    def reply(what):
        lines.write(json.dumps(what) + "\n")
        lines.flush()

    first = json.loads(lines.readline())
    os.environ.update(first["environment"])
    engine = Engine(first["settings"])
    reply({"version": vllm.__version__, "pid": os.getpid()})
    for line in lines:
        command = json.loads(line)
        if command["do"] == "generate":
            reply(engine.generate(command))
        elif command["do"] == "abort in load":
            reply(engine.abort_in_load(command))
        elif command["do"] == "stats":
            reply(engine.totals)
        elif command["do"] == "end":
            engine.engine.engine_core.shutdown()
            reply({})
            return


def main():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen(8)
    os.write(READY, b"ready\n")
    os.close(READY)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            status = 1
            try:
                serve(connection)
                status = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        connection.close()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


if __name__ == "__main__":
    main()
