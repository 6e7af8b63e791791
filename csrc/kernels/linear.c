#include "kernels/linear.h"

#include "common/parallel.h"
#include "kernels/bgemm.h"
#include "kernels/gemm.h"
#include "kernels/linear_simd.h"

typedef struct {
    float *out;
    const float *in;
    wasi_int M, O;
} rows_job;

static wasi_status add_bias_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const rows_job *job = ctx;
    WASI_PICK(wasi_add_bias)(job->out + begin * job->O, job->in, end - begin, job->O);
    return WASI_OK;
}

static wasi_status add_bias(float *y, const float *b, wasi_int M, wasi_int O, int n_threads)
{
    rows_job job = {y, b, M, O};
    return wasi_parallel(n_threads, M, 16, add_bias_part, &job);
}

static wasi_status sum_rows_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const rows_job *job = ctx;
    WASI_PICK(wasi_sum_rows)(job->out, job->in, job->M, job->O, begin, end);
    return WASI_OK;
}

static wasi_status sum_rows(float *db, const float *dy, wasi_int M, wasi_int O, int n_threads)
{
    rows_job job = {db, dy, M, O};
    return wasi_parallel(n_threads, O, 64, sum_rows_part, &job);
}

wasi_status wasi_product(bool ta, bool tb, wasi_int m, wasi_int n, wasi_int k, const float *A, wasi_int lda,
                         const float *B, wasi_int ldb, const float *b, bool add, float *C, wasi_int ldc, void *work,
                         int n_threads)
{
    if (work && wasi_bgemm_pays(m, n, k))
        return wasi_bgemm(ta, tb, m, n, k, A, lda, B, ldb, b, add, C, ldc, work, n_threads);
    WASI_TRY(wasi_sgemm(ta, tb, m, n, k, 1, A, lda, B, ldb, add, C, ldc, n_threads));
    return b ? add_bias(C, b, m, n, n_threads) : WASI_OK;
}

wasi_status wasi_linear_forward(float *y, const float *x, const float *W, const float *b, wasi_int M, wasi_int O,
                                wasi_int I, void *work, int n_threads)
{
    return wasi_product(false, true, M, O, I, x, I, W, I, b, false, y, O, work, n_threads);
}

wasi_status wasi_linear_backward(float *dx, float *dW, float *db, const float *dy, const float *x, const float *W,
                                 wasi_int M, wasi_int O, wasi_int I, void *work, int n_threads)
{
    if (dx)
        WASI_TRY(wasi_product(false, false, M, I, O, dy, O, W, I, NULL, false, dx, I, work, n_threads));
    if (dW)
        WASI_TRY(wasi_product(true, false, O, I, M, dy, O, x, I, NULL, true, dW, I, work, n_threads));
    return db ? sum_rows(db, dy, M, O, n_threads) : WASI_OK;
}

wasi_status wasi_factored_forward(float *y, float *z, const float *x, const float *L, const float *R, const float *b,
                                  wasi_int M, wasi_int O, wasi_int I, wasi_int K, void *work, int n_threads)
{
    WASI_TRY(wasi_linear_forward(z, x, R, NULL, M, K, I, work, n_threads));
    return wasi_linear_forward(y, z, L, b, M, O, K, work, n_threads);
}

wasi_status wasi_factored_backward(float *dx, float *gl, float *dL, float *dR, float *db, const float *dy,
                                   const float *x, const float *z, const float *L, const float *R, wasi_int M,
                                   wasi_int O, wasi_int I, wasi_int K, void *work, int n_threads)
{
    WASI_TRY(wasi_linear_backward(gl, dL, db, dy, z, L, M, O, K, work, n_threads));
    return wasi_linear_backward(dx, dR, NULL, gl, x, R, M, K, I, work, n_threads);
}
