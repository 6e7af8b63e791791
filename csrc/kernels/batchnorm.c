#include "kernels/batchnorm.h"

#include <string.h>

#include "common/parallel.h"
#include "common/scratch.h"
#include "kernels/batchnorm_simd.h"

enum { BLOCK = 16384, BLOCK_ROWS = 512, MASK_GRAIN = 65536 }; /* most numbers, and rows, of a block; numbers of a mask */

/* What a thread sums up, C numbers each: mean and square deviation, or sum and product sum; and the same of a block. */
typedef struct {
    double *total[2];
    float *block[2];
    wasi_int n; /* rows in total */
} sums;

typedef struct {
    float *y, *dx;
    uint8_t *mask;
    const float *x, *r, *dy, *mean, *rstd, *w, *b;
    bool relu;
    wasi_int C;
    float *shift, *slope; /* scratch, C each */
    sums *parts;          /* scratch, one a thread */
} norm_job;

/* Rows of a block: a multiple of 8, so that the masks of blocks meet between bytes. */
static wasi_int block_rows(wasi_int C)
{
    return WASI_MIN(BLOCK_ROWS, WASI_MAX(8, BLOCK / C / 8 * 8));
}

static void cut(wasi_scratch *scratch, norm_job *job, int n_threads)
{
    const size_t C = (size_t)job->C;
    job->shift = wasi_take(scratch, C * sizeof(float));
    job->slope = wasi_take(scratch, C * sizeof(float));
    job->parts = wasi_take(scratch, (size_t)n_threads * sizeof *job->parts);
    for (int part = 0; part < n_threads; part++) {
        sums own = {.n = 0};
        for (int i = 0; i < 2; i++) {
            own.block[i] = wasi_take(scratch, C * sizeof(float));
            own.total[i] = wasi_take(scratch, C * sizeof(double));
            if (job->parts)
                memset(own.total[i], 0, C * sizeof(double));
        }
        if (job->parts)
            job->parts[part] = own;
    }
}

size_t wasi_batch_norm_work(wasi_int C, int n_threads)
{
    wasi_scratch scratch = wasi_scratch_count();
    norm_job job = {.C = C};
    cut(&scratch, &job, n_threads);
    return scratch.used;
}

/* Takes n rows of one channel into the moments of `there` others (Chan, Golub, LeVeque 1983). */
static inline void merge(double *mean, double *square, wasi_int there, double new_mean, double new_square, wasi_int n)
{
    double off = new_mean - *mean, share = (double)n / (double)(there + n);
    *mean += off * share;
    *square += new_square + off * off * (double)there * share;
}

static wasi_status moments_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const norm_job *job = ctx;
    const wasi_int C = job->C, rows = block_rows(C);
    sums *own = job->parts + part;
    for (wasi_int m = begin; m < end; m += rows) {
        wasi_int n = WASI_MIN(rows, end - m);
        WASI_PICK(wasi_batch_norm_moments)(own->block[0], own->block[1], job->x + m * C, n, C);
        for (wasi_int c = 0; c < C; c++)
            merge(own->total[0] + c, own->total[1] + c, own->n, own->block[0][c], own->block[1][c], n);
        own->n += n;
    }
    return WASI_OK;
}

wasi_status wasi_batch_norm_statistics(float *mean, float *var, const float *x, wasi_int M, wasi_int C, void *work,
                                       int n_threads)
{
    wasi_scratch scratch = wasi_scratch_on(work);
    norm_job job = {.x = x, .C = C};
    cut(&scratch, &job, n_threads);
    WASI_TRY(wasi_parallel(n_threads, M, block_rows(C), moments_part, &job));
    sums *all = job.parts;
    for (int part = 1; part < n_threads && job.parts[part].n > 0; part++) {
        const sums *own = job.parts + part;
        for (wasi_int c = 0; c < C; c++)
            merge(all->total[0] + c, all->total[1] + c, all->n, own->total[0][c], own->total[1][c], own->n);
        all->n += own->n;
    }
    for (wasi_int c = 0; c < C; c++) {
        mean[c] = (float)all->total[0][c];
        var[c] = (float)(all->total[1][c] / (double)M);
    }
    return WASI_OK;
}

