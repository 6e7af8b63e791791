/* Optimiser updates and reductions over flat float32 blocks of n elements.
 *
 * Semantics are PyTorch's. `grad_scale` is the clipping factor: g = grad_scale * grad is taken while reading, the
 * stored gradient is not changed. Blocks that are written share no memory with any other. */
#ifndef WASI_KERNELS_OPTIM_H
#define WASI_KERNELS_OPTIM_H

#include <stdbool.h>

#include "common/status.h"

/* g += weight_decay param;  buffer = momentum buffer + g (if buffer is not NULL);  param -= lr (g, buffer, or with
 * nesterov g + momentum buffer). */
wasi_status wasi_sgd_update(float *param, float *buffer, const float *grad, float lr, float momentum,
                            float weight_decay, bool nesterov, float grad_scale, wasi_int n, int n_threads);

/* param *= 1 - lr weight_decay;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
 * param -= lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps);  step counts from 1. */
wasi_status wasi_adamw_update(float *param, float *m, float *v, const float *grad, double lr, double beta1,
                              double beta2, double eps, double weight_decay, int64_t step, float grad_scale,
                              wasi_int n, int n_threads);

/* sum = sum of x^2, in float64 over chunks of a fixed size: the same bits for every thread count. */
wasi_status wasi_sum_of_squares(double *sum, const float *x, wasi_int n, void *scratch, int n_threads);
size_t wasi_sum_of_squares_work(wasi_int n);

/* WASI_ERR_NONFINITE where x holds NaN or Inf. */
wasi_status wasi_all_finite(const float *x, wasi_int n, int n_threads);

wasi_status wasi_add(float *y, const float *x1, const float *x2, wasi_int n, int n_threads); /* y = x1 + x2 or either */
wasi_status wasi_scale(float *x, float a, wasi_int n, int n_threads);                        /* x *= a */
wasi_status wasi_axpy(float *y, float a, const float *x, wasi_int n, int n_threads);         /* y += a x; x may be y */

#endif
