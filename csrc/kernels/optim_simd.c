#include "kernels/optim_simd.h"

#include <math.h>

/* New values pass through variables: to read an element back just after its store waits for the store where a vector
 * crosses a cache line, and costs AdamW a factor of three. */

void WASI_SIMD(wasi_sgd_span)(float *param, float *buffer, const float *grad, wasi_sgd_options o, wasi_int n)
{
    if (buffer == NULL) {
#pragma omp simd
        for (wasi_int i = 0; i < n; i++)
            param[i] -= o.lr * (o.grad_scale * grad[i] + o.weight_decay * param[i]);
        return;
    }
#pragma omp simd
    for (wasi_int i = 0; i < n; i++) {
        float g = o.grad_scale * grad[i] + o.weight_decay * param[i];
        float moved = o.momentum * buffer[i] + g;
        buffer[i] = moved;
        param[i] -= o.lr * (o.nesterov ? g + o.momentum * moved : moved);
    }
}

void WASI_SIMD(wasi_adamw_span)(float *param, float *m, float *v, const float *grad, wasi_adamw_options o, wasi_int n)
{
#pragma omp simd
    for (wasi_int i = 0; i < n; i++) {
        float g = o.grad_scale * grad[i];
        float first = o.beta1 * m[i] + o.rest1 * g, second = o.beta2 * v[i] + o.rest2 * g * g;
        m[i] = first;
        v[i] = second;
        param[i] = o.decay * param[i] - o.step_size * first / (sqrtf(second) * o.v_scale + o.eps);
    }
}

void WASI_SIMD(wasi_add_span)(float *y, const float *x1, const float *x2, wasi_int n)
{
#pragma omp simd
    for (wasi_int i = 0; i < n; i++)
        y[i] = x1[i] + x2[i];
}

void WASI_SIMD(wasi_scale_span)(float *x, float a, wasi_int n)
{
    for (wasi_int i = 0; i < n; i++)
        x[i] *= a;
}

void WASI_SIMD(wasi_axpy_span)(float *y, float a, const float *x, wasi_int n)
{
#pragma omp simd
    for (wasi_int i = 0; i < n; i++)
        y[i] += a * x[i];
}
