/* SPDX-License-Identifier: Apache-2.0 */
/* gather.h: the gather/scatter kernel, as the host sees it. */
#ifndef GPU_GATHER_H
#define GPU_GATHER_H

#define GATHER_KERNEL \
	"kvbm_gather"         /* (dsts, srcs, sizes, n): arrays of n 64-bit words in memory that the device reaches */
#define GATHER_THREADS 256u   /* of one thread block: a warp a piece */
#define GATHER_BLOCKS_MAX 64u /* of a launch: enough for a link, and leaves most of the device to the engine */

/* The fatbin, aligned as the driver wants it. */
extern const unsigned char gather_fatbin[];

#endif
