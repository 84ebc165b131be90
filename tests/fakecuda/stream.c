/* SPDX-License-Identifier: Apache-2.0 */
/* Streams: a thread each, with a queue of operations that run late; events; what a copy and a launch check.
 *
 * A batch is cut into chunks that are copied in random order with random pauses between them, so that whoever reads early
 * reads old bytes.  Addresses are looked at when a chunk is copied: memory that was freed meanwhile is an illegal address,
 * which sticks to the context.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "tests/fakecuda/fakecuda.h"

#define CHUNK (UINT64_C(64) << 10)
#define POLL_US 50

enum op_kind { OP_COPY, OP_FILL, OP_GATHER, OP_RECORD, OP_WRITE, OP_WAIT, OP_WAIT_EVENT };

struct op {
	struct list link;
	enum op_kind kind;
	/* COPY, GATHER */
	uint64_t *dsts, *srcs, *sizes;
	size_t n;
	uint32_t grid, threads;
	/* FILL, WRITE, WAIT */
	uint64_t address, bytes, value;
	/* RECORD, WAIT_EVENT */
	uint64_t event_id, seq; /* looked up again when it runs */
};

struct stream {
	struct list link;
	uint64_t id;
	struct context *context;
	pthread_t thread;
	pthread_mutex_t mtx;
	pthread_cond_t cond;
	struct list ops; /* the first one is running */
	bool stop;
	_Atomic uint32_t killed;
};

/* A function of a module is a name. */
static const char gather_name[] = "kvbm_gather";

/* ---- on the stream's thread ---- */

static void stream_fault(struct stream *s, CUresult error)
{
	uint32_t none = 0;

	(void)atomic_compare_exchange_strong(&s->context->sticky, &none, error);
}

static uint64_t delay_us(void)
{
	uint32_t set = atomic_load(&fake.control->delay_us);

	return set > 0 ? set : fake.delay_us;
}

static void pause_a_while(struct stream *s)
{
	if (delay_us() > 1 && !atomic_load(&s->killed))
		fake_sleep_us(fake_random(delay_us()));
}

static bool copy_chunk(uint64_t dst, uint64_t src, uint64_t bytes)
{
	char *to, *from;

	pthread_mutex_lock(&fake.mtx);
	to = fake_cpu(dst, bytes);
	from = fake_cpu(src, bytes);
	if (to && from)
		memcpy(to, from, bytes);
	pthread_mutex_unlock(&fake.mtx);
	return to && from;
}

struct chunk {
	uint64_t dst, src, bytes;
};

/* All chunks of a batch, shuffled. */
static struct chunk *chunks_of(const struct op *op, size_t *ret_n)
{
	struct chunk *chunks, swap;
	size_t n = 0, k = 0;

	for (size_t i = 0; i < op->n; i++)
		n += (op->sizes[i] + CHUNK - 1) / CHUNK;
	chunks = calloc(n + 1, sizeof(*chunks));
	if (!chunks)
		abort();
	for (size_t i = 0; i < op->n; i++)
		for (uint64_t at = 0; at < op->sizes[i]; at += CHUNK) {
			uint64_t left = op->sizes[i] - at;

			chunks[k++] = (struct chunk){ op->dsts[i] + at, op->srcs[i] + at, left < CHUNK ? left : CHUNK };
		}
	for (size_t i = n; i > 1; i--) {
		size_t j = fake_random(i);

		swap = chunks[i - 1];
		chunks[i - 1] = chunks[j];
		chunks[j] = swap;
	}
	*ret_n = n;
	return chunks;
}

static void run_copy(struct stream *s, const struct op *op)
{
	struct timespec begin, now;
	struct chunk *chunks;
	uint64_t bytes = 0, wanted_us, us;
	size_t n;

	(void)clock_gettime(CLOCK_MONOTONIC, &begin);
	chunks = chunks_of(op, &n);
	for (size_t i = 0; i < n && !atomic_load(&s->killed); i++) {
		if (fake_random(16) == 0)
			pause_a_while(s);
		if (!copy_chunk(chunks[i].dst, chunks[i].src, chunks[i].bytes)) {
			stream_fault(s, CUDA_ERROR_ILLEGAL_ADDRESS);
			break;
		}
		bytes += chunks[i].bytes;
	}
	free(chunks);
	if (fake.gbps == 0)
		return;
	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	us = (uint64_t)(now.tv_sec - begin.tv_sec) * 1000000 + (uint64_t)(now.tv_nsec / 1000) -
	     (uint64_t)(begin.tv_nsec / 1000);
	wanted_us = bytes / (fake.gbps * 1000);
	if (wanted_us > us && !atomic_load(&s->killed))
		fake_sleep_us(wanted_us - us);
}

