/* kvbm_version.h: versions of the library, and of the protocol it speaks with the daemon. */
#ifndef KVBM_VERSION_H
#define KVBM_VERSION_H

#define KVBM_VERSION_MAJOR 0
#define KVBM_VERSION_MINOR 1
#define KVBM_VERSION_PATCH 0
#define KVBM_VERSION "0.1.0"

/* Both ends must have the same major number.  A higher minor number only adds verbs and fields, which the other end ignores or
 * answers with KVBM_E_INVAL. */
#define KVBM_PROTO_MAJOR 1
#define KVBM_PROTO_MINOR 0

#endif
