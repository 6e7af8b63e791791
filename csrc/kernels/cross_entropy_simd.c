#include "kernels/cross_entropy_simd.h"

#include <math.h>

#include "common/exp.h"

/* Lanes by hand: a maximum that passes over NaN is no reduction that every compiler vectorises. */
float WASI_SIMD(wasi_row_max)(const float *z, wasi_int V)
{
    enum { LANES = 32 };
    float lane[LANES], top = -INFINITY;
    wasi_int j = 0;
    for (int i = 0; i < LANES; i++)
        lane[i] = -INFINITY;
    for (; j + LANES <= V; j += LANES)
        for (int i = 0; i < LANES; i++)
            lane[i] = z[j + i] > lane[i] ? z[j + i] : lane[i];
    for (; j < V; j++)
        top = z[j] > top ? z[j] : top;
    for (int i = 0; i < LANES; i++)
        top = lane[i] > top ? lane[i] : top;
    return top;
}

void WASI_SIMD(wasi_row_targets)(float *a, const float *p, const float *w, float keep, float spread, wasi_int V)
{
    if (p)
        for (wasi_int j = 0; j < V; j++)
            a[j] = keep * p[j] + spread;
    else
        for (wasi_int j = 0; j < V; j++)
            a[j] = spread;
    if (w)
        for (wasi_int j = 0; j < V; j++)
            a[j] *= w[j];
}

void WASI_SIMD(wasi_row_dot)(double *total, double *dot, const float *a, const float *z, float top, wasi_int V)
{
    double sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
    for (wasi_int j = 0; j < V; j++) {
        float term = a[j] * (z[j] - top);
        sum += a[j];
        product += a[j] == 0 ? 0 : term; /* a class that is masked by -Inf and not wanted adds nothing */
    }
    *total = sum;
    *dot = product;
}

double WASI_SIMD(wasi_row_exp)(float *e, const float *z, float top, wasi_int V)
{
    double sum = 0;
    if (e == NULL) {
#pragma omp simd reduction(+ : sum)
        for (wasi_int j = 0; j < V; j++)
            sum += wasi_exp(z[j] - top);
        return sum;
    }
#pragma omp simd reduction(+ : sum)
    for (wasi_int j = 0; j < V; j++) {
        e[j] = wasi_exp(z[j] - top);
        sum += e[j];
    }
    return sum;
}

void WASI_SIMD(wasi_row_gradient)(float *d, const float *a, float scale, float share, wasi_int V)
{
    if (a)
        for (wasi_int j = 0; j < V; j++)
            d[j] = scale * d[j] - share * a[j];
    else
        for (wasi_int j = 0; j < V; j++)
            d[j] *= scale;
}
