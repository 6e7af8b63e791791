#include "kernels/layernorm.h"

#include "common/parallel.h"
#include "kernels/layernorm_simd.h"
#include "kernels/part_sums.h"

/* Rows are independent but for dw and db, which are sums over all (kernels/part_sums.h). */

typedef struct {
    float *s, *y, *mean, *rstd;
    const float *x, *r, *w, *b;
    float eps;
    wasi_int C;
} forward_job;

static wasi_status forward_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const forward_job *job = ctx;
    wasi_int at = begin * job->C;
    WASI_PICK(wasi_layer_norm_rows)(job->r ? job->s + at : NULL, job->y + at, job->mean + begin, job->rstd + begin,
                                    job->x + at, job->r ? job->r + at : NULL, job->w, job->b, job->eps, end - begin,
                                    job->C);
    return WASI_OK;
}

wasi_status wasi_layer_norm_forward(float *s, float *y, float *mean, float *rstd, const float *x, const float *r,
                                    const float *w, const float *b, float eps, wasi_int M, wasi_int C, int n_threads)
{
    forward_job job = {s, y, mean, rstd, x, r, w, b, eps, C};
    return wasi_parallel(n_threads, M, wasi_grain(C), forward_part, &job);
}

typedef struct {
    float *y;
    const float *x, *mean, *rstd, *w, *b;
    wasi_int C;
} apply_job;

static wasi_status apply_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const apply_job *job = ctx;
    wasi_int at = begin * job->C;
    WASI_PICK(wasi_layer_norm_apply_rows)(job->y + at, job->x + at, job->mean + begin, job->rstd + begin, job->w,
                                          job->b, end - begin, job->C);
    return WASI_OK;
}

wasi_status wasi_layer_norm_apply(float *y, const float *x, const float *mean, const float *rstd, const float *w,
                                  const float *b, wasi_int M, wasi_int C, int n_threads)
{
    apply_job job = {y, x, mean, rstd, w, b, C};
    return wasi_parallel(n_threads, M, wasi_grain(C), apply_part, &job);
}

typedef struct {
    float *dx, *dw_parts, *db_parts; /* n_threads x C each, or NULL */
    const float *dy, *x, *mean, *rstd, *w, *add_to;
    wasi_int C;
} backward_job;

static wasi_status backward_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const backward_job *job = ctx;
    wasi_int at = begin * job->C;
    WASI_PICK(wasi_layer_norm_backward_rows)(job->dx + at, job->dw_parts ? job->dw_parts + part * job->C : NULL,
                                             job->db_parts ? job->db_parts + part * job->C : NULL, job->dy + at,
                                             job->x + at, job->mean + begin, job->rstd + begin, job->w,
                                             job->add_to ? job->add_to + at : NULL, end - begin, job->C);
    return WASI_OK;
}

wasi_status wasi_layer_norm_backward(float *dx, float *dw, float *db, const float *dy, const float *x,
                                     const float *mean, const float *rstd, const float *w, const float *add_to,
                                     wasi_int M, wasi_int C, void *work, int n_threads)
{
    wasi_scratch scratch = wasi_scratch_on(work);
    float *dw_parts = wasi_take_parts(&scratch, C, n_threads), *db_parts = wasi_take_parts(&scratch, C, n_threads);
    backward_job job = {dx, dw ? dw_parts : NULL, db ? db_parts : NULL, dy, x, mean, rstd, w, add_to, C};
    WASI_TRY(wasi_parallel(n_threads, M, wasi_grain(C), backward_part, &job));
    if (dw)
        wasi_add_parts(dw, dw_parts, C, n_threads);
    if (db)
        wasi_add_parts(db, db_parts, C, n_threads);
    return WASI_OK;
}

size_t wasi_layer_norm_backward_work(wasi_int C, int n_threads)
{
    wasi_scratch scratch = wasi_scratch_count();
    wasi_take_parts(&scratch, C, n_threads);
    wasi_take_parts(&scratch, C, n_threads);
    return scratch.used;
}
