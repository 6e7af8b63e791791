/* A small thread pool for loops over independent pieces.
 *
 * wasi_parallel(T, n, grain, task, ctx) cuts [0, n) into at most T contiguous ranges whose inner
 * borders are multiples of `grain` and runs task(ctx, begin, end, part) for each. The cut depends
 * on T, n and grain alone, never on which thread is free: the same T gives the same bits. The calling
 * thread works too. If another caller holds the pool, the whole loop runs on the calling thread
 * with the same cut. After fork() the child starts a pool of its own when it first needs one.
 * A task must not call wasi_parallel for more than one thread. */
#ifndef WASI_COMMON_PARALLEL_H
#define WASI_COMMON_PARALLEL_H

#include "common/status.h"

enum { WASI_MAX_THREADS = 256 };

/* `part` numbers the range, 0 <= part < T: the index of the part's own scratch. */
typedef wasi_status (*wasi_task)(void *ctx, wasi_int begin, wasi_int end, int part);

/* Returns the status of the lowest-numbered failing part. */
wasi_status wasi_parallel(int n_threads, wasi_int n, wasi_int grain, wasi_task task, void *ctx);

/* A grain for passes over memory: pieces of `width` numbers each, enough of them to be worth waking a thread. */
static inline wasi_int wasi_grain(wasi_int width)
{
    return WASI_MAX(1, 8192 / WASI_MAX(1, width));
}

/* The knob. A binding reads it once per call and hands it on, so work sizes and kernels agree. */
int wasi_get_num_threads(void);
void wasi_set_num_threads(int n); /* 1..WASI_MAX_THREADS, checked by the caller */
int wasi_cpu_count(void);         /* processors that this process may run on */

#endif
