/* Blocks of rows of batchnorm.c, on one thread. */
#ifndef WASI_KERNELS_BATCHNORM_SIMD_H
#define WASI_KERNELS_BATCHNORM_SIMD_H

#include <stdbool.h>

#include "common/isa.h"
#include "common/status.h"

/* mean[c] of M rows and square[c] = sum of (x - mean)^2. */
WASI_SIMD_DECLARE(void, wasi_batch_norm_moments, (float *mean, float *square, const float *x, wasi_int M, wasi_int C));
/* y of the header; r may be NULL. */
WASI_SIMD_DECLARE(void, wasi_batch_norm_rows, (float *y, const float *x, const float *r, const float *mean,
                                               const float *rstd, const float *w, const float *b, bool relu, wasi_int M,
                                               wasi_int C));
/* sum[c] = sum of g, dot[c] = sum of g (x - mean). */
WASI_SIMD_DECLARE(void, wasi_batch_norm_sums, (float *sum, float *dot, const float *dy, const float *x, const float *mean,
                                               const float *rstd, const float *w, const float *b, bool relu, wasi_int M,
                                               wasi_int C));
/* dx = rstd w (g - shift - (x - mean) slope). */
WASI_SIMD_DECLARE(void, wasi_batch_norm_backward_rows,
                  (float *dx, const float *dy, const float *x, const float *mean, const float *rstd, const float *w,
                   const float *b, const float *shift, const float *slope, bool relu, wasi_int M, wasi_int C));
/* Bits of n numbers, n a multiple of 8 but at the end of the array; unused bits of the last byte are 0. */
WASI_SIMD_DECLARE(void, wasi_positive_bits, (uint8_t *mask, const float *y, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_mask_numbers, (float *dx, const float *dy, const uint8_t *mask, wasi_int n));

#endif
