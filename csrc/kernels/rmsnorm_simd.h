/* The rows of rmsnorm.c, on one thread. */
#ifndef WASI_KERNELS_RMSNORM_SIMD_H
#define WASI_KERNELS_RMSNORM_SIMD_H

#include "common/isa.h"
#include "common/status.h"

WASI_SIMD_DECLARE(void, wasi_rms_norm_rows, (float *y, float *rstd, const float *x, const float *w, float eps,
                                             wasi_int M, wasi_int C));
WASI_SIMD_DECLARE(void, wasi_rms_norm_apply_rows, (float *y, const float *x, const float *rstd, const float *w,
                                                   wasi_int M, wasi_int C));
/* dx, and the sum over these rows added to dw where it is given. */
WASI_SIMD_DECLARE(void, wasi_rms_norm_backward_rows, (float *dx, float *dw, const float *dy, const float *x,
                                                      const float *rstd, const float *w, const float *add_to,
                                                      wasi_int M, wasi_int C));

#endif
