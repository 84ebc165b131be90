# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
"""What may be shared with whom: the namespaces of an engine, one for each of its KV cache groups.

Both roles derive them from the same configuration and must arrive at the same; nothing of it is sent.  Whatever changes the bytes of a page, or what the hash
of a block stands for, is in the digest: engines that differ in it have namespaces of different names and do not meet.
"""

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass

from . import api

FORMAT = 1  # of pages within a slice


@dataclass
class Group:
    """One KV cache group: its own table of blocks, its own namespace."""

    index: int
    name: str
    block_tokens: int
    hash_step: int  # hashes of the request to one of its blocks
    lane_bytes: int
    layers: tuple
    window: int  # tokens that its layers look back; 0: all


@dataclass
class Identity:
    groups: list
    model: str  # the text that is part of the fingerprint
    lanes: int
    lane: int  # of this process; scheduler: 0
    writes: bool  # it stores its lane, and is not a replica of the one that does
    hash_tokens: int
    key_bytes: int
    hash_algo: str
    salt: str
    align: int  # hits end at a multiple of that many tokens
    private: bool  # nobody else can have the same hashes


class Unsupported(Exception):
    """A model or setting that the connector does not store; it says which."""


def _text(value):
    return str(value).replace("torch.", "")


def _spec_name(spec):
    return type(spec).__name__


def _specs(group):
    """The specs of a group's layers: one for all, or one each."""
    spec = group.kv_cache_spec
    each = getattr(spec, "kv_cache_specs", None)
    return [each[layer] for layer in group.layer_names] if each else [spec] * len(group.layer_names)


def _window(specs):
    windows = set()
    for spec in specs:
        name = _spec_name(spec)
        # The manager of blocks of a full attention spec keeps all of them, whatever its layers' windows are.
        if "FullAttention" in name or "MLAAttention" in name and "Sliding" not in name:
            windows.add(0)
        elif name == "SlidingWindowSpec" and not getattr(spec, "extra_retained_tokens", 0):
            windows.add(int(spec.sliding_window))
        else:
            raise Unsupported(f"layers of kind {name}")
    if len(windows) != 1:
        raise Unsupported(f"a group whose layers look back {sorted(windows)} tokens")
    return windows.pop()


def _weights(model):
    """Sizes of the files of a local model: two trainings in one folder should differ."""
    try:
        names = sorted(n for n in os.listdir(model) if n.endswith((".safetensors", ".bin", ".pt", ".gguf")))
        return [[n, os.path.getsize(os.path.join(model, n))] for n in names]
    except OSError:
        return []


def _model_facts(vllm_config):
    model, cache = vllm_config.model_config, vllm_config.cache_config
    hf = getattr(model, "hf_config", None)
    try:
        config = hf.to_json_string() if hf is not None else ""
    except Exception:
        config = ""
    return {
        "model": _text(model.model),
        "revision": _text(getattr(model, "revision", None)),
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "weights": _weights(_text(model.model)),
        "dtype": _text(getattr(model, "dtype", "")),
        "quantization": _text(getattr(model, "quantization", None)),
        "cache_dtype": _text(getattr(cache, "cache_dtype", "auto")),
        "device": _text(getattr(getattr(vllm_config, "device_config", None), "device_type", "")),
        "speculative": _text(getattr(getattr(vllm_config, "speculative_config", None), "model", None)),
    }


def _ranks(vllm_config, role):
    """(tp rank, pp rank) of this process."""
    parallel = vllm_config.parallel_config
    tp = getattr(parallel, "tensor_parallel_size", 1)
    if role == api.KVConnectorRole.SCHEDULER:
        return 0, 0
    if api.HAVE_VLLM:
        try:
            from vllm.distributed import parallel_state

            if parallel_state.model_parallel_is_initialized():
                return parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_pp_group().rank_in_group
        except (ImportError, AttributeError, AssertionError):
            pass
    rank = getattr(parallel, "rank", 0)
    return rank % tp, rank // tp


def _key_bytes(algo):
    return 16 if algo.startswith("xxhash") else 32


