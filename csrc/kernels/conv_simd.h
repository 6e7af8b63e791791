/* Patches of conv.c, gathered and added back on one thread, line by line of the result. */
#ifndef WASI_KERNELS_CONV_SIMD_H
#define WASI_KERNELS_CONV_SIMD_H

#include "common/isa.h"
#include "kernels/conv.h"

/* The columns from <= q < to of the patches of the lines begin <= l < end, l = b Ho + i: (end - begin) Wo rows of p. */
WASI_SIMD_DECLARE(void, wasi_conv_gather, (float *p, const float *x, const wasi_conv *conv, wasi_int begin, wasi_int end,
                                           wasi_int from, wasi_int to));
/* Adds whole rows of p back to dx. */
WASI_SIMD_DECLARE(void, wasi_conv_scatter, (float *dx, const float *p, const wasi_conv *conv, wasi_int begin, wasi_int end));

#endif
