/* SPDX-License-Identifier: Apache-2.0 */
/* Memory: of devices, imported, reserved address space, pinned and registered host memory; and the files behind them.
 *
 * Device memory is a file in the directory, locked (flock) by its maker's description: who finds a file without a lock
 * knows that the maker is dead.  Each has a device address that no process has; the CPU's mapping is known here only.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/fakecuda/fakecuda.h"

#define HANDLE_MAGIC UINT32_C(0x46414b45)

/* What is in the 64 bytes of a handle. */
struct handle {
	uint32_t magic;
	int32_t pid;
	uint32_t device;
	char file[52];
};

_Static_assert(sizeof(struct handle) == CU_IPC_HANDLE_SIZE, "64 bytes");

/* A cuMem allocation: its file is the handle's descriptor. */
struct vmm {
	int fd;
	uint64_t bytes;
	int device;
	uint32_t refs; /* the handle, and each mapping */
};

#define MAX_VMM 256
static struct vmm vmms[MAX_VMM]; /* handle = index + 1 */

/* ---- files ---- */

static void path_of(char *ret_path, size_t bytes, const char *name)
{
	(void)snprintf(ret_path, bytes, "%s/%s", fake.dir, name);
}

int fake_file_make(char *name, size_t name_bytes, const char *kind, int device, uint64_t bytes)
{
	char path[192];
	int fd;

	(void)snprintf(name, name_bytes, "%s%d-%d-%llu", kind, device, getpid(), (unsigned long long)fake.next_id++);
	path_of(path, sizeof(path), name);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return -1;
	if (flock(fd, LOCK_EX | LOCK_NB) < 0 || ftruncate(fd, (off_t)bytes) < 0) {
		(void)close(fd);
		(void)unlink(path);
		return -1;
	}
	return fd;
}

int fake_file_open(const char *name)
{
	char path[192];
	int fd;

	if (strchr(name, '/'))
		return -1;
	path_of(path, sizeof(path), name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) == 0) {
		(void)unlink(path); /* nobody holds it: the maker is dead */
		(void)close(fd);
		return -1;
	}
	return fd;
}

void fake_file_remove(const char *name)
{
	char path[192];

	path_of(path, sizeof(path), name);
	(void)unlink(path);
}

/* What living processes have of a device.  Files of the dead go. */
static uint64_t device_used(int device)
{
	char prefix[16];
	DIR *dir = opendir(fake.dir);
	struct dirent *entry;
	uint64_t used = 0;

	(void)snprintf(prefix, sizeof(prefix), "mem%d-", device);
	while (dir && (entry = readdir(dir))) {
		struct stat st;
		int fd;

		if (strncmp(entry->d_name, prefix, strlen(prefix)) != 0)
			continue;
		fd = fake_file_open(entry->d_name);
		if (fd < 0)
			continue;
		if (fstat(fd, &st) == 0)
			used += (uint64_t)st.st_size;
		(void)close(fd);
	}
	if (dir)
		(void)closedir(dir);
	return used;
}

/* ---- ranges ---- */

static struct memory *memory_add(enum memory_kind kind, int device, uint64_t address, uint64_t bytes)
{
	struct memory *m = calloc(1, sizeof(*m));

	if (!m)
		abort();
	m->kind = kind;
	m->device = device;
	m->bytes = bytes;
	m->address = address;
	m->fd = -1;
	if (address == 0) {
		/* A hole after each, so that whoever writes past an end is noticed. */
		m->address = fake.next_address;
		fake.next_address += (bytes + 2 * GRAIN - 1) / GRAIN * GRAIN;
	}
	list_add_tail(&fake.memories, &m->link);
	return m;
}

static void memory_free(struct memory *m)
{
	list_del(&m->link);
	if (m->cpu && m->kind != MEMORY_REGISTERED)
		(void)munmap(m->cpu, m->bytes);
	if (m->kind == MEMORY_PLAIN)
		fake_file_remove(m->name);
	if (m->fd >= 0)
		(void)close(m->fd);
	free(m);
}