static void run_gather(struct stream *s, const struct op *op)
{
	bool ok;

	pthread_mutex_lock(&fake.mtx);
	ok = fake_gather(op->dsts, op->srcs, op->sizes, (uint32_t)op->n, op->grid, op->threads);
	pthread_mutex_unlock(&fake.mtx);
	if (!ok)
		stream_fault(s, CUDA_ERROR_ILLEGAL_ADDRESS);
}

static _Atomic uint64_t *flag_at(struct stream *s, uint64_t address)
{
	char *cpu;

	pthread_mutex_lock(&fake.mtx);
	cpu = fake_cpu(address, 8);
	pthread_mutex_unlock(&fake.mtx);
	if (!cpu)
		stream_fault(s, CUDA_ERROR_ILLEGAL_ADDRESS);
	return (_Atomic uint64_t *)cpu;
}

static struct event *event_find(uint64_t id)
{
	list_for_each(it, &fake.events) {
		struct event *event = container_of(it, struct event, link);

		if (event->id == id)
			return event;
	}
	return NULL;
}

static void event_free(struct event *event)
{
	list_del(&event->link);
	if (event->interprocess)
		(void)munmap(event->state, sizeof(*event->state));
	else
		free(event->state);
	if (event->fd >= 0) {
		fake_file_remove(event->name);
		(void)close(event->fd);
	}
	free(event);
}

/* True: it was recorded up to @seq and that has happened, or nobody can say any more. */
static bool event_reached(uint64_t id, uint64_t seq)
{
	struct event *event;
	bool reached;

	pthread_mutex_lock(&fake.mtx);
	event = event_find(id);
	reached = !event || atomic_load(&event->state->done) >= seq;
	pthread_mutex_unlock(&fake.mtx);
	return reached;
}

static void run_record(const struct op *op)
{
	struct event *event;

	pthread_mutex_lock(&fake.mtx);
	event = event_find(op->event_id);
	if (event && atomic_load(&event->state->done) < op->seq)
		atomic_store(&event->state->done, op->seq);
	pthread_mutex_unlock(&fake.mtx);
}

static void op_run(struct stream *s, const struct op *op)
{
	_Atomic uint64_t *flag;

	while (atomic_load(&fake.control->held) && !atomic_load(&s->killed))
		fake_sleep_us(POLL_US);
	pause_a_while(s);
	/* After an error nothing runs any more. */
	if (atomic_load(&s->context->sticky) || atomic_load(&s->killed))
		return;
	switch (op->kind) {
	case OP_COPY:
		run_copy(s, op);
		break;
	case OP_GATHER:
		run_gather(s, op);
		break;
	case OP_FILL:
		pthread_mutex_lock(&fake.mtx);
		if (fake_cpu(op->address, op->bytes))
			memset(fake_cpu(op->address, op->bytes), (int)op->value, op->bytes);
		pthread_mutex_unlock(&fake.mtx);
		break;
	case OP_RECORD:
		run_record(op);
		break;
	case OP_WRITE:
		flag = flag_at(s, op->address);
		if (flag)
			atomic_store(flag, op->value);
		break;
	case OP_WAIT:
		flag = flag_at(s, op->address);
		while (flag && (int64_t)(atomic_load(flag) - op->value) < 0 && !atomic_load(&s->killed))
			fake_sleep_us(POLL_US);
		break;
	case OP_WAIT_EVENT:
		while (!event_reached(op->event_id, op->seq) && !atomic_load(&s->killed))
			fake_sleep_us(POLL_US);
		break;
	}
}

static void op_free(struct op *op)
{
	free(op->dsts);
	free(op->srcs);
	free(op->sizes);
	free(op);
}

static void *stream_main(void *arg)
{
	struct stream *s = arg;
	struct list *it;

	pthread_mutex_lock(&s->mtx);
	for (;;) {
		it = list_first(&s->ops);
		if (!it && s->stop)
			break;
		if (!it) {
			pthread_cond_wait(&s->cond, &s->mtx);
			continue;
		}
		pthread_mutex_unlock(&s->mtx);
		op_run(s, container_of(it, struct op, link));
		pthread_mutex_lock(&s->mtx);
		list_del(it);
		op_free(container_of(it, struct op, link));
		pthread_cond_broadcast(&s->cond);
	}
	pthread_mutex_unlock(&s->mtx);
	return NULL;
}

