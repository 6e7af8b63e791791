#include "kernels/conv.h"

#include <string.h>

#include "common/parallel.h"
#include "common/scratch.h"
#include "kernels/bgemm.h"
#include "kernels/conv_simd.h"
#include "kernels/linear.h"
#include "kernels/linear_simd.h"

/* A tile has TILE_BYTES of patches, but no fewer than TILE_ROWS rows: with fewer, a GEMM spends its time on packing W. */
enum { TILE_BYTES = 512 << 10, TILE_ROWS = 256 };

typedef struct {
    float *y, *dx, *dW;
    const float *x, *dy, *W, *b;
    const wasi_conv *conv;
    wasi_int O;
    /* Scratch, one a thread each: patches, and what bfloat16 products need, or NULL. */
    float *tiles;
    char *products;
} conv_job;

static wasi_int patch_width(const wasi_conv *conv)
{
    return conv->k * conv->k * conv->C;
}

static wasi_int n_lines(const wasi_conv *conv)
{
    return conv->B * conv->Ho;
}

/* Lines of a tile. */
static wasi_int tile_lines(const wasi_conv *conv)
{
    wasi_int rows = WASI_MAX(TILE_ROWS, TILE_BYTES / (wasi_int)sizeof(float) / patch_width(conv));
    return WASI_MAX(1, WASI_MIN(rows / conv->Wo, n_lines(conv)));
}

/* Floats of a tile, rounded up to a cache line. */
static wasi_int tile_size(const wasi_conv *conv)
{
    return (tile_lines(conv) * conv->Wo * patch_width(conv) + 15) & ~(wasi_int)15;
}

static bool is_linear(const wasi_conv *conv)
{
    return conv->k == 1 && conv->s == 1;
}

static void cut(wasi_scratch *scratch, conv_job *job, bool bfloat16, int n_threads)
{
    if (!is_linear(job->conv))
        job->tiles = wasi_take(scratch, (size_t)(n_threads * tile_size(job->conv)) * sizeof(float));
    if (bfloat16)
        job->products = wasi_take(scratch, (size_t)n_threads * wasi_bgemm_work(1));
}

size_t wasi_conv_work(const wasi_conv *conv, bool bfloat16, int n_threads)
{
    wasi_scratch scratch = wasi_scratch_count();
    conv_job job = {.conv = conv};
    cut(&scratch, &job, bfloat16, n_threads);
    return scratch.used;
}

/* C (m x n) (+)= op(A) op(B) on this thread. */
static wasi_status multiply(const conv_job *job, int part, bool ta, bool tb, wasi_int m, wasi_int n, wasi_int k, const float *A,
                            wasi_int lda, const float *B, wasi_int ldb, bool add, float *C, wasi_int ldc)
{
    char *work = job->products ? job->products + (size_t)part * wasi_bgemm_work(1) : NULL;
    return wasi_product(ta, tb, m, n, k, A, lda, B, ldb, NULL, add, C, ldc, work, 1);
}

static wasi_status forward_lines(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const conv_job *job = ctx;
    const wasi_conv *conv = job->conv;
    const wasi_int I = patch_width(conv), lines = tile_lines(conv);
    float *p = job->tiles + part * tile_size(conv);
    for (wasi_int at = begin; at < end; at += lines) {
        wasi_int stop = WASI_MIN(end, at + lines), rows = (stop - at) * conv->Wo;
        float *y = job->y + at * conv->Wo * job->O;
        WASI_PICK(wasi_conv_gather)(p, job->x, conv, at, stop, 0, I);
        WASI_TRY(multiply(job, part, false, true, rows, job->O, I, p, I, job->W, I, false, y, job->O));
        if (job->b)
            WASI_PICK(wasi_add_bias)(y, job->b, rows, job->O);
    }
    return WASI_OK;
}

wasi_status wasi_conv_forward(float *y, const float *x, const float *W, const float *b, const wasi_conv *conv, wasi_int O,
                              bool bfloat16, void *work, int n_threads)
{
    wasi_scratch scratch = wasi_scratch_on(work);
    conv_job job = {.y = y, .x = x, .W = W, .b = b, .conv = conv, .O = O};
    cut(&scratch, &job, bfloat16, n_threads);
    if (is_linear(conv))
        return wasi_linear_forward(y, x, W, b, n_lines(conv) * conv->Wo, O, conv->C, job.products, n_threads);
    return wasi_parallel(n_threads, n_lines(conv), 1, forward_lines, &job);
}

