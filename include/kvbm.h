/* kvbm.h: the public interface of libkvbm, the client library of kvbmd.
 *
 * A process opens one session with the kvbmd of its node, attaches to namespaces (one per model and layout), and then
 * finds, holds, writes and publishes KV-cache blocks.  Block bytes are never copied by the library: they are read and
 * written in memory that the daemon owns and the client maps.
 *
 * Results: every call returns >= 0 (often a count) or -KVBM_E_*.  Out parameters are untouched on error unless said
 * otherwise; kvbm_strerror() names a code, kvbm_error() tells what the daemon said about the last failure.
 *
 * Threads: one struct kvbm may be used by several threads; the library serialises them.  After fork() the child's copy
 * is dead: every call answers -KVBM_E_FORKED (kvbm_close() still frees it); open a session of the child's own.
 *
 * Units: bytes, tokens, milliseconds.  Sizes of one block are given per lane (tensor-parallel rank).
 */
#ifndef KVBM_H
#define KVBM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

#define KVBM_KEY_MAX 32      /* bytes of a sequence hash, 8..32, fixed within a namespace */
#define KVBM_MAX_KEYS 16384u /* keys in one call */
#define KVBM_MAX_LANES 64u

enum kvbm_error {
	KVBM_E_INVAL = 1, /* an argument is wrong; kvbm_error() says which */
	KVBM_E_VERSION,   /* daemon and library do not speak the same major version */
	KVBM_E_PERM,      /* this uid may not do that */
	KVBM_E_NOENT,     /* no such namespace or block */
	KVBM_E_MISMATCH,  /* namespace exists with another fingerprint (both are in kvbm_error()) */
	KVBM_E_LIMIT,     /* a limit of this session or uid */
	KVBM_E_NOSPACE,   /* not enough free and droppable slots; nothing was dropped */
	KVBM_E_BUSY,      /* not now, worth asking again */
	KVBM_E_STALE,     /* the slot is no longer the caller's: deadline passed, aborted, or another generation */
	KVBM_E_NOTHELD,   /* released something that is not held; nothing changed */
	KVBM_E_TIMEOUT,   /* the deadline passed; the request may still take effect */
	KVBM_E_GONE,      /* the daemon went away; the next call tries to attach again by itself */
	KVBM_E_PROTO,     /* the peer broke the protocol; the connection was closed */
	KVBM_E_INTERNAL,  /* a fault inside the daemon; its log says more */
	KVBM_E_NOMEM,
	KVBM_E_FORKED, /* this handle belongs to the parent process */
	KVBM_E_SYS,    /* a system call failed in the library; errno is set */
	KVBM_E_MAX
};

enum kvbm_dtype {
	KVBM_DTYPE_DEFAULT = 0, /* 2 bytes, as KVBM_DTYPE_BF16 */
	KVBM_DTYPE_BF16,
	KVBM_DTYPE_FP16,
	KVBM_DTYPE_FP32,
	KVBM_DTYPE_FP8_E4M3,
	KVBM_DTYPE_FP8_E5M2,
	KVBM_DTYPE_INT8,
};

enum kvbm_layout {
	KVBM_LAYOUT_DEFAULT = 0,          /* as KVBM_LAYOUT_FULLY_CONTIGUOUS */
	KVBM_LAYOUT_FULLY_CONTIGUOUS,     /* [block][layer][outer][page][inner] */
	KVBM_LAYOUT_LAYER_SEPARATE_OUTER, /* layer -> [outer][block][page][inner] in the engine */
	KVBM_LAYOUT_LAYER_SEPARATE_BLOCK, /* layer -> [block][outer][page][inner] in the engine */
};

struct kvbm;    /* a session with the daemon */
struct kvbm_ns; /* an attached namespace of that session; freed with it */

struct kvbm_options {
	const char *socket; /* NULL: $KVBM_SOCKET, $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR or /run/kvbmd, + "/kvbmd.sock" */
	const char *name;   /* shown by kvbmctl clients; NULL: the program's name */
	int timeout_ms;     /* default deadline of a call; 0: 5000 */
	unsigned flags;     /* KVBM_OPEN_* */
};
#define KVBM_OPEN_BY_SOCKET 1u /* match and release by message, not through shared memory */

/* What a namespace holds.  Zero means the default said here.  Two sessions meet in a namespace when name and all other
 * fields agree; the same name with other fields is refused with KVBM_E_MISMATCH.
 * Slice of one lane = block_bytes, or num_layers * outer_dim * page_size * inner_dim * sizeof(dtype) bytes. */
