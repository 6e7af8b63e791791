/* The rows of quantize.c, on one thread. */
#ifndef WASI_KERNELS_QUANTIZE_SIMD_H
#define WASI_KERNELS_QUANTIZE_SIMD_H

#include "common/isa.h"
#include "kernels/quantize.h"

/* sums[i] = sum over o of W[o, i]^2 for the columns begin <= i < end. */
WASI_SIMD_DECLARE(void, wasi_quant_column_squares,
                  (double *sums, const float *W, wasi_int O, wasi_int I, wasi_int begin, wasi_int end));
/* One row of W into codes, s and *r; c_inv[i] = 1 / c[i], or 0 where c[i] is 0. */
WASI_SIMD_DECLARE(void, wasi_quantize_row, (uint8_t *codes, uint8_t *s, float *r, const float *W, const float *c,
                                            const float *c_inv, wasi_int I, wasi_int group, int bits));
/* Q[o, i] for the columns begin <= i < begin + n, begin a multiple of WASI_QUANT_BLOCK. */
WASI_SIMD_DECLARE(void, wasi_dequantize_row, (float *W, const wasi_quant *Q, wasi_int o, wasi_int begin, wasi_int n));

#endif
