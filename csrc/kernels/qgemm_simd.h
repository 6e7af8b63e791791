/* The inner loops of qgemm.c, on one thread.
 *
 * A unit is 32 bits of consecutive k: four 8-bit numbers, or two of 16 bits where the instruction set has no exact
 * 8-bit product. A tile holds the units of 12 tokens in turn, u[unit][m], a panel those of 32 columns of the result,
 * q[unit][n]. K counts numbers, `units` their units: the last may hold numbers behind K, which count as 0. */
#ifndef WASI_KERNELS_QGEMM_SIMD_H
#define WASI_KERNELS_QGEMM_SIMD_H

#include <stdbool.h>

#include "common/isa.h"
#include "kernels/quantize.h"

enum { WASI_UNIT_BYTES = 4, WASI_TILE_ROWS = 12, WASI_PANEL_COLUMNS = WASI_QUANT_BLOCK };

/* Units of K numbers. */
WASI_SIMD_DECLARE(wasi_int, wasi_units, (wasi_int K));

/* Codes u, scale t and zero z of `rows` <= 12 tokens of A scale, A rows x K. */
WASI_SIMD_DECLARE(void, wasi_quantize_tile, (void *u, float *t, int32_t *z, const float *A, const float *scale,
                                             wasi_int rows, wasi_int K));

/* Panel of the rows first..first + 31 of Q (k runs along I), zeros beyond O; its length is I rounded up to a block. */
WASI_SIMD_DECLARE(void, wasi_pack_rows, (void *panel, const wasi_quant *Q, wasi_int first));
/* Panel of the columns first..first + 31 of Q, first a multiple of 32 (k runs along O). */
WASI_SIMD_DECLARE(void, wasi_pack_columns, (void *panel, const wasi_quant *Q, wasi_int first));

/* sum[n] = sum over k of q[k, n]. */
WASI_SIMD_DECLARE(void, wasi_panel_sum, (int32_t *sum, const void *panel, wasi_int units));
/* acc[32 m + n] = sum over k of u[k, m] q[k, n], exact, for m < rows <= 12 (further rows of acc may be overwritten). */
WASI_SIMD_DECLARE(void, wasi_tile_dot, (int32_t *acc, const void *u, const void *panel, const int32_t *sum,
                                        wasi_int rows, wasi_int units));
/* C[m, n] (+)= t[m] scale[n] (acc[32 m + n] - z[m] sum[n]) + b[n] for n < columns <= 32, rows of C ldc apart. */
WASI_SIMD_DECLARE(void, wasi_tile_finish, (float *C, wasi_int ldc, const int32_t *acc, const int32_t *sum,
                                           const float *t, const int32_t *z, const float *scale, const float *b,
                                           bool add, wasi_int rows, wasi_int columns));

#endif
