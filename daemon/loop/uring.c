/* SPDX-License-Identifier: Apache-2.0 */
/* Owns one ring, the watch on its descriptor, and the numbers of registered files and buffers.
 * Invariant: no more operations are in the kernel than the completion queue holds, so that it cannot overflow.
 * Deliberately not here: what a short count means, deadlines, order.
 *
 * No DEFER_TASKRUN: deferred completions do not make the ring's descriptor readable, and the loop would sleep over them.
 * COOP_TASKRUN: what completes while we run waits until we enter the kernel, instead of interrupting us.
 * No SQPOLL: it burns a core to save a system call a turn.
 */
#include "loop/uring.h"

#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/thread.h"

#define URING_IN_KERNEL_FACTOR 4u
/* Completions of one turn, before others get theirs, and before what they bring about is submitted: a drive that has answered a burst is idle meanwhile. */
#define URING_TURN_MAX 8u
/* To the kernel in one turn: it takes 5 us of each, and of a large one on small pages 100 us. */
#define URING_SUBMIT_MAX 8u
#define URING_SUBMIT_BYTES (UINT64_C(1) << 20)
#define URING_BUFFER_MAX (UINT64_C(1) << 30)

struct ring {
	struct uring uring; /* first */
	struct loop *loop;  /* borrows */
	struct io_uring io;
	struct loop_watch watch;
	struct loop_hook hook;
	struct loop_timer again; /* there is more to submit when the kernel has memory for it */
	struct list waiting;     /* borrows */
	uint32_t in_kernel, in_kernel_max;
	int *fds; /* owns the array, borrows the descriptors */
	uint32_t n_files, files_max;
	uint32_t *buffers_free; /* owns: numbers that can be given out */
	uint32_t n_buffers_free, buffers_max;
	bool files_fixed, buffers_fixed, closing;
	char note[160];
	unsigned closes_due;
	void (*closed)(void *arg);
	void *closed_arg;
};

static struct ring *ring_of(struct uring *u)
{
	assert(u);
	return container_of(u, struct ring, uring);
}

static void ring_prepare(struct ring *r, struct io_uring_sqe *sqe, struct uring_op *op)
{
	int file = r->files_fixed ? (int)op->file : r->fds[op->file];
	bool fixed = op->buffer != URING_NO_BUFFER;

	switch (op->kind) {
	case URING_READ:
		if (fixed)
			io_uring_prep_read_fixed(sqe, file, op->base, op->length, op->offset, (int)op->buffer);
		else
			io_uring_prep_read(sqe, file, op->base, op->length, op->offset);
		break;
	case URING_WRITE:
		if (fixed)
			io_uring_prep_write_fixed(sqe, file, op->base, op->length, op->offset, (int)op->buffer);
		else
			io_uring_prep_write(sqe, file, op->base, op->length, op->offset);
		break;
	case URING_FLUSH:
		io_uring_prep_fsync(sqe, file, IORING_FSYNC_DATASYNC);
		break;
	}
	if (r->files_fixed)
		sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data(sqe, op);
}

static void ring_on_again(struct loop_timer *t)
{
	(void)t; /* the end of the turn submits */
}

/* False: the kernel did not take all of it; it will be asked again. */
static bool ring_enter(struct ring *r)
{
	int n;

	while (io_uring_sq_ready(&r->io) > 0) {
		n = io_uring_submit(&r->io);
		if (n > 0 || n == -EINTR)
			continue;
		if (n < 0 && n != -EAGAIN && n != -EBUSY && n != -ENOMEM)
			(void)error_origin(n); /* tried again like the others: the operations' owners have deadlines */
		loop_timer_start(&r->again, CLOCK_NS_PER_MS, 0, ring_on_again);
		return false;
	}
	return true;
}

static void ring_flush(struct ring *r)
{
	uint64_t bytes = 0;

	for (unsigned n = 0; !list_empty(&r->waiting) && r->in_kernel < r->in_kernel_max; n++) {
		struct io_uring_sqe *sqe;
		struct uring_op *op;

		if (n == URING_SUBMIT_MAX || bytes >= URING_SUBMIT_BYTES) {
			loop_again(r->loop);
			break;
		}
		sqe = io_uring_get_sqe(&r->io);
		if (!sqe) {
			if (!ring_enter(r))
				return;
			continue;
		}
		op = container_of(list_pop(&r->waiting), struct uring_op, link);
		bytes += op->length;
		ring_prepare(r, sqe, op);
		r->in_kernel++;
	}
	(void)ring_enter(r);
}

static void ring_on_turn_end(struct loop_hook *h)
{
	ring_flush(container_of(h, struct ring, hook));
}