/* ---- streams ---- */

/* fake.mtx is not held, as the thread may want it. */
static void stream_end(struct stream *s, bool kill)
{
	if (kill)
		atomic_store(&s->killed, 1);
	pthread_mutex_lock(&s->mtx);
	s->stop = true;
	pthread_cond_broadcast(&s->cond);
	pthread_mutex_unlock(&s->mtx);
	(void)pthread_join(s->thread, NULL);
	pthread_mutex_destroy(&s->mtx);
	pthread_cond_destroy(&s->cond);
	free(s);
}

static struct stream *stream_find(CUstream stream)
{
	struct stream *found = NULL;

	pthread_mutex_lock(&fake.mtx);
	list_for_each(it, &fake.streams) {
		struct stream *s = container_of(it, struct stream, link);

		if (s->id == (uint64_t)(uintptr_t)stream && s->context == fake_current)
			found = s;
	}
	pthread_mutex_unlock(&fake.mtx);
	return found;
}

void fake_streams_reset(int device)
{
	struct list dead;

	list_init(&dead);
	pthread_mutex_lock(&fake.mtx);
	list_for_each_safe(it, next, &fake.streams) {
		struct stream *s = container_of(it, struct stream, link);

		if (s->context->device != device)
			continue;
		list_del(&s->link);
		list_add_tail(&dead, &s->link);
	}
	pthread_mutex_unlock(&fake.mtx);
	list_for_each_safe(it, next, &dead)
		stream_end(container_of(it, struct stream, link), true);
	pthread_mutex_lock(&fake.mtx);
	list_for_each_safe(it, next, &fake.events) {
		struct event *event = container_of(it, struct event, link);

		if (event->device != device)
			continue;
		event_free(event);
	}
	pthread_mutex_unlock(&fake.mtx);
}

CUresult cuStreamCreate(CUstream *phStream, unsigned int Flags)
{
	struct stream *s;

	FAKE_CONTEXT("cuStreamCreate");
	if (Flags != CU_STREAM_DEFAULT && Flags != CU_STREAM_NON_BLOCKING)
		return CUDA_ERROR_INVALID_VALUE;
	s = calloc(1, sizeof(*s));
	if (!s)
		abort();
	s->context = fake_current;
	pthread_mutex_init(&s->mtx, NULL);
	pthread_cond_init(&s->cond, NULL);
	list_init(&s->ops);
	pthread_mutex_lock(&fake.mtx);
	s->id = fake.next_id++;
	list_add_tail(&fake.streams, &s->link);
	pthread_mutex_unlock(&fake.mtx);
	if (pthread_create(&s->thread, NULL, stream_main, s) != 0)
		abort();
	*phStream = (CUstream)(uintptr_t)s->id;
	return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream hStream)
{
	struct stream *s;

	FAKE_CONTEXT("cuStreamDestroy");
	s = stream_find(hStream);
	if (!s)
		return CUDA_ERROR_INVALID_HANDLE;
	pthread_mutex_lock(&fake.mtx);
	list_del(&s->link);
	pthread_mutex_unlock(&fake.mtx);
	stream_end(s, false);
	return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream hStream)
{
	struct stream *s;

	FAKE_CONTEXT("cuStreamSynchronize");
	s = stream_find(hStream);
	if (!s)
		return CUDA_ERROR_INVALID_HANDLE;
	pthread_mutex_lock(&s->mtx);
	while (!list_empty(&s->ops))
		pthread_cond_wait(&s->cond, &s->mtx);
	pthread_mutex_unlock(&s->mtx);
	return (CUresult)atomic_load(&fake_current->sticky);
}

