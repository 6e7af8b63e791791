#include "kernels/linalg_simd.h"

/* x - x is 0 for a finite x and NaN for any other, and so is a sum of them. Blocks allow an early end. */
#define ALL_FINITE(name, real)                                                                                         \
    int WASI_SIMD(name)(const real *x, wasi_int n)                                                                     \
    {                                                                                                                  \
        enum { BLOCK = 4096 };                                                                                         \
        for (wasi_int begin = 0; begin < n; begin += BLOCK) {                                                          \
            wasi_int end = WASI_MIN(begin + BLOCK, n);                                                                 \
            real sum = 0;                                                                                              \
            _Pragma("omp simd reduction(+ : sum)") for (wasi_int i = begin; i < end; i++) sum += x[i] - x[i];          \
            if (sum != 0)                                                                                              \
                return 0;                                                                                              \
        }                                                                                                              \
        return 1;                                                                                                      \
    }

ALL_FINITE(wasi_sall_finite, float)
ALL_FINITE(wasi_dall_finite, double)

#define SUM_SQUARES(name, real)                                                                                        \
    double WASI_SIMD(name)(const real *x, wasi_int n)                                                                  \
    {                                                                                                                  \
        double sum = 0;                                                                                                \
        _Pragma("omp simd reduction(+ : sum)") for (wasi_int i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];    \
        return sum;                                                                                                    \
    }

SUM_SQUARES(wasi_ssum_squares, float)
SUM_SQUARES(wasi_dsum_squares, double)

#define COPY(name, to_real, from_real)                                                                                 \
    void WASI_SIMD(name)(to_real *to, wasi_int ldto, const from_real *from, wasi_int ldfrom, wasi_int rows,            \
                         wasi_int cols)                                                                                \
    {                                                                                                                  \
        for (wasi_int i = 0; i < rows; i++, to += ldto, from += ldfrom)                                                \
            for (wasi_int j = 0; j < cols; j++)                                                                        \
                to[j] = (to_real)from[j];                                                                              \
    }

COPY(wasi_widen, double, float)
COPY(wasi_narrow, float, double)
