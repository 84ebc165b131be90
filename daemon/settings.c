/* SPDX-License-Identifier: Apache-2.0 */
/* From names and sizes as people write them to what the modules take.  Owns nothing, checks nothing: config.c has. */
#include "settings.h"

#include <sched.h>
#include <string.h>

#include "base/clock.h"

#define ZOMBIE_NS (60 * CLOCK_NS_PER_S) /* longest known time for which I/O of a dead process goes on */
#define WORKERS_MAX 16u

static const enum store_write writes[] = {
	[CONFIG_WRITE_ON_EVICT] = STORE_WRITE_ON_EVICT,
	[CONFIG_WRITE_THROUGH] = STORE_WRITE_THROUGH,
	[CONFIG_WRITE_IF_HIT] = STORE_WRITE_IF_HIT,
	[CONFIG_WRITE_NEVER] = STORE_WRITE_NEVER,
};

/* Also one where there is none. */
static uint32_t settings_n_drives(const struct config *c)
{
	uint32_t n = 1;

	for (const char *p = c->g3_path; *p; p++)
		n += *p == ',';
	return n;
}

static void settings_policy(const struct config *c, uint32_t i, uint64_t lower_bytes, struct store_policy *ret)
{
	const struct config_namespace *ns = &c->namespaces[i];

	_Static_assert(sizeof(ret->name) == sizeof(ns->name), "a section's name fits");
	memcpy(ret->name, ns->name, sizeof(ret->name));
	ret->share_bytes = config_amount_bytes(&ns->share, c->g2_size_bytes);
	ret->max_bytes = config_amount_bytes(&ns->max, c->g2_size_bytes);
	ret->uids = ns->uids.uid;
	ret->n_uids = ns->uids.n;
	ret->lower_share_bytes = config_amount_bytes(&ns->g3_share, lower_bytes);
	ret->lower_max_bytes = config_amount_bytes(&ns->g3_max, lower_bytes);
	ret->device_share_bytes = config_amount_bytes(&ns->g1_share, c->g1_size_bytes);
	ret->device_max_bytes = config_amount_bytes(&ns->g1_max, c->g1_size_bytes);
	ret->write = writes[ns->g3_write == CONFIG_WRITE_INHERIT ? c->g3_write : ns->g3_write];
}

struct store_config settings_of_store(const struct config *c, uint64_t lower_bytes, struct store_policy *ret_policies)
{
	for (uint32_t i = 0; i < c->n_namespaces; i++)
		settings_policy(c, i, lower_bytes, &ret_policies[i]);
	return (struct store_config){
		.policies = ret_policies,
		.n_policies = c->n_namespaces,
		.max_namespaces = (uint32_t)c->namespaces_max,
		.grace_percent = (uint32_t)c->g2_grace_percent,
		.why_entries = (uint32_t)c->why_entries,
		.write_timeout_ns = c->write_timeout_ns,
		.max_transfers = (uint32_t)c->g3_depth * settings_n_drives(c) * 2, /* half of them in the hands of the workers */
		.low_percent = (uint32_t)c->g2_low_percent,
		.scrub_percent = (uint32_t)c->g3_scrub_percent,
		.write = writes[c->g3_write],
	};
}

struct sessions_config settings_of_sessions(const struct config *c)
{
	return (struct sessions_config){
		.conn = { .timeout_ns = c->frame_timeout_ns, .output_bytes = (uint32_t)c->output_bytes },
		.max_sessions = (uint32_t)c->max_sessions,
		.max_per_uid = (uint32_t)c->max_sessions_per_uid,
		.slots_per_session = c->slots_per_session,
		.slots_per_uid = c->slots_per_uid,
		.holds_per_session = c->leases_per_session,
		.holds_per_uid = UINT64_MAX, /* bounded by sessions */
		.pins_per_session = c->pins_per_session,
		.zombie_ns = ZOMBIE_NS,
		.allow_uids = c->allow_uids.uid,
		.n_allow_uids = c->allow_uids.n,
	};
}

unsigned settings_n_workers(const struct config *c)
{
	cpu_set_t cpus;
	unsigned n = 1;

	if (c->workers > 0)
		return (unsigned)c->workers;
	if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0)
		n = (unsigned)CPU_COUNT(&cpus) / 2; /* the other half is for the engines, who wait for us at the same time */
	return n < 1 ? 1 : n > WORKERS_MAX ? WORKERS_MAX : n;
}
