/* SPDX-License-Identifier: Apache-2.0 */
/* Many producers, one consumer: a lock-free stack of mails, and a wake-up when it was empty.
 *
 * Owns: the mails between post and delivery.
 * Invariant: a stack that is not empty has a wake-up on its way, by whoever put the first mail on it.
 * Deliberately not here: a bound.  Each mail is part of something that a queue of its own bounds (a job, a session).
 *
 * One wake-up may stand for any number of mails, so the loop takes the whole stack each time.
 * It takes it once, not until it stays empty: mails posted meanwhile have their own wake-up, and descriptors get their
 * turn in between.
 *
 * Not uv_async_send(): its receiver spins, 30 us at a time, until the sender has left the function, and where both want the same core
 * the sender cannot.  Here the sender's last act is the write.
 */
#include "loop/mailbox.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/error.h"
#include "base/thread.h"

struct mailbox {
	/* any thread */
	_Atomic(struct mail *) newest;
	int fd; /* owns: an eventfd */
	/* loop thread */
	struct loop_watch watch;
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

static void mailbox_on_wake(struct loop_watch *w, unsigned events)
{
	struct mailbox *mailbox = container_of(w, struct mailbox, watch);
	uint64_t n;

	(void)events;
	/* First, so that who finds the stack empty from now on wakes us again. */
	if (read(mailbox->fd, &n, sizeof(n)) < 0)
		assert(errno == EAGAIN || errno == EINTR);
	mailbox_drain(mailbox);
}

int mailbox_new(struct loop *loop, struct mailbox **ret_mailbox)
{
	struct mailbox *mailbox = calloc(1, sizeof(*mailbox));
	int r;

	thread_assert(THREAD_LOOP);
	if (!mailbox)
		return error_origin(-ENOMEM);
	atomic_init(&mailbox->newest, NULL);
	mailbox->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (mailbox->fd < 0) {
		r = error_origin(-errno);
		free(mailbox);
		return r;
	}
	r = loop_watch_start(loop, &mailbox->watch, mailbox->fd, LOOP_READABLE, mailbox_on_wake);
	if (r < 0) {
		close(mailbox->fd);
		free(mailbox);
		return error_trace(r);
	}
	*ret_mailbox = mailbox;
	return 0;
}

void mailbox_post(struct mailbox *mailbox, struct mail *mail)
{
	struct mail *newest = atomic_load_explicit(&mailbox->newest, memory_order_relaxed);
	const uint64_t one = 1;
	ssize_t n;

	assert(mail->deliver);
	do
		mail->next = newest;
	while (!atomic_compare_exchange_weak_explicit(&mailbox->newest, &newest, mail, memory_order_release,
	                                              memory_order_relaxed));
	/* @mail may be delivered and freed by now. */
	if (!newest) {
		do
			n = write(mailbox->fd, &one, sizeof(one));
		while (n < 0 && errno == EINTR);
		assert(n == sizeof(one));
	}
}

static void mailbox_on_closed(struct loop_watch *w)
{
	struct mailbox *mailbox = container_of(w, struct mailbox, watch);
	void (*closed)(void *arg) = mailbox->closed;
	void *arg = mailbox->arg;

	while (atomic_load_explicit(&mailbox->newest, memory_order_relaxed))
		mailbox_drain(mailbox);
	close(mailbox->fd);
	free(mailbox);
	if (closed)
		closed(arg);
}

void mailbox_close(struct mailbox *mailbox, void (*closed)(void *arg), void *arg)
{
	thread_assert(THREAD_LOOP);
	mailbox->closed = closed;
	mailbox->arg = arg;
	loop_watch_close(&mailbox->watch, mailbox_on_closed);
}
