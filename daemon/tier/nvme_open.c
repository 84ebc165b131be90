/* SPDX-License-Identifier: Apache-2.0 */
/* Opens the drives of a set: whose are they, are they whole, do they belong together; or makes and formats them.
 *
 * Owns the descriptors until nvme_close_drives().
 * Invariant: before it is certain that every drive is ours or empty, nothing is written to any.
 * Blocking calls, and none through the ring: this is before the loop serves anybody.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/size.h"
#include "tier/nvme_state.h"

#define AREA_MIN (UINT64_C(64) << 20)
#define AREA_MAX (UINT64_C(4) << 30)
#define AREAS_WANTED 256u
#define AREAS_FEW 8u

/* What a drive was found to be. */
struct found {
	uint64_t there; /* bytes */
	bool empty;     /* of zeros where we look, or of no length */
	struct nvme_super super;
};

#define say(why, ...) ((void)snprintf((why), NVME_WHY_BYTES, __VA_ARGS__))

static int open_fault(char *why, const char *path, int outcome, const char *what, int error)
{
	say(why, "%s: %s (%s)", path, what, strerror(error));
	return outcome;
}

static int drive_size(struct nvme_drive *d, const char *path, struct found *f, char *why)
{
	struct stat st;

	if (fstat(d->fd, &st) != 0)
		return open_fault(why, path, NVME_E_OPEN, "cannot be looked at", errno);
	if (S_ISREG(st.st_mode)) {
		f->there = (uint64_t)st.st_size;
		return 0;
	}
	if (!S_ISBLK(st.st_mode)) {
		say(why, "%s: is neither a file nor a block device", path);
		return NVME_E_OPEN;
	}
	d->device = true;
	if (ioctl(d->fd, BLKGETSIZE64, &f->there) != 0)
		return open_fault(why, path, NVME_E_OPEN, "does not tell its size", errno);
	return 0;
}

/* The lock has a descriptor of its own: a ring holds on to the files it was given until all its operations are done, also when
 * its process is dead, and the next daemon need not wait for that. */
static int drive_lock(struct nvme_drive *d, char *why)
{
	/* O_EXCL without O_CREAT: not a device that is mounted. */
	d->lock_fd = open(d->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (d->device ? O_EXCL : 0));
	if (d->lock_fd < 0 && errno == EBUSY) {
		say(why, "%s: is in use by the system", d->path);
		return NVME_E_BUSY;
	}
	if (d->lock_fd < 0)
		return open_fault(why, d->path, NVME_E_OPEN, "cannot be opened", errno);
	if (flock(d->lock_fd, LOCK_EX | LOCK_NB) != 0) {
		say(why, "%s: is in use by another daemon, or named twice", d->path);
		return NVME_E_BUSY;
	}
	return 0;
}

/* A lock of the open file that the ring is given.  When its process dies it stays until the ring has let go of the file, which is when
 * all its operations are done: so who gets it knows that nothing of a dead daemon's is still to land. */
bool nvme_drives_alone(struct nvme *t)
{
	bool alone = true;

	for (uint32_t i = 0; i < t->layout.drives; i++) {
		struct nvme_drive *d = &t->drives[i];
		struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

		d->alone = d->alone || fcntl(d->fd, F_OFD_SETLK, &all) == 0;
		alone = alone && d->alone;
	}
	return alone;
}

static int drive_open(struct nvme_drive *d, const char *path, bool may_make, struct found *f, char *why)
{
	int flags = O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	int r;

	d->path = strdup(path);
	if (!d->path)
		return error_origin(-ENOMEM);
	d->fd = open(path, flags);
	if (d->fd < 0 && errno == ENOENT && may_make) {
		d->fd = open(path, flags | O_CREAT | O_EXCL, 0600);
		d->made = d->fd >= 0;
	}
	if (d->fd < 0)
		return open_fault(why, path, NVME_E_OPEN, "cannot be opened", errno);
	r = drive_size(d, path, f, why);
	return r == 0 ? drive_lock(d, why) : r;
}

