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

/* LAPACK's info: negative is our mistake, positive its failure. */
static wasi_status outcome(lapack_int info, wasi_status failure)
{
    return info == 0 ? WASI_OK : info > 0 ? failure : WASI_ERR_LAPACK;
}

/* A work size that LAPACK returned as a real number, which float32 may have rounded down. */
static wasi_int rounded_up(double lwork)
{
    return (wasi_int)(lwork * (1 + 1e-6)) + 1;
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

#define WASI_SYRK(name, real, cblas)                                                                                   \
    wasi_status name(bool trans, wasi_int n, wasi_int k, real alpha, const real *A, wasi_int lda, real beta, real *C,  \
                     wasi_int ldc)                                                                                     \
    {                                                                                                                  \
        if (too_big(n, k, lda) || ldc > INT_MAX)                                                                       \
            return WASI_ERR_OVERFLOW;                                                                                  \
        BLAS(cblas)(CblasColMajor, CblasLower, trans ? CblasNoTrans : CblasTrans, (int)n, (int)k, alpha, A, (int)lda,  \
                    beta, C, (int)ldc);                                                                                \
        return WASI_OK;                                                                                                \
    }

WASI_SYRK(wasi_ssyrk1, float, cblas_ssyrk)
WASI_SYRK(wasi_dsyrk1, double, cblas_dsyrk)

#define WASI_TRMM(name, real, cblas)                                                                                   \
    wasi_status name(bool left, bool trans, wasi_int m, wasi_int n, const real *T, wasi_int ldt, real *B,              \
                     wasi_int ldb)                                                                                     \
    {                                                                                                                  \
        if (too_big(m, n, ldt) || ldb > INT_MAX)                                                                       \
            return WASI_ERR_OVERFLOW;                                                                                  \
        BLAS(cblas)(CblasColMajor, left ? CblasRight : CblasLeft, CblasLower, trans ? CblasTrans : CblasNoTrans,       \
                    CblasNonUnit, (int)n, (int)m, 1, T, (int)ldt, B, (int)ldb);                                        \
        return WASI_OK;                                                                                                \
    }

WASI_TRMM(wasi_strmm1, float, cblas_strmm)
WASI_TRMM(wasi_dtrmm1, double, cblas_dtrmm)

wasi_status wasi_dpotrf(wasi_int n, double *A, wasi_int lda)
{
    if (too_big(n, lda, 0))
        return WASI_ERR_OVERFLOW;
    return outcome(BLAS(LAPACKE_dpotrf_work)(LAPACK_COL_MAJOR, 'L', (int)n, A, (int)lda), WASI_ERR_RANK);
}

wasi_status wasi_dpocon(wasi_int n, const double *T, wasi_int ldt, double norm, double *rcond, double *work,
                        int32_t *iwork)
{
    if (too_big(n, ldt, 0))
        return WASI_ERR_OVERFLOW;
    return outcome(BLAS(LAPACKE_dpocon_work)(LAPACK_COL_MAJOR, 'L', (int)n, T, (int)ldt, norm, rcond, work, iwork),
                   WASI_ERR_LAPACK);
}

wasi_status wasi_dtrtri(wasi_int n, double *T, wasi_int ldt)
{
    if (too_big(n, ldt, 0))
        return WASI_ERR_OVERFLOW;
    return outcome(BLAS(LAPACKE_dtrtri_work)(LAPACK_COL_MAJOR, 'L', 'N', (int)n, T, (int)ldt), WASI_ERR_RANK);
}

/* A = Q R row-major is A' = R' Q', the LQ factorisation of the column-major k x m matrix in the same memory. */
#define WASI_QR(qr, q, qr_lwork, real, gelqf, orglq)                                                                   \
    wasi_status qr(wasi_int m, wasi_int k, real *A, wasi_int lda, real *tau, real *work, wasi_int lwork)               \
    {                                                                                                                  \
        if (too_big(m, k, lda) || lwork > INT_MAX)                                                                     \
            return WASI_ERR_OVERFLOW;                                                                                  \
        return outcome(BLAS(gelqf)(LAPACK_COL_MAJOR, (int)k, (int)m, A, (int)lda, tau, work, (int)lwork),              \
                       WASI_ERR_LAPACK);                                                                               \
    }                                                                                                                  \
                                                                                                                       \
    wasi_status q(wasi_int m, wasi_int k, real *A, wasi_int lda, const real *tau, real *work, wasi_int lwork)          \
    {                                                                                                                  \
        if (too_big(m, k, lda) || lwork > INT_MAX)                                                                     \
            return WASI_ERR_OVERFLOW;                                                                                  \
        return outcome(BLAS(orglq)(LAPACK_COL_MAJOR, (int)k, (int)m, (int)k, A, (int)lda, tau, work, (int)lwork),      \
                       WASI_ERR_LAPACK);                                                                               \
    }                                                                                                                  \
                                                                                                                       \
    wasi_int qr_lwork(wasi_int m, wasi_int k)                                                                          \
    {                                                                                                                  \
        real size = 1, unused = 0, size_q = 1;                                                                         \
        if (too_big(m, k, 0))                                                                                          \
            return 1;                                                                                                  \
        BLAS(gelqf)(LAPACK_COL_MAJOR, (int)k, (int)m, &unused, (int)k, &unused, &size, -1);                            \
        BLAS(orglq)(LAPACK_COL_MAJOR, (int)k, (int)m, (int)k, &unused, (int)k, &unused, &size_q, -1);                  \
        return rounded_up(WASI_MAX(size, size_q));                                                                     \
    }

WASI_QR(wasi_sqr, wasi_sqr_q, wasi_sqr_lwork, float, LAPACKE_sgelqf_work, LAPACKE_sorglq_work)
WASI_QR(wasi_dqr, wasi_dqr_q, wasi_dqr_lwork, double, LAPACKE_dgelqf_work, LAPACKE_dorglq_work)

wasi_status wasi_dpivoted_qr(wasi_int n, double *A, int32_t *pivot, double *tau, double *work, wasi_int lwork)
{
    if (too_big(n, lwork, 0))
        return WASI_ERR_OVERFLOW;
    for (wasi_int i = 0; i < n; i++)
        pivot[i] = 0;
    return outcome(BLAS(LAPACKE_dgeqp3_work)(LAPACK_COL_MAJOR, (int)n, (int)n, A, (int)n, pivot, tau, work, (int)lwork),
                   WASI_ERR_LAPACK);
}

wasi_int wasi_dpivoted_qr_lwork(wasi_int n)
{
    double size = 1, unused = 0;
    int32_t iunused = 0;
    if (too_big(n, 0, 0))
        return 1;
    BLAS(LAPACKE_dgeqp3_work)(LAPACK_COL_MAJOR, (int)n, (int)n, &unused, (int)n, &iunused, &unused, &size, -1);
    return rounded_up(size);
}

/* Row-major A = U S V' is the column-major A' (n x m) = V S U': LAPACK's U is our V and its V' our U'. */
#define WASI_SVD(svd, safe, svd_lwork, real, gesdd, gesvd)                                                             \
    wasi_status svd(wasi_int m, wasi_int n, real *A, real *S, real *other, real *work, wasi_int lwork, int32_t *iwork) \
    {                                                                                                                  \
        if (too_big(m, n, lwork))                                                                                      \
            return WASI_ERR_OVERFLOW;                                                                                  \
        return outcome(BLAS(gesdd)(LAPACK_COL_MAJOR, 'O', (int)n, (int)m, A, (int)n, S, other, (int)n, other, (int)m,  \
                                   work, (int)lwork, iwork),                                                           \
                       WASI_ERR_LAPACK);                                                                               \
    }                                                                                                                  \
                                                                                                                       \
    wasi_status safe(wasi_int m, wasi_int n, real *A, real *S, real *other, real *work, wasi_int lwork)                \
    {                                                                                                                  \
        if (too_big(m, n, lwork))                                                                                      \
            return WASI_ERR_OVERFLOW;                                                                                  \
        return outcome(BLAS(gesvd)(LAPACK_COL_MAJOR, n >= m ? 'O' : 'S', n >= m ? 'S' : 'O', (int)n, (int)m, A,        \
                                   (int)n, S, other, (int)n, other, (int)m, work, (int)lwork),                         \
                       WASI_ERR_LAPACK);                                                                               \
    }                                                                                                                  \
                                                                                                                       \
    wasi_int svd_lwork(wasi_int m, wasi_int n)                                                                         \
    {                                                                                                                  \
        real size = 1, size_safe = 1, unused = 0;                                                                      \
        int32_t iunused = 0;                                                                                           \
        if (too_big(m, n, 0))                                                                                          \
            return 1;                                                                                                  \
        BLAS(gesdd)(LAPACK_COL_MAJOR, 'O', (int)n, (int)m, &unused, (int)n, &unused, &unused, (int)n, &unused, (int)m, \
                    &size, -1, &iunused);                                                                              \
        BLAS(gesvd)(LAPACK_COL_MAJOR, n >= m ? 'O' : 'S', n >= m ? 'S' : 'O', (int)n, (int)m, &unused, (int)n,         \
                    &unused, &unused, (int)n, &unused, (int)m, &size_safe, -1);                                        \
        return rounded_up(WASI_MAX(size, size_safe));                                                                  \
    }

WASI_SVD(wasi_ssvd, wasi_ssvd_safe, wasi_ssvd_lwork, float, LAPACKE_sgesdd_work, LAPACKE_sgesvd_work)
WASI_SVD(wasi_dsvd, wasi_dsvd_safe, wasi_dsvd_lwork, double, LAPACKE_dgesdd_work, LAPACKE_dgesvd_work)

wasi_status wasi_deigh(wasi_int n, double *A, double *w, double *work, wasi_int lwork, int32_t *iwork)
{
    if (too_big(n, lwork, 3 + 5 * n))
        return WASI_ERR_OVERFLOW;
    return outcome(BLAS(LAPACKE_dsyevd_work)(LAPACK_COL_MAJOR, 'V', 'L', (int)n, A, (int)n, w, work, (int)lwork, iwork,
                                             (int)(3 + 5 * n)),
                   WASI_ERR_LAPACK);
}

wasi_int wasi_deigh_lwork(wasi_int n)
{
    double size = 1, unused = 0;
    int32_t iunused = 0;
    if (too_big(n, 3 + 5 * n, 0))
        return 1;
    BLAS(LAPACKE_dsyevd_work)(LAPACK_COL_MAJOR, 'V', 'L', (int)n, &unused, (int)n, &unused, &size, -1, &iunused, -1);
    return rounded_up(size);
}

wasi_status wasi_deigvals(wasi_int n, double *A, double *w, double *work)
{
    int32_t iwork = 0;
    if (too_big(2 * n + 1, 0, 0))
        return WASI_ERR_OVERFLOW;
    return outcome(BLAS(LAPACKE_dsyevd_work)(LAPACK_COL_MAJOR, 'N', 'L', (int)n, A, (int)n, w, work, (int)(2 * n + 1),
                                             &iwork, 1),
                   WASI_ERR_LAPACK);
}
