/* SPDX-License-Identifier: Apache-2.0 */
/* cores.h: two cores for two sides that are to meet. */
#ifndef TESTS_LIB_CORES_H
#define TESTS_LIB_CORES_H

#include <stdbool.h>

/* The first two that we may run on.  False: there is one. */
bool cores_find(int ret_cpus[2]);
/* The calling thread stays there. */
void cores_pin(int cpu);

#endif