CUresult cuStreamQuery(CUstream hStream)
{
	struct stream *s;
	bool busy;

	FAKE_CONTEXT("cuStreamQuery");
	s = stream_find(hStream);
	if (!s)
		return CUDA_ERROR_INVALID_HANDLE;
	pthread_mutex_lock(&s->mtx);
	busy = !list_empty(&s->ops);
	pthread_mutex_unlock(&s->mtx);
	return busy ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

/* ---- operations ---- */

static struct op *op_new(enum op_kind kind)
{
	struct op *op = calloc(1, sizeof(*op));

	if (!op)
		abort();
	op->kind = kind;
	return op;
}

static CUresult op_submit(CUstream stream, struct op *op)
{
	struct stream *s = stream_find(stream); /* neither default stream is one */

	if (!s) {
		op_free(op);
		return (uintptr_t)stream <= 2 ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
	}
	pthread_mutex_lock(&s->mtx);
	list_add_tail(&s->ops, &op->link);
	pthread_cond_broadcast(&s->cond);
	pthread_mutex_unlock(&s->mtx);
	return CUDA_SUCCESS;
}

static uint64_t *words(const void *from, size_t n)
{
	uint64_t *to = malloc(n * sizeof(*to));

	if (!to)
		abort();
	memcpy(to, from, n * sizeof(*to));
	return to;
}

static bool reaches(uint64_t address, uint64_t bytes)
{
	bool ok;

	pthread_mutex_lock(&fake.mtx);
	ok = fake_cpu(address, bytes) != NULL;
	pthread_mutex_unlock(&fake.mtx);
	return ok;
}

CUresult fake_batch_13000(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
                          size_t *indexes, size_t n_attrs, CUstream stream);
CUresult fake_batch_12080(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
                          size_t *indexes, size_t n_attrs, size_t *ret_failed, CUstream stream);

CUresult fake_batch_13000(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
                          size_t *indexes, size_t n_attrs, CUstream stream)
{
	struct op *op;

	FAKE_CONTEXT("cuMemcpyBatchAsync");
	if (count == 0 || n_attrs == 0 || n_attrs > count || indexes[0] != 0 || (uintptr_t)stream <= 2)
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < n_attrs; i++)
		if (attrs[i].srcAccessOrder < CU_MEMCPY_SRC_ACCESS_ORDER_STREAM ||
		    attrs[i].srcAccessOrder > CU_MEMCPY_SRC_ACCESS_ORDER_ANY || attrs[i].flags > 1 ||
		    indexes[i] >= count || (i > 0 && indexes[i] <= indexes[i - 1]))
			return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < count; i++)
		if (sizes[i] == 0 || !reaches(dsts[i], sizes[i]) || !reaches(srcs[i], sizes[i]))
			return CUDA_ERROR_INVALID_VALUE;
	op = op_new(OP_COPY);
	op->dsts = words(dsts, count);
	op->srcs = words(srcs, count);
	op->sizes = words(sizes, count);
	op->n = count;
	return op_submit(stream, op);
}

CUresult fake_batch_12080(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
                          size_t *indexes, size_t n_attrs, size_t *ret_failed, CUstream stream)
{
	*ret_failed = SIZE_MAX;
	return fake_batch_13000(dsts, srcs, sizes, count, attrs, indexes, n_attrs, stream);
}

static CUresult copy_later(uint64_t dst, uint64_t src, size_t bytes, CUstream stream)
{
	struct op *op;
	uint64_t size = bytes;

	if (bytes == 0 || !reaches(dst, bytes) || !reaches(src, bytes))
		return CUDA_ERROR_INVALID_VALUE;
	op = op_new(OP_COPY);
	op->dsts = words(&dst, 1);
	op->srcs = words(&src, 1);
	op->sizes = words(&size, 1);
	op->n = 1;
	return op_submit(stream, op);
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount, CUstream hStream)
{
	FAKE_CONTEXT("cuMemcpyHtoDAsync");
	return copy_later(dstDevice, (uint64_t)(uintptr_t)srcHost, ByteCount, hStream);
}

CUresult cuMemcpyDtoHAsync(void *dstHost, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream)
{
	FAKE_CONTEXT("cuMemcpyDtoHAsync");
	return copy_later((uint64_t)(uintptr_t)dstHost, srcDevice, ByteCount, hStream);
}

CUresult cuMemsetD8Async(CUdeviceptr dstDevice, unsigned char uc, size_t N, CUstream hStream)
{
	struct op *op;

	FAKE_CONTEXT("cuMemsetD8Async");
	if (N == 0 || !reaches(dstDevice, N) || dstDevice < DEVICE_BASE)
		return CUDA_ERROR_INVALID_VALUE;
	op = op_new(OP_FILL);
	op->address = dstDevice;
	op->bytes = N;
	op->value = uc;
	return op_submit(hStream, op);
}

static CUresult flag_submit(CUstream stream, enum op_kind kind, CUdeviceptr address, uint64_t value)
{
	struct op *op;

	if (address % 8 != 0 || !reaches(address, 8))
		return CUDA_ERROR_INVALID_VALUE;
	op = op_new(kind);
	op->address = address;
	op->value = value;
	return op_submit(stream, op);
}

