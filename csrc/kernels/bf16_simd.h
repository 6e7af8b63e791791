/* The loops of bf16.c. */
#ifndef WASI_KERNELS_BF16_SIMD_H
#define WASI_KERNELS_BF16_SIMD_H

#include "common/isa.h"
#include "common/status.h"

WASI_SIMD_DECLARE(void, wasi_bf16_round_span, (uint16_t *out, const float *x, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_bf16_expand_span, (float *out, const uint16_t *x, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_bf16_add_span, (uint16_t *sum, const float *x, wasi_int n));

#endif
