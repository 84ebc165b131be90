/* SPDX-License-Identifier: Apache-2.0 */
/* Client and evictor as they are: no byte is wrong.  The three programs beside this one leave something out. */
#include "tests/unit/client/handshake.h"

START_TEST(what_is_held_stays)
{
	race_run(SANITIZED ? 20000 : 100000, false, "as it is");
	must_eq(race.wrong, 0);
	must_cmp(race.pardoned, >, 0);
	must_cmp(race.misses, >, 0);
}
END_TEST

int main(void)
{
	TCase *t = tcase_create("handshake");

	if (!cores_find(race.cpus)) {
		printf("handshake: one core: two sides cannot meet here\n");
		return 77;
	}
	tcase_set_timeout(t, 120);
	tcase_add_test(t, what_is_held_stays);
	return fixture_run("handshake", t, NULL);
}
