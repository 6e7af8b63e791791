/* The heads of rope.c, on one thread. */
#ifndef WASI_KERNELS_ROPE_SIMD_H
#define WASI_KERNELS_ROPE_SIMD_H

#include "common/isa.h"
#include "common/status.h"

/* H heads of one token by one row of the tables (half numbers each); turn is 1, or -1 to turn back. */
WASI_SIMD_DECLARE(void, wasi_rope_token, (float *x, const float *cosines, const float *sines, float turn, wasi_int H,
                                          wasi_int half));

#endif
