/* Sums over rows that are cut among threads: each part adds its own rows to its own piece of scratch, and the pieces are added
 * in order. So a sum depends on the number of threads, and on nothing else. */
#ifndef WASI_KERNELS_PART_SUMS_H
#define WASI_KERNELS_PART_SUMS_H

#include <string.h>

#include "common/scratch.h"

/* n_threads pieces of C zeros; NULL while scratch is counted. */
static inline float *wasi_take_parts(wasi_scratch *scratch, wasi_int C, int n_threads)
{
    size_t bytes = (size_t)n_threads * C * sizeof(float);
    float *parts = wasi_take(scratch, bytes);
    return parts ? memset(parts, 0, bytes) : NULL;
}

/* total (C) gets the pieces' sum added. */
static inline void wasi_add_parts(float *total, const float *parts, wasi_int C, int n_threads)
{
    for (int part = 0; part < n_threads; part++)
        for (wasi_int c = 0; c < C; c++)
            total[c] += parts[part * C + c];
}

#endif
