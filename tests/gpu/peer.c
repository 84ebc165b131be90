/* SPDX-License-Identifier: Apache-2.0 */
/* Both sides of the engine: requests over a socket pair, and CUDA in the process that answers them.
 *
 * The peer finds the driver's functions by their exported names, as an engine's runtime might; the daemon's way of finding
 * them is not tested against itself.
 */
#include "tests/gpu/peer.h"

#include <check.h>
#include <cuda.h>
#include <cudaTypedefs.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum verb { ALLOC = 1, ALLOC_FD, OPEN, OPEN_FD, DUMP, LOAD, EVENT, FLAG, FILL_LATER, COMPARE };

struct message {
	uint32_t verb, ok;
	uint64_t bytes, value;
	uint8_t byte;
	uint8_t handle[64];
};

/* One message, and a descriptor with it if there is one (-1: none). */
static bool message_send(int socket_fd, const struct message *message, int fd)
{
	struct iovec iov = { (void *)(uintptr_t)message, sizeof(*message) };
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
	}
	return sendmsg(socket_fd, &msg, MSG_NOSIGNAL) == (ssize_t)sizeof(*message);
}

static bool message_receive(int socket_fd, struct message *message, int *ret_fd)
{
	struct iovec iov = { message, sizeof(*message) };
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	struct cmsghdr *header;

	*ret_fd = -1;
	if (recvmsg(socket_fd, &msg, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(*message))
		return false;
	header = CMSG_FIRSTHDR(&msg);
	if (header && header->cmsg_type == SCM_RIGHTS)
		memcpy(ret_fd, CMSG_DATA(header), sizeof(*ret_fd));
	return true;
}

/* ---- the engine ---- */

#define CALLS(X) \
	X(Init, 2000, "cuInit") \
	X(DeviceGet, 2000, "cuDeviceGet") \
	X(DevicePrimaryCtxRetain, 7000, "cuDevicePrimaryCtxRetain") \
	X(CtxSetCurrent, 4000, "cuCtxSetCurrent") \
	X(MemAlloc, 3020, "cuMemAlloc_v2") \
	X(IpcGetMemHandle, 4010, "cuIpcGetMemHandle") \
	X(IpcOpenMemHandle, 11000, "cuIpcOpenMemHandle_v2") \
	X(IpcGetEventHandle, 4010, "cuIpcGetEventHandle") \
	X(MemCreate, 10020, "cuMemCreate") \
	X(MemAddressReserve, 10020, "cuMemAddressReserve") \
	X(MemMap, 10020, "cuMemMap") \
	X(MemSetAccess, 10020, "cuMemSetAccess") \
	X(MemExportToShareableHandle, 10020, "cuMemExportToShareableHandle") \
	X(MemImportFromShareableHandle, 10020, "cuMemImportFromShareableHandle") \
	X(MemcpyHtoD, 3020, "cuMemcpyHtoD_v2") \
	X(MemcpyDtoH, 3020, "cuMemcpyDtoH_v2") \
	X(MemsetD8Async, 3020, "cuMemsetD8Async") \
	X(MemHostRegister, 6050, "cuMemHostRegister_v2") \
	X(StreamCreate, 2000, "cuStreamCreate") \
	X(StreamSynchronize, 2000, "cuStreamSynchronize") \
	X(StreamWaitValue64, 11070, "cuStreamWaitValue64_v2") \
	X(StreamWriteValue64, 11070, "cuStreamWriteValue64_v2") \
	X(StreamWaitEvent, 3020, "cuStreamWaitEvent") \
	X(EventCreate, 2000, "cuEventCreate") \
	X(EventRecord, 2000, "cuEventRecord")

static struct {
#define FIELD(name, version, symbol) PFN_cu##name##_v##version name;
	CALLS(FIELD)
#undef FIELD
	CUcontext context;
	CUstream stream;
	CUdeviceptr memory;
	CUevent event;
	uint64_t *flag;
} cu;

#define DO(call) \
	do { \
		CUresult do_ = (call); \
		if (do_ != CUDA_SUCCESS) { \
			fprintf(stderr, "peer: %s: %d\n", #call, (int)do_); \
			return false; \
		} \
	} while (0)

static bool engine_begin(void)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW);
	CUdevice device;

	if (!library)
		return false;
#define FIND(name, version, symbol) *(void **)&cu.name = dlsym(library, symbol);
	CALLS(FIND)
#undef FIND
	DO(cu.Init(0));
	DO(cu.DeviceGet(&device, 0));
	DO(cu.DevicePrimaryCtxRetain(&cu.context, device));
	DO(cu.CtxSetCurrent(cu.context));
	DO(cu.StreamCreate(&cu.stream, CU_STREAM_NON_BLOCKING));
	return true;
}

