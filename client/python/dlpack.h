/* SPDX-License-Identifier: Apache-2.0 */
/* dlpack.h: the part of DLPack's binary interface (1.1) that an exporter of dense memory, the host's or a GPU's, needs.
 *
 * The names and values are DLPack's; https://dmlc.github.io/dlpack/latest/c_api.html is the authority.
 */
#ifndef DLPACK_H
#define DLPACK_H

#include <stdint.h>

#define DLPACK_MAJOR 1u
#define DLPACK_MINOR 1u

#define DLPACK_FLAG_READ_ONLY 1u
#define DLPACK_FLAG_IS_COPIED 2u

#define DLPACK_NAME "dltensor"
#define DLPACK_NAME_VERSIONED "dltensor_versioned"

enum { DLPACK_CPU = 1, DLPACK_CUDA = 2 };

enum {
	DLPACK_INT = 0,
	DLPACK_UINT = 1,
	DLPACK_FLOAT = 2,
	DLPACK_BFLOAT = 4,
	DLPACK_FLOAT8_E4M3FN = 10,
	DLPACK_FLOAT8_E5M2 = 12,
};

struct dlpack_device {
	int32_t type, id;
};

struct dlpack_dtype {
	uint8_t code, bits;
	uint16_t lanes;
};

struct dlpack_tensor {
	void *data;
	struct dlpack_device device;
	int32_t ndim;
	struct dlpack_dtype dtype;
	int64_t *shape, *strides; /* in elements */
	uint64_t byte_offset;
};

/* What a capsule named DLPACK_NAME holds. */
struct dlpack_managed {
	struct dlpack_tensor tensor;
	void *context;
	void (*deleter)(struct dlpack_managed *self);
};

/* What a capsule named DLPACK_NAME_VERSIONED holds. */
struct dlpack_versioned {
	uint32_t major, minor;
	void *context;
	void (*deleter)(struct dlpack_versioned *self);
	uint64_t flags;
	struct dlpack_tensor tensor;
};

_Static_assert(sizeof(struct dlpack_tensor) == 48, "as every consumer was compiled with");
_Static_assert(sizeof(struct dlpack_managed) == 64, "as every consumer was compiled with");
_Static_assert(sizeof(struct dlpack_versioned) == 80, "as every consumer was compiled with");

#endif