static wasi_status forward_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const norm_job *job = ctx;
    const wasi_int C = job->C, rows = block_rows(C);
    for (wasi_int m = begin; m < end; m += rows) {
        wasi_int n = WASI_MIN(rows, end - m), at = m * C;
        WASI_PICK(wasi_batch_norm_rows)(job->y + at, job->x + at, job->r ? job->r + at : NULL, job->mean, job->rstd, job->w,
                                        job->b, job->relu, n, C);
        if (job->mask)
            WASI_PICK(wasi_positive_bits)(job->mask + at / 8, job->y + at, n * C);
    }
    return WASI_OK;
}

wasi_status wasi_batch_norm_forward(float *y, uint8_t *mask, const float *x, const float *r, const float *mean,
                                    const float *rstd, const float *w, const float *b, bool relu, wasi_int M, wasi_int C,
                                    int n_threads)
{
    norm_job job = {.y = y, .mask = mask, .x = x, .r = r, .mean = mean, .rstd = rstd, .w = w, .b = b, .relu = relu, .C = C};
    return wasi_parallel(n_threads, M, block_rows(C), forward_part, &job);
}

static wasi_status sums_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const norm_job *job = ctx;
    const wasi_int C = job->C, rows = block_rows(C);
    sums *own = job->parts + part;
    for (wasi_int m = begin; m < end; m += rows) {
        WASI_PICK(wasi_batch_norm_sums)(own->block[0], own->block[1], job->dy + m * C, job->x + m * C, job->mean, job->rstd,
                                        job->w, job->b, job->relu, WASI_MIN(rows, end - m), C);
        for (int i = 0; i < 2; i++)
            for (wasi_int c = 0; c < C; c++)
                own->total[i][c] += own->block[i][c];
    }
    return WASI_OK;
}

static wasi_status backward_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const norm_job *job = ctx;
    const wasi_int C = job->C, at = begin * C;
    WASI_PICK(wasi_batch_norm_backward_rows)(job->dx + at, job->dy + at, job->x + at, job->mean, job->rstd, job->w, job->b,
                                             job->shift, job->slope, job->relu, end - begin, C);
    return WASI_OK;
}

wasi_status wasi_batch_norm_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *mean,
                                     const float *rstd, const float *w, const float *b, bool relu, bool of_batch, wasi_int M,
                                     wasi_int C, void *work, int n_threads)
{
    wasi_scratch scratch = wasi_scratch_on(work);
    norm_job job = {.dx = dx, .dy = dy, .x = x, .mean = mean, .rstd = rstd, .w = w, .b = b, .relu = relu, .C = C};
    cut(&scratch, &job, n_threads);
    memset(job.shift, 0, (size_t)C * sizeof(float));
    memset(job.slope, 0, (size_t)C * sizeof(float));
    if (dw || db || of_batch) {
        WASI_TRY(wasi_parallel(n_threads, M, block_rows(C), sums_part, &job));
        for (wasi_int c = 0; c < C; c++) {
            double sum = 0, dot = 0;
            for (int part = 0; part < n_threads; part++) {
                sum += job.parts[part].total[0][c];
                dot += job.parts[part].total[1][c];
            }
            if (db)
                db[c] += (float)sum;
            if (dw)
                dw[c] += (float)(dot * rstd[c]);
            if (of_batch) {
                job.shift[c] = (float)(sum / (double)M);
                job.slope[c] = (float)(dot * rstd[c] * rstd[c] / (double)M);
            }
        }
    }
    return wasi_parallel(n_threads, M, wasi_grain(C), backward_part, &job);
}

typedef struct {
    float *dx;
    const float *dy;
    const uint8_t *mask;
} mask_job;

static wasi_status mask_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const mask_job *job = ctx;
    WASI_PICK(wasi_mask_numbers)(job->dx + begin, job->dy + begin, job->mask + begin / 8, end - begin);
    return WASI_OK;
}

wasi_status wasi_mask_gradient(float *dx, const float *dy, const uint8_t *mask, wasi_int n, int n_threads)
{
    mask_job job = {dx, dy, mask};
    return wasi_parallel(n_threads, n, MASK_GRAIN, mask_part, &job);
}
