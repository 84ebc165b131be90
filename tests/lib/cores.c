/* SPDX-License-Identifier: Apache-2.0 */
/* Owns nothing. */
#include "tests/lib/cores.h"

#include <sched.h>

#include "tests/lib/must.h"

bool cores_find(int ret_cpus[2])
{
	cpu_set_t set;
	int n = 0;

	must(sched_getaffinity(0, sizeof(set), &set) == 0);
	for (int cpu = 0; cpu < CPU_SETSIZE && n < 2; cpu++)
		if (CPU_ISSET(cpu, &set))
			ret_cpus[n++] = cpu;
	return n == 2;
}

void cores_pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	must(sched_setaffinity(0, sizeof(set), &set) == 0);
}
