/* SPDX-License-Identifier: Apache-2.0 */
/* Owns the life page and its robust mutex.
 *
 * Invariant: between init and deinit the mutex is locked by the loop thread, so its first word holds that thread's id.  When
 * the thread ends in whatever way, the kernel walks its robust list and sets FUTEX_OWNER_DIED there.  Nobody ever waits on it.
 */
#include "server/life.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/cleanup.h"

_Static_assert(sizeof(pthread_mutex_t) <= 64, "the mutex fits the place kept for it");
_Static_assert(offsetof(pthread_mutex_t, __data.__lock) == 0, "the futex word is the mutex's first word");

static pthread_mutex_t *life_mutex(struct shm_life *page)
{
	return (pthread_mutex_t *)&page->life_word;
}

static int life_lock(struct shm_life *page)
{
	pthread_mutexattr_t attr;
	int r;

	r = pthread_mutexattr_init(&attr);
	if (r != 0)
		return error_origin(-r);
	r = pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	if (r == 0)
		r = pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	if (r == 0)
		r = pthread_mutex_init(life_mutex(page), &attr);
	if (r == 0)
		r = pthread_mutex_lock(life_mutex(page));
	pthread_mutexattr_destroy(&attr);
	return r == 0 ? 0 : error_origin(-r);
}

static int boot_id_make(uint64_t *ret_id)
{
	uint64_t id;

	do {
		if (getrandom(&id, sizeof(id), 0) != (ssize_t)sizeof(id))
			return error_origin(-EIO);
	} while (id == 0);
	*ret_id = id;
	return 0;
}

/* Mode 0400 of our own uid, size fixed: a client cannot open it for writing, nor shrink it under our feet. */
static int life_open(int *ret_fd, int *ret_ro_fd)
{
	_cleanup_(close_p) int fd = memfd_create("kvbmd-life", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	_cleanup_(close_p) int ro_fd = -1;
	char path[64];

	if (fd < 0)
		return error_origin(-errno);
	if (ftruncate(fd, SHM_ALIGN) != 0 || fchmod(fd, 0400) != 0)
		return error_origin(-errno);
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) != 0)
		return error_origin(-errno);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (ro_fd < 0)
		return error_origin(-errno);
	*ret_fd = steal_fd(&fd);
	*ret_ro_fd = steal_fd(&ro_fd);
	return 0;
}

int life_init(struct life *life)
{
	struct shm_life *page;
	int r;

	*life = (struct life){ .fd = -1, .ro_fd = -1 };
	r = boot_id_make(&life->boot_id);
	if (r < 0)
		return error_trace(r);
	r = life_open(&life->fd, &life->ro_fd);
	if (r < 0)
		return error_trace(r);
	page = mmap(NULL, SHM_ALIGN, PROT_READ | PROT_WRITE, MAP_SHARED, life->fd, 0);
	if (page == MAP_FAILED) {
		r = error_origin(-errno);
		life_deinit(life);
		return r;
	}
	/* Sealed after the writable mapping exists, so that nobody else, of whatever uid, can ever write to it. */
	if (fcntl(life->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0)
		r = error_origin(-errno);
	if (r == 0) {
		page->magic = SHM_MAGIC;
		page->version = SHM_VERSION;
		page->boot_id = life->boot_id;
		r = life_lock(page);
	}
	if (r < 0) {
		munmap(page, SHM_ALIGN);
		life_deinit(life);
		return r;
	}
	life->page = page;
	assert(shm_daemon_alive(page));
	return 0;
}

void life_deinit(struct life *life)
{
	if (life->page) {
		/* Zero is "gone" to readers, as is the mark of the kernel. */
		pthread_mutex_unlock(life_mutex(life->page));
		munmap(life->page, SHM_ALIGN);
		life->page = NULL;
	}
	if (life->fd > 0)
		close(life->fd);
	if (life->ro_fd > 0)
		close(life->ro_fd);
	life->fd = life->ro_fd = -1;
}
