/* Loops over the elements of flat float32 arrays, cut among threads; the loop works on a span of n of them. An output may be an
 * input where the loop allows it. */
#ifndef WASI_KERNELS_ELEMENTWISE_H
#define WASI_KERNELS_ELEMENTWISE_H

#include "common/status.h"

typedef void (*wasi_map_loop)(float *y, const float *x, wasi_int n);
typedef void (*wasi_map2_loop)(float *y, const float *x1, const float *x2, wasi_int n);

wasi_status wasi_map(float *y, const float *x, wasi_map_loop loop, wasi_int n, int n_threads);
wasi_status wasi_map2(float *y, const float *x1, const float *x2, wasi_map2_loop loop, wasi_int n, int n_threads);

#endif
