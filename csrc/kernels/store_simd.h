/* The loops of store.c, over M rows of C. */
#ifndef WASI_KERNELS_STORE_SIMD_H
#define WASI_KERNELS_STORE_SIMD_H

#include "common/isa.h"
#include "common/status.h"

WASI_SIMD_DECLARE(void, wasi_store_span, (uint8_t *codes, float *scale, float *offset, const float *x, wasi_int M, wasi_int C));
WASI_SIMD_DECLARE(void, wasi_restore_span,
                  (float *x, const uint8_t *codes, const float *scale, const float *offset, wasi_int M, wasi_int C));

#endif
