/* SPDX-License-Identifier: Apache-2.0 */
/* lmcache.h: what LMCache's raw-block adapter does with io_uring on the same file; tests/bench/lmcache_io.py does it.
 *
 * It may not be installed: then there is none.  $KVBM_LMCACHE_PYTHON is the Python that has it, otherwise python3.
 */
#ifndef TESTS_BENCH_LMCACHE_H
#define TESTS_BENCH_LMCACHE_H

#include "tests/bench/fio.h"

struct lmcache;

/* NULL: not to be had here, and that is said as a remark on P7. */
struct lmcache *lmcache_start(const char *path, uint64_t size);
void lmcache_stop(struct lmcache *l); /* takes NULL */
const char *lmcache_version(const struct lmcache *l);
/* The first round of a size takes longer: it fills the file. */
struct fio_result lmcache_round(struct lmcache *l, bool store, uint64_t block, unsigned depth, unsigned ms);

#endif
