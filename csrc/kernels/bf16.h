/* bfloat16 as a way to store float32: the upper 16 bits, rounded to nearest even. Arithmetic stays float32.
 *
 * Relative error of one rounding: at most 2^-8. Inf stays Inf, NaN stays NaN, numbers above the largest bfloat16 become Inf. */
#ifndef WASI_KERNELS_BF16_H
#define WASI_KERNELS_BF16_H

#include "common/status.h"

wasi_status wasi_bf16_round(uint16_t *out, const float *x, wasi_int n, int n_threads);
wasi_status wasi_bf16_expand(float *out, const uint16_t *x, wasi_int n, int n_threads); /* exact */
/* sum = round(sum + x): a running sum of k terms errs by about sqrt(k) 2^-9 of its size. */
wasi_status wasi_bf16_add(uint16_t *sum, const float *x, wasi_int n, int n_threads);

#endif
