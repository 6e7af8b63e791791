#include "kernels/gemm.h"

#include "common/parallel.h"

/* Below this many multiply-adds a second thread costs more than it brings. */
#define GEMM_SERIAL_BELOW 65536.0

#define WASI_GEMM_PARALLEL(name, real, gemm1)                                                                          \
    typedef struct {                                                                                                   \
        bool ta, tb, by_rows;                                                                                          \
        wasi_int m, n, k, lda, ldb, ldc;                                                                               \
        real alpha, beta;                                                                                              \
        const real *A, *B;                                                                                             \
        real *C;                                                                                                       \
    } name##_job;                                                                                                      \
                                                                                                                       \
    static wasi_status name##_part(void *ctx, wasi_int begin, wasi_int end, int part)                                  \
    {                                                                                                                  \
        const name##_job *g = ctx;                                                                                     \
        if (g->by_rows)                                                                                                \
            return gemm1(g->ta, g->tb, end - begin, g->n, g->k, g->alpha, g->A + begin * (g->ta ? 1 : g->lda), g->lda, \
                         g->B, g->ldb, g->beta, g->C + begin * g->ldc, g->ldc);                                        \
        return gemm1(g->ta, g->tb, g->m, end - begin, g->k, g->alpha, g->A, g->lda,                                    \
                     g->B + begin * (g->tb ? g->ldb : 1), g->ldb, g->beta, g->C + begin, g->ldc);                      \
    }                                                                                                                  \
                                                                                                                       \
    wasi_status name(bool ta, bool tb, wasi_int m, wasi_int n, wasi_int k, real alpha, const real *A, wasi_int lda,    \
                     const real *B, wasi_int ldb, real beta, real *C, wasi_int ldc, int n_threads)                     \
    {                                                                                                                  \
        if (n_threads == 1 || (double)m * (double)n * (double)k < GEMM_SERIAL_BELOW)                                   \
            return gemm1(ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc);                                        \
        name##_job job = {ta, tb, m >= n, m, n, k, lda, ldb, ldc, alpha, beta, A, B, C};                               \
        return wasi_parallel(n_threads, m >= n ? m : n, 16, name##_part, &job);                                        \
    }

WASI_GEMM_PARALLEL(wasi_sgemm, float, wasi_sgemm1)
WASI_GEMM_PARALLEL(wasi_dgemm, double, wasi_dgemm1)
