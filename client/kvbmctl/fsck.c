/* Verbs about G3's files while no daemon has them: fsck and dump.  Both go over one file or device at a time, by tier/nvme_file; what an area and
 * a record say of namespace and block is read here, and so are payloads, where that is asked for.
 *
 * Exit codes: 0 all is well, 1 something is damaged (with --repair: and was not mended), or a file is not ours, in use, or not there.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ctl.h"
#include "move/lower_tag.h"
#include "move/mover.h"
#include "output.h"
#include "tier/nvme_file.h"

struct fsck {
	struct ctl *ctl;
	bool repair, data, wipe, dump;
	uint64_t limit; /* of blocks listed */
	/* of the file in hand */
	int fd;        /* owns; -1: payloads are not read */
	uint8_t *slot; /* owns; of slot_bytes */
	uint64_t slot_bytes;
	bool has_owner;
	struct lower_owner owner;
	struct tier_area_shape shape;
	json_t *areas, *blocks; /* owns */
	uint64_t n_blocks, payloads_good, payloads_wrong, foreign;
};

static void fsck_hex(char *text, const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
}

static void fsck_on_area(void *ctx, const struct nvme_file_area *area)
{
	struct fsck *f = ctx;

	f->shape = area->shape;
	f->has_owner = lower_owner_read(&area->owner, &area->shape, &f->owner);
	f->foreign += !f->has_owner;
	json_array_append_new(f->areas, json_pack("{s:i, s:s, s:i, s:I, s:i, s:i}", "area", (int)area->area,
	                                          "namespace", f->has_owner ? f->owner.desc.name : "?", "slots",
	                                          (int)area->n_slots, "lane_bytes", (json_int_t)area->shape.lane_bytes,
	                                          "lanes", (int)area->shape.lanes, "blocks", 0));
}

/* Does the payload of the block of @tag fit its checksum? */
static bool fsck_payload(struct fsck *f, const struct nvme_file_record *record, const struct lower_tag *tag)
{
	uint64_t bytes = f->shape.lane_bytes * f->shape.lanes;
	struct mover_sum sum = { .lane_area = f->shape.lane_bytes,
		                 .lane_bytes = f->shape.lane_bytes,
		                 .lanes = f->shape.lanes };

	if (bytes > f->slot_bytes) {
		free(f->slot);
		f->slot = malloc(bytes);
		f->slot_bytes = f->slot ? bytes : 0;
	}
	if (!f->slot || pread(f->fd, f->slot, bytes, (off_t)record->offset) != (ssize_t)bytes)
		return false;
	sum.base = f->slot;
	sum.seed = mover_seed(tag->key, tag->key_bytes);
	return mover_sum_of(&sum) == tag->sum;
}

static void fsck_list(struct fsck *f, const struct nvme_file_record *record, const struct lower_tag *tag, const char *payload)
{
	char key[2 * KEY_MAX + 1];

	fsck_hex(key, tag->key, tag->key_bytes);
	json_array_append_new(f->blocks,
	                      json_pack("{s:s, s:s, s:i, s:i, s:I, s:b, s:s}", "namespace", f->owner.desc.name, "key",
	                                key, "area", (int)record->area, "place", (int)record->place, "offset",
	                                (json_int_t)record->offset, "has_parent", tag->parent != 0, "payload", payload));
}

static void fsck_on_record(void *ctx, const struct nvme_file_record *record)
{
	struct fsck *f = ctx;
	json_t *area = json_array_get(f->areas, json_array_size(f->areas) - 1);
	const char *payload = "unread";
	struct lower_tag tag;

	if (record->state != NVME_FILE_GOOD || !f->has_owner)
		return;
	lower_tag_read(&record->tag, &tag);
	if (tag.key_bytes != f->owner.desc.key_bytes || tag.sum == 0) {
		f->foreign++;
		return;
	}
	f->n_blocks++;
	json_object_set_new(area, "blocks", json_integer(json_integer_value(json_object_get(area, "blocks")) + 1));
	if (f->fd >= 0) {
		bool good = fsck_payload(f, record, &tag);

		payload = good ? "good" : "wrong";
		f->payloads_good += good;
		f->payloads_wrong += !good;
	}
	if (f->dump && json_array_size(f->blocks) < f->limit)
		fsck_list(f, record, &tag, payload);
}

