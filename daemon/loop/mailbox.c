/* SPDX-License-Identifier: Apache-2.0 */
/* Many producers, one consumer: a lock-free stack of mails, and a wake-up when it was empty.
 *
 * Owns: the mails between post and delivery.
 * Invariant: a stack that is not empty has a wake-up on its way, by whoever put the first mail on it.
 * Deliberately not here: a bound.  Each mail is part of something that a queue of its own bounds (a job, a session).
 *
 * uv_async_send() coalesces: one wake-up may stand for any number of mails, so the loop takes the whole stack each time.
 * It takes it once, not until it stays empty: mails posted meanwhile have their own wake-up, and descriptors get their
 * turn in between.
 */
#include "loop/mailbox.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/error.h"
#include "base/thread.h"
#include "loop/loop_uv.h"

struct mailbox {
	/* any thread */
	_Atomic(struct mail *) newest;
	/* loop thread, but for uv_async_send() */
	uv_async_t wake;
	void (*closed)(void *arg);
	void *arg;
};

static void mailbox_drain(struct mailbox *mailbox)
{
	struct mail *mail = atomic_exchange_explicit(&mailbox->newest, NULL, memory_order_acquire);
	struct mail *oldest = NULL, *next;

	for (; mail; mail = next) {
		next = mail->next;
		mail->next = oldest;
		oldest = mail;
	}
	for (mail = oldest; mail; mail = next) {
		next = mail->next; /* deliver may free or repost it */
		mail->deliver(mail);
	}
}

static void mailbox_on_wake(uv_async_t *wake)
{
	mailbox_drain(container_of(wake, struct mailbox, wake));
}

int mailbox_new(struct loop *loop, struct mailbox **ret_mailbox)
{
	struct mailbox *mailbox = calloc(1, sizeof(*mailbox));
	int r;

	thread_assert(THREAD_LOOP);
	if (!mailbox)
		return error_origin(-ENOMEM);
	atomic_init(&mailbox->newest, NULL);
	r = uv_async_init(loop_uv(loop), &mailbox->wake, mailbox_on_wake);
	if (r < 0) {
		free(mailbox);
		return error_origin(r);
	}
	*ret_mailbox = mailbox;
	return 0;
}

void mailbox_post(struct mailbox *mailbox, struct mail *mail)
{
	struct mail *newest = atomic_load_explicit(&mailbox->newest, memory_order_relaxed);
	int r;

	assert(mail->deliver);
	do
		mail->next = newest;
	while (!atomic_compare_exchange_weak_explicit(&mailbox->newest, &newest, mail, memory_order_release,
	                                              memory_order_relaxed));
	/* @mail may be delivered and freed by now. */
	if (!newest) {
		r = uv_async_send(&mailbox->wake);
		assert(r == 0);
	}
}

static void mailbox_on_closed(uv_handle_t *handle)
{
	struct mailbox *mailbox = container_of((uv_async_t *)handle, struct mailbox, wake);
	void (*closed)(void *arg) = mailbox->closed;
	void *arg = mailbox->arg;

	while (atomic_load_explicit(&mailbox->newest, memory_order_relaxed))
		mailbox_drain(mailbox);
	free(mailbox);
	if (closed)
		closed(arg);
}

void mailbox_close(struct mailbox *mailbox, void (*closed)(void *arg), void *arg)
{
	thread_assert(THREAD_LOOP);
	mailbox->closed = closed;
	mailbox->arg = arg;
	uv_close((uv_handle_t *)&mailbox->wake, mailbox_on_closed);
}
