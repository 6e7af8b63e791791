/* Lines of pool.c on one thread. */
#ifndef WASI_KERNELS_POOL_SIMD_H
#define WASI_KERNELS_POOL_SIMD_H

#include "common/isa.h"
#include "kernels/pool.h"

/* The lines begin <= l < end of y and tap, l = b Ho + i. */
WASI_SIMD_DECLARE(void, wasi_max_pool_lines, (float *y, uint8_t *tap, const float *x, const wasi_conv *conv, wasi_int begin,
                                              wasi_int end));
/* The lines begin <= l < end of dx, l = b H + h. */
WASI_SIMD_DECLARE(void, wasi_max_pool_backward_lines, (float *dx, const float *dy, const uint8_t *tap,
                                                       const wasi_conv *conv, wasi_int begin, wasi_int end));

#endif
