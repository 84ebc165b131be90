/* SPDX-License-Identifier: Apache-2.0 */
/* The gather/scatter kernel as nvcc made it, inside the daemon, so that no file of ours need be found at run time. */
#include "gpu/gather.h"

/* GATHER_FATBIN is the file's name, from the Makefile. */
__asm__(".pushsection .rodata\n"
        ".balign 64\n"
        ".globl gather_fatbin\n"
        ".type gather_fatbin, @object\n"
        "gather_fatbin:\n"
        ".incbin \"" GATHER_FATBIN "\"\n"
        ".size gather_fatbin, . - gather_fatbin\n"
        ".popsection\n");