/* dx of the images begin <= b < end. */
static wasi_status dx_images(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const conv_job *job = ctx;
    const wasi_conv *conv = job->conv;
    const wasi_int I = patch_width(conv), lines = tile_lines(conv), image = conv->H * conv->W * conv->C;
    float *p = job->tiles + part * tile_size(conv);
    memset(job->dx + begin * image, 0, (size_t)((end - begin) * image) * sizeof(float));
    for (wasi_int at = begin * conv->Ho; at < end * conv->Ho; at += lines) {
        wasi_int stop = WASI_MIN(end * conv->Ho, at + lines);
        WASI_TRY(multiply(job, part, false, false, (stop - at) * conv->Wo, I, job->O, job->dy + at * conv->Wo * job->O, job->O,
                          job->W, I, false, p, I));
        WASI_PICK(wasi_conv_scatter)(job->dx, p, conv, at, stop);
    }
    return WASI_OK;
}

/* The columns begin <= q < end of dW. */
static wasi_status dW_columns(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const conv_job *job = ctx;
    const wasi_conv *conv = job->conv;
    const wasi_int lines = tile_lines(conv), width = end - begin;
    float *p = job->tiles + part * tile_size(conv);
    for (wasi_int at = 0; at < n_lines(conv); at += lines) {
        wasi_int stop = WASI_MIN(n_lines(conv), at + lines);
        WASI_PICK(wasi_conv_gather)(p, job->x, conv, at, stop, begin, end);
        WASI_TRY(multiply(job, part, true, false, job->O, width, (stop - at) * conv->Wo, job->dy + at * conv->Wo * job->O,
                          job->O, p, width, true, job->dW + begin, patch_width(conv)));
    }
    return WASI_OK;
}

wasi_status wasi_conv_backward(float *dx, float *dW, float *db, const float *dy, const float *x, const float *W,
                               const wasi_conv *conv, wasi_int O, bool bfloat16, void *work, int n_threads)
{
    const wasi_int M = n_lines(conv) * conv->Wo;
    wasi_scratch scratch = wasi_scratch_on(work);
    conv_job job = {.dx = dx, .dW = dW, .x = x, .dy = dy, .W = W, .conv = conv, .O = O};
    cut(&scratch, &job, bfloat16, n_threads);
    if (is_linear(conv))
        return wasi_linear_backward(dx, dW, db, dy, x, W, M, O, conv->C, job.products, n_threads);
    if (dW)
        WASI_TRY(wasi_parallel(n_threads, patch_width(conv), 16, dW_columns, &job));
    if (dx)
        WASI_TRY(wasi_parallel(n_threads, conv->B, 1, dx_images, &job));
    return wasi_linear_backward(NULL, NULL, db, dy, NULL, NULL, M, O, 0, NULL, n_threads);
}

typedef struct {
    float *out;
    const float *in;
    const wasi_conv *conv;
} fold_job;

static wasi_status unfold_lines(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const fold_job *job = ctx;
    const wasi_int I = patch_width(job->conv);
    WASI_PICK(wasi_conv_gather)(job->out + begin * job->conv->Wo * I, job->in, job->conv, begin, end, 0, I);
    return WASI_OK;
}

wasi_status wasi_conv_unfold(float *p, const float *x, const wasi_conv *conv, int n_threads)
{
    fold_job job = {p, x, conv};
    return wasi_parallel(n_threads, n_lines(conv), wasi_grain(conv->Wo * patch_width(conv)), unfold_lines, &job);
}

static wasi_status fold_images(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const fold_job *job = ctx;
    const wasi_conv *conv = job->conv;
    const wasi_int image = conv->H * conv->W * conv->C, line = conv->Wo * patch_width(conv);
    memset(job->out + begin * image, 0, (size_t)((end - begin) * image) * sizeof(float));
    WASI_PICK(wasi_conv_scatter)(job->out, job->in + begin * conv->Ho * line, conv, begin * conv->Ho, end * conv->Ho);
    return WASI_OK;
}

wasi_status wasi_conv_fold(float *dx, const float *dp, const wasi_conv *conv, int n_threads)
{
    fold_job job = {dx, dp, conv};
    return wasi_parallel(n_threads, conv->B, 1, fold_images, &job);
}
