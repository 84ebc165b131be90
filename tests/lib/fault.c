/* SPDX-License-Identifier: Apache-2.0 */
/* Owns one traced child at a time.  A system call stops twice, at entry and at exit; killed is at entry, so that the call does not
 * happen: what the daemon sees is a client that got exactly k - 1 calls far. */
#include "tests/lib/fault.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tests/lib/must.h"

static void fault_child(void (*main)(void *arg), void *arg)
{
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
		_exit(99);
	must(syscall(SYS_close_range, 3, ~0u, 0) == 0);
	main(arg);
	_exit(0);
}

void fault_begin(void)
{
	raise(SIGSTOP);
}

static pid_t fault_start(void (*main)(void *arg), void *arg)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	must(pid >= 0);
	if (pid == 0)
		fault_child(main, arg);
	return pid;
}

static void fault_nothing(void *arg)
{
	(void)arg;
	fault_begin();
}

bool fault_can_trace(void)
{
	pid_t pid = fault_start(fault_nothing, NULL);
	int status;

	must(waitpid(pid, &status, 0) == pid);
	if (!WIFSTOPPED(status)) {
		fprintf(stderr, "processes cannot be traced here: deaths at each system call are not tested\n");
		return false;
	}
	must(kill(pid, SIGKILL) == 0 && waitpid(pid, &status, 0) == pid);
	return true;
}

static void fault_ended(int status)
{
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return;
	fprintf(stderr, "the traced client ended with status 0x%x\n", (unsigned)status);
	_exit(1);
}

bool fault_kill_at(void (*main)(void *arg), void *arg, unsigned k)
{
	pid_t pid = fault_start(main, arg);
	unsigned calls = 0;
	bool counting = false, entering = true;
	int status, signal_to_pass = 0;

	for (;;) {
		must(waitpid(pid, &status, 0) == pid);
		if (!WIFSTOPPED(status)) {
			fault_ended(status);
			return false;
		}
		if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
			if (entering && ++calls == k)
				break;
			entering = !entering;
			signal_to_pass = 0;
		} else if (WSTOPSIG(status) == SIGSTOP && !counting) {
			must(ptrace(PTRACE_SETOPTIONS, pid, NULL, (void *)PTRACE_O_TRACESYSGOOD) == 0);
			counting = true;
			signal_to_pass = 0;
			/* The first stop that follows is the exit of the call that raised the signal, or the entry of the next:
			 * after a signal-delivery stop it is the next entry. */
			entering = true;
		} else {
			signal_to_pass = WSTOPSIG(status);
		}
		must(ptrace(counting ? PTRACE_SYSCALL : PTRACE_CONT, pid, NULL, (void *)(long)signal_to_pass) == 0);
	}
	must(kill(pid, SIGKILL) == 0);
	must(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
	return true;
}
