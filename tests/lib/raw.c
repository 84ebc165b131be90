/* SPDX-License-Identifier: Apache-2.0 */
/* Owns a connected socket and the last reply.  Writes block, but not for ever: a daemon that does not read is a failure here. */
#include "tests/lib/raw.h"

#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "tests/lib/must.h"

#define RAW_WAIT_MS 60000

static void raw_forget(struct raw *raw)
{
	if (raw->reply)
		kvbm__reply__free_unpacked(raw->reply, NULL);
	raw->reply = NULL;
	for (unsigned i = 0; i < raw->n_fds; i++)
		close(raw->fds[i]);
	raw->n_fds = 0;
}

void raw_open(struct raw *raw, const char *socket_path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	memset(raw, 0, sizeof(*raw));
	wire_in_init(&raw->in);
	raw->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	must(raw->fd >= 0 && strlen(socket_path) < sizeof(addr.sun_path));
	strcpy(addr.sun_path, socket_path);
	must(connect(raw->fd, (struct sockaddr *)&addr, sizeof(addr)) == 0);
}

void raw_hello(struct raw *raw, const char *socket_path)
{
	Kvbm__HelloRequest hello = KVBM__HELLO_REQUEST__INIT;

	raw_open(raw, socket_path);
	hello.version_major = 1;
	hello.name = (char *)"raw";
	must_eq(raw_call(raw, KVBM__VERB__VERB_HELLO, &hello.base), 0);
}

void raw_close(struct raw *raw)
{
	raw_forget(raw);
	wire_in_deinit(&raw->in);
	if (raw->fd >= 0)
		close(raw->fd);
	raw->fd = -1;
}

bool raw_write(struct raw *raw, const void *bytes, size_t size)
{
	size_t done = 0;
	ssize_t n;

	while (done < size) {
		n = send(raw->fd, (const uint8_t *)bytes + done, size - done, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0) {
			done += (size_t)n;
			continue;
		}
		if (errno != EAGAIN)
			return false;
		must(wire_wait(raw->fd, POLLOUT, RAW_WAIT_MS) == 0);
	}
	return true;
}

void raw_header(uint8_t ret_header[WIRE_HEADER_BYTES], uint16_t verb, uint32_t length, uint64_t id)
{
	uint32_t magic = WIRE_MAGIC;

	memset(ret_header, 0, WIRE_HEADER_BYTES);
	memcpy(ret_header, &magic, 4);
	memcpy(ret_header + 4, &verb, 2);
	memcpy(ret_header + 8, &length, 4);
	memcpy(ret_header + 16, &id, 8);
}

bool raw_send_bytes(struct raw *raw, uint16_t verb, const void *payload, uint32_t size)
{
	uint8_t header[WIRE_HEADER_BYTES];

	raw_header(header, verb, size, ++raw->id);
	return raw_write(raw, header, sizeof(header)) && raw_write(raw, payload, size);
}

bool raw_send(struct raw *raw, uint16_t verb, const ProtobufCMessage *message)
{
	size_t size = message ? protobuf_c_message_get_packed_size(message) : 0;
	uint8_t *frame = malloc(WIRE_HEADER_BYTES + size);
	bool sent;

	must(frame);
	raw_header(frame, verb, (uint32_t)size, ++raw->id);
	if (message)
		protobuf_c_message_pack(message, frame + WIRE_HEADER_BYTES);
	sent = raw_write(raw, frame, WIRE_HEADER_BYTES + size);
	free(frame);
	return sent;
}

bool raw_receive(struct raw *raw)
{
	struct wire_frame frame;
	int r;

	raw_forget(raw);
	for (;;) {
		r = wire_in_next(&raw->in, &frame);
		if (r == 0)
			break;
		must_eq(r, WIRE_E_AGAIN);
		must(wire_wait(raw->fd, POLLIN, RAW_WAIT_MS) == 0);
		r = wire_in_read(&raw->in, raw->fd);
		if (r == WIRE_E_EOF || r < 0)
			return false;
		must(r == 0 || r == WIRE_E_AGAIN);
	}
	must(frame.head.flags == WIRE_FLAG_REPLY);
	raw->reply = kvbm__reply__unpack(NULL, frame.length, frame.payload);
	must(raw->reply && raw->reply->boot_id != 0);
	raw->n_fds = frame.n_fds;
	for (unsigned i = 0; i < frame.n_fds; i++)
		raw->fds[i] = wire_frame_take_fd(&frame, i);
	return true;
}

int raw_call(struct raw *raw, uint16_t verb, const ProtobufCMessage *message)
{
	must(raw_send(raw, verb, message));
	must(raw_receive(raw));
	return (int)raw->reply->code;
}

int raw_await_close(struct raw *raw)
{
	int code = -1;

	while (raw_receive(raw))
		code = (int)raw->reply->code;
	return code;
}

uint32_t raw_attach(struct raw *raw, const char *name, uint64_t block_bytes, uint32_t flags)
{
	Kvbm__AttachRequest attach = KVBM__ATTACH_REQUEST__INIT;

	attach.name = (char *)name;
	attach.block_bytes = block_bytes;
	attach.lanes = 1;
	attach.key_bytes = 16;
	attach.page_size = 16;
	attach.outer_dim = 2;
	attach.dtype = 1;
	attach.layout = 1;
	attach.flags = flags;
	must_eq(raw_call(raw, KVBM__VERB__VERB_ATTACH, &attach.base), 0);
	must(raw->reply->attach);
	return raw->reply->attach->ns;
}
