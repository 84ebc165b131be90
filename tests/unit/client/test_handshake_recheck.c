/* SPDX-License-Identifier: Apache-2.0 */
/* The hand-shake without the second look at the entry: a private copy of client/lookup.c takes its place in this program. */
#include "proto/shm.h"

#define shm_entry_equal(a, b) ((void)(a), (void)(b), true)
#include "client/lookup.c"
#undef shm_entry_equal

#include "tests/unit/client/handshake.h"

START_TEST(wrong_bytes_are_seen)
{
	race_run(UINT64_MAX, true, "without the second look");
	must_cmp(race.wrong, >, 0);
}
END_TEST

int main(void)
{
	if (SANITIZED) {
		printf("sanitizers put so much between a store and the load after it that it has always left the core\n");
		return 77;
	}
	return race_main("handshake_recheck", wrong_bytes_are_seen);
}
