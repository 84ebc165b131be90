/* SPDX-License-Identifier: Apache-2.0 */
/* Copies between slots and host memory: the queue, what is in flight, what came of it, and whether the tier is well.
 *
 * Invariant: a copy is in a queue, or has pieces in flight, or its cb has been called; cb is called only when none of its
 * pieces is the kernel's.
 * Deliberately not here: checksums of payloads, which their owner has; which slot is whose.
 *
 * Health
 *   online -> offline   an operation is older than the deadline ("stuck"), or ten failed within a minute ("errors")
 *   offline -> online   nothing is older than the deadline, and a block was read from each drive
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "tier/nvme_state.h"

#define ERRORS_WITHIN_NS (60 * CLOCK_NS_PER_S)
#define DAY_NS (24 * 3600 * CLOCK_NS_PER_S)
#define METER_BUSY_NS (50 * CLOCK_NS_PER_MS)
#define METER_WEIGHT 8u /* a new sample counts for one in eight */

bool nvme_is_online(const struct nvme *t)
{
	return t->phase == NVME_SERVING && !t->offline;
}

/* ---- operations ---- */

static void op_on_done(struct uring_op *op, int r);

static void op_watch_deadline(struct nvme *t)
{
	const struct nvme_op *oldest;
	uint64_t now = loop_now_ns(t->loop), due;

	if (t->deadline_running || list_empty(&t->flying))
		return;
	oldest = container_of(list_first(&t->flying), struct nvme_op, link);
	due = oldest->since_ns + t->io_deadline_ns;
	t->deadline_running = true;
	loop_timer_start(&t->deadline.timer, due > now ? due - now : 0, 0, nvme_on_deadline);
}

void nvme_op_start(struct nvme *t, struct nvme_op *o, uint32_t drive)
{
	assert(drive < t->layout.drives && o->done && t->step != NVME_CLOSE_RING);
	o->t = t;
	o->drive = drive;
	o->retried = false;
	o->since_ns = loop_now_ns(t->loop);
	o->op.cb = op_on_done;
	o->op.file = t->drives[drive].file;
	list_add_tail(&t->flying, &o->link);
	op_watch_deadline(t);
	t->ring->ops->submit(t->ring, &o->op);
}

static void go_offline(struct nvme *t);

static void op_count_error(struct nvme *t, const struct nvme_op *o, int r)
{
	static const char *const names[] = { "read", "write", "flush" };
	uint64_t now = loop_now_ns(t->loop), *oldest = &t->error_ns[t->error_next];
	bool many = *oldest != 0 && now - *oldest < ERRORS_WITHIN_NS;

	t->errors++;
	*oldest = now;
	t->error_next = (t->error_next + 1) % NVME_ERRORS_MAX;
	log_debug("nvme: %s: %s of %u bytes at %llu: %s", t->drives[o->drive].path, names[o->op.kind], o->op.length,
	          (unsigned long long)o->op.offset, r < 0 ? strerror(-r) : "short");
	if (!many || t->offline)
		return;
	(void)snprintf(t->why, sizeof(t->why), "%s: %u errors in a minute, the last: %s: %s", t->drives[o->drive].path,
	               NVME_ERRORS_MAX, names[o->op.kind], r < 0 ? strerror(-r) : "fewer bytes than asked for");
	go_offline(t);
}

static void op_on_done(struct uring_op *op, int r)
{
	struct nvme_op *o = container_of(op, struct nvme_op, op);
	struct nvme *t = o->t;
	bool whole = op->kind == URING_FLUSH ? r == 0 : r >= 0 && (uint32_t)r == op->length;

	list_del(&o->link);
	if (!whole && !o->retried && (op->kind == URING_READ || r == -EINTR || r == -EAGAIN)) {
		t->errors++;
		o->retried = true;
		o->since_ns = loop_now_ns(t->loop);
		list_add_tail(&t->flying, &o->link);
		t->ring->ops->submit(t->ring, op);
		return;
	}
	if (!whole)
		op_count_error(t, o, r);
	o->done(o, whole ? 0 : TIER_E_IO);
	if (t->phase == NVME_CLOSING)
		nvme_tick(t);
	else
		nvme_dispatch(t);
}

/* ---- estimates ---- */

static void meter_start(struct nvme_meter *m, uint64_t now)
{
	if (m->in_flight++ == 0)
		m->busy_since_ns = now;
}

static uint64_t meter_mix(uint64_t old, uint64_t sample)
{
	return old == 0 ? sample : old - old / METER_WEIGHT + sample / METER_WEIGHT;
}