static struct memory *memory_find(uint64_t address, enum memory_kind kind)
{
	list_for_each(it, &fake.memories) {
		struct memory *m = container_of(it, struct memory, link);

		if (m->address == address && m->kind == kind)
			return m;
	}
	return NULL;
}

struct memory *fake_memory_at(uint64_t address)
{
	list_for_each(it, &fake.memories) {
		struct memory *m = container_of(it, struct memory, link);

		if (address >= m->address && address - m->address < m->bytes)
			return m;
	}
	return NULL;
}

char *fake_cpu(uint64_t address, uint64_t bytes)
{
	struct memory *m = fake_memory_at(address);

	if (!m || !m->cpu || (m->kind == MEMORY_RESERVED && !m->accessible) || bytes > m->bytes - (address - m->address))
		return NULL;
	return m->cpu + (address - m->address);
}

void fake_memory_reset(int device)
{
	list_for_each_safe(it, next, &fake.memories) {
		struct memory *m = container_of(it, struct memory, link);

		if (m->device == device && m->kind != MEMORY_RESERVED)
			memory_free(m);
	}
}

#define LOCK() pthread_mutex_lock(&fake.mtx)
static CUresult unlock(CUresult r)
{
	pthread_mutex_unlock(&fake.mtx);
	return r;
}

/* ---- plain memory ---- */

