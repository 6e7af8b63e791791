/* The loops of gelu.c, on one thread. */
#ifndef WASI_KERNELS_GELU_SIMD_H
#define WASI_KERNELS_GELU_SIMD_H

#include "common/isa.h"
#include "common/status.h"

WASI_SIMD_DECLARE(void, wasi_gelu_some, (float *g, const float *h, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_bias_gelu_rows, (float *g, float *h, const float *b, wasi_int M, wasi_int C));
WASI_SIMD_DECLARE(void, wasi_gelu_backward_some, (float *dh, const float *dy, const float *h, wasi_int n));
/* The numbers begin <= i < end of rows of C; begin is a multiple of a block of codes. */
WASI_SIMD_DECLARE(void, wasi_gelu_encode_some, (float *g, uint8_t *codes, const float *h, const float *b, int bits,
                                                wasi_int C, wasi_int begin, wasi_int end));
WASI_SIMD_DECLARE(void, wasi_gelu_decode_some, (float *dh, const float *dy, const uint8_t *codes, int bits,
                                                wasi_int n));

#endif
