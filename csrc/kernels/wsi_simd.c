#include "kernels/wsi_simd.h"

#include <math.h>

#define COMBINE(name, real)                                                                                            \
    void WASI_SIMD(name)(real *out, double a64, const real *x, double b64, const real *y, double c64, const real *z,   \
                         wasi_int n)                                                                                   \
    {                                                                                                                  \
        real a = (real)a64, b = (real)b64, c = (real)c64;                                                              \
        _Pragma("omp simd") for (wasi_int i = 0; i < n; i++) out[i] = a * x[i] + b * y[i] + c * z[i];                  \
    }

COMBINE(wasi_scombine, float)
COMBINE(wasi_dcombine, double)

#define ADAM(direction, moments, real, root)                                                                           \
    void WASI_SIMD(direction)(real *u, const real *m, const real *v, const real *g, const wasi_adam *adam, wasi_int n) \
    {                                                                                                                  \
        real beta1 = (real)adam->beta1, beta2 = (real)adam->beta2, epsilon = (real)adam->epsilon;                      \
        real gain1 = (real)adam->gain1, gain2 = (real)adam->gain2;                                                     \
        real correct1 = (real)adam->correct1, correct2 = (real)adam->correct2;                                         \
        _Pragma("omp simd") for (wasi_int i = 0; i < n; i++)                                                           \
        {                                                                                                              \
            real first = beta1 * m[i] + gain1 * g[i], second = beta2 * v[i] + gain2 * g[i] * g[i];                     \
            u[i] = correct1 * first / (root(correct2 * second) + epsilon);                                             \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    void WASI_SIMD(moments)(real *m, real *v, const real *g, const wasi_adam *adam, wasi_int n)                        \
    {                                                                                                                  \
        real beta1 = (real)adam->beta1, beta2 = (real)adam->beta2;                                                     \
        real gain1 = (real)adam->gain1, gain2 = (real)adam->gain2;                                                     \
        _Pragma("omp simd") for (wasi_int i = 0; i < n; i++)                                                           \
        {                                                                                                              \
            m[i] = beta1 * m[i] + gain1 * g[i];                                                                        \
            v[i] = beta2 * v[i] + gain2 * g[i] * g[i];                                                                 \
        }                                                                                                              \
    }

ADAM(wasi_sadam_direction, wasi_sadam_moments, float, sqrtf)
ADAM(wasi_dadam_direction, wasi_dadam_moments, double, sqrt)