static bool vmm_map(CUmemGenericAllocationHandle vmm, uint64_t bytes)
{
	CUmemAccessDesc access = { .location = { .type = CU_MEM_LOCATION_TYPE_DEVICE },
		                   .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE };

	DO(cu.MemAddressReserve(&cu.memory, bytes, 0, 0, 0));
	DO(cu.MemMap(cu.memory, bytes, 0, vmm, 0));
	DO(cu.MemSetAccess(cu.memory, bytes, &access, 1));
	return true;
}

static bool engine_alloc_fd(uint64_t bytes, int *ret_fd)
{
	CUmemAllocationProp prop = { .type = CU_MEM_ALLOCATION_TYPE_PINNED,
		                     .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		                     .location = { .type = CU_MEM_LOCATION_TYPE_DEVICE } };
	CUmemGenericAllocationHandle vmm;

	DO(cu.MemCreate(&vmm, bytes, &prop, 0));
	DO(cu.MemExportToShareableHandle(ret_fd, vmm, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	return vmm_map(vmm, bytes);
}

static bool engine_open_fd(uint64_t bytes, int fd)
{
	CUmemGenericAllocationHandle vmm;

	DO(cu.MemImportFromShareableHandle(&vmm, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
	return vmm_map(vmm, bytes);
}

static bool engine_move(int memfd, uint64_t bytes, bool load)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	CUresult r;

	if (p == MAP_FAILED)
		return false;
	r = load ? cu.MemcpyHtoD(cu.memory, p, bytes) : cu.MemcpyDtoH(p, cu.memory, bytes);
	(void)munmap(p, bytes);
	return r == CUDA_SUCCESS;
}

static bool engine_fill(const struct message *in)
{
	DO(cu.MemsetD8Async(cu.memory, in->byte, in->bytes, cu.stream));
	if (in->value > 0)
		DO(cu.StreamWriteValue64(cu.stream, (CUdeviceptr)(uintptr_t)cu.flag, in->value, 0));
	else
		DO(cu.EventRecord(cu.event, cu.stream));
	return true;
}

static bool engine_compare(const struct message *in, bool *ret_same)
{
	uint8_t *bytes = malloc(in->bytes);

	if (!bytes)
		return false;
	if (in->value > 0)
		DO(cu.StreamWaitValue64(cu.stream, (CUdeviceptr)(uintptr_t)cu.flag, in->value, CU_STREAM_WAIT_VALUE_GEQ));
	else
		DO(cu.StreamWaitEvent(cu.stream, cu.event, 0));
	DO(cu.StreamSynchronize(cu.stream));
	DO(cu.MemcpyDtoH(bytes, cu.memory, in->bytes));
	*ret_same = true;
	for (uint64_t i = 0; i < in->bytes; i++)
		*ret_same = *ret_same && bytes[i] == in->byte;
	free(bytes);
	return true;
}

static bool engine_do(const struct message *in, int fd, struct message *out, int *ret_fd)
{
	bool same;

	switch ((enum verb)in->verb) {
	case ALLOC:
		DO(cu.MemAlloc(&cu.memory, in->bytes));
		DO(cu.IpcGetMemHandle((CUipcMemHandle *)out->handle, cu.memory));
		return true;
	case ALLOC_FD:
		return engine_alloc_fd(in->bytes, ret_fd);
	case OPEN: {
		CUipcMemHandle handle;

		memcpy(&handle, in->handle, sizeof(handle));
		return cu.IpcOpenMemHandle(&cu.memory, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS) == CUDA_SUCCESS;
	}
	case OPEN_FD:
		return engine_open_fd(in->bytes, fd);
	case DUMP:
	case LOAD:
		return engine_move(fd, in->bytes, in->verb == LOAD);
	case EVENT:
		DO(cu.EventCreate(&cu.event, CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING));
		DO(cu.IpcGetEventHandle((CUipcEventHandle *)out->handle, cu.event));
		return true;
	case FLAG:
		cu.flag = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (cu.flag == MAP_FAILED)
			return false;
		DO(cu.MemHostRegister(cu.flag, 4096, CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP));
		return true;
	case FILL_LATER:
		return engine_fill(in);
	case COMPARE:
		if (!engine_compare(in, &same))
			return false;
		out->value = same;
		return true;
	}
	return false;
}

void peer_main(int argc, char **argv)
{
	struct message in, out;
	int socket_fd, fd;

	if (argc != 3 || strcmp(argv[1], "--peer") != 0)
		return;
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	socket_fd = atoi(argv[2]);
	if (!engine_begin())
		_exit(1);
	while (message_receive(socket_fd, &in, &fd)) {
		int sent_fd = -1;

		memset(&out, 0, sizeof(out));
		out.ok = engine_do(&in, fd, &out, &sent_fd);
		if (!message_send(socket_fd, &out, sent_fd))
			break;
		if (fd >= 0)
			(void)close(fd);
		if (sent_fd >= 0)
			(void)close(sent_fd);
	}
	_exit(0);
}

/* ---- the test's side ---- */

void peer_start(struct peer *peer)
{
	int pair[2];
	char number[16];

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	(void)snprintf(number, sizeof(number), "%d", pair[1]);
	peer->pid = fork();
	ck_assert_int_ge(peer->pid, 0);
	if (peer->pid == 0) {
		(void)close(pair[0]);
		(void)execl("/proc/self/exe", "peer", "--peer", number, (char *)NULL);
		_exit(127);
	}
	(void)close(pair[1]);
	peer->fd = pair[0];
}

void peer_stop(struct peer *peer, bool kill_it)
{
	if (peer->pid <= 0)
		return;
	if (kill_it)
		(void)kill(peer->pid, SIGKILL);
	(void)close(peer->fd);
	(void)waitpid(peer->pid, NULL, 0);
	peer->pid = 0;
}

static bool peer_ask(struct peer *peer, const struct message *in, int fd, struct message *ret_out, int *ret_fd)
{
	int got = -1;

	ck_assert(message_send(peer->fd, in, fd));
	ck_assert(message_receive(peer->fd, ret_out, &got));
	if (ret_fd)
		*ret_fd = got;
	else if (got >= 0)
		(void)close(got);
	return ret_out->ok;
}

void peer_alloc(struct peer *peer, uint64_t bytes, enum gpu_share share, struct gpu_mem *ret_mem)
{
	struct message in = { .verb = share == GPU_SHARE_FD ? ALLOC_FD : ALLOC, .bytes = bytes }, out;

	memset(ret_mem, 0, sizeof(*ret_mem));
	ck_assert(peer_ask(peer, &in, -1, &out, &ret_mem->fd));
	ret_mem->bytes = bytes;
	ret_mem->share = share;
	memcpy(ret_mem->handle, out.handle, sizeof(ret_mem->handle));
}

bool peer_open(struct peer *peer, const struct gpu_mem *mem)
{
	struct message in = { .verb = mem->share == GPU_SHARE_FD ? OPEN_FD : OPEN, .bytes = mem->bytes }, out;

	memcpy(in.handle, mem->handle, sizeof(in.handle));
	return peer_ask(peer, &in, mem->share == GPU_SHARE_FD ? mem->fd : -1, &out, NULL);
}

void peer_dump(struct peer *peer, int memfd, uint64_t bytes)
{
	struct message in = { .verb = DUMP, .bytes = bytes }, out;

	ck_assert(peer_ask(peer, &in, memfd, &out, NULL));
}

void peer_load(struct peer *peer, int memfd, uint64_t bytes)
{
	struct message in = { .verb = LOAD, .bytes = bytes }, out;

	ck_assert(peer_ask(peer, &in, memfd, &out, NULL));
}

void peer_event(struct peer *peer, uint8_t *ret_handle)
{
	struct message in = { .verb = EVENT }, out;

	ck_assert(peer_ask(peer, &in, -1, &out, NULL));
	memcpy(ret_handle, out.handle, sizeof(out.handle));
}

void peer_flag(struct peer *peer, int memfd)
{
	struct message in = { .verb = FLAG }, out;

	ck_assert(peer_ask(peer, &in, memfd, &out, NULL));
}

void peer_fill_later(struct peer *peer, uint64_t bytes, uint8_t byte, uint64_t value)
{
	struct message in = { .verb = FILL_LATER, .bytes = bytes, .byte = byte, .value = value }, out;

	ck_assert(peer_ask(peer, &in, -1, &out, NULL));
}

bool peer_wait_and_compare(struct peer *peer, uint64_t bytes, uint8_t byte, uint64_t value)
{
	struct message in = { .verb = COMPARE, .bytes = bytes, .byte = byte, .value = value }, out;

	ck_assert(peer_ask(peer, &in, -1, &out, NULL));
	return out.value != 0;
}