static void ring_on_readable(struct loop_watch *w, unsigned events)
{
	struct ring *r = container_of(w, struct ring, watch);
	struct io_uring_cqe *cqe;

	(void)events;
	for (unsigned n = 0; n < URING_TURN_MAX && !r->closing && io_uring_peek_cqe(&r->io, &cqe) == 0; n++) {
		/* Copy it out and advance before calling back: the callback may submit, and the kernel reuse the entry. */
		struct uring_op *op = io_uring_cqe_get_data(cqe);
		int result = cqe->res;

		io_uring_cqe_seen(&r->io, cqe);
		assert(op && r->in_kernel > 0);
		r->in_kernel--;
		op->cb(op, result);
	}
}

static void ring_submit(struct uring *u, struct uring_op *op)
{
	struct ring *r = ring_of(u);

	thread_assert(THREAD_LOOP);
	assert(!r->closing && op->cb && op->file < r->n_files);
	assert(op->kind == URING_FLUSH || (op->base && op->length > 0));
	list_add_tail(&r->waiting, &op->link);
}

static int ring_file_add(struct uring *u, int fd, uint32_t *ret_file)
{
	struct ring *r = ring_of(u);

	thread_assert(THREAD_LOOP);
	assert(fd >= 0);
	if (r->n_files == r->files_max)
		return URING_E_FULL;
	r->fds[r->n_files] = fd;
	if (r->files_fixed && io_uring_register_files_update(&r->io, r->n_files, &fd, 1) != 1) {
		if (r->n_files > 0)
			return URING_E_FULL; /* the others are in use by their numbers */
		r->files_fixed = false;
		(void)snprintf(r->note, sizeof(r->note), "files cannot be registered with io_uring");
	}
	*ret_file = r->n_files++;
	return 0;
}

static int ring_buffer_add(struct uring *u, void *base, uint64_t size, uint32_t *ret_buffer)
{
	struct ring *r = ring_of(u);
	struct iovec iov = { .iov_base = base, .iov_len = size };
	__u64 tag = 0;
	uint32_t number;
	int n;

	thread_assert(THREAD_LOOP);
	assert(base && size > 0 && size <= URING_BUFFER_MAX);
	if (!r->buffers_fixed)
		return URING_E_REFUSED;
	if (r->n_buffers_free == 0)
		return URING_E_FULL;
	number = r->buffers_free[r->n_buffers_free - 1];
	n = io_uring_register_buffers_update_tag(&r->io, number, &iov, &tag, 1);
	if (n != 1) {
		(void)snprintf(r->note, sizeof(r->note), "memory cannot be registered with io_uring (%s)%s",
		               strerror(n < 0 ? -n : EIO), n == -ENOMEM ? ": raise the limit on locked memory" : "");
		return URING_E_REFUSED;
	}
	r->n_buffers_free--;
	*ret_buffer = number;
	return 0;
}

static void ring_buffer_drop(struct uring *u, uint32_t buffer)
{
	struct ring *r = ring_of(u);
	struct iovec none = { NULL, 0 };
	__u64 tag = 0;
	int n;

	thread_assert(THREAD_LOOP);
	assert(r->buffers_fixed && buffer < r->buffers_max && r->n_buffers_free < r->buffers_max);
	n = io_uring_register_buffers_update_tag(&r->io, buffer, &none, &tag, 1);
	if (n != 1) {
		(void)error_origin(n < 0 ? n : -EIO); /* the number is lost, and the memory pinned until the ring goes */
		return;
	}
	r->buffers_free[r->n_buffers_free++] = buffer;
}

static const char *ring_note(struct uring *u)
{
	return ring_of(u)->note;
}

static void ring_closed(struct ring *r)
{
	void (*closed)(void *arg) = r->closed;
	void *arg = r->closed_arg;

	assert(r->closes_due > 0);
	if (--r->closes_due > 0)
		return;
	io_uring_queue_exit(&r->io); /* does not wait for what is in flight: the kernel ends that by itself */
	free(r->fds);
	free(r->buffers_free);
	free(r);
	if (closed)
		closed(arg);
}

static void ring_on_watch_closed(struct loop_watch *w)
{
	ring_closed(container_of(w, struct ring, watch));
}

static void ring_on_again_closed(struct loop_timer *t)
{
	ring_closed(container_of(t, struct ring, again));
}

static void ring_close(struct uring *u, void (*closed)(void *arg), void *arg)
{
	struct ring *r = ring_of(u);

	thread_assert(THREAD_LOOP);
	assert(!r->closing);
	r->closing = true;
	r->closed = closed;
	r->closed_arg = arg;
	r->closes_due = 2;
	loop_hook_remove(&r->hook);
	loop_watch_close(&r->watch, ring_on_watch_closed);
	loop_timer_close(&r->again, ring_on_again_closed);
}

static const struct uring_ops ring_ops = {
	.submit = ring_submit,
	.file_add = ring_file_add,
	.buffer_add = ring_buffer_add,
	.buffer_drop = ring_buffer_drop,
	.note = ring_note,
	.close = ring_close,
};

