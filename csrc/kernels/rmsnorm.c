#include "kernels/rmsnorm.h"

#include "common/parallel.h"
#include "kernels/part_sums.h"
#include "kernels/rmsnorm_simd.h"

/* Rows are independent but for dw, a sum over all (kernels/part_sums.h). */

typedef struct {
    float *y, *rstd;
    const float *x, *w;
    float eps;
    wasi_int C;
} forward_job;

static wasi_status forward_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const forward_job *job = ctx;
    wasi_int at = begin * job->C;
    WASI_PICK(wasi_rms_norm_rows)(job->y + at, job->rstd + begin, job->x + at, job->w, job->eps, end - begin, job->C);
    return WASI_OK;
}

wasi_status wasi_rms_norm_forward(float *y, float *rstd, const float *x, const float *w, float eps, wasi_int M,
                                  wasi_int C, int n_threads)
{
    forward_job job = {y, rstd, x, w, eps, C};
    return wasi_parallel(n_threads, M, wasi_grain(C), forward_part, &job);
}

typedef struct {
    float *y;
    const float *x, *rstd, *w;
    wasi_int C;
} apply_job;

static wasi_status apply_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const apply_job *job = ctx;
    wasi_int at = begin * job->C;
    WASI_PICK(wasi_rms_norm_apply_rows)(job->y + at, job->x + at, job->rstd + begin, job->w, end - begin, job->C);
    return WASI_OK;
}

wasi_status wasi_rms_norm_apply(float *y, const float *x, const float *rstd, const float *w, wasi_int M, wasi_int C,
                                int n_threads)
{
    apply_job job = {y, x, rstd, w, C};
    return wasi_parallel(n_threads, M, wasi_grain(C), apply_part, &job);
}

typedef struct {
    float *dx, *dw_parts; /* n_threads x C, or NULL */
    const float *dy, *x, *rstd, *w, *add_to;
    wasi_int C;
} backward_job;

static wasi_status backward_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const backward_job *job = ctx;
    wasi_int at = begin * job->C;
    WASI_PICK(wasi_rms_norm_backward_rows)(job->dx + at, job->dw_parts ? job->dw_parts + part * job->C : NULL,
                                           job->dy + at, job->x + at, job->rstd + begin, job->w,
                                           job->add_to ? job->add_to + at : NULL, end - begin, job->C);
    return WASI_OK;
}

wasi_status wasi_rms_norm_backward(float *dx, float *dw, const float *dy, const float *x, const float *rstd,
                                   const float *w, const float *add_to, wasi_int M, wasi_int C, void *work,
                                   int n_threads)
{
    wasi_scratch scratch = wasi_scratch_on(work);
    float *parts = wasi_take_parts(&scratch, C, n_threads);
    backward_job job = {dx, dw ? parts : NULL, dy, x, rstd, w, add_to, C};
    WASI_TRY(wasi_parallel(n_threads, M, wasi_grain(C), backward_part, &job));
    if (dw)
        wasi_add_parts(dw, parts, C, n_threads);
    return WASI_OK;
}

size_t wasi_rms_norm_backward_work(wasi_int C, int n_threads)
{
    wasi_scratch scratch = wasi_scratch_count();
    wasi_take_parts(&scratch, C, n_threads);
    return scratch.used;
}
