/* SPDX-License-Identifier: Apache-2.0 */
/* Child: a kvbmd of our own, started and ended by this process.
 *
 * Owns the process and the thread that waits for it.  The kernel's parent-death signal comes when the *thread* that forked ends, not the process;
 * so a thread is made for each child, which starts it, and lives exactly as long.  Killed in whatever way, this process thus takes its daemon with it, and the daemon
 * gets SIGTERM, on which it removes its socket.
 *
 * Between fork and exec only what is async-signal-safe is called.  Does not know what it starts.
 */
#include "extension.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Freed by whoever is last: the object, or the thread. */
struct child {
	atomic_int refs;
	pid_t owner;         /* the process that started it */
	char **argv, **envp; /* own */
	int log_fd;          /* borrows, until it has started */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	/* under lock */
	int exit_fd; /* owns an eventfd, readable from its end on; -1 once the object is gone */
	bool started, ended;
	int error; /* errno of a start that failed */
	int status;
	pid_t pid;
};

struct child_object {
	PyObject_HEAD struct child *child; /* owns a reference */
};

static void child_put(struct child *c)
{
	if (atomic_fetch_sub(&c->refs, 1) > 1)
		return;
	for (unsigned i = 0; c->argv && c->argv[i]; i++)
		free(c->argv[i]);
	for (unsigned i = 0; c->envp && c->envp[i]; i++)
		free(c->envp[i]);
	free(c->argv);
	free(c->envp);
	if (c->exit_fd >= 0)
		close(c->exit_fd);
	pthread_mutex_destroy(&c->lock);
	pthread_cond_destroy(&c->changed);
	free(c);
}

/* ---- the thread ---- */

static _Noreturn void child_exec(const struct child *c, int error_fd, pid_t parent)
{
	sigset_t none;
	ssize_t sent;

	sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	(void)setpgid(0, 0); /* a ^C at the terminal is for the program, which then ends us */
	if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0 || getppid() != parent || dup2(c->log_fd, 1) < 0 || dup2(c->log_fd, 2) < 0)
		_exit(126);
	if (error_fd != 3 && dup2(error_fd, 3) < 0)
		_exit(126);
	(void)syscall(SYS_close_range, 3, 3, 1u << 2 /* CLOSE_RANGE_CLOEXEC */);
	(void)syscall(SYS_close_range, 4, ~0u, 0);
	execve(c->argv[0], c->argv, c->envp);
	sent = write(3, &errno, sizeof(errno));
	_exit(sent == sizeof(errno) ? 127 : 126);
}

/* With the lock held. */
static void child_set_ended(struct child *c, int status)
{
	uint64_t one = 1;
	ssize_t written = c->exit_fd >= 0 ? write(c->exit_fd, &one, sizeof(one)) : 0;

	(void)written;
	c->status = status;
	c->ended = true;
	pthread_cond_broadcast(&c->changed);
}

static int child_start(struct child *c)
{
	pid_t parent = getpid(), pid;
	int fds[2], error = 0;

	if (pipe2(fds, O_CLOEXEC) != 0)
		return errno;
	pid = fork();
	if (pid == 0)
		child_exec(c, fds[1], parent);
	error = pid < 0 ? errno : 0;
	close(fds[1]);
	if (pid > 0 && read(fds[0], &error, sizeof(error)) != sizeof(error))
		error = 0; /* closed by exec */
	close(fds[0]);
	if (error && pid > 0)
		(void)waitpid(pid, NULL, 0);
	c->pid = pid;
	return error;
}

