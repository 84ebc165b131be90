/* SPDX-License-Identifier: Apache-2.0 */
/* control.h: how a test steers the stand-in driver, in its own process and in others: a page of memory in the file
 * $FAKECUDA_DIR/control that all of them map.  Counters and words only; whoever writes several words writes `armed` last.
 */
#ifndef FAKECUDA_CONTROL_H
#define FAKECUDA_CONTROL_H

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FAKECUDA_MAX_DEVICES 8

enum { FAKECUDA_NOTHING = 0, FAKECUDA_FAIL, FAKECUDA_HANG };

struct fakecuda_control {
	/* One fault: the countdown-th driver call from now, of those named and of the process meant. */
	_Atomic uint32_t armed; /* FAKECUDA_FAIL, FAKECUDA_HANG; back to 0 when it has struck */
	_Atomic int32_t pid;    /* 0: any */
	char call[48];          /* "cuMemAlloc", or "*" */
	_Atomic uint32_t countdown;
	_Atomic uint32_t error; /* the CUresult; sticky ones stick to the context */

	_Atomic uint32_t hanging; /* calls that hang now; a futex */
	_Atomic uint32_t release; /* not 0: they return; a futex */

	_Atomic uint32_t gone;  /* bit d: device d has fallen off the bus */
	_Atomic uint64_t calls; /* driver calls made, of all processes */

	_Atomic uint32_t held; /* not 0: streams accept work and do none */

	/* Settings, 0: the environment's. */
	_Atomic uint32_t delay_us;
};

/* Waits while the word is @value. */
static inline void fakecuda_wait(_Atomic uint32_t *word, uint32_t value)
{
	(void)syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0);
}

static inline void fakecuda_wake(_Atomic uint32_t *word)
{
	(void)syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

#endif