struct kvbm_model {
	const char *name;     /* required, 1..63 of [A-Za-z0-9._/:-] */
	const char *model;    /* free text that is part of the fingerprint; NULL: "" */
	uint64_t block_bytes; /* plain bytes of one lane's slice; 0: computed from the fields below */
	uint32_t num_layers;
	uint32_t page_size; /* tokens a block; 0: 16 */
	uint32_t inner_dim; /* elements a token, layer and outer index, of one lane (heads x head size) */
	uint32_t outer_dim; /* 0: 2 (K and V); 1 for MLA */
	enum kvbm_dtype dtype;
	enum kvbm_layout layout;
	uint32_t lanes;        /* tensor-parallel ranks that each write a slice; 0: 1 */
	uint32_t key_bytes;    /* 0: 16 */
	const char *hash_algo; /* e.g. "sha256_cbor"; NULL: "" */
	const char *salt;      /* tenant or hash seed; NULL: "" */
	unsigned flags;        /* KVBM_NS_* */
	/* UUID of a GPU ("GPU-...", as nvidia-smi -L has it): the namespace's pool in its memory.  Blocks there are reserved, matched and
	 * held as any; what is committed is copied to the namespace in host memory, and kvbm_onboard() brings blocks up from there.
	 * Addresses: kvbm_cuda_data() of kvbm_cuda.h.  NULL: host memory. */
	const char *device;
};
#define KVBM_NS_CONFIRM 1u  /* shared-memory look-ups also compare the whole key (one cache line more a block) */
#define KVBM_NS_READONLY 2u /* this session will not write: regions are mapped read-only */

/* Where a block's bytes are.  Valid while it is held (or reserved), and no longer. */
struct kvbm_span {
	uint32_t slot; /* number of the slot in its namespace; UINT32_MAX: none */
	uint32_t generation;
	uint32_t region; /* of this session's own numbering; 0: not mappable */
	uint32_t tiers;  /* KVBM_TIER_* bits */
	uint64_t offset; /* of lane 0's slice in the region */
	uint64_t length; /* of one lane's slice */
};
#define KVBM_TIER_G1 1u
#define KVBM_TIER_G2 2u
#define KVBM_TIER_G3 4u
#define KVBM_TIER_G4 8u

/* Opens a session.  Waits until the daemon has answered or options->timeout_ms passed.  @options may be NULL.
 * Errors: SYS (no socket there), VERSION, PERM, LIMIT, TIMEOUT, PROTO, NOMEM. */
int kvbm_open(const struct kvbm_options *options, struct kvbm **ret_kvbm);

/* Ends the session: everything it holds is released, mappings vanish.  Slots that are reserved and neither committed nor aborted stay out of use
 * until this process ends, because the daemon cannot know that nothing writes into them any more: abort them before.  NULL is fine. */
void kvbm_close(struct kvbm *kvbm);

/* Attaches to the namespace @model describes, creating it if nobody has.  The result lives until kvbm_close().
 * Errors: INVAL, MISMATCH, PERM, LIMIT (number of namespaces), NOSPACE (a block is larger than the pool), GONE; with a device NOENT (there are no
 * pools on it: g1.size), BUSY (it is offline for now). */
int kvbm_attach(struct kvbm *kvbm, const struct kvbm_model *model, struct kvbm_ns **ret_ns);

uint64_t kvbm_lane_bytes(const struct kvbm_ns *ns); /* bytes of one lane's slice */
uint32_t kvbm_ns_lanes(const struct kvbm_ns *ns);
uint32_t kvbm_ns_key_bytes(const struct kvbm_ns *ns);
void kvbm_fingerprint(const struct kvbm_ns *ns, uint8_t ret_fingerprint[16]);

/* Reserves slots to write blocks into.
 *
 * With @keys (n * key_bytes, packed) blocks the node already has, or gets in this very call twice, are not reserved:
 * their span has slot UINT32_MAX.  Without keys, n slots are reserved.  All or nothing: on -KVBM_E_NOSPACE nothing was
 * dropped or reserved.  @lane: the lane this process will write, or KVBM_ALL_LANES; with more than one lane @keys is
 * required, and processes that reserve the same key for different lanes share one slot.
 * The slots are the caller's until commit, abort, the daemon's write deadline or the end of the session.
 * @ret_dropped (may be NULL): blocks dropped to make room.
 * Returns the number of slots reserved.  Errors: INVAL, LIMIT, NOSPACE, PERM, TIMEOUT, GONE. */
#define KVBM_ALL_LANES UINT32_MAX
int kvbm_reserve(struct kvbm_ns *ns, uint32_t lane, const void *keys, uint32_t n, struct kvbm_span *ret_spans,
                 uint32_t *ret_dropped);

