/* SPDX-License-Identifier: Apache-2.0 */
/* Mail from any thread to the loop thread.
 *
 * A mail is embedded in what it is about.  From mailbox_post() until deliver() is called it belongs to the mailbox;
 * what the poster wrote before posting is visible in deliver().  Mails of one thread arrive in the order posted.
 */
#ifndef LOOP_MAILBOX_H
#define LOOP_MAILBOX_H

#include "loop/loop.h"

struct mailbox;

struct mail {
	void (*deliver)(struct mail *mail); /* on the loop thread; may free or post it again */
	struct mail *next;                  /* the mailbox's */
};

/* Loop thread.  Faults only. */
int mailbox_new(struct loop *loop, struct mailbox **ret_mailbox);

/* Any thread.  Never waits, never allocates, cannot fail.  mail->deliver is set; deliver comes exactly once. */
void mailbox_post(struct mailbox *mailbox, struct mail *mail);

/* Loop thread.  No thread may be about to post, or inside mailbox_post(): join the threads first.  What was posted is
 * delivered; then the memory is gone and closed(arg) is called, never inline.  @closed may be NULL. */
void mailbox_close(struct mailbox *mailbox, void (*closed)(void *arg), void *arg);

#endif
