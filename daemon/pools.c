/* SPDX-License-Identifier: Apache-2.0 */
/* Ties device memory to the store: one tier a GPU that can share its memory.  Owns these tiers; knows no namespace. */
#include "pools.h"

#include "base/log.h"
#include "move/store.h"
#include "tier/device_pool.h"

void pools_init(struct pools *p, struct loop *loop, uint64_t size, uint64_t region_size)
{
	*p = (struct pools){ .loop = loop, .size = size, .region_size = region_size, .made = size == 0 };
}

int pools_make(struct pools *p, struct devices *devices, struct store *store)
{
	if (p->made || !devices_are_known(devices))
		return 0;
	p->made = true;
	if (devices_n(devices) == 0)
		log_warn("g1.size does nothing: there is no GPU%s%s", *devices_note(devices) ? ": " : "",
		         devices_note(devices));
	for (uint32_t i = 0; i < devices_n(devices); i++) {
		struct device_pool_config config = { .device = devices_at(devices, i),
			                             .loop = p->loop,
			                             .size = p->size,
			                             .region_size = p->region_size };
		struct tier_device *t;
		int r = device_pool_new(&config, &t);

		if (r > 0)
			continue; /* it has said why */
		if (r < 0)
			return error_trace(r);
		p->all[p->n++] = t;
		r = store_pool_add(store, device_info(config.device)->uuid, t);
		if (r < 0)
			return error_trace(r);
	}
	return 0;
}

void pools_leave(struct pools *p)
{
	p->made = true;
	for (uint32_t i = 0; i < p->n; i++)
		device_pool_leave(p->all[i]);
}

void pools_free(struct pools *p)
{
	while (p->n > 0)
		p->n--, p->all[p->n] = device_pool_free(p->all[p->n]);
}
