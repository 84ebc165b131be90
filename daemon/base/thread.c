/* thread.c: the role of the calling thread, in thread-local memory.  It starts no threads: loop/ and gpu/ do. */
#include "base/thread.h"

static __thread enum thread_role thread_role;

void thread_set_role(enum thread_role role)
{
	/* A thread changes hands only by giving its role up first: two roles in one thread is a design error. */
	assert(role == THREAD_NONE || thread_role == THREAD_NONE || thread_role == role);
	thread_role = role;
}

enum thread_role thread_get_role(void)
{
	return thread_role;
}

bool thread_is(enum thread_role role)
{
	return thread_role == role || thread_role == THREAD_NONE;
}
