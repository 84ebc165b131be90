"""A Llama of 25 million parameters whose KV pages are kvbmd's blocks, so that a process that was restarted goes on where the last one was.

It answers one prompt twice, each time in a new process: once without looking up what is there (it stores what it computes), once with.  Both must come
to the same logits, bit by bit.  Weights and prompt are random, and the same in every process.  Needs torch.
"""

import hashlib
import json
import os
import subprocess
import sys
import time

import kvbmd
import torch
import torch.nn.functional as F

VOCABULARY, LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD, FEED = 4096, 8, 512, 8, 4, 64, 1408
PAGE = 64  # tokens
KV = KV_HEADS * HEAD
MODEL = dict(num_layers=LAYERS, page_size=PAGE, inner_dim=KV, dtype=torch.float32)  # 1 MiB a block: (layers, K and V, tokens, elements)


class Llama:
    """The model, which knows nothing of caches: its keys and values are in pages that somebody gives it."""

    def __init__(self):
        random = torch.Generator().manual_seed(7)

        def weight(rows, columns):
            return torch.randn(rows, columns, generator=random) / rows**0.5

        self.embedding = weight(VOCABULARY, HIDDEN)
        self.layers = [
            dict(q=weight(HIDDEN, HEADS * HEAD), k=weight(HIDDEN, KV), v=weight(HIDDEN, KV), out=weight(HEADS * HEAD, HIDDEN),
                 gate=weight(HIDDEN, FEED), up=weight(HIDDEN, FEED), down=weight(FEED, HIDDEN))
            for _ in range(LAYERS)
        ]  # fmt: skip
        turns = torch.outer(torch.arange(8192.0), 10000.0 ** (-torch.arange(0, HEAD, 2) / HEAD))
        self.turns = torch.polar(torch.ones_like(turns), turns)

    def rotate(self, x, start):
        """Tells each head its position: x is (tokens, heads, HEAD)."""
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.turns[start : start + len(x), None]).flatten(-2)

    def step(self, tokens, start, pages):
        """Computes tokens, at the positions from start on and all of one page: writes their K and V into pages[-1], and returns the logits of the next."""
        end, at = start + len(tokens), start % PAGE
        seen = torch.arange(end) <= torch.arange(start, end)[:, None]
        x = F.embedding(torch.tensor(tokens), self.embedding)
        for i, w in enumerate(self.layers):
            h = F.rms_norm(x, (HIDDEN,))
            pages[-1][i, 0, at : at + len(tokens)] = self.rotate((h @ w["k"]).view(-1, KV_HEADS, HEAD), start).flatten(1)
            pages[-1][i, 1, at : at + len(tokens)] = h @ w["v"]
            q = self.rotate((h @ w["q"]).view(-1, HEADS, HEAD), start)
            k, v = (torch.cat([page[i, which] for page in pages])[:end].view(-1, KV_HEADS, HEAD) for which in (0, 1))
            k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1).transpose(0, 1) for t in (k, v))
            found = F.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=seen)
            x = x + found.transpose(0, 1).flatten(1) @ w["out"]
            h = F.rms_norm(x, (HIDDEN,))
            x = x + (F.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"]
        return F.rms_norm(x[-1], (HIDDEN,)) @ self.embedding.T


def hashes_of(tokens):
    """A hash for each full page, of its tokens and all before them: equal hashes mean equal KV."""
    hashes, before = [], hashlib.sha256(b"tiny_llama 7").digest()
    for start in range(0, len(tokens) - PAGE + 1, PAGE):
        before = hashlib.sha256(before + json.dumps(tokens[start : start + PAGE]).encode()).digest()
        hashes.append(before[:16])
    return hashes


def publish(cache, tokens, page):
    """Makes a page that decoding has filled a block, and returns it as it lies there."""
    *before, last = hashes_of(tokens)
    blocks = cache.allocate_blocks(1)
    torch.from_dlpack(blocks[0]).copy_(page)
    blocks.commit([last], parent=before[-1] if before else None)
    return torch.from_dlpack(blocks[0])  # the tensor holds the block


def answer(model, cache, prompt, count, look_up=True):
    """Prefills the prompt and decodes count tokens.  Every page that gets full becomes a block, which any process finds."""
    started = time.perf_counter()
    full = (len(prompt) - 1) // PAGE  # the last token is always computed: its logits are what we came for
    hashes = hashes_of(prompt)[:full]
    found = cache.match(hashes if look_up else [])  # held from here on: these pages neither move nor vanish
    fresh = cache.allocate_blocks(full - len(found))  # slots for the others
    begun = torch.empty(LAYERS, 2, PAGE, KV)  # a page that is not full is nobody else's business yet
    pages = [torch.from_dlpack(block) for block in found]  # no copy; read-only, which torch cannot say
    for page in [*(torch.from_dlpack(block) for block in fresh), begun]:
        start = len(pages) * PAGE
        pages.append(page)
        logits = model.step(prompt[start : start + PAGE], start, pages)
    first = time.perf_counter() - started

    if fresh:  # to publish them we must be unable to write them: the tensors go, and new ones see the same memory
        del pages[len(found) :]
        fresh.commit(hashes[len(found) :], parent=found[-1].hash if found else None)
        pages += [*(torch.from_dlpack(block) for block in fresh), begun]

    tokens, digest = list(prompt), hashlib.sha256(logits.numpy())
    for _ in range(count):
        tokens.append(int(logits.argmax()))
        if (len(tokens) - 1) % PAGE == 0:
            pages[-1] = publish(cache, tokens, begun)
            pages.append(begun := torch.empty_like(begun))
        logits = model.step(tokens[-1:], len(tokens) - 1, pages)
        digest.update(logits.numpy())
    return dict(
        pages=len(found), computed=len(prompt) - len(found) * PAGE, first=first, logits=digest.hexdigest(), tokens=tokens[len(prompt) :]
    )


def one_process(look_up):
    """What a server does, for one request."""
    torch.set_num_threads(1)  # the same sums in the same order, however many cores there are
    model, prompt = Llama(), torch.randint(VOCABULARY, (1000,), generator=torch.Generator().manual_seed(1)).tolist()
    model.step(prompt[:PAGE], 0, [torch.empty(LAYERS, 2, PAGE, KV)])  # the first call of anything is slow, and not what we measure
    with kvbmd.BlockManager(**MODEL, namespace="tiny_llama") as cache:
        print(json.dumps(answer(model, cache, prompt, 32, look_up)))


def main():
    with kvbmd.BlockManager(**MODEL, namespace="tiny_llama") as cache:  # if no kvbmd runs, this starts a private one, for both processes
        environment = {**os.environ, **({"KVBM_SOCKET": cache.embedded.socket} if cache.embedded else {})}
        without, found = (
            json.loads(subprocess.run([sys.executable, __file__, how], env=environment, stdout=subprocess.PIPE, check=True).stdout)
            for how in ("without", "with")
        )
    same = without["logits"] == found["logits"] and without["tokens"] == found["tokens"]
    print(f"{'':20} {'without':>12} {'with kvbmd':>12}")
    print(f"{'pages found':20} {without['pages']:12} {found['pages']:12}")
    print(f"{'tokens computed':20} {without['computed']:12} {found['computed']:12}")
    print(f"{'time to first token':20} {without['first'] * 1000:9.1f} ms {found['first'] * 1000:9.1f} ms   {without['first'] / found['first']:.1f} times sooner")
    print(f"{'logits (sha256)':20} {without['logits'][:12]:>12} {found['logits'][:12]:>12}   {'identical' if same else 'DIFFERENT'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(one_process(sys.argv[1] == "with") if len(sys.argv) > 1 else main())