/* A kernel from before 5.10 has no restrictions, one from before 5.18 not all flags: less is asked for, until it agrees. */
static int ring_setup(struct ring *r, uint32_t entries)
{
	static const unsigned wishes[] = { IORING_SETUP_SUBMIT_ALL | IORING_SETUP_R_DISABLED | IORING_SETUP_COOP_TASKRUN,
		                           IORING_SETUP_R_DISABLED, 0 };
	struct io_uring_params params;
	int e = -ENOSYS;

	for (size_t i = 0; i < sizeof(wishes) / sizeof(wishes[0]); i++) {
		memset(&params, 0, sizeof(params));
		params.flags = wishes[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
		params.cq_entries = entries * URING_IN_KERNEL_FACTOR;
		e = io_uring_queue_init_params(entries, &r->io, &params);
		if (e != -EINVAL)
			break;
	}
	if (e < 0)
		return e;
	r->in_kernel_max = params.cq_entries;
	return params.flags & IORING_SETUP_R_DISABLED ? 1 : 0;
}

/* The library has wrappers of these two, but its shared object exports them only from 2.4 on. */
static int ring_call(struct ring *r, unsigned opcode, const void *arg, unsigned n)
{
	return syscall(SYS_io_uring_register, r->io.ring_fd, opcode, arg, n) < 0 ? -errno : 0;
}

static int ring_restrict(struct ring *r)
{
	static const uint8_t sqe_ops[] = { IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED,
		                           IORING_OP_FSYNC };
	static const uint8_t register_ops[] = { IORING_REGISTER_FILES_UPDATE, IORING_REGISTER_BUFFERS_UPDATE };
	struct io_uring_restriction rules[sizeof(sqe_ops) + sizeof(register_ops) + 1];
	unsigned n = 0;

	memset(rules, 0, sizeof(rules));
	for (size_t i = 0; i < sizeof(sqe_ops); i++) {
		rules[n].opcode = IORING_RESTRICTION_SQE_OP;
		rules[n++].sqe_op = sqe_ops[i];
	}
	for (size_t i = 0; i < sizeof(register_ops); i++) {
		rules[n].opcode = IORING_RESTRICTION_REGISTER_OP;
		rules[n++].register_op = register_ops[i];
	}
	rules[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
	rules[n++].sqe_flags = IOSQE_FIXED_FILE;
	return ring_call(r, IORING_REGISTER_RESTRICTIONS, rules, n);
}

static int ring_register(struct ring *r, const struct uring_config *config, bool disabled)
{
	int e;

	/* Without room for registered files and buffers (before 5.19) both are named anew in each request. */
	r->files_fixed = io_uring_register_files_sparse(&r->io, config->files) == 0;
	r->buffers_fixed = config->buffers > 0 && io_uring_register_buffers_sparse(&r->io, config->buffers) == 0;
	if (!r->files_fixed || (config->buffers > 0 && !r->buffers_fixed))
		(void)snprintf(r->note, sizeof(r->note), "this kernel does not register memory with io_uring piecemeal");
	if (!disabled)
		return 0;
	e = ring_restrict(r);
	if (e < 0)
		(void)snprintf(r->note, sizeof(r->note), "io_uring cannot be restricted here (%s)", strerror(-e));
	return ring_call(r, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

static int ring_memory(struct ring *r, const struct uring_config *config)
{
	r->fds = calloc(config->files, sizeof(*r->fds));
	r->buffers_free = calloc(config->buffers + 1, sizeof(*r->buffers_free));
	if (!r->fds || !r->buffers_free)
		return error_origin(-ENOMEM);
	r->files_max = config->files;
	r->buffers_max = r->n_buffers_free = config->buffers;
	for (uint32_t i = 0; i < config->buffers; i++)
		r->buffers_free[i] = config->buffers - 1 - i; /* lowest first */
	return 0;
}

static void ring_free(struct ring *r)
{
	free(r->fds);
	free(r->buffers_free);
	free(r);
}

int uring_new(const struct uring_config *config, struct uring **ret_ring)
{
	struct ring *r = calloc(1, sizeof(*r));
	int e, disabled;

	thread_assert(THREAD_LOOP);
	assert(config->loop && config->entries > 0 && config->files > 0);
	if (!r)
		return error_origin(-ENOMEM);
	r->uring.ops = &ring_ops;
	r->loop = config->loop;
	list_init(&r->waiting);
	e = ring_memory(r, config);
	if (e < 0) {
		ring_free(r);
		return error_trace(e);
	}
	disabled = ring_setup(r, config->entries);
	if (disabled < 0) {
		ring_free(r);
		errno = -disabled;
		return URING_E_NONE;
	}
	e = ring_register(r, config, disabled);
	if (e == 0)
		e = loop_watch_start(r->loop, &r->watch, r->io.ring_fd, LOOP_READABLE, ring_on_readable);
	if (e < 0) {
		io_uring_queue_exit(&r->io);
		ring_free(r);
		errno = -e;
		return URING_E_NONE;
	}
	loop_timer_init(r->loop, &r->again);
	loop_on_turn_end(r->loop, &r->hook, ring_on_turn_end);
	*ret_ring = &r->uring;
	return 0;
}
