/* Neighbouring tokens side by side: y (B x H/2 x W/2 x 4C) of x (B x H x W x C), and back.
 *
 *     y[b, i, j, (2 v + u) C + c] = x[b, 2 i + u, 2 j + v, c],   u, v = 0, 1
 *
 * the order of published Swin transformers (arXiv 2103.14030, section 3.1). Each number is in one place of both, so the
 * gradient is the copy back. H and W are even. */
#ifndef WASI_KERNELS_PATCH_MERGE_H
#define WASI_KERNELS_PATCH_MERGE_H

#include "common/status.h"

wasi_status wasi_merge_patches(float *y, const float *x, wasi_int B, wasi_int H, wasi_int W, wasi_int C, int n_threads);
wasi_status wasi_merge_patches_backward(float *dx, const float *dy, wasi_int B, wasi_int H, wasi_int W, wasi_int C,
                                        int n_threads);

#endif
