/* SPDX-License-Identifier: Apache-2.0 */
/* gpu.h in a build without the CUDA toolkit: there is no device, and so nothing that could be asked of one.
 *
 * gpu_start() never gives out a device, so the functions that take one cannot be reached; they abort.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/error.h"
#include "base/thread.h"
#include "gpu/gpu.h"

struct gpu_list {
	void (*done)(void *arg, const struct gpu_info *infos, uint32_t n, const char *note);
	void *arg;
	struct mail mail; /* in the mailbox until it was delivered */
	bool delivered, closed;
};

static void list_on_mail(struct mail *mail)
{
	struct gpu_list *list = container_of(mail, struct gpu_list, mail);

	list->delivered = true;
	if (list->closed)
		free(list);
	else
		list->done(list->arg, NULL, 0, "built without CUDA");
}

int gpu_list_start(struct mailbox *mailbox,
                   void (*done)(void *arg, const struct gpu_info *infos, uint32_t n, const char *note), void *arg,
                   struct gpu_list **ret_list)
{
	struct gpu_list *list = calloc(1, sizeof(*list));

	thread_assert(THREAD_LOOP);
	if (!list)
		return error_origin(-ENOMEM);
	*list = (struct gpu_list){ .done = done, .arg = arg, .mail.deliver = list_on_mail };
	mailbox_post(mailbox, &list->mail);
	*ret_list = list;
	return 0;
}

struct gpu_list *gpu_list_close(struct gpu_list *list)
{
	thread_assert(THREAD_LOOP);
	if (!list)
		return NULL;
	if (list->delivered)
		free(list);
	else
		list->closed = true;
	return NULL;
}

int gpu_start(const struct gpu_options *options, struct gpu **ret_gpu)
{
	assert(options && ret_gpu);
	return GPU_E_UNSUPPORTED;
}

static __attribute__((noreturn)) void no_device(void)
{
	assert(!"there is no device");
	abort();
}

bool gpu_is_online(const struct gpu *gpu)
{
	(void)gpu;
	no_device();
}

const char *gpu_why(const struct gpu *gpu)
{
	(void)gpu;
	no_device();
}

void gpu_stat(const struct gpu *gpu, struct gpu_stat *ret_stat)
{
	(void)gpu, (void)ret_stat;
	no_device();
}

void gpu_close(struct gpu *gpu, void (*closed)(void *arg), void *arg)
{
	(void)gpu, (void)closed, (void)arg;
	no_device();
}

int gpu_mem_alloc(struct gpu *gpu, struct gpu_mem *mem, void (*done)(struct gpu_mem *mem, int r))
{
	(void)gpu, (void)mem, (void)done;
	no_device();
}

int gpu_mem_import(struct gpu *gpu, struct gpu_mem *mem, void (*done)(struct gpu_mem *mem, int r))
{
	(void)gpu, (void)mem, (void)done;
	no_device();
}

void gpu_mem_close(struct gpu *gpu, struct gpu_mem *mem, void (*done)(struct gpu_mem *mem, int r))
{
	(void)gpu, (void)mem, (void)done;
	no_device();
}

int gpu_event_import(struct gpu *gpu, struct gpu_event *event, void (*done)(struct gpu_event *event, int r))
{
	(void)gpu, (void)event, (void)done;
	no_device();
}

void gpu_event_close(struct gpu *gpu, struct gpu_event *event, void (*done)(struct gpu_event *event, int r))
{
	(void)gpu, (void)event, (void)done;
	no_device();
}

void gpu_pin(struct gpu *gpu, struct gpu_pin *pin, void *base, uint64_t bytes)
{
	(void)gpu, (void)pin, (void)base, (void)bytes;
	no_device();
}

void gpu_unpin(struct gpu *gpu, struct gpu_pin *pin, void (*done)(struct gpu_pin *pin, int r))
{
	(void)gpu, (void)pin, (void)done;
	no_device();
}

int gpu_copy_start(struct gpu *gpu, struct gpu_copy *copy)
{
	(void)gpu, (void)copy;
	no_device();
}

void gpu_copy_cancel(struct gpu_copy *copy)
{
	(void)copy;
	no_device();
}