def describe(vllm_config, kv_cache_config, role, options):
    """The Identity of this engine; raises Unsupported."""
    if kv_cache_config is None or not kv_cache_config.kv_cache_groups:
        raise Unsupported("an engine without a KV cache, or a vLLM that does not tell its connector of it")
    device = _text(getattr(getattr(vllm_config, "device_config", None), "device_type", "cpu"))
    if device not in ("cpu", "cuda"):
        raise Unsupported(f"pages on {device}: they must be in the host's memory or a CUDA device's")
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    tp = getattr(parallel, "tensor_parallel_size", 1)
    pp = getattr(parallel, "pipeline_parallel_size", 1)
    dcp = getattr(parallel, "decode_context_parallel_size", 1)
    pcp = getattr(parallel, "prefill_context_parallel_size", 1)
    specs = [_specs(g) for g in kv_cache_config.kv_cache_groups]
    if len(specs) > 1 and api.KVConnectorTransferResults is None:
        raise Unsupported("several KV cache groups, of which this vLLM cannot be told that a load failed")
    windows = [_window(s) for s in specs]
    tokens = [int(g.kv_cache_spec.block_size) * (dcp if getattr(g.kv_cache_spec, "dcp_sharded", dcp > 1) else 1) * pcp for g in kv_cache_config.kv_cache_groups]
    # One of several groups hashes at their greatest common divisor, unless the engine says otherwise.
    hash_tokens = getattr(kv_cache_config, "hash_block_size", None) or getattr(cache, "prefix_match_unit", None)
    if not hash_tokens or len(tokens) == 1:
        hash_tokens = math.gcd(*tokens)
    if any(t % hash_tokens for t in tokens):
        raise Unsupported(f"blocks of {tokens} tokens with a hash every {hash_tokens}")
    # Ranks that hold the same bytes share one lane, and the first of them writes it.
    replicated = bool(getattr(vllm_config.model_config, "use_mla", False)) and dcp == 1 and tp > 1
    tp_rank, pp_rank = _ranks(vllm_config, role)
    lanes = pp if replicated else tp * pp
    if lanes > 64:
        raise Unsupported(f"{lanes} ranks, of which a block has at most 64")
    algo = _text(getattr(cache, "prefix_caching_hash_algo", ""))
    seed = api.hash_seed()
    facts = {
        "format": FORMAT,
        "vllm": api.version(),
        **_model_facts(vllm_config),
        "layout": _text(getattr(kv_cache_config, "kv_cache_layout", None) or getattr(cache, "kv_cache_layout", None)),
        "parallel": [tp, pp, dcp, pcp, replicated],
        "hash": [algo, seed, _text(options.get("salt", "")), hash_tokens],
        "groups": [[_spec_name(s[0]), t, w, [s.page_size_bytes for s in s], len(s)] for s, t, w in zip(specs, tokens, windows)],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    prefix = re.sub(r"[^A-Za-z0-9._/:-]", "-", str(options.get("namespace", "vllm")))[:32]
    groups = []
    for i, group in enumerate(kv_cache_config.kv_cache_groups):
        name = f"{prefix}/{digest[:16]}/{i}"
        lane_bytes = sum(int(s.page_size_bytes) for s in specs[i])
        if lane_bytes > 4096 and device == "cpu":
            # What goes to NVMe is whole pages, and memory is given out by them anyway.  What a device copies has its exact size.
            lane_bytes = -(-lane_bytes // 4096) * 4096
        groups.append(Group(i, name, tokens[i], tokens[i] // hash_tokens, lane_bytes, tuple(group.layer_names), windows[i]))
    salt = f"{seed if seed is not None else 'random'}|{options.get('salt', '')}"
    return Identity(
        groups=groups,
        model=f"{os.path.basename(_text(vllm_config.model_config.model))[:60]} {digest}",
        lanes=lanes,
        lane=pp_rank if replicated else pp_rank * tp + tp_rank,
        writes=not replicated or tp_rank == 0,
        hash_tokens=hash_tokens,
        key_bytes=_key_bytes(algo),
        hash_algo=algo,
        salt=salt,
        align=math.lcm(*tokens),
        private=seed is None or (algo.startswith("xxhash") and "PYTHONHASHSEED" not in os.environ),
    )
