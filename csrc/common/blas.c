#include "common/blas.h"

#include <limits.h>

#include <cblas.h>
#include <lapacke.h>

#ifdef WASI_BLAS_WHEEL
#define BLAS(name) scipy_##name
#else
#define BLAS(name) name
#endif

void wasi_blas_init(void)
{
    BLAS(openblas_set_num_threads)(1);
}

const char *wasi_blas_config(void)
{
    return BLAS(openblas_get_config)();
}

static bool too_big(wasi_int a, wasi_int b, wasi_int c)
{
    return a > INT_MAX || b > INT_MAX || c > INT_MAX;
}

#define WASI_GEMM(name, real, cblas)                                                                                   \
    wasi_status name(bool ta, bool tb, wasi_int m, wasi_int n, wasi_int k, real alpha, const real *A, wasi_int lda,    \
                     const real *B, wasi_int ldb, real beta, real *C, wasi_int ldc)                                    \
    {                                                                                                                  \
        if (too_big(m, n, k) || too_big(lda, ldb, ldc))                                                                \
            return WASI_ERR_OVERFLOW;                                                                                  \
        if (m == 0 || n == 0)                                                                                          \
            return WASI_OK;                                                                                            \
        BLAS(cblas)(CblasColMajor, tb ? CblasTrans : CblasNoTrans, ta ? CblasTrans : CblasNoTrans, (int)n, (int)m,     \
                    (int)k, alpha, B, (int)ldb, A, (int)lda, beta, C, (int)ldc);                                       \
        return WASI_OK;                                                                                                \
    }

WASI_GEMM(wasi_sgemm1, float, cblas_sgemm)
WASI_GEMM(wasi_dgemm1, double, cblas_dgemm)