/* Bytes by the time in which at least one copy was under way. */
static void meter_end(struct nvme_meter *m, uint64_t now, uint64_t since, uint64_t bytes)
{
	assert(m->in_flight > 0);
	m->in_flight--;
	m->busy_ns += now - m->busy_since_ns;
	m->busy_since_ns = now;
	if (bytes == 0)
		return;
	m->bytes += bytes;
	m->latency_ns = meter_mix(m->latency_ns, now - since);
	if (m->busy_ns < METER_BUSY_NS && (m->rate != 0 || m->busy_ns == 0))
		return;
	m->rate = meter_mix(m->rate, (uint64_t)((double)m->bytes * 1e9 / (double)m->busy_ns));
	m->busy_ns = m->bytes = 0;
}

/* ---- copies ---- */

static void io_end(struct nvme *t, struct tier_io *io)
{
	uint64_t now = loop_now_ns(t->loop), bytes = io->result == 0 ? nvme_slot_bytes(&io->shape) : 0;

	assert(t->in_flight > 0 && t->areas[io->area].in_flight > 0);
	t->in_flight--;
	t->bytes_in_flight -= nvme_slot_bytes(&io->shape);
	t->writes_in_flight -= io->write;
	t->areas[io->area].in_flight--;
	t->done_bytes[io->write] += bytes;
	meter_end(&t->meters[io->write], now, io->since_ns, bytes);
	/* A slot that was written, or half written, has another record from now on: its own, or none.  It is not stored
	 * before the owner knows of it, which is from cb on. */
	if (io->write) {
		nvme_place_written(t, io);
		nvme_record_dirty(t, io->area, io->place, true);
	}
	io->cb(io, io->result); /* may free it */
}

static void piece_on_done(struct nvme_op *o, int r)
{
	struct nvme_piece *p = container_of(o, struct nvme_piece, o);
	struct tier_io *io = p->io;
	struct nvme *t = o->t;

	list_add_head(&t->pieces_free, &o->link);
	t->n_pieces_free++;
	assert(io->pieces > 0 && io->bytes_left >= o->op.length);
	io->bytes_left -= o->op.length;
	if (r != 0)
		io->result = r;
	if (--io->pieces == 0) {
		assert(io->bytes_left == 0);
		io_end(t, io);
	}
}

static void piece_start(struct nvme *t, struct tier_io *io, uint64_t memory, uint64_t disk, uint64_t length)
{
	struct nvme_piece *p = container_of(list_pop(&t->pieces_free), struct nvme_piece, o.link);

	assert(t->n_pieces_free > 0 && length <= NVME_SLOT_MAX);
	assert(memory + length <= io->region->size);
	t->n_pieces_free--;
	p->io = io;
	p->o.done = piece_on_done;
	p->o.op.kind = io->write ? URING_WRITE : URING_READ;
	p->o.op.base = (char *)io->region->base + memory;
	p->o.op.length = (uint32_t)length;
	p->o.op.offset = disk;
	p->o.op.buffer = nvme_buffer_of(t, io->region, memory, length);
	nvme_op_start(t, &p->o, nvme_place_drive(&t->layout, io->place));
}

/* One piece if the lanes lie side by side in memory as they do on the drive. */
static uint32_t io_pieces(const struct tier_io *io)
{
	return io->lane_area == io->shape.lane_bytes ? 1 : io->shape.lanes;
}

static void io_start(struct nvme *t, struct tier_io *io)
{
	const struct nvme_area *a = &t->areas[io->area];
	uint64_t disk = nvme_slot_offset(&t->layout, io->area, a->n_slots, &io->shape, io->place);
	uint32_t n = io_pieces(io);
	uint64_t length = nvme_slot_bytes(&io->shape) / n;

	t->in_flight++;
	t->bytes_in_flight += nvme_slot_bytes(&io->shape);
	t->writes_in_flight += io->write;
	meter_start(&t->meters[io->write], loop_now_ns(t->loop));
	io->result = 0;
	io->bytes_left = nvme_slot_bytes(&io->shape);
	io->pieces = n;
	for (uint32_t i = 0; i < n; i++)
		piece_start(t, io, (uint64_t)i * io->lane_area + io->offset, disk + (uint64_t)i * length, length);
}

/* The next one that may start now; NULL. */
static struct tier_io *dispatch_pick(struct nvme *t, bool may_write)
{
	for (int p = 0; p < TIER_PRIORITIES; p++) {
		struct list *r = list_first(&t->queues[p][0]), *w = may_write ? list_first(&t->queues[p][1]) : NULL;
		struct tier_io *read = r ? container_of(r, struct tier_io, link) : NULL;
		struct tier_io *write = w ? container_of(w, struct tier_io, link) : NULL;

		if (read && (!write || read->since_ns <= write->since_ns))
			return read;
		if (write)
			return write;
	}
	return NULL;
}

