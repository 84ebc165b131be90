/* SPDX-License-Identifier: Apache-2.0 */
/* fault.h: a client that dies at its k-th system call, for every k: "in any state" as a loop.
 *
 *	for (unsigned k = 1; fault_kill_at(client, arg, k); k++)
 *		daemon_check(&d, &baseline);
 */
#ifndef TESTS_LIB_FAULT_H
#define TESTS_LIB_FAULT_H

#include <stdbool.h>

/* Can processes be traced here?  Says why not on stderr. */
bool fault_can_trace(void);

/* Runs @main(@arg) in a child and kills it with SIGKILL when it enters its k-th system call (from 1) since fault_begin().
 * Returns false if it ended by itself before; its exit status must be 0 then. */
bool fault_kill_at(void (*main)(void *arg), void *arg, unsigned k);

/* In the child: counting begins here. */
void fault_begin(void);

#endif
