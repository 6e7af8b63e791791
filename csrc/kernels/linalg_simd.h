/* Passes over elements that the decompositions need besides GEMMs. */
#ifndef WASI_KERNELS_LINALG_SIMD_H
#define WASI_KERNELS_LINALG_SIMD_H

#include "common/isa.h"
#include "common/status.h"

/* Whether none of the n elements is NaN or Inf. */
WASI_SIMD_DECLARE(int, wasi_sall_finite, (const float *x, wasi_int n));
WASI_SIMD_DECLARE(int, wasi_dall_finite, (const double *x, wasi_int n));
/* Sum of squares of n elements, in float64. */
WASI_SIMD_DECLARE(double, wasi_ssum_squares, (const float *x, wasi_int n));
WASI_SIMD_DECLARE(double, wasi_dsum_squares, (const double *x, wasi_int n));
/* rows x cols elements between float32 and float64; ldto, ldfrom are the distances between rows. */
WASI_SIMD_DECLARE(void, wasi_widen,
                  (double *to, wasi_int ldto, const float *from, wasi_int ldfrom, wasi_int rows, wasi_int cols));
WASI_SIMD_DECLARE(void, wasi_narrow,
                  (float *to, wasi_int ldto, const double *from, wasi_int ldfrom, wasi_int rows, wasi_int cols));

#endif
