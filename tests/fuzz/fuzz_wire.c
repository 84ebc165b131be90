/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes, cut anywhere, with descriptors anywhere, into proto/wire.c.
 *
 * Input: a sequence of pieces, each {u8 length, u8 descriptors, bytes}.  A piece is what one recvmsg() would bring.
 * Held: no crash, the buffer bounded by what came, every descriptor closed exactly once, what comes out is within limits.
 */
#include "proto/wire.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool ok)
{
	if (!ok)
		abort();
}

static int drain(struct wire_in *in)
{
	struct wire_frame f;
	uint8_t sum = 0;
	int r;

	while ((r = wire_in_next(in, &f)) == 0) {
		require(f.length <= WIRE_MAX_PAYLOAD && f.n_fds <= WIRE_MAX_FDS);
		require((f.head.flags & ~WIRE_FLAGS_KNOWN) == 0);
		for (uint32_t i = 0; i < f.length; i++)
			sum = (uint8_t)(sum + f.payload[i]);
		for (unsigned i = 0; i < f.n_fds; i++)
			require(fcntl(f.fds[i], F_GETFD) >= 0);
		if (f.n_fds > 0 && (sum & 1))
			close(wire_frame_take_fd(&f, 0));
		wire_frame_close(&f);
	}
	require(r == WIRE_E_AGAIN || (r == WIRE_E_BAD && wire_in_reason(in)));
	return r;
}

static int feed(struct wire_in *in, const uint8_t *bytes, size_t len, unsigned n_fds)
{
	int fds[WIRE_MAX_FDS + 2], r = 0;
	size_t taken;

	for (unsigned i = 0; i < n_fds; i++)
		fds[i] = dup(STDERR_FILENO);
	while (len > 0) {
		r = wire_in_feed(in, bytes, len, fds, n_fds, &taken);
		require(r != WIRE_E_FULL); /* drained every time */
		if (r != 0)
			return r;
		n_fds = 0;
		bytes += taken;
		len -= taken;
		r = drain(in);
		if (r != WIRE_E_AGAIN)
			return r;
	}
	return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct wire_in in;
	size_t fed = 0, len;
	unsigned n_fds;
	int lowest = dup(STDERR_FILENO), again;

	close(lowest);
	wire_in_init(&in);
	while (size > 2) {
		len = data[0] + 1u;
		n_fds = data[1] % (WIRE_MAX_FDS + 3);
		data += 2;
		size -= 2;
		if (len > size)
			len = size;
		fed += len;
		if (feed(&in, data, len, n_fds) != WIRE_E_AGAIN)
			break;
		require(in.cap <= 4096 + 2 * fed && in.cap <= WIRE_MAX_FRAME);
		data += len;
		size -= len;
	}
	wire_in_deinit(&in);
	again = dup(STDERR_FILENO);
	require(again == lowest); /* nothing left open */
	close(again);
	return 0;
}
