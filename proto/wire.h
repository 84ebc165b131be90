/* SPDX-License-Identifier: Apache-2.0 */
/* The frame, the same file at both ends.
 *
 *   offset size
 *        0    4  magic, the bytes 'K' 'V' 'B' '1'
 *        4    2  verb (enum Verb of kvbm.proto)
 *        6    2  flags: bit 0 reply; every other bit zero, else the frame is refused
 *        8    4  payload length, 0..WIRE_MAX_PAYLOAD
 *       12    2  number of descriptors, 0..WIRE_MAX_FDS
 *       14    2  zero
 *       16    8  request id, chosen by the client, repeated in the reply
 *       24       payload: one protobuf message
 *
 * All numbers little-endian.  The descriptors of a frame ride, as one SCM_RIGHTS message, on its first byte.
 *
 * Everything here is for one thread at a time and never blocks, but for wire_wait().  Return values: 0, an outcome
 * WIRE_E_* > 0, or -errno (-ENOMEM, or what the socket said).
 */
#ifndef KVBM_PROTO_WIRE_H
#define KVBM_PROTO_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_MAGIC 0x3142564bu
#define WIRE_HEADER_BYTES 24u
#define WIRE_MAX_PAYLOAD (1024u * 1024u)
#define WIRE_MAX_FRAME (WIRE_HEADER_BYTES + WIRE_MAX_PAYLOAD)
#define WIRE_MAX_FDS 16u
#define WIRE_MAX_MARKS 64u /* frames with descriptors waiting in one wire_out */

#define WIRE_FLAG_REPLY 1u
#define WIRE_FLAGS_KNOWN WIRE_FLAG_REPLY

enum {
	WIRE_E_AGAIN = 1, /* nothing more for now: wait for the socket */
	WIRE_E_EOF,       /* the peer has gone */
	WIRE_E_BAD,       /* the peer breaks the protocol; wire_in_reason() says how; close it */
	WIRE_E_FULL,      /* a limit of ours; nothing has changed */
};

/* Who says what, in our own byte order. */
struct wire_head {
	uint16_t verb;
	uint16_t flags;
	uint64_t id;
};

struct wire_frame {
	struct wire_head head;
	uint32_t length;
	const uint8_t *payload; /* borrows: valid until the next call on that wire_in */
	unsigned n_fds;
	int fds[WIRE_MAX_FDS]; /* owns: close with wire_frame_close(), or take; -1 where taken */
};

/* Descriptors on their way, with the stretch of the stream [lo, hi) in which their frame must begin. */
struct wire_batch {
	uint64_t lo, hi;
	unsigned n_fds;
	int fds[WIRE_MAX_FDS]; /* owns */
};

struct wire_in {
	uint8_t *buf; /* owns; bytes [head, tail) wait */
	size_t cap, head, tail;
	uint64_t at; /* place in the stream of buf[head] */
	size_t need; /* length of the frame that begins at head, once known and not yet whole; else 0 */
	bool may_have_more;
	unsigned n_batches;
	struct wire_batch batches[2];
	const char *bad; /* static text; not NULL once the peer is refused, and then for good */
};

struct wire_out {
	uint8_t *buf; /* owns; bytes [head, tail) wait */
	size_t cap, head, tail;
	size_t limit;
	uint64_t at; /* place in the stream of buf[head] */
	unsigned n_marks, cap_marks;
	struct wire_batch *marks; /* owns; .lo is where the frame begins */
	uint32_t reserved_len;    /* of the reservation under way, UINT32_MAX: none */
	unsigned reserved_fds;
};

/* Take descriptor @i out of the frame; it is the caller's from here.  -1 if there is none (or it is taken). */
int wire_frame_take_fd(struct wire_frame *frame, unsigned i);

/* Close the descriptors that nobody took.  Harmless twice. */
void wire_frame_close(struct wire_frame *frame);

/* --- input --- */

/* Allocates nothing; an idle connection that never spoke costs no buffer. */
void wire_in_init(struct wire_in *in);

/* Frees the buffer and closes every descriptor not handed out.  The struct is as after wire_in_init(). */
void wire_in_deinit(struct wire_in *in);

/* One recvmsg() from @fd, never waiting.  0: bytes came, call wire_in_next() until it says WIRE_E_AGAIN before reading
 * again.  WIRE_E_AGAIN, WIRE_E_EOF, WIRE_E_BAD; WIRE_E_FULL: frames wait to be taken first. */
int wire_in_read(struct wire_in *in, int fd);

/* After a read that brought bytes.  False: it took all that had come, and another one would only hear so. */
bool wire_in_may_have_more(const struct wire_in *in);

/* As if @len bytes and @n_fds descriptors had come in one recvmsg(): for tests and fuzzing.  Takes as many bytes as
 * fit and says so in *ret_taken; the descriptors are taken over in any case but WIRE_E_FULL. */
int wire_in_feed(struct wire_in *in, const void *bytes, size_t len, const int *fds, unsigned n_fds, size_t *ret_taken);

/* 0: a whole frame, with its descriptors.  WIRE_E_AGAIN: not yet.  WIRE_E_BAD. */
int wire_in_next(struct wire_in *in, struct wire_frame *ret_frame);

/* True in the middle of a frame: an EOF now means the peer was cut off. */
bool wire_in_is_partial(const struct wire_in *in);

/* Static text after WIRE_E_BAD, else NULL. */
const char *wire_in_reason(const struct wire_in *in);

/* --- output --- */

/* At most @limit bytes wait at any time, headers included.  Allocates nothing. */
void wire_out_init(struct wire_out *out, size_t limit);

/* Frees the buffer and closes the descriptors not yet sent. */
void wire_out_deinit(struct wire_out *out);

/* Queue a frame.  On 0 the descriptors belong to @out, which closes them once sent; on any other return they are still
 * the caller's.  WIRE_E_FULL: over the limit, or more than a frame can hold. */
int wire_out_push(struct wire_out *out, const struct wire_head *head, const void *payload, uint32_t len, const int *fds,
                  unsigned n_fds);

/* The same in two steps, so that a message is packed in place.  Reserve room for a payload of at most @max_len with
 * @n_fds descriptors; WIRE_E_FULL as above.  The pointer is good until the next call on @out.  A reservation that is not
 * committed costs nothing. */
int wire_out_reserve(struct wire_out *out, uint32_t max_len, unsigned n_fds, uint8_t **ret_payload);

/* Ends the reservation: @len <= max_len bytes were written.  Cannot fail.  Takes over the @n_fds descriptors reserved. */
void wire_out_commit(struct wire_out *out, const struct wire_head *head, uint32_t len, const int *fds);

/* Send what waits.  0: nothing waits any more.  WIRE_E_AGAIN: the peer must read first.  WIRE_E_EOF: it has gone. */
int wire_out_flush(struct wire_out *out, int fd);

/* Bytes waiting. */
size_t wire_out_bytes(const struct wire_out *out);

/* --- blocking use --- */

/* Wait until @fd has @events (POLLIN, POLLOUT) or an error, which the next read or write will tell.  @timeout_ms < 0:
 * for ever.  Signals do not shorten or lengthen it.  WIRE_E_AGAIN: time is up. */
int wire_wait(int fd, short events, int timeout_ms);

#endif
