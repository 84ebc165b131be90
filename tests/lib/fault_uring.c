/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/fault_uring.h"

#include <stdlib.h>

#include "tests/lib/must.h"

#define SECTOR 512u
#define BLOCK 4096u

/* A write that may be lost: what was there before. */
struct fault_write {
	struct list link;
	int fd;
	uint64_t offset;
	uint32_t length;
	uint8_t *before, *after; /* in the same allocation */
};

static struct fault_uring *fault_of(struct uring *u)
{
	return container_of(u, struct fault_uring, uring);
}

static void put(int fd, const void *data, uint32_t length, uint64_t offset)
{
	must(pwrite(fd, data, length, (off_t)offset) == (ssize_t)length);
}

/* Before a write: it may have to be undone. */
static void remember(struct fault_uring *f, int fd, const void *data, uint32_t length, uint64_t offset)
{
	struct fault_write *w = malloc(sizeof(*w) + (size_t)length * 2);

	must(w);
	w->fd = fd;
	w->offset = offset;
	w->length = length;
	w->before = (uint8_t *)(w + 1);
	w->after = w->before + length;
	must(pread(fd, w->before, length, (off_t)offset) == (ssize_t)length);
	memcpy(w->after, data, length);
	list_add_tail(&f->unflushed, &w->link);
	put(fd, data, length, offset);
}

static void forget(struct fault_uring *f, int fd)
{
	list_for_each_safe(it, next, &f->unflushed) {
		struct fault_write *w = container_of(it, struct fault_write, link);

		if (fd >= 0 && w->fd != fd)
			continue;
		list_del(it);
		free(w);
	}
}

static void write_torn(struct fault_uring *f, int fd, const uint8_t *data, uint32_t length, uint64_t offset)
{
	for (uint32_t at = 0; at + SECTOR <= length; at += SECTOR)
		if (rng_chance(&f->rng, 50))
			remember(f, fd, data + at, SECTOR, offset + at);
}

static int do_write(struct fault_uring *f, int fd, const struct uring_op *op, enum fault_kind kind)
{
	uint64_t offset = op->offset;
	uint32_t half = op->length / 2 / SECTOR * SECTOR;

	switch (kind) {
	case FAULT_SHORT:
		remember(f, fd, op->base, half, offset);
		return (int)half;
	case FAULT_TEAR:
		write_torn(f, fd, op->base, op->length, offset);
		return (int)op->length;
	case FAULT_LOSE:
		return (int)op->length;
	case FAULT_MISPLACE:
		offset = offset >= 2 * BLOCK ? offset - BLOCK : offset + BLOCK;
		break;
	case FAULT_NONE:
	case FAULT_ERROR:
	case FAULT_DELAY:
	case FAULT_KINDS:
		break;
	}
	remember(f, fd, op->base, op->length, offset);
	return (int)op->length;
}

static int do_read(struct fault_uring *f, int fd, const struct uring_op *op, enum fault_kind kind)
{
	uint64_t offset = op->offset;
	uint32_t length = op->length;

	if (kind == FAULT_LOSE)
		return (int)length;
	if (kind == FAULT_MISPLACE)
		offset = offset >= 2 * BLOCK ? offset - BLOCK : offset + BLOCK;
	if (kind == FAULT_SHORT)
		length = length / 2 / SECTOR * SECTOR;
	must(pread(fd, op->base, length, (off_t)offset) == (ssize_t)length);
	for (uint32_t at = 0; kind == FAULT_TEAR && at + SECTOR <= length; at += SECTOR)
		if (rng_chance(&f->rng, 50))
			rng_fill(&f->rng, (uint8_t *)op->base + at, SECTOR);
	return (int)length;
}

static void finish(struct fault_uring *f, struct uring_op *op, enum fault_kind kind)
{
	int fd = f->fds[op->file];
	int r = -EIO;

	if (kind == FAULT_ERROR) {
		op->cb(op, r);
		return;
	}
	switch (op->kind) {
	case URING_READ:
		r = do_read(f, fd, op, kind);
		break;
	case URING_WRITE:
		r = do_write(f, fd, op, kind);
		break;
	case URING_FLUSH:
		if (kind != FAULT_LOSE)
			forget(f, fd);
		r = 0;
		break;
	}
	op->cb(op, r);
}

static void fault_on_step(struct loop_deferred *d)
{
	struct fault_uring *f = container_of(d, struct fault_uring, step);
	struct list now, *it;

	list_init(&now);
	list_splice_tail(&now, &f->due);
	while ((it = list_pop(&now))) {
		struct uring_op *op = container_of(it, struct uring_op, link);
		enum fault_kind kind = FAULT_NONE;

		if (!f->dead) {
			f->n_ops++;
			f->n_kinds[op->kind]++;
			if (f->decide)
				kind = f->decide(f->ctx, op, f->n_ops);
		}
		if (f->dead) { /* since before, or this is what was decided: they stay as they are, submitted and not answered */
			list_add_tail(&f->due, &op->link);
			continue;
		}
		f->n_faults += kind != FAULT_NONE;
		if (kind == FAULT_DELAY)
			list_add_tail(&f->held, &op->link);
		else
			finish(f, op, kind);
	}
}

