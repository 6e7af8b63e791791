/* Products with a frozen weight that is stored in bfloat16: y = x W', dx = dy W, in float32 arithmetic, or with x and dy rounded
 * to bfloat16 as well (`rounded`, see bgemm.h).
 *
 * Row-major: x, dx M x I, y, dy M x O float32; W O x I bfloat16 bits, read where it lies (it may be a mapped file).
 * In float32, WASI_BF16_TILE numbers or so of W, whole rows, are expanded at a time into `work`, exactly, and BLAS multiplies by
 * them: the expansion is paid once for all M rows, and no float32 copy of W exists. Rounded products take W's bits as they are;
 * small ones are not rounded (wasi_bgemm_pays). Results overwrite. */
#ifndef WASI_KERNELS_BF16_LINEAR_H
#define WASI_KERNELS_BF16_LINEAR_H

#include <stdbool.h>

#include "common/status.h"

enum { WASI_BF16_TILE = 1 << 20 };

wasi_status wasi_bf16_linear_forward(float *y, const float *x, const uint16_t *W, wasi_int M, wasi_int O, wasi_int I,
                                     bool rounded, void *work, int n_threads);
wasi_status wasi_bf16_linear_backward(float *dx, const float *dy, const uint16_t *W, wasi_int M, wasi_int O, wasi_int I,
                                      bool rounded, void *work, int n_threads);
size_t wasi_bf16_linear_work(wasi_int M, wasi_int O, wasi_int I, bool rounded, int n_threads);

#endif