CUresult cuStreamWriteValue64(CUstream stream, CUdeviceptr addr, cuuint64_t value, unsigned int flags)
{
	FAKE_CONTEXT("cuStreamWriteValue64");
	return flags != 0 ? CUDA_ERROR_INVALID_VALUE : flag_submit(stream, OP_WRITE, addr, value);
}

CUresult cuStreamWaitValue64(CUstream stream, CUdeviceptr addr, cuuint64_t value, unsigned int flags)
{
	FAKE_CONTEXT("cuStreamWaitValue64");
	return flags != CU_STREAM_WAIT_VALUE_GEQ ? CUDA_ERROR_INVALID_VALUE : flag_submit(stream, OP_WAIT, addr, value);
}

/* ---- events ---- */

CUresult cuEventCreate(CUevent *phEvent, unsigned int Flags)
{
	bool shared = Flags & CU_EVENT_INTERPROCESS;
	struct event *event;

	FAKE_CONTEXT("cuEventCreate");
	if (Flags > 7 || (shared && !(Flags & CU_EVENT_DISABLE_TIMING)))
		return CUDA_ERROR_INVALID_VALUE;
	event = calloc(1, sizeof(*event));
	if (!event)
		abort();
	event->device = fake_current->device;
	event->interprocess = shared;
	event->fd = -1;
	pthread_mutex_lock(&fake.mtx);
	event->id = fake.next_id++;
	if (shared) {
		event->fd = fake_file_make(event->name, sizeof(event->name), "event", event->device, 4096);
		event->state = event->fd < 0 ? MAP_FAILED
		                             : mmap(NULL, sizeof(*event->state), PROT_READ | PROT_WRITE, MAP_SHARED,
		                                    event->fd, 0);
		if (event->state == MAP_FAILED)
			abort();
	} else {
		event->state = calloc(1, sizeof(*event->state));
		if (!event->state)
			abort();
	}
	list_add_tail(&fake.events, &event->link);
	pthread_mutex_unlock(&fake.mtx);
	*phEvent = (CUevent)(uintptr_t)event->id;
	return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent hEvent)
{
	struct event *event;

	FAKE_CONTEXT("cuEventDestroy");
	pthread_mutex_lock(&fake.mtx);
	event = event_find((uint64_t)(uintptr_t)hEvent);
	if (event)
		event_free(event);
	pthread_mutex_unlock(&fake.mtx);
	return event ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* One more record; 0: no such event. */
static uint64_t event_next(uint64_t id, bool record)
{
	struct event *event;
	uint64_t seq = 0;

	pthread_mutex_lock(&fake.mtx);
	event = event_find(id);
	if (event)
		seq = record ? atomic_fetch_add(&event->state->recorded, 1) + 1 : atomic_load(&event->state->recorded) + 1;
	pthread_mutex_unlock(&fake.mtx);
	return seq;
}

CUresult cuEventRecord(CUevent hEvent, CUstream hStream)
{
	struct op *op;
	uint64_t seq;

	FAKE_CONTEXT("cuEventRecord");
	if (!stream_find(hStream))
		return CUDA_ERROR_INVALID_HANDLE;
	seq = event_next((uint64_t)(uintptr_t)hEvent, true);
	if (seq == 0)
		return CUDA_ERROR_INVALID_HANDLE;
	op = op_new(OP_RECORD);
	op->event_id = (uint64_t)(uintptr_t)hEvent;
	op->seq = seq;
	return op_submit(hStream, op);
}

CUresult cuEventQuery(CUevent hEvent)
{
	uint64_t id = (uint64_t)(uintptr_t)hEvent, next;

	FAKE_CONTEXT("cuEventQuery");
	next = event_next(id, false);
	if (next == 0)
		return CUDA_ERROR_INVALID_HANDLE;
	return event_reached(id, next - 1) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuStreamWaitEvent(CUstream hStream, CUevent hEvent, unsigned int Flags)
{
	struct op *op;
	uint64_t next;

	FAKE_CONTEXT("cuStreamWaitEvent");
	next = event_next((uint64_t)(uintptr_t)hEvent, false);
	if (next == 0 || Flags != 0)
		return CUDA_ERROR_INVALID_VALUE;
	op = op_new(OP_WAIT_EVENT);
	op->event_id = (uint64_t)(uintptr_t)hEvent;
	op->seq = next - 1;
	return op_submit(hStream, op);
}

CUresult cuIpcGetEventHandle(CUipcEventHandle *pHandle, CUevent event_)
{
	struct event *event;
	CUresult r = CUDA_ERROR_INVALID_HANDLE;

	FAKE_CONTEXT("cuIpcGetEventHandle");
	pthread_mutex_lock(&fake.mtx);
	event = event_find((uint64_t)(uintptr_t)event_);
	if (event && event->interprocess && !event->imported) {
		memset(pHandle, 0, sizeof(*pHandle));
		memcpy(pHandle->reserved, event->name, sizeof(pHandle->reserved) - 1);
		r = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&fake.mtx);
	return r;
}

CUresult cuIpcOpenEventHandle(CUevent *phEvent, CUipcEventHandle handle)
{
	struct event *event;
	char name[sizeof(handle.reserved)], own[16];
	int fd = -1;

	FAKE_CONTEXT("cuIpcOpenEventHandle");
	memcpy(name, handle.reserved, sizeof(name));
	(void)snprintf(own, sizeof(own), "-%d-", getpid());
	if (name[sizeof(name) - 1] || strncmp(name, "event", 5) != 0)
		return CUDA_ERROR_INVALID_VALUE;
	if (strstr(name, own))
		return CUDA_ERROR_INVALID_CONTEXT;
	pthread_mutex_lock(&fake.mtx);
	fd = fake_file_open(name);
	if (fd >= 0) {
		event = calloc(1, sizeof(*event));
		if (!event)
			abort();
		event->id = fake.next_id++;
		event->device = fake_current->device;
		event->interprocess = event->imported = true;
		event->fd = -1;
		event->state = mmap(NULL, sizeof(*event->state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (event->state == MAP_FAILED)
			abort();
		list_add_tail(&fake.events, &event->link);
		(void)close(fd);
		*phEvent = (CUevent)(uintptr_t)event->id;
	}
	pthread_mutex_unlock(&fake.mtx);
	return fd >= 0 ? CUDA_SUCCESS : CUDA_ERROR_MAP_FAILED;
}

/* ---- the kernel ---- */

CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
	static const unsigned char fatbin[] = { 0x50, 0xed, 0x55, 0xba };

	FAKE_CONTEXT("cuModuleLoadData");
	if (!image || (uintptr_t)image % 8 != 0 || memcmp(image, fatbin, sizeof(fatbin)) != 0)
		return CUDA_ERROR_INVALID_IMAGE;
	*module = (CUmodule)(uintptr_t)image;
	return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *hfunc, CUmodule hmod, const char *name)
{
	FAKE_CONTEXT("cuModuleGetFunction");
	if (!hmod || strcmp(name, gather_name) != 0)
		return CUDA_ERROR_NOT_FOUND;
	*hfunc = (CUfunction)(uintptr_t)gather_name;
	return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                        unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                        unsigned int sharedMemBytes, CUstream hStream, void **kernelParams, void **extra)
{
	uint64_t array[3];
	uint32_t n;
	struct op *op;

	FAKE_CONTEXT("cuLaunchKernel");
	if ((const char *)f != gather_name || gridDimX == 0 || gridDimY != 1 || gridDimZ != 1 || blockDimX == 0 ||
	    blockDimX > 1024 || blockDimY != 1 || blockDimZ != 1 || sharedMemBytes != 0 || extra)
		return CUDA_ERROR_INVALID_VALUE;
	for (int i = 0; i < 3; i++)
		array[i] = *(const CUdeviceptr *)kernelParams[i];
	n = *(const uint32_t *)kernelParams[3];
	op = op_new(OP_GATHER);
	op->n = n;
	op->grid = gridDimX;
	op->threads = blockDimX;
	pthread_mutex_lock(&fake.mtx);
	/* Read now: the one simplification is that the caller may not change them before the kernel has run. */
	for (int i = 0; i < 3; i++) {
		char *from = fake_cpu(array[i], n * sizeof(uint64_t));
		uint64_t **to = i == 0 ? &op->dsts : i == 1 ? &op->srcs : &op->sizes;

		if (from)
			*to = words(from, n);
	}
	pthread_mutex_unlock(&fake.mtx);
	if (!op->dsts || !op->srcs || !op->sizes) {
		op_free(op);
		atomic_store(&fake_current->sticky, CUDA_ERROR_ILLEGAL_ADDRESS);
		return CUDA_SUCCESS; /* seen later, as with a real launch */
	}
	return op_submit(hStream, op);
}
