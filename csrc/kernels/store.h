/* Activations kept in 8 bits between forward and backward: each row (a token) between its own least and largest value.
 *
 * x[m, c] is offset[m] + scale[m] codes[m, c] to within scale[m] / 2 = (largest - least) / 510. A row with NaN or Inf comes
 * back as NaN. x, codes: M rows of C; scale, offset: M. */
#ifndef WASI_KERNELS_STORE_H
#define WASI_KERNELS_STORE_H

#include "common/status.h"

wasi_status wasi_store_rows(uint8_t *codes, float *scale, float *offset, const float *x, wasi_int M, wasi_int C,
                            int n_threads);
wasi_status wasi_restore_rows(float *x, const uint8_t *codes, const float *scale, const float *offset, wasi_int M, wasi_int C,
                              int n_threads);

#endif