static bool read_all(int fd, void *buf, uint64_t size, uint64_t offset)
{
	for (uint64_t at = 0; at < size;) {
		ssize_t n = pread(fd, (char *)buf + at, size - at, (off_t)(offset + at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		at += (uint64_t)n;
	}
	return true;
}

static bool all_zero(const uint8_t *p, uint64_t size)
{
	return size == 0 || (p[0] == 0 && memcmp(p, p + 1, size - 1) == 0);
}

struct look {
	bool any, other_version, damaged, foreign;
};

static void look_at(const uint8_t *block, struct look *l, struct nvme_super *best)
{
	struct nvme_super s;

	switch (nvme_super_decode(block, &s)) {
	case 0:
		if (!l->any || s.seq > best->seq)
			*best = s;
		l->any = true;
		break;
	case NVME_FORMAT_E_VERSION:
		l->other_version = true;
		break;
	case NVME_FORMAT_E_DAMAGED:
		l->damaged = true;
		break;
	case NVME_FORMAT_E_FOREIGN:
		l->foreign = true;
		break;
	default:
		break;
	}
}

/* A flipped bit in one copy's version must not lose us the drive: other versions count only if no copy is valid. */
static int drive_verdict(const struct look *l, bool zeros, const char *path, char *why)
{
	if (l->any)
		return 0;
	if (l->other_version) {
		say(why, "%s: was written by another version of kvbmd, and is left as it is", path);
		return NVME_E_VERSION;
	}
	if (l->damaged) {
		say(why, "%s: every superblock is damaged; kvbmctl fsck tells more", path);
		return NVME_E_DAMAGED;
	}
	if (!zeros) {
		say(why, "%s: is not empty and not kvbmd's, and is left as it is", path);
		return NVME_E_FOREIGN;
	}
	return 0;
}

/* The first MiB and the last block: superblocks, and where others would have theirs. */
static int drive_look(struct nvme_drive *d, struct found *f, uint8_t *head, char *why)
{
	uint64_t n = f->there < NVME_HEAD_BYTES ? f->there : NVME_HEAD_BYTES;
	struct look l = { false, false, false, false };
	bool zeros;

	memset(head, 0, NVME_HEAD_BYTES);
	if (!read_all(d->fd, head, n, 0))
		return open_fault(why, d->path, NVME_E_IO, "cannot be read", errno);
	zeros = all_zero(head, n);
	for (uint32_t i = 0; i < NVME_SUPER_COPIES - 1; i++)
		look_at(head + (size_t)i * NVME_BLOCK, &l, &f->super);
	/* A copy at the end stands where the others say; if none does, where the file ends. */
	if (f->there >= NVME_HEAD_BYTES + NVME_BLOCK) {
		uint64_t end = l.any && f->super.size <= f->there ? f->super.size : f->there / NVME_BLOCK * NVME_BLOCK;

		if (!read_all(d->fd, head, NVME_BLOCK, end - NVME_BLOCK)) {
			if (!l.any)
				return open_fault(why, d->path, NVME_E_IO, "cannot be read", errno);
			memset(head, 0, NVME_BLOCK);
		}
		zeros = zeros && all_zero(head, NVME_BLOCK);
		look_at(head, &l, &f->super);
	}
	f->empty = !l.any;
	return drive_verdict(&l, zeros, d->path, why);
}

/* Either all of one set in their places, or all empty. */
static int set_check(struct nvme *t, struct found *f, const struct nvme_config *config, bool *ret_empty, char *why)
{
	bool any_empty = false, any_old = false;
	uint64_t sum = 0;

	for (uint32_t i = 0; i < t->layout.drives; i++) {
		any_empty = any_empty || f[i].empty;
		any_old = any_old || (!f[i].empty && f[i].super.seq > 1);
	}
	*ret_empty = any_empty && !any_old;
	if (*ret_empty)
		return 0;
	for (uint32_t i = 0; i < t->layout.drives; i++) {
		const char *path = t->drives[i].path;

		if (f[i].empty) {
			say(why,
			    "%s: is empty, but the other drives of its set are not; start with all drives, or empty all",
			    path);
			return NVME_E_CHANGED;
		}
		if (f[i].super.drives != t->layout.drives || f[i].super.drive != i ||
		    memcmp(f[i].super.uuid, f[0].super.uuid, NVME_UUID_BYTES) != 0 ||
		    f[i].super.area_bytes != f[0].super.area_bytes || f[i].super.areas != f[0].super.areas) {
			say(why, "%s: is drive %u of a set of %u, but named as drive %u of %u, or of another set", path,
			    f[i].super.drive + 1, f[i].super.drives, i + 1, t->layout.drives);
			return NVME_E_CHANGED;
		}
		sum += f[i].super.size;
	}
	if (config->size != 0 && config->size / t->layout.drives / NVME_BLOCK * NVME_BLOCK != sum / t->layout.drives) {
		char is[SIZE_TEXT_MAX], wanted[SIZE_TEXT_MAX];

		say(why, "%s: was made for a size of %s, not %s; keep that, or empty it to begin anew", t->drives[0].path,
		    size_format(sum, is, sizeof(is)), size_format(config->size, wanted, sizeof(wanted)));
		return NVME_E_CHANGED;
	}
	return 0;
}

/* All of it now, so that no write finds the filesystem full. */
static int drive_allocate(struct nvme *t, struct nvme_drive *d, uint64_t there, uint64_t size, char *why)
{
	int error;

	if (d->device) {
		if (there >= size)
			return 0;
		say(why, "%s: is smaller than its part of the size", d->path);
		return NVME_E_SMALL;
	}
	if (fallocate(d->fd, 0, 0, (off_t)size) == 0)
		return 0;
	error = errno;
	if (error == EOPNOTSUPP || error == ENOSYS) {
		if (there >= size || ftruncate(d->fd, (off_t)size) == 0) {
			nvme_note(t, "%s: the filesystem reserves nothing (fallocate): it may be full later", d->path);
			return 0;
		}
		error = errno;
	}
	if (ftruncate(d->fd, (off_t)there) != 0)
		say(why, "%s: is now longer than it was", d->path); /* and is told again below */
	return open_fault(why, d->path, error == ENOSPC || error == EDQUOT || error == EFBIG ? NVME_E_SPACE : NVME_E_IO,
	                  "cannot be made as large as it should be", error);
}

static void drive_direct(struct nvme *t, struct nvme_drive *d, uint8_t *buf)
{
	int flags = fcntl(d->fd, F_GETFL);
	int error = 0;

	assert(flags >= 0);
	if (fcntl(d->fd, F_SETFL, (flags | O_DIRECT) & ~O_NONBLOCK) != 0)
		error = errno;
	else if (pread(d->fd, buf, NVME_BLOCK, 0) != (ssize_t)NVME_BLOCK)
		error = errno;
	if (error == 0)
		return;
	d->buffered = true;
	(void)fcntl(d->fd, F_SETFL, flags & ~O_NONBLOCK);
	nvme_note(t, "%s: no O_DIRECT here (%s): copies go through the page cache, which costs CPU and memory", d->path,
	          strerror(error));
}

static uint64_t area_choose(uint64_t size, uint64_t wanted, uint32_t drives)
{
	uint64_t area = wanted;

	if (area == 0) {
		area = size / AREAS_WANTED;
		area = area < AREA_MIN ? AREA_MIN : area > AREA_MAX ? AREA_MAX : area;
		while (area > NVME_HEAD_BYTES && size / area < AREAS_FEW)
			area /= 2;
	}
	area /= drives;
	return area >= NVME_HEAD_BYTES ? area / NVME_HEAD_BYTES * NVME_HEAD_BYTES : area / NVME_BLOCK * NVME_BLOCK;
}

static int set_plan(struct nvme *t, const struct nvme_config *config, const struct found *f, uint64_t *ret_size, char *why)
{
	uint64_t size = config->size / t->layout.drives;
	bool random = getrandom(t->super.uuid, sizeof(t->super.uuid), 0) == (ssize_t)sizeof(t->super.uuid);

	assert(random); /* cannot fail for 16 bytes once the system is up */
	if (config->size == 0) {
		size = UINT64_MAX;
		for (uint32_t i = 0; i < t->layout.drives; i++)
			size = f[i].there < size ? f[i].there : size;
	}
	size = size / NVME_BLOCK * NVME_BLOCK;
	t->layout.area_bytes = area_choose(size * t->layout.drives, config->area_size, t->layout.drives);
	t->super.drives = t->layout.drives;
	t->super.area_bytes = t->layout.area_bytes;
	t->super.areas = (uint32_t)nvme_areas_in(size, t->layout.area_bytes);
	if (t->super.areas == 0 || t->layout.area_bytes < (NVME_HEADER_COPIES + 2) * NVME_BLOCK) {
		say(why, "%s: %s", t->drives[0].path,
		    size == 0 ? "is not there or empty, and no size is given" : "is too small");
		return NVME_E_SMALL;
	}
	*ret_size = size;
	return 0;
}

static int super_write(struct nvme *t, struct nvme_drive *d, uint8_t *buf, char *why)
{
	struct nvme_super s = t->super;

	s.drive = (uint32_t)(d - t->drives);
	s.size = d->size;
	s.seq = t->super_seq;
	nvme_super_encode(&s, buf);
	for (uint32_t i = 0; i < NVME_SUPER_COPIES; i++)
		if (pwrite(d->fd, buf, NVME_BLOCK, (off_t)nvme_super_offset(d->size, i)) != (ssize_t)NVME_BLOCK)
			return open_fault(why, d->path, NVME_E_IO, "cannot be written", errno);
	return 0;
}

static int set_format(struct nvme *t, const struct nvme_config *config, const struct found *f, uint8_t *buf, char *why)
{
	uint64_t size = 0;
	int r = set_plan(t, config, f, &size, why);

	for (uint32_t i = 0; i < t->layout.drives && r == 0; i++) {
		t->drives[i].size = size;
		r = drive_allocate(t, &t->drives[i], f[i].there, size, why);
		if (r == 0)
			drive_direct(t, &t->drives[i], buf);
	}
	t->super_seq = 1;
	t->super.clean = true;
	t->fresh = t->was_clean = true;
	t->grace_ns = 0; /* nobody wrote to it before */
	(void)nvme_drives_alone(t);
	for (uint32_t i = 0; i < t->layout.drives && r == 0; i++)
		r = super_write(t, &t->drives[i], buf, why);
	for (uint32_t i = 0; i < t->layout.drives && r == 0; i++)
		if (fdatasync(t->drives[i].fd) != 0)
			r = open_fault(why, t->drives[i].path, NVME_E_IO, "cannot be written", errno);
	return r;
}

static int set_take(struct nvme *t, const struct nvme_config *config, const struct found *f, uint8_t *buf, char *why)
{
	static const uint8_t unknown[16];
	bool same_boot = false;
	int r;

	t->super = f[0].super;
	t->layout.area_bytes = t->super.area_bytes;
	t->was_clean = true;
	for (uint32_t i = 0; i < t->layout.drives; i++) {
		struct nvme_drive *d = &t->drives[i];

		d->size = f[i].super.size;
		if (f[i].super.seq > t->super_seq)
			t->super_seq = f[i].super.seq;
		t->was_clean = t->was_clean && f[i].super.clean;
		same_boot = same_boot || memcmp(f[i].super.boot_id, config->boot_id, 16) == 0 ||
		            memcmp(config->boot_id, unknown, 16) == 0;
		if (f[i].there < d->size) {
			/* Zeros are no valid records, and no right payload: what was there is lost, nothing is wrong. */
			r = drive_allocate(t, d, f[i].there, d->size, why);
			if (r != 0)
				return r;
			nvme_note(t, "%s: was shorter than it should be: what stood there is lost", d->path);
		}
		drive_direct(t, d, buf);
	}
	/* Writes of a dead daemon may still land, unless they are all done, or the machine was started since. */
	if (nvme_drives_alone(t) || t->was_clean || !same_boot)
		t->grace_ns = 0;
	return 0;
}

int nvme_open_drives(struct nvme *t, const struct nvme_config *config, char *ret_why)
{
	struct found found[NVME_DRIVES_MAX];
	uint8_t *head;
	bool empty = false;
	int r = 0;

	memset(found, 0, sizeof(found));
	head = mmap(NULL, NVME_HEAD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (head == MAP_FAILED)
		return error_origin(-errno);
	for (uint32_t i = 0; i < t->layout.drives && r == 0; i++) {
		r = drive_open(&t->drives[i], config->paths[i], config->size != 0, &found[i], ret_why);
		if (r == 0)
			r = drive_look(&t->drives[i], &found[i], head, ret_why);
	}
	if (r == 0)
		r = set_check(t, found, config, &empty, ret_why);
	if (r == 0 && empty)
		r = set_format(t, config, found, head, ret_why);
	else if (r == 0)
		r = set_take(t, config, found, head, ret_why);
	(void)munmap(head, NVME_HEAD_BYTES);
	if (r != 0) {
		for (uint32_t i = 0; i < t->layout.drives; i++)
			if (t->drives[i].made)
				(void)unlink(t->drives[i].path);
		return r < 0 ? error_trace(r) : r;
	}
	memcpy(t->super.boot_id, config->boot_id, sizeof(t->super.boot_id));
	return 0;
}

void nvme_close_drives(struct nvme *t)
{
	for (uint32_t i = 0; i < t->layout.drives; i++) {
		close_p(&t->drives[i].lock_fd);
		close_p(&t->drives[i].fd);
		t->drives[i].fd = t->drives[i].lock_fd = -1;
		free(t->drives[i].path);
		t->drives[i].path = NULL;
	}
}
