/* SPDX-License-Identifier: Apache-2.0 */
/* raw.h: the protocol without libkvbm, for clients that do not keep to it. */
#ifndef TESTS_LIB_RAW_H
#define TESTS_LIB_RAW_H

#include <stdbool.h>
#include <stdint.h>

#include "kvbm.pb-c.h"
#include "proto/wire.h"

struct raw {
	int fd; /* owns; -1: closed */
	struct wire_in in;
	uint64_t id;
	Kvbm__Reply *reply; /* owns; the last one */
	unsigned n_fds;
	int fds[WIRE_MAX_FDS]; /* owns; of the last reply */
};

/* Connects, says nothing. */
void raw_open(struct raw *raw, const char *socket);
/* Connects and says hello. */
void raw_hello(struct raw *raw, const char *socket);
void raw_close(struct raw *raw);

/* Bytes as they are.  False: the daemon has closed. */
bool raw_write(struct raw *raw, const void *bytes, size_t size);
/* A frame's header alone. */
void raw_header(uint8_t ret_header[WIRE_HEADER_BYTES], uint16_t verb, uint32_t length, uint64_t id);
/* One frame.  @message NULL: no payload. */
bool raw_send(struct raw *raw, uint16_t verb, const ProtobufCMessage *message);
bool raw_send_bytes(struct raw *raw, uint16_t verb, const void *payload, uint32_t size);

/* Waits for the next reply.  False: the daemon closed the connection. */
bool raw_receive(struct raw *raw);
/* raw_send() and raw_receive(); returns the code. */
int raw_call(struct raw *raw, uint16_t verb, const ProtobufCMessage *message);
/* Takes whatever comes until the daemon closes the connection; it fails if that does not happen.  Returns the last code, or -1. */
int raw_await_close(struct raw *raw);

/* Attaches to a namespace of plain blocks; the descriptors are in raw->fds: index, records, page. */
uint32_t raw_attach(struct raw *raw, const char *name, uint64_t block_bytes, uint32_t flags);

#endif
