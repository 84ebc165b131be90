/* SPDX-License-Identifier: Apache-2.0 */
/* Inside loop/ only: the libuv loop behind a struct loop, for the other files of this folder that need a handle on it. */
#ifndef LOOP_LOOP_UV_H
#define LOOP_LOOP_UV_H

#include <uv.h>

#include "loop/loop.h"

/* Borrowed for as long as @loop lives. */
uv_loop_t *loop_uv(struct loop *loop);

#endif