CUresult cuMemAlloc(CUdeviceptr *dptr, size_t bytesize)
{
	struct memory *m;
	char name[96];
	int device, fd;

	FAKE_CONTEXT("cuMemAlloc");
	if (bytesize == 0)
		return CUDA_ERROR_INVALID_VALUE;
	device = fake_current->device;
	LOCK();
	if (device_used(device) + bytesize > fake.device_bytes)
		return unlock(CUDA_ERROR_OUT_OF_MEMORY);
	fd = fake_file_make(name, sizeof(name), "mem", device, bytesize);
	if (fd < 0)
		return unlock(CUDA_ERROR_OUT_OF_MEMORY);
	m = memory_add(MEMORY_PLAIN, device, 0, bytesize);
	m->fd = fd;
	memcpy(m->name, name, sizeof(name));
	m->cpu = mmap(NULL, bytesize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (m->cpu == MAP_FAILED) {
		m->cpu = NULL;
		memory_free(m);
		return unlock(CUDA_ERROR_OUT_OF_MEMORY);
	}
	/* As on a device: not zero. */
	memset(m->cpu, 0xfb, bytesize < 4096 ? bytesize : 4096);
	*dptr = m->address;
	return unlock(CUDA_SUCCESS);
}

CUresult cuMemFree(CUdeviceptr dptr)
{
	struct memory *m;

	FAKE_CONTEXT("cuMemFree");
	LOCK();
	m = memory_find(dptr, MEMORY_PLAIN);
	if (m)
		memory_free(m);
	return unlock(m ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

CUresult cuMemGetAddressRange(CUdeviceptr *pbase, size_t *psize, CUdeviceptr dptr)
{
	struct memory *m;

	FAKE_CONTEXT("cuMemGetAddressRange");
	LOCK();
	m = fake_memory_at(dptr);
	if (!m || m->kind == MEMORY_REGISTERED)
		return unlock(CUDA_ERROR_INVALID_VALUE);
	if (pbase)
		*pbase = m->address;
	if (psize)
		*psize = m->bytes;
	return unlock(CUDA_SUCCESS);
}

static CUresult copy_now(uint64_t device, void *host, size_t bytes, bool to_device)
{
	char *cpu;

	LOCK();
	cpu = fake_cpu(device, bytes);
	if (!cpu || device < DEVICE_BASE)
		return unlock(CUDA_ERROR_INVALID_VALUE);
	if (to_device)
		memcpy(cpu, host, bytes);
	else
		memcpy(host, cpu, bytes);
	return unlock(CUDA_SUCCESS);
}

CUresult cuMemcpyHtoD(CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount)
{
	FAKE_CONTEXT("cuMemcpyHtoD");
	return copy_now(dstDevice, (void *)(uintptr_t)srcHost, ByteCount, true);
}

CUresult cuMemcpyDtoH(void *dstHost, CUdeviceptr srcDevice, size_t ByteCount)
{
	FAKE_CONTEXT("cuMemcpyDtoH");
	return copy_now(srcDevice, dstHost, ByteCount, false);
}

/* ---- IPC ---- */

CUresult cuIpcGetMemHandle(CUipcMemHandle *pHandle, CUdeviceptr dptr)
{
	struct handle handle = { .magic = HANDLE_MAGIC, .pid = getpid() };
	struct memory *m;

	FAKE_CONTEXT("cuIpcGetMemHandle");
	if (fake.mig)
		return CUDA_ERROR_NOT_SUPPORTED;
	LOCK();
	m = fake_memory_at(dptr);
	if (!m || m->kind != MEMORY_PLAIN) /* not cuMem memory, not another's */
		return unlock(CUDA_ERROR_INVALID_VALUE);
	handle.device = (uint32_t)m->device;
	(void)snprintf(handle.file, sizeof(handle.file), "%.51s", m->name);
	memcpy(pHandle, &handle, sizeof(handle));
	return unlock(CUDA_SUCCESS);
}

static CUresult ipc_open(const struct handle *handle, CUdeviceptr *dptr)
{
	struct memory *m;
	struct stat st;
	int fd;

	if (handle->magic != HANDLE_MAGIC || handle->file[sizeof(handle->file) - 1] ||
	    strncmp(handle->file, "mem", 3) != 0 || handle->device >= (uint32_t)fake.n_devices)
		return CUDA_ERROR_INVALID_VALUE;
	if (handle->pid == getpid())
		return CUDA_ERROR_INVALID_CONTEXT;
	list_for_each(it, &fake.memories) {
		m = container_of(it, struct memory, link);
		if (m->kind != MEMORY_IMPORTED || strcmp(m->name, handle->file) != 0)
			continue;
		m->opens++;
		*dptr = m->address;
		return CUDA_SUCCESS;
	}
	fd = fake_file_open(handle->file);
	if (fd < 0 || fstat(fd, &st) < 0)
		return CUDA_ERROR_MAP_FAILED;
	m = memory_add(MEMORY_IMPORTED, fake_current->device, 0, (uint64_t)st.st_size);
	memcpy(m->name, handle->file, sizeof(handle->file));
	m->opens = 1;
	m->cpu = mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	(void)close(fd);
	if (m->cpu == MAP_FAILED)
		abort();
	*dptr = m->address;
	return CUDA_SUCCESS;
}

CUresult cuIpcOpenMemHandle(CUdeviceptr *pdptr, CUipcMemHandle ipc, unsigned int Flags)
{
	struct handle handle;

	FAKE_CONTEXT("cuIpcOpenMemHandle");
	if (fake.mig)
		return CUDA_ERROR_NOT_SUPPORTED;
	if (Flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
		return CUDA_ERROR_INVALID_VALUE;
	memcpy(&handle, &ipc, sizeof(handle));
	LOCK();
	return unlock(ipc_open(&handle, pdptr));
}

CUresult cuIpcCloseMemHandle(CUdeviceptr dptr)
{
	struct memory *m;

	FAKE_CONTEXT("cuIpcCloseMemHandle");
	LOCK();
	m = memory_find(dptr, MEMORY_IMPORTED);
	if (m && --m->opens == 0)
		memory_free(m);
	return unlock(m ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

/* ---- cuMem ---- */

static struct vmm *vmm_of(CUmemGenericAllocationHandle handle)
{
	return handle >= 1 && handle <= MAX_VMM && vmms[handle - 1].refs > 0 ? &vmms[handle - 1] : NULL;
}

static struct vmm *vmm_new(int fd, uint64_t bytes, int device, CUmemGenericAllocationHandle *ret_handle)
{
	for (uint32_t i = 0; i < MAX_VMM; i++)
		if (vmms[i].refs == 0) {
			vmms[i] = (struct vmm){ .fd = fd, .bytes = bytes, .device = device, .refs = 1 };
			*ret_handle = i + 1;
			return &vmms[i];
		}
	abort();
}

static void vmm_put(struct vmm *vmm)
{
	if (--vmm->refs == 0)
		(void)close(vmm->fd);
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                     unsigned long long flags)
{
	char name[96];
	int fd;

	FAKE_ENTER("cuMemCreate");
	if (size == 0 || size % GRAIN != 0 || flags != 0 || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
	    prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE || prop->location.id < 0 ||
	    prop->location.id >= fake.n_devices || prop->requestedHandleTypes != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_INVALID_VALUE;
	LOCK();
	if (device_used(prop->location.id) + size > fake.device_bytes)
		return unlock(CUDA_ERROR_OUT_OF_MEMORY);
	fd = fake_file_make(name, sizeof(name), "mem", prop->location.id, size);
	if (fd < 0)
		return unlock(CUDA_ERROR_OUT_OF_MEMORY);
	(void)vmm_new(fd, size, prop->location.id, handle);
	return unlock(CUDA_SUCCESS);
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
	struct vmm *vmm;

	FAKE_ENTER("cuMemRelease");
	LOCK();
	vmm = vmm_of(handle);
	if (vmm)
		vmm_put(vmm);
	return unlock(vmm ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

CUresult cuMemExportToShareableHandle(void *shareableHandle, CUmemGenericAllocationHandle handle,
                                      CUmemAllocationHandleType handleType, unsigned long long flags)
{
	struct vmm *vmm;
	int fd = -1;

	FAKE_ENTER("cuMemExportToShareableHandle");
	if (handleType != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags != 0)
		return CUDA_ERROR_INVALID_VALUE;
	LOCK();
	vmm = vmm_of(handle);
	if (vmm)
		fd = fcntl(vmm->fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return unlock(CUDA_ERROR_INVALID_VALUE);
	*(int *)shareableHandle = fd;
	return unlock(CUDA_SUCCESS);
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *osHandle,
                                        CUmemAllocationHandleType shHandleType)
{
	struct stat st;
	int fd;

	FAKE_ENTER("cuMemImportFromShareableHandle");
	if (shHandleType != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
		return CUDA_ERROR_INVALID_VALUE;
	fd = fcntl((int)(intptr_t)osHandle, F_DUPFD_CLOEXEC, 0);
	/* Anything can be sent as a descriptor. */
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size == 0 || st.st_size % (off_t)GRAIN != 0) {
		if (fd >= 0)
			(void)close(fd);
		return CUDA_ERROR_INVALID_VALUE;
	}
	LOCK();
	(void)vmm_new(fd, (uint64_t)st.st_size, 0, handle);
	return unlock(CUDA_SUCCESS);
}

CUresult cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr, unsigned long long flags)
{
	FAKE_ENTER("cuMemAddressReserve");
	if (size == 0 || size % GRAIN != 0 || (alignment & (alignment - 1)) != 0 || addr != 0 || flags != 0)
		return CUDA_ERROR_INVALID_VALUE;
	LOCK();
	*ptr = memory_add(MEMORY_RESERVED, -1, 0, size)->address;
	return unlock(CUDA_SUCCESS);
}

CUresult cuMemAddressFree(CUdeviceptr ptr, size_t size)
{
	struct memory *m;

	FAKE_ENTER("cuMemAddressFree");
	LOCK();
	m = memory_find(ptr, MEMORY_RESERVED);
	if (!m || m->bytes != size || m->cpu)
		return unlock(CUDA_ERROR_INVALID_VALUE);
	memory_free(m);
	return unlock(CUDA_SUCCESS);
}

/* One mapping fills its reservation. */
CUresult cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags)
{
	struct memory *m;
	struct vmm *vmm;

	FAKE_ENTER("cuMemMap");
	LOCK();
	m = memory_find(ptr, MEMORY_RESERVED);
	vmm = vmm_of(handle);
	if (!m || !vmm || m->cpu || m->bytes != size || offset != 0 || flags != 0 || size > vmm->bytes)
		return unlock(CUDA_ERROR_INVALID_VALUE);
	m->cpu = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vmm->fd, 0);
	if (m->cpu == MAP_FAILED)
		abort();
	m->opens = (uint32_t)handle;
	vmm->refs++;
	return unlock(CUDA_SUCCESS);
}

CUresult cuMemUnmap(CUdeviceptr ptr, size_t size)
{
	struct memory *m;

	FAKE_ENTER("cuMemUnmap");
	LOCK();
	m = memory_find(ptr, MEMORY_RESERVED);
	if (!m || !m->cpu || m->bytes != size)
		return unlock(CUDA_ERROR_INVALID_VALUE);
	(void)munmap(m->cpu, m->bytes);
	m->cpu = NULL;
	m->accessible = false;
	vmm_put(&vmms[m->opens - 1]);
	return unlock(CUDA_SUCCESS);
}

CUresult cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count)
{
	struct memory *m;

	FAKE_ENTER("cuMemSetAccess");
	LOCK();
	m = memory_find(ptr, MEMORY_RESERVED);
	if (!m || !m->cpu || m->bytes != size || count != 1 || desc->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
		return unlock(CUDA_ERROR_INVALID_VALUE);
	m->accessible = desc->flags != CU_MEM_ACCESS_FLAGS_PROT_NONE;
	if (mprotect(m->cpu, size,
	             desc->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE ? PROT_READ | PROT_WRITE : PROT_READ) < 0)
		abort();
	return unlock(CUDA_SUCCESS);
}

/* ---- host memory ---- */

CUresult cuMemHostAlloc(void **pp, size_t bytesize, unsigned int Flags)
{
	struct memory *m;
	void *p;

	FAKE_CONTEXT("cuMemHostAlloc");
	if (bytesize == 0 || Flags > 7)
		return CUDA_ERROR_INVALID_VALUE;
	p = mmap(NULL, bytesize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return CUDA_ERROR_OUT_OF_MEMORY;
	LOCK();
	m = memory_add(MEMORY_PINNED, fake_current->device, (uint64_t)(uintptr_t)p, bytesize);
	m->cpu = p;
	*pp = p;
	return unlock(CUDA_SUCCESS);
}

CUresult cuMemFreeHost(void *p)
{
	struct memory *m;

	FAKE_CONTEXT("cuMemFreeHost");
	LOCK();
	m = memory_find((uint64_t)(uintptr_t)p, MEMORY_PINNED);
	if (m)
		memory_free(m);
	return unlock(m ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

static bool is_mapped(void *p, size_t bytes)
{
	uintptr_t page = (uintptr_t)p & ~(uintptr_t)4095;

	return msync((void *)page, bytes + ((uintptr_t)p - page), MS_ASYNC) == 0;
}

CUresult cuMemHostRegister(void *p, size_t bytesize, unsigned int Flags)
{
	uint64_t address = (uint64_t)(uintptr_t)p;
	struct memory *m;

	FAKE_CONTEXT("cuMemHostRegister");
	if (!p || bytesize == 0 || (Flags & ~0xfu) != 0 || !is_mapped(p, bytesize))
		return CUDA_ERROR_INVALID_VALUE;
	LOCK();
	list_for_each(it, &fake.memories) {
		m = container_of(it, struct memory, link);
		if (m->address < address + bytesize && address < m->address + m->bytes)
			return unlock(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
	}
	m = memory_add(MEMORY_REGISTERED, fake_current->device, address, bytesize);
	m->cpu = p;
	return unlock(CUDA_SUCCESS);
}

CUresult cuMemHostUnregister(void *p)
{
	struct memory *m;

	FAKE_CONTEXT("cuMemHostUnregister");
	LOCK();
	m = memory_find((uint64_t)(uintptr_t)p, MEMORY_REGISTERED);
	if (m)
		memory_free(m);
	return unlock(m ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr *pdptr, void *p, unsigned int Flags)
{
	struct memory *m;

	FAKE_CONTEXT("cuMemHostGetDevicePointer");
	LOCK();
	m = fake_memory_at((uint64_t)(uintptr_t)p);
	if (Flags != 0 || !m || (m->kind != MEMORY_PINNED && m->kind != MEMORY_REGISTERED))
		return unlock(CUDA_ERROR_INVALID_VALUE);
	*pdptr = (CUdeviceptr)(uintptr_t)p;
	return unlock(CUDA_SUCCESS);
}
