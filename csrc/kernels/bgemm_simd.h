/* The inner loops of bgemm.c, on one thread, where the processor has AVX512-BF16; elsewhere they are never called.
 *
 * A unit is two bfloat16 numbers of consecutive k, 32 bits. A tile holds the units of 12 rows of the result in turn,
 * tile[unit][m], a panel those of 32 columns, panel[unit][n]; what lies beyond the matrix counts as 0. Rounding is to nearest
 * even; bfloat16 numbers below 2^-126 count as 0. */
#ifndef WASI_KERNELS_BGEMM_SIMD_H
#define WASI_KERNELS_BGEMM_SIMD_H

#include <stdbool.h>

#include "common/isa.h"
#include "common/status.h"

enum { WASI_BGEMM_ROWS = 12, WASI_BGEMM_COLUMNS = 32 };

/* Whether this build of the loops has them, and the processor too. */
WASI_SIMD_DECLARE(bool, wasi_bgemm_supported, (void));

/* Units of n <= width vectors of length K: vector j starts at source + j ld, its numbers lie side by side. */
WASI_SIMD_DECLARE(void, wasi_bgemm_pack_rows, (uint32_t *units, int width, const float *source, wasi_int ld, wasi_int n,
                                               wasi_int K));
/* The same for vectors that lie in the columns of `source`: number k of vector j is source[k ld + j]. */
WASI_SIMD_DECLARE(void, wasi_bgemm_pack_columns, (uint32_t *units, int width, const float *source, wasi_int ld,
                                                  wasi_int n, wasi_int K));

/* Both for bfloat16 numbers, which are taken as they are. */
WASI_SIMD_DECLARE(void, wasi_bgemm_take_rows, (uint32_t *units, int width, const uint16_t *source, wasi_int ld, wasi_int n,
                                               wasi_int K));
WASI_SIMD_DECLARE(void, wasi_bgemm_take_columns, (uint32_t *units, int width, const uint16_t *source, wasi_int ld,
                                                  wasi_int n, wasi_int K));

/* C (rows x columns of a tile and a panel) = C if `add`, plus b (columns) if not NULL, plus the products of n units. */
WASI_SIMD_DECLARE(void, wasi_bgemm_tile, (float *C, wasi_int ldc, const uint32_t *tile, const uint32_t *panel, wasi_int n,
                                          const float *b, bool add, wasi_int rows, wasi_int columns));

#endif
