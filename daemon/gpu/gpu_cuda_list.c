/* SPDX-License-Identifier: Apache-2.0 */
/* Which devices there are, asked in a thread that ends with the answer; without a driver there is no need for one.
 *
 * Owns: that thread, and the answer.
 * Invariant: the struct is freed by whoever comes last, the thread (with its mail) or gpu_list_close().
 * Deliberately not here: contexts; nothing asked here makes one.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/error.h"
#include "base/thread.h"
#include "gpu/gpu_cuda_state.h"

struct gpu_list {
	/* fixed */
	struct mailbox *mailbox; /* borrows */
	pthread_t thread;
	void (*done)(void *arg, const struct gpu_info *infos, uint32_t n, const char *note);
	void *arg;

	/* the thread's until posted, then the loop's */
	struct mail mail;
	struct gpu_info infos[GPU_MAX_DEVICES];
	uint32_t n;
	const char *note;

	/* under mtx */
	pthread_mutex_t mtx;
	bool posted, closed;

	/* loop thread */
	bool delivered;
};

static void uuid_print(const CUuuid *uuid, bool mig, char *ret_text)
{
	const unsigned char *b = (const unsigned char *)uuid->bytes;

	(void)snprintf(ret_text, GPU_UUID_CHARS, "%s-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
	               mig ? "MIG" : "GPU", b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11],
	               b[12], b[13], b[14], b[15]);
}

static int attribute(const struct driver *driver, CUdevice device, CUdevice_attribute which, int otherwise)
{
	int value;

	return driver->DeviceGetAttribute(&value, which, device) == CUDA_SUCCESS ? value : otherwise;
}

/* The driver knows the node where it knows NUMA; the kernel knows it of the slot. */
static int numa_node(const struct driver *driver, CUdevice device)
{
	int node = attribute(driver, device, CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID, -1);
	char bus[32], path[96];
	FILE *file;

	if (node >= 0 || driver->DeviceGetPCIBusId(bus, sizeof(bus), device) != CUDA_SUCCESS)
		return node;
	for (char *c = bus; *c; c++)
		if (*c >= 'A' && *c <= 'F')
			*c = (char)(*c - 'A' + 'a');
	(void)snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/numa_node", bus);
	file = fopen(path, "re");
	if (!file || fscanf(file, "%d", &node) != 1)
		node = -1;
	if (file)
		(void)fclose(file);
	return node;
}

bool gpu_info_read(const struct driver *driver, CUdevice device, struct gpu_info *ret_info)
{
	struct gpu_info info = { .driver_version = (uint32_t)driver->version };
	CUuuid uuid, parent;
	size_t bytes;

	if (driver->DeviceGetUuid(&uuid, device) != CUDA_SUCCESS ||
	    driver->uuid_of_parent(&parent, device) != CUDA_SUCCESS ||
	    driver->DeviceGetName(info.name, sizeof(info.name), device) != CUDA_SUCCESS ||
	    driver->DeviceTotalMem(&bytes, device) != CUDA_SUCCESS)
		return false;
	info.name[sizeof(info.name) - 1] = 0;
	info.mig = memcmp(&uuid, &parent, sizeof(uuid)) != 0;
	uuid_print(&uuid, info.mig, info.uuid);
	info.bytes = bytes;
	info.numa_node = numa_node(driver, device);
	info.handles = attribute(driver, device, CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 0) > 0;
	info.fds = attribute(driver, device, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, 0) > 0;
	info.stream_flags = attribute(driver, device, CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS, 0) > 0;
	*ret_info = info;
	return true;
}

static void list_free(struct gpu_list *list)
{
	pthread_mutex_destroy(&list->mtx);
	free(list);
}

static void list_ask(struct gpu_list *list)
{
	const struct driver *driver = driver_get(&list->note);
	int n = 0;

	if (!driver)
		return;
	if (driver->DeviceGetCount(&n) != CUDA_SUCCESS)
		n = 0;
	for (int i = 0; i < n && list->n < GPU_MAX_DEVICES; i++) {
		CUdevice device;

		if (driver->DeviceGet(&device, i) == CUDA_SUCCESS && gpu_info_read(driver, device, &list->infos[list->n]))
			list->n++;
	}
	list->note = list->n > 0 ? "" : "no device";
}

static void *list_main(void *arg)
{
	struct gpu_list *list = arg;
	bool closed;

	thread_set_role(THREAD_GPU);
	list_ask(list);
	pthread_mutex_lock(&list->mtx);
	closed = list->closed;
	list->posted = true;
	if (!closed)
		mailbox_post(list->mailbox, &list->mail);
	pthread_mutex_unlock(&list->mtx);
	if (closed)
		list_free(list);
	return NULL;
}

static void list_on_mail(struct mail *mail)
{
	struct gpu_list *list = container_of(mail, struct gpu_list, mail);
	bool closed;

	pthread_mutex_lock(&list->mtx); /* and the thread has let go of it */
	closed = list->closed;
	list->delivered = true;
	pthread_mutex_unlock(&list->mtx);
	if (closed)
		list_free(list);
	else
		list->done(list->arg, list->infos, list->n, list->note);
}

int gpu_list_start(struct mailbox *mailbox,
                   void (*done)(void *arg, const struct gpu_info *infos, uint32_t n, const char *note), void *arg,
                   struct gpu_list **ret_list)
{
	struct gpu_list *list = calloc(1, sizeof(*list));
	sigset_t all, before;
	int r;

	thread_assert(THREAD_LOOP);
	if (!list)
		return error_origin(-ENOMEM);
	list->mailbox = mailbox;
	list->done = done;
	list->arg = arg;
	list->mail.deliver = list_on_mail;
	pthread_mutex_init(&list->mtx, NULL);
	if (!driver_is_there(&list->note)) {
		list->posted = true;
		mailbox_post(mailbox, &list->mail);
		*ret_list = list;
		return 0;
	}
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&list->thread, NULL, list_main, list);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r != 0) {
		list_free(list);
		return error_origin(-r);
	}
	(void)pthread_detach(list->thread);
	*ret_list = list;
	return 0;
}

struct gpu_list *gpu_list_close(struct gpu_list *list)
{
	bool free_now;

	thread_assert(THREAD_LOOP);
	if (!list)
		return NULL;
	pthread_mutex_lock(&list->mtx);
	assert(!list->closed);
	list->closed = true;
	free_now = list->delivered;
	pthread_mutex_unlock(&list->mtx);
	if (free_now)
		list_free(list);
	return NULL;
}
