/* assert.h: assertions that stay on.
 *
 * Wrong KV data served silently is worse than a restart, because the model would answer from someone else's context.
 * So a broken invariant aborts in release builds too, and a build that would compile assertions away does not compile.
 */
#ifndef BASE_ASSERT_H
#define BASE_ASSERT_H

#ifdef NDEBUG
#error "kvbmd is never built with NDEBUG: its assertions guard the users' data"
#endif

#include <assert.h>

#endif