static void fault_submit(struct uring *u, struct uring_op *op)
{
	struct fault_uring *f = fault_of(u);

	must(!f->closing && op->cb && op->file < f->n_fds);
	if (op->kind != URING_FLUSH)
		must(op->base && op->length > 0 && op->length % BLOCK == 0 && op->offset % BLOCK == 0 &&
		     (uintptr_t)op->base % BLOCK == 0);
	list_add_tail(&f->due, &op->link);
	if (!f->dead)
		loop_defer(f->loop, &f->step, fault_on_step);
}

static int fault_file_add(struct uring *u, int fd, uint32_t *ret_file)
{
	struct fault_uring *f = fault_of(u);

	must(f->n_fds < 16);
	f->fds[f->n_fds] = fd;
	*ret_file = f->n_fds++;
	return 0;
}

static int fault_buffer_add(struct uring *u, void *base, uint64_t size, uint32_t *ret_buffer)
{
	(void)u;
	(void)base;
	(void)size;
	(void)ret_buffer;
	return URING_E_REFUSED;
}

static void fault_buffer_drop(struct uring *u, uint32_t buffer)
{
	(void)u;
	(void)buffer;
	must(false);
}

static const char *fault_note(struct uring *u)
{
	(void)u;
	return "a ring of faults";
}

static void fault_on_close(struct loop_deferred *d)
{
	struct fault_uring *f = container_of(d, struct fault_uring, close_step);

	if (f->closed)
		f->closed(f->closed_arg);
}

static void fault_close(struct uring *u, void (*closed)(void *arg), void *arg)
{
	struct fault_uring *f = fault_of(u);

	must(!f->closing);
	f->closing = true;
	f->closed = closed;
	f->closed_arg = arg;
	loop_deferred_cancel(&f->step);
	forget(f, -1);
	loop_defer(f->loop, &f->close_step, fault_on_close);
}

static const struct uring_ops fault_ops = {
	.submit = fault_submit,
	.file_add = fault_file_add,
	.buffer_add = fault_buffer_add,
	.buffer_drop = fault_buffer_drop,
	.note = fault_note,
	.close = fault_close,
};

void fault_uring_init(struct fault_uring *f, struct loop *loop, uint64_t seed)
{
	memset(f, 0, sizeof(*f));
	f->uring.ops = &fault_ops;
	f->loop = loop;
	rng_init(&f->rng, seed);
	list_init(&f->due);
	list_init(&f->held);
	list_init(&f->unflushed);
	loop_deferred_init(&f->step);
	loop_deferred_init(&f->close_step);
}

void fault_uring_release(struct fault_uring *f)
{
	struct list now, *it;

	list_init(&now);
	list_splice_tail(&now, &f->held);
	while ((it = list_pop(&now)))
		finish(f, container_of(it, struct uring_op, link), FAULT_NONE);
}

uint32_t fault_uring_held(const struct fault_uring *f)
{
	return (uint32_t)list_count(&f->held);
}

/* What of this write reached the medium. */
static void cut_one(struct fault_uring *f, const struct fault_write *w)
{
	uint64_t fate = rng_below(&f->rng, 3);

	if (fate == 0)
		return;
	if (fate == 1) {
		put(w->fd, w->after, w->length, w->offset);
		return;
	}
	for (uint32_t at = 0; at + SECTOR <= w->length; at += SECTOR)
		if (rng_chance(&f->rng, 50))
			put(w->fd, w->after + at, SECTOR, w->offset + at);
}

void fault_uring_kill(struct fault_uring *f)
{
	struct list *it;

	f->dead = true;
	list_splice_tail(&f->due, &f->held);
	while ((it = list_pop(&f->due))) {
		const struct uring_op *op = container_of(it, struct uring_op, link);
		uint64_t fate = rng_below(&f->rng, 3);

		if (op->kind != URING_WRITE || fate == 0)
			continue;
		if (fate == 1)
			put(f->fds[op->file], op->base, op->length, op->offset);
		else
			write_torn(f, f->fds[op->file], op->base, op->length, op->offset);
	}
}

void fault_uring_cut(struct fault_uring *f)
{
	struct list shuffled, *it;

	f->dead = true;
	/* Those that were submitted and not answered may have been written, too. */
	while ((it = list_pop(&f->due))) {
		struct uring_op *op = container_of(it, struct uring_op, link);

		if (op->kind == URING_WRITE)
			remember(f, f->fds[op->file], op->base, op->length, op->offset);
	}
	for (it = f->unflushed.prev; it != &f->unflushed; it = it->prev) {
		const struct fault_write *w = container_of(it, struct fault_write, link);

		put(w->fd, w->before, w->length, w->offset);
	}
	/* In any order. */
	list_init(&shuffled);
	list_for_each_safe(one, next, &f->unflushed) {
		list_del(one);
		if (rng_chance(&f->rng, 50))
			list_add_head(&shuffled, one);
		else
			list_add_tail(&shuffled, one);
	}
	list_for_each(one, &shuffled)
		cut_one(f, container_of(one, struct fault_write, link));
	list_splice_tail(&f->unflushed, &shuffled);
}
