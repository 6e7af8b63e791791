/* The loops of silu.c, on one thread. */
#ifndef WASI_KERNELS_SILU_SIMD_H
#define WASI_KERNELS_SILU_SIMD_H

#include "common/isa.h"
#include "common/status.h"

WASI_SIMD_DECLARE(void, wasi_silu_some, (float *g, const float *h, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_silu_backward_some, (float *dh, const float *dy, const float *h, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_swiglu_some, (float *g, const float *a, const float *b, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_swiglu_backward_some, (float *da, float *db, const float *dy, const float *a,
                                                    const float *b, wasi_int n));

#endif