/* Waits for the end.  Reaped only with the lock held: else a signal could go to whoever got its number. */
static void child_reap(struct child *c)
{
	siginfo_t info;
	int status = 0, r;

	do {
		r = waitid(P_PID, (id_t)c->pid, &info, WEXITED | WNOWAIT);
	} while (r != 0 && errno == EINTR);
	pthread_mutex_lock(&c->lock);
	if (r != 0 || waitpid(c->pid, &status, 0) != c->pid)
		status = 0; /* somebody else in this process waits for all children */
	child_set_ended(c, WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
	pthread_mutex_unlock(&c->lock);
}

static void *child_thread(void *argument)
{
	struct child *c = argument;
	int error = child_start(c);

	pthread_mutex_lock(&c->lock);
	c->error = error;
	c->started = error == 0;
	if (error)
		child_set_ended(c, 127);
	pthread_cond_broadcast(&c->changed);
	pthread_mutex_unlock(&c->lock);
	if (error == 0)
		child_reap(c);
	child_put(c);
	return NULL;
}

/* ---- the object ---- */

/* A NULL-terminated array of copies; NULL with an exception. */
static char **child_strings(PyObject *list)
{
	Py_ssize_t n = PyList_Size(list);
	char **strings = n >= 0 ? calloc((size_t)n + 1, sizeof(*strings)) : NULL;

	for (Py_ssize_t i = 0; strings && i < n; i++) {
		char *text = PyBytes_AsString(PyList_GetItem(list, i));

		strings[i] = text ? strdup(text) : NULL;
		if (strings[i])
			continue;
		while (i-- > 0)
			free(strings[i]);
		free(strings);
		strings = NULL;
	}
	if (!strings && !PyErr_Occurred())
		PyErr_NoMemory();
	return strings;
}

static struct child *child_new(PyObject *argv, PyObject *envp, int log_fd)
{
	struct child *c = calloc(1, sizeof(*c));
	pthread_condattr_t attributes;

	if (!c) {
		PyErr_NoMemory();
		return NULL;
	}
	atomic_init(&c->refs, 1);
	pthread_mutex_init(&c->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&c->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	c->owner = getpid();
	c->log_fd = log_fd;
	c->exit_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->argv = child_strings(argv);
	c->envp = c->argv ? child_strings(envp) : NULL;
	if (c->exit_fd < 0)
		PyErr_SetFromErrno(PyExc_OSError);
	if (PyErr_Occurred()) {
		child_put(c);
		return NULL;
	}
	return c;
}

static int child_thread_start(struct child *c)
{
	sigset_t all, before;
	pthread_t thread;
	int r;

	/* Python's signal handlers are for its own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	atomic_fetch_add(&c->refs, 1);
	r = pthread_create(&thread, NULL, child_thread, c);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r != 0) {
		child_put(c);
		return r;
	}
	pthread_detach(thread);
	pthread_mutex_lock(&c->lock);
	while (!c->started && !c->ended)
		pthread_cond_wait(&c->changed, &c->lock);
	r = c->error;
	pthread_mutex_unlock(&c->lock);
	return r;
}

static PyObject *child_make(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	PyObject *argv, *envp, *self;
	struct child *c;
	int log_fd, r;

	(void)keywords;
	if (!PyArg_ParseTuple(args, "OOi:Child", &argv, &envp, &log_fd))
		return NULL;
	c = child_new(argv, envp, log_fd);
	if (!c)
		return NULL;
	self = alloc(type, 0);
	if (!self) {
		child_put(c);
		return NULL;
	}
	((struct child_object *)self)->child = c;
	Py_BEGIN_ALLOW_THREADS;
	r = child_thread_start(c);
	Py_END_ALLOW_THREADS;
	if (r != 0) {
		errno = r;
		PyErr_SetFromErrnoWithFilename(PyExc_OSError, c->argv[0]);
		Py_CLEAR(self);
	}
	return self;
}

static struct child *child_of(PyObject *self)
{
	return ((struct child_object *)self)->child;
}

/* With the lock held: waits for the end, at most @seconds.  Whether it came. */
static bool child_wait(struct child *c, double seconds)
{
	struct timespec until;
	double whole = seconds < 0 ? 0 : seconds;
	int r = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (time_t)whole;
	until.tv_nsec += (long)((whole - (double)(time_t)whole) * 1e9);
	if (until.tv_nsec >= 1000000000) {
		until.tv_nsec -= 1000000000;
		until.tv_sec++;
	}
	while (!c->ended && r != ETIMEDOUT)
		r = pthread_cond_timedwait(&c->changed, &c->lock, &until);
	return c->ended;
}

static PyObject *child_stop(PyObject *self, PyObject *args)
{
	struct child *c = child_of(self);
	double seconds;

	if (!PyArg_ParseTuple(args, "d:stop", &seconds))
		return NULL;
	if (c->owner != getpid())
		Py_RETURN_NONE; /* a forked child has neither the thread nor the right */
	Py_BEGIN_ALLOW_THREADS;
	pthread_mutex_lock(&c->lock);
	if (!c->ended)
		(void)kill(c->pid, SIGTERM);
	if (!child_wait(c, seconds)) {
		(void)kill(c->pid, SIGKILL);
		(void)child_wait(c, seconds);
	}
	pthread_mutex_unlock(&c->lock);
	Py_END_ALLOW_THREADS;
	Py_RETURN_NONE;
}

/* The daemon ends by its parent-death signal where nobody has stopped it. */
static void child_dealloc(PyObject *self)
{
	struct child *c = child_of(self);

	if (c) {
		if (c->owner == getpid()) {
			pthread_mutex_lock(&c->lock);
			if (c->started && !c->ended)
				(void)kill(c->pid, SIGTERM);
			close(c->exit_fd);
			c->exit_fd = -1;
			pthread_mutex_unlock(&c->lock);
		}
		child_put(c);
	}
	object_free(self);
}

static PyObject *child_get_pid(PyObject *self, void *closure)
{
	(void)closure;
	return PyLong_FromLong(child_of(self)->pid);
}

static PyObject *child_get_status(PyObject *self, void *closure)
{
	struct child *c = child_of(self);
	bool ended;
	int status;

	(void)closure;
	if (c->owner != getpid())
		Py_RETURN_NONE;
	pthread_mutex_lock(&c->lock);
	ended = c->ended;
	status = c->status;
	pthread_mutex_unlock(&c->lock);
	if (!ended)
		Py_RETURN_NONE;
	return PyLong_FromLong(status);
}

static PyObject *child_fileno(PyObject *self, PyObject *unused)
{
	(void)unused;
	return PyLong_FromLong(child_of(self)->exit_fd);
}

static PyGetSetDef child_getset[] = {
	{ "pid", child_get_pid, NULL, "process id", NULL },
	{ "status", child_get_status, NULL, "exit status, 128 + signal if killed; None while it runs", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyMethodDef child_methods[] = {
	{ "stop", child_stop, METH_VARARGS, "stop(seconds)\n\nSIGTERM, and SIGKILL if it has not ended by then." },
	{ "fileno", child_fileno, METH_NOARGS, "fileno() -> int\n\nReadable from its end on." },
	{ NULL, NULL, 0, NULL },
};

PyObject *child_type_new(void)
{
	static PyType_Slot slots[] = {
		{ Py_tp_new, child_make },
		{ Py_tp_dealloc, child_dealloc },
		{ Py_tp_methods, child_methods },
		{ Py_tp_getset, child_getset },
		{ Py_tp_doc, "Child(argv, envp, log_fd)\n\nA process that ends with this one; lists of bytes." },
		{ 0, NULL },
	};
	static PyType_Spec spec = {
		.name = "kvbmd._kvbm.Child",
		.basicsize = sizeof(struct child_object),
		.flags = Py_TPFLAGS_DEFAULT,
		.slots = slots,
	};

	return PyType_FromSpec(&spec);
}