/* Publishes written blocks.  Block i is in spans[i] and has keys[i]; its parent is keys[i-1], that of the first @parent
 * (key_bytes; NULL: a root).  With KVBM_PARENTS @parent points to n packed parent keys instead (all zero: a root).
 * When another process was first with a key, its block stays, ours is freed and spans[i] is changed to the canonical
 * one.  After success the slots are no longer the caller's; with KVBM_HOLD they are held for reading as by kvbm_match(), but for those that
 * still miss lanes or would exceed this session's limit of pins, whose span then has slot UINT32_MAX.
 * With KVBM_NOWAIT the call returns once the request is written; outcomes are counted, not told (not with KVBM_HOLD).
 * All or nothing: on INVAL (lane, length, a slot named twice) and STALE the caller still owns the slots that it owned.
 * @lane is as it was reserved: lanes reserved one by one are committed (or aborted) one by one.
 * Returns the number of blocks that are new to the node (with lanes: that became complete and new). */
#define KVBM_HOLD 1u
#define KVBM_PARENTS 2u
#define KVBM_NOWAIT 4u
int kvbm_commit(struct kvbm_ns *ns, uint32_t lane, struct kvbm_span *spans, const void *keys, uint32_t n,
                const void *parent, unsigned flags);

/* Gives reserved slots back unwritten or half written.  The caller must have stopped writing (DMA included).
 * Returns the number given back.  Errors: STALE (one was not the caller's; nothing changed), GONE. */
int kvbm_abort(struct kvbm_ns *ns, uint32_t lane, const struct kvbm_span *spans, uint32_t n);

/* Finds the longest prefix of keys[0..n) that is in memory on this node and holds it: the blocks neither move nor
 * vanish until kvbm_release(), kvbm_close() or the death of this process.  Through shared memory unless the session was
 * opened by socket: no system call, no message.  With KVBM_SCATTERED every position is looked up; absent ones get slot
 * UINT32_MAX and the number of hits is returned.  With KVBM_PEEK nothing is held (spans are a hint, do not read them).
 * Returns the number of hits h; ret_spans[0..h) (scattered: [0..n)) are filled; ret_spans may be NULL with KVBM_PEEK.
 * Errors: INVAL, LIMIT (pins of this session), FORKED; GONE only by socket: a vanished daemon is 0 hits. */
#define KVBM_SCATTERED 1u
#define KVBM_PEEK 2u
int kvbm_match(struct kvbm_ns *ns, const void *keys, uint32_t n, unsigned flags, struct kvbm_span *ret_spans);

/* Brings the leading blocks of keys[0..n) that are on this node, but below host memory, up into it, and waits for them.
 *
 * @options may be NULL.  ret_status (may be NULL): n of enum kvbm_status.  ret_spans (may be NULL): n; blocks that are not DONE get slot
 * UINT32_MAX.  With KVBM_HOLD the leading DONE blocks are held as by kvbm_match().  The first block that is not DONE ends the prefix: what lies behind it
 * is not brought up.
 * Returns the number of leading blocks that are in memory now.  Errors: INVAL, LIMIT (requests or holds of this session), TIMEOUT, GONE. */
enum kvbm_status {
	KVBM_DONE = 1,
	KVBM_MISSING,  /* the node has it nowhere */
	KVBM_BUSY,     /* it has, but no room in memory for the moment: worth asking again, a bounded number of times */
	KVBM_FAILED,   /* it could not be read, or was not what had been stored: compute it */
	KVBM_DEADLINE, /* it did not come in time; it may still come */
	KVBM_RECOMPUTE, /* it would come later than it is computed at options->tokens_per_s */
};
struct kvbm_onboard_options {
	unsigned flags;        /* KVBM_HOLD */
	int timeout_ms;        /* for what is still to come then; 0: the session's */
	uint32_t tokens_per_s; /* at which the caller would compute the blocks; 0: never answer RECOMPUTE */
};
int kvbm_onboard(struct kvbm_ns *ns, const void *keys, uint32_t n, const struct kvbm_onboard_options *options,
                 uint8_t *ret_status, struct kvbm_span *ret_spans);

/* The same ahead of need: returns at once, holds nothing, never makes room by dropping what is not below as well.  Returns n. */
int kvbm_prefetch(struct kvbm_ns *ns, const void *keys, uint32_t n);

/* Lets go of held blocks, once for each time they were held; tail first is what keeps roots longest.
 * Returns n.  Errors: NOTHELD (one of them is not held by this session: nothing changed). */