/* More would only wait in the drive, and whatever is urgent behind it. */
static bool dispatch_has_room(const struct nvme *t, const struct tier_io *io)
{
	return t->bytes_in_flight == 0 ||
	       t->bytes_in_flight + nvme_slot_bytes(&io->shape) <= NVME_IN_FLIGHT_BYTES * t->layout.drives;
}

void nvme_dispatch(struct nvme *t)
{
	while (nvme_is_online(t) && t->in_flight < t->depth) {
		bool may_write = t->n_queued[0] == 0 || t->writes_in_flight < t->depth - t->depth / 4;
		struct tier_io *io = dispatch_pick(t, may_write);

		if (!io || io_pieces(io) > t->n_pieces_free || !dispatch_has_room(t, io))
			return;
		list_del(&io->link);
		t->n_queued[io->write]--;
		io_start(t, io);
	}
}

void nvme_queue_fail(struct nvme *t)
{
	struct list all, *it;

	list_init(&all);
	for (int p = 0; p < TIER_PRIORITIES; p++) {
		list_splice_tail(&all, &t->queues[p][0]);
		list_splice_tail(&all, &t->queues[p][1]);
	}
	list_splice_tail(&all, &t->held);
	t->n_queued[0] = t->n_queued[1] = 0;
	while ((it = list_pop(&all))) {
		struct tier_io *io = container_of(it, struct tier_io, link);

		if (io->write)
			nvme_place_written(t, io);
		t->areas[io->area].in_flight--;
		io->cb(io, TIER_E_GONE);
	}
}

static bool budget_allows(struct nvme *t, uint64_t bytes)
{
	uint64_t now = loop_now_ns(t->loop);

	if (now - t->today_since_ns >= DAY_NS) {
		t->today_since_ns += (now - t->today_since_ns) / DAY_NS * DAY_NS;
		t->today_bytes = 0;
	}
	return t->budget_bytes == 0 || t->today_bytes + bytes <= t->budget_bytes;
}

static void io_check(const struct nvme *t, const struct tier_io *io)
{
	const struct nvme_area *a;

	assert(io->cb && io->area < t->n_areas && io->region && io->region->base && io->priority < TIER_PRIORITIES);
	a = &t->areas[io->area];
	assert(a->state == NVME_AREA_USED && io->place < a->n_slots);
	assert(io->shape.lane_bytes == a->shape.lane_bytes && io->shape.lanes == a->shape.lanes);
	assert(io->offset % NVME_BLOCK == 0 && (io->lane_area % NVME_BLOCK == 0 || io->shape.lanes == 1));
}

int nvme_submit(struct tier_lower *lower, struct tier_io *io)
{
	struct nvme *t = nvme_of(lower);
	uint64_t bytes = nvme_slot_bytes(&io->shape);

	thread_assert(THREAD_LOOP);
	if (!nvme_is_online(t))
		return TIER_E_GONE;
	io_check(t, io);
	if (t->n_queued[0] + t->n_queued[1] >= t->queue_max - t->queue_max / 4 * (uint32_t)io->priority)
		return TIER_E_FULL;
	if (io->write) {
		/* Queued, they would keep their callers from reading for as long. */
		if (loop_now_ns(t->loop) < t->writes_from_ns || !budget_allows(t, bytes))
			return TIER_E_FULL;
		t->today_bytes += bytes;
	}
	io->since_ns = loop_now_ns(t->loop);
	t->n_queued[io->write]++;
	t->areas[io->area].in_flight++;
	if (io->write && nvme_place_hold(t, io))
		return 0;
	list_add_tail(&t->queues[io->priority][io->write], &io->link);
	nvme_dispatch(t);
	return 0;
}

/* ---- health ---- */

bool nvme_is_overdue(const struct nvme *t)
{
	if (list_empty(&t->flying))
		return false;
	return loop_now_ns(t->loop) - container_of(list_first(&t->flying), struct nvme_op, link)->since_ns >=
	       t->io_deadline_ns;
}

static void probe_on_due(struct loop_timer *timer);

static void probe_again(struct nvme *t)
{
	if (t->phase == NVME_SERVING && t->offline)
		loop_timer_start(&t->probe.timer, t->probe_ns, 0, probe_on_due);
}

static void come_back(struct nvme *t)
{
	t->offline = false;
	log_info("g3 is online again");
	t->why[0] = '\0';
	memset(t->error_ns, 0, sizeof(t->error_ns));
	if (!list_empty(&t->unsaved))
		nvme_store(t);
	t->lower.user.on_online(t->lower.user.ctx, true);
}

static void probe_ended(struct nvme *t)
{
	if (!t->offline || t->phase != NVME_SERVING)
		return;
	if (t->sys_failed || nvme_is_overdue(t))
		probe_again(t);
	else
		come_back(t);
}