static json_t *fsck_counts(const struct nvme_file_report *r)
{
	const struct {
		const char *name;
		uint64_t n;
	} counts[] = {
		{ "drive", r->super.drive },
		{ "drives", r->super.drives },
		{ "size_bytes", r->super.size },
		{ "area_bytes", r->super.area_bytes },
		{ "areas", r->super.areas },
		{ "areas_used", r->areas_used },
		{ "superblocks_good", r->supers_good },
		{ "superblocks_stale", r->supers_stale },
		{ "superblocks_damaged", r->supers_damaged },
		{ "headers_good", r->headers_good },
		{ "headers_stale", r->headers_stale },
		{ "headers_damaged", r->headers_damaged },
		{ "slots", r->slots },
		{ "records_good", r->records_good },
		{ "records_stale", r->records_stale },
		{ "records_damaged", r->records_damaged },
		{ "records_free", r->records_free },
		{ "sectors_unreadable", r->unreadable },
		{ "sectors_repaired", r->repaired },
	};
	json_t *report = json_object();

	for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++)
		json_object_set_new(report, counts[i].name, json_integer((json_int_t)counts[i].n));
	return report;
}

/* What a crash or a restart leaves behind is stale, and is no damage. */
static uint64_t fsck_damage(const struct nvme_file_report *r)
{
	return r->supers_damaged + r->headers_damaged + r->records_damaged + r->unreadable;
}

/* Takes f->areas and f->blocks over. */
static json_t *fsck_report(struct fsck *f, const char *path, const struct nvme_file_report *r)
{
	uint64_t damage = fsck_damage(r);
	char uuid[2 * NVME_UUID_BYTES + 1];
	json_t *report = json_pack("{s:s, s:s}", "file", path, "state",
	                           damage == 0                   ? "good"
	                           : f->repair && !r->unreadable ? "repaired"
	                                                         : "damaged");

	fsck_hex(uuid, r->super.uuid, NVME_UUID_BYTES);
	json_object_set_new(report, "set", json_string(uuid));
	json_object_set_new(report, "clean", json_boolean(r->super.clean));
	json_object_update_new(report, fsck_counts(r));
	json_object_set_new(report, "blocks", json_integer((json_int_t)f->n_blocks));
	json_object_set_new(report, "not_understood", json_integer((json_int_t)f->foreign));
	if (f->fd >= 0) {
		json_object_set_new(report, "payloads_good", json_integer((json_int_t)f->payloads_good));
		json_object_set_new(report, "payloads_wrong", json_integer((json_int_t)f->payloads_wrong));
	}
	json_object_set_new(report, "by_area", f->areas);
	if (f->dump)
		json_object_set_new(report, "listed", f->blocks);
	else
		json_decref(f->blocks);
	f->areas = f->blocks = NULL;
	return report;
}

static const char *fsck_advice(int r)
{
	switch (r) {
	case NVME_E_BUSY:
		return "stop the daemon first (systemctl stop kvbmd)";
	case NVME_E_DAMAGED:
		return "nothing of it can be read any more: --wipe makes it empty for the next daemon";
	case NVME_E_VERSION:
		return "use the kvbmd that wrote it, or --wipe";
	case NVME_E_FOREIGN:
		return "it is left alone: remove or empty it yourself, if it may go";
	default:
		return "";
	}
}

/* 0, or an exit code; in any case there is a line for the file. */
static int fsck_refused(json_t *reports, const char *path, const char *why, int r)
{
	json_array_append_new(reports, json_pack("{s:s, s:s, s:s, s:s}", "file", path, "state", "refused", "why", why,
	                                         "advice", fsck_advice(r)));
	return CTL_NO;
}

