/* The passes over rows that surround the GEMMs of linear.c. */
#ifndef WASI_KERNELS_LINEAR_SIMD_H
#define WASI_KERNELS_LINEAR_SIMD_H

#include "common/isa.h"
#include "common/status.h"

/* y[m, o] += b[o] for M rows of O. */
WASI_SIMD_DECLARE(void, wasi_add_bias, (float *y, const float *b, wasi_int M, wasi_int O));
/* db[o] += sum over m of dy[m, o] for the columns begin <= o < end of M rows of O. */
WASI_SIMD_DECLARE(void, wasi_sum_rows, (float *db, const float *dy, wasi_int M, wasi_int O, wasi_int begin, wasi_int end));

#endif