static void probe_on_due(struct loop_timer *timer)
{
	struct nvme *t = nvme_of_timer(timer);

	if (t->sys_left > 0 || nvme_is_overdue(t))
		probe_again(t); /* what is stuck says enough */
	else
		nvme_sys_start(t, URING_READ);
}

static void sys_on_done(struct nvme_op *o, int r)
{
	struct nvme *t = o->t;

	assert(t->sys_left > 0 && t->drives[o->drive].sys_busy);
	t->drives[o->drive].sys_busy = false;
	t->sys_failed = t->sys_failed || r != 0;
	if (--t->sys_left == 0)
		probe_ended(t);
}

void nvme_sys_start(struct nvme *t, enum uring_kind kind)
{
	assert(t->sys_left == 0 && kind != URING_WRITE);
	t->sys_failed = false;
	t->sys_left = t->layout.drives;
	for (uint32_t i = 0; i < t->layout.drives; i++) {
		struct nvme_drive *d = &t->drives[i];

		d->sys_busy = true;
		d->sys.done = sys_on_done;
		d->sys.op = (struct uring_op){ .kind = kind, .buffer = t->meta_buffer };
		if (kind == URING_READ) {
			d->sys.op.base = t->meta_blocks + (size_t)(NVME_METAS + i) * NVME_BLOCK;
			d->sys.op.length = NVME_BLOCK;
		}
		nvme_op_start(t, &d->sys, i);
	}
}

static void go_offline(struct nvme *t)
{
	if (t->offline || t->phase != NVME_SERVING)
		return;
	t->offline = true;
	log_warn("g3 is offline: %s", t->why);
	probe_again(t);
	t->lower.user.on_online(t->lower.user.ctx, false);
	nvme_queue_fail(t);
}

void nvme_on_deadline(struct loop_timer *timer)
{
	struct nvme *t = nvme_of_timer(timer);

	t->deadline_running = false;
	if (t->phase == NVME_CLOSING) {
		nvme_tick(t);
		if (t->step != NVME_CLOSE_RING)
			op_watch_deadline(t);
		return;
	}
	if (nvme_is_overdue(t)) {
		const struct nvme_op *o = container_of(list_first(&t->flying), struct nvme_op, link);

		(void)snprintf(t->why, sizeof(t->why), "%s: does not answer", t->drives[o->drive].path);
		go_offline(t);
		/* Looked at again by the probe; and here, for what recovery waits for. */
		t->deadline_running = true;
		loop_timer_start(&t->deadline.timer, t->io_deadline_ns, 0, nvme_on_deadline);
		return;
	}
	op_watch_deadline(t);
}

void nvme_on_grace(struct loop_timer *timer)
{
	struct nvme *t = nvme_of_timer(timer);

	if (loop_now_ns(t->loop) < t->writes_from_ns && !nvme_drives_alone(t)) {
		loop_timer_start(timer, NVME_ALONE_NS, 0, nvme_on_grace);
		return;
	}
	t->writes_from_ns = 0;
	nvme_store(t);
	nvme_dispatch(t);
}

void nvme_stat(struct tier_lower *lower, struct tier_lower_stat *ret_stat)
{
	struct nvme *t = nvme_of(lower);
	uint64_t area = t->layout.area_bytes * t->layout.drives;
	const char *ring = t->ring->ops->note(t->ring);

	thread_assert(THREAD_LOOP);
	(void)budget_allows(t, 0);
	(void)snprintf(t->stat_note, sizeof(t->stat_note), "%s%s%s%s%s", t->why, t->why[0] && t->note[0] ? "; " : "",
	               t->note, ring[0] && (t->why[0] || t->note[0]) ? "; " : "", ring);
	*ret_stat = (struct tier_lower_stat){
		.size_bytes = area * t->n_areas,
		.used_bytes = area * (t->n_areas - t->n_free),
		.written_bytes = t->done_bytes[1],
		.read_bytes = t->done_bytes[0],
		.written_today_bytes = t->today_bytes,
		.budget_bytes = t->budget_bytes,
		.in_flight = t->in_flight,
		.queued = t->n_queued[0] + t->n_queued[1],
		.drives = t->layout.drives,
		.read_bytes_per_s = t->meters[0].rate,
		.write_bytes_per_s = t->meters[1].rate,
		.read_latency_ns = t->meters[0].latency_ns,
		.write_latency_ns = t->meters[1].latency_ns,
		.errors = t->errors,
		.online = nvme_is_online(t),
		.state = t->phase != NVME_SERVING ? "recovering"
		         : t->offline             ? "offline"
		                                  : "online",
		.note = t->stat_note,
	};
}