int kvbm_release(struct kvbm_ns *ns, const struct kvbm_span *spans, uint32_t n);

/* Address of @lane's slice of a held (readable) or reserved (writable) block, mapping its region at first use.
 * NULL: cannot be mapped (stale span, daemon gone); kvbm_error() says why.  The address is good while the block is held. */
void *kvbm_data(struct kvbm_ns *ns, const struct kvbm_span *span, uint32_t lane);

/* For libraries that open device memory, which this one does not: the same of a pool's block, as an address on its device.  kvbm_cuda.h has it ready
 * for CUDA.  @mapper opens a region at first use; it is kept until the namespace needs it no more.
 * Errors: INVAL (host memory), STALE (no such address: kvbm_error() says why), FORKED. */
struct kvbm_device_region {
	const char *device; /* UUID */
	uint64_t size;
	int writable;             /* 0: to be mapped read-only, where that can be */
	int fd;                   /* of cuMem memory, closed by the caller of map(); -1: there is a handle */
	unsigned char handle[64]; /* a cudaIpcMemHandle */
};
struct kvbm_mapper {
	/* 0 with *ret_base and *ret_mapping (not NULL); or -KVBM_E_* with a text of at most @size bytes in @why. */
	int (*map)(const struct kvbm_device_region *region, uint64_t *ret_base, void **ret_mapping, char *why, size_t size);
	void (*unmap)(void *mapping);
};
int kvbm_device_address(struct kvbm_ns *ns, const struct kvbm_span *span, uint32_t lane,
                        const struct kvbm_mapper *mapper, uint64_t *ret_address);

/* Advice; the daemon may ignore it.  RELEASE: these blocks will hardly be used again.  RETAIN: keep for @ttl_ms,
 * @priority 0..100.  TOUCH: as if used now.  Returns the number of blocks that were known. */
enum kvbm_hint { KVBM_HINT_RELEASE = 1, KVBM_HINT_RETAIN, KVBM_HINT_TOUCH };
int kvbm_hint(struct kvbm_ns *ns, enum kvbm_hint hint, const void *keys, uint32_t n, uint32_t ttl_ms, uint32_t priority);

/* Per key the KVBM_TIER_* bits of where it is (0: nowhere), without holding or touching.  Returns the number present. */
int kvbm_stat(struct kvbm_ns *ns, const void *keys, uint32_t n, uint32_t *ret_tiers);

/* A round trip that does nothing. */
int kvbm_ping(struct kvbm *kvbm);

/* Asks the daemon for a report: @topic "status", "namespaces", "clients", "tiers", "block", "why", "metrics"; @name a
 * namespace (NULL: all), @key for block and why.  *ret_json is freed by the caller with free(). */
int kvbm_info(struct kvbm *kvbm, const char *topic, const char *name, const void *key, uint32_t key_bytes, char **ret_json);

/* Administration: @action "flush" (drop every block that is not in use), "drop" (these keys, or the whole namespace when
 * n is 0).  Returns the number of blocks dropped; *ret_kept (may be NULL) those in use.  Millions of blocks take seconds, in which
 * others are served; it ends unfinished with the session.  "prefetch": brings the leading ones of these keys into memory and waits for up to
 * 4 s; returns how many are there then, *ret_kept: those that are not.  "drain": begins to write whatever is not below memory yet; returns how
 * many blocks that is, *ret_kept: those that cannot go there.  Errors: PERM, NOENT; BUSY (what is below is offline). */
int kvbm_admin(struct kvbm *kvbm, const char *action, const char *name, const void *keys, uint32_t key_bytes,
               uint32_t n, uint32_t *ret_kept);

/* For a host event loop: poll kvbm_get_fd() for input and call kvbm_dispatch() when readable.  It notices a daemon that
 * went away and collects the outcomes of KVBM_NOWAIT commits.  Returns the number of replies taken. */
int kvbm_get_fd(struct kvbm *kvbm);
int kvbm_dispatch(struct kvbm *kvbm);

/* Counters of this session since it was opened. */
struct kvbm_counters {
	uint64_t looked_up, hits, misses; /* blocks */
	uint64_t commits_new, commits_existing, commits_failed;
	uint64_t reconnects;
	uint64_t boot_id; /* of the daemon last spoken to */
};
void kvbm_get_counters(struct kvbm *kvbm, struct kvbm_counters *ret_counters);

const char *kvbm_strerror(int error);            /* of a positive or negative KVBM_E_* */
const char *kvbm_error(const struct kvbm *kvbm); /* text of the last failure of this session; never NULL */

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
