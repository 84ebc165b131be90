# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
"""KV hints that a router sent with a request (vLLM's v1/kv_hints; as kv_transfer_params too), as calls of kvbmd.

Advice: what is unknown is counted and passed over, and nothing here raises.
"""


def actions_of(request):
    """[(type, payload)] of a request's hints."""
    found = []
    params = getattr(request, "kv_transfer_params", None)
    sources = [getattr(request, "kv_hints", None)]
    if isinstance(params, dict):
        sources += [params.get("kv_hints"), params.get("kv_hint")]
    for source in sources:
        for envelope in source if isinstance(source, (list, tuple)) else [source]:
            actions = _get(envelope, "actions")
            for action in actions if isinstance(actions, (list, tuple)) else ():
                payload = _get(action, "payload")
                found.append((str(_get(action, "action_type")), payload if isinstance(payload, dict) else {}))
    return found


def _get(thing, name):
    return thing.get(name) if isinstance(thing, dict) else getattr(thing, name, None)


def _number(value, least, most, otherwise):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return otherwise
    return int(min(max(value, least), most))


def calls_of(kind, payload, n_blocks, block_tokens):
    """What a known action asks of blocks [first, end) of the request: [(verb, first, end, ttl in ms, priority)].  None: it is unknown."""
    if kind in ("kv.prefetch", "kv.fetch"):
        return [("prefetch", 0, n_blocks, 0, 0)]
    if kind in ("kv.deref", "kv.demote"):
        return [("release", 0, n_blocks, 0, 0)]
    if kind != "kv.retain":
        return None
    calls = []
    for directive in payload.get("directives") or [payload]:
        if not isinstance(directive, dict):
            continue
        first = _number(directive.get("start"), 0, 1 << 40, 0) // block_tokens
        end = min(-(-_number(directive.get("end"), 0, 1 << 40, n_blocks * block_tokens) // block_tokens), n_blocks)
        ttl_ms = _number(directive.get("duration"), 0, 4_000_000, 60) * 1000
        if first < end:
            calls.append(("retain", first, end, ttl_ms, _number(directive.get("priority"), 0, 100, 50)))
    return calls