static int fsck_file(struct fsck *f, const char *path, json_t *reports)
{
	struct nvme_file_ask ask = { .repair = f->repair, .on_area = fsck_on_area, .on_record = fsck_on_record, .ctx = f };
	struct nvme_file_report report;
	char why[NVME_WHY_BYTES] = "";
	int r;

	f->areas = json_array();
	f->blocks = json_array();
	f->n_blocks = f->payloads_good = f->payloads_wrong = f->foreign = 0;
	f->fd = f->data ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	r = nvme_file_check(path, &ask, why, &report);
	if (r == 0 || (r == NVME_E_IO && report.super.size > 0))
		json_array_append_new(reports, fsck_report(f, path, &report));
	json_decref(f->areas);
	json_decref(f->blocks);
	if (f->fd >= 0)
		close(f->fd);
	if (r < 0)
		return fsck_refused(reports, path, "out of memory", r);
	if (r != 0)
		return fsck_refused(reports, path, why, r);
	return (fsck_damage(&report) > 0 && (!f->repair || report.unreadable > 0)) || f->payloads_wrong > 0 ? CTL_NO
	                                                                                                    : CTL_DONE;
}

static int fsck_wipe(const char *path, json_t *reports)
{
	char why[NVME_WHY_BYTES] = "";
	int r = nvme_file_wipe(path, why);

	if (r != 0)
		return fsck_refused(reports, path, why, r);
	json_array_append_new(reports, json_pack("{s:s, s:s}", "file", path, "state", "wiped"));
	return CTL_DONE;
}

static int fsck_all(struct fsck *f, int argc, char **argv)
{
	json_t *reports = json_array(), *one;
	int code = CTL_DONE;
	size_t i;

	for (int k = 0; k < argc; k++) {
		int r = f->wipe ? fsck_wipe(argv[k], reports) : fsck_file(f, argv[k], reports);

		code = r != CTL_DONE ? r : code;
	}
	free(f->slot);
	if (f->ctl->json) {
		ctl_print(f->ctl, reports);
		return code;
	}
	json_array_foreach(reports, i, one)
	{
		if (i > 0)
			printf("\n");
		output_table(one);
	}
	json_decref(reports);
	return code;
}

int verb_fsck(struct ctl *ctl, int argc, char **argv)
{
	struct fsck f = { .ctl = ctl, .fd = -1 };
	const struct arg table[] = {
		{ "repair", 0, ARG_FLAG, &f.repair, NULL, "mend what can be mended; damaged records become free slots" },
		{ "data", 0, ARG_FLAG, &f.data, NULL, "read every block too and compare its checksum" },
		{ "wipe", 0, ARG_FLAG, &f.wipe, NULL, "make it empty: all blocks are lost" },
		{ 0 },
	};
	int r = ctl_args(ctl, table, &argc, argv, 1, (int)NVME_DRIVES_MAX);

	if (r >= 0)
		return r;
	if (f.wipe && (f.repair || f.data))
		return ctl_usage(ctl, "--wipe goes with neither --repair nor --data");
	return fsck_all(&f, argc, argv);
}

int verb_dump(struct ctl *ctl, int argc, char **argv)
{
	struct fsck f = { .ctl = ctl, .fd = -1, .dump = true, .limit = UINT64_MAX };
	const struct arg table[] = {
		{ "data", 0, ARG_FLAG, &f.data, NULL, "read every block too and compare its checksum" },
		{ "limit", 0, ARG_U64, &f.limit, "N", "list no more than so many blocks of a file" },
		{ 0 },
	};
	int r = ctl_args(ctl, table, &argc, argv, 1, (int)NVME_DRIVES_MAX);

	return r >= 0 ? r : fsck_all(&f, argc, argv);
}
