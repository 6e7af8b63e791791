/* The loops of optim.c. */
#ifndef WASI_KERNELS_OPTIM_SIMD_H
#define WASI_KERNELS_OPTIM_SIMD_H

#include <stdbool.h>

#include "common/isa.h"
#include "common/status.h"

typedef struct {
    float lr, momentum, weight_decay, grad_scale;
    bool nesterov;
} wasi_sgd_options;

typedef struct {
    float decay;        /* 1 - lr weight_decay */
    float beta1, rest1; /* rest = 1 - beta, rounded once */
    float beta2, rest2;
    float step_size; /* lr / (1 - beta1^step) */
    float v_scale;   /* 1 / sqrt(1 - beta2^step) */
    float eps, grad_scale;
} wasi_adamw_options;

/* buffer may be NULL */
WASI_SIMD_DECLARE(void, wasi_sgd_span,
                  (float *param, float *buffer, const float *grad, wasi_sgd_options o, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_adamw_span,
                  (float *param, float *m, float *v, const float *grad, wasi_adamw_options o, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_add_span, (float *y, const float *x1, const float *x2, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_scale_span, (float *x, float a, wasi_int n));
WASI_SIMD_DECLARE(void, wasi_axpy_span, (float *y, float a, const float *x, wasi_int n));

#endif
