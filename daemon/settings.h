/* SPDX-License-Identifier: Apache-2.0 */
/* settings.h: what the modules are set to, from the configuration.  Pure but for settings_n_workers(), which asks how many cores there are.
 */
#ifndef KVBMD_SETTINGS_H
#define KVBMD_SETTINGS_H

#include "config.h"
#include "move/store.h"
#include "server/session.h"

/* All that the configuration says of the store; tiers and what else the daemon has made are the caller's to add.  @lower_bytes: size of the tier below;
 * @ret_policies: one a section, CONFIG_MAX_NAMESPACES of them, which borrow lists of uids from @c and are borrowed by the result. */
struct store_config settings_of_store(const struct config *c, uint64_t lower_bytes, struct store_policy *ret_policies);

/* Borrows lists of uids from @c. */
struct sessions_config settings_of_sessions(const struct config *c);

unsigned settings_n_workers(const struct config *c);

#endif
