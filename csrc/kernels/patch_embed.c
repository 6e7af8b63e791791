#include "kernels/patch_embed.h"

#include <string.h>

#include "common/parallel.h"

typedef struct {
    float *patches;
    float *images; /* written by fold, else only read */
    const uint8_t *bytes;
    const float *mean, *std;
    wasi_int C, S, p;
} patch_job;

/* Walks the patches of images begin..end: `at` is the first pixel of a run of p in the image, `to` its place in the row. */
#define FOR_EACH_RUN(j, begin, end, to, at)                                                                            \
    for (wasi_int g_ = (j)->S / (j)->p, n_ = (begin) * g_ * g_, to = n_ * (j)->C * (j)->p * (j)->p; n_ < (end) * g_ * g_; n_++) \
        for (wasi_int c = 0; c < (j)->C; c++)                                                                          \
            for (wasi_int r_ = 0, at = ((n_ / (g_ * g_) * (j)->C + c) * (j)->S + n_ / g_ % g_ * (j)->p) * (j)->S +        \
                                       n_ % g_ * (j)->p;                                                               \
                 r_ < (j)->p; r_++, at += (j)->S, to += (j)->p)

static wasi_status extract_bytes(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const patch_job *j = ctx;
    FOR_EACH_RUN(j, begin, end, to, at)
    {
        const float scale = 1 / (255 * j->std[c]), shift = j->mean[c] / j->std[c];
        for (wasi_int i = 0; i < j->p; i++)
            j->patches[to + i] = (float)j->bytes[at + i] * scale - shift;
    }
    return WASI_OK;
}

static wasi_status extract_floats(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const patch_job *j = ctx;
    FOR_EACH_RUN(j, begin, end, to, at)
        memcpy(j->patches + to, j->images + at, (size_t)j->p * sizeof(float));
    return WASI_OK;
}

static wasi_status fold(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const patch_job *j = ctx;
    FOR_EACH_RUN(j, begin, end, to, at)
        memcpy(j->images + at, j->patches + to, (size_t)j->p * sizeof(float));
    return WASI_OK;
}

wasi_status wasi_extract_patches_u8(float *patches, const uint8_t *images, const float *mean, const float *std, wasi_int B,
                                    wasi_int C, wasi_int S, wasi_int p, int n_threads)
{
    patch_job j = {patches, NULL, images, mean, std, C, S, p};
    return wasi_parallel(n_threads, B, 1, extract_bytes, &j);
}

wasi_status wasi_extract_patches_f32(float *patches, const float *images, wasi_int B, wasi_int C, wasi_int S, wasi_int p,
                                     int n_threads)
{
    patch_job j = {patches, (float *)(uintptr_t)images, NULL, NULL, NULL, C, S, p};
    return wasi_parallel(n_threads, B, 1, extract_floats, &j);
}

wasi_status wasi_fold_patches(float *images, const float *patches, wasi_int B, wasi_int C, wasi_int S, wasi_int p,
                              int n_threads)
{
    patch_job j = {(float *)(uintptr_t)patches, images, NULL, NULL, NULL, C, S, p};
    return wasi_parallel(n_threads, B, 1, fold, &j);
}

typedef struct {
    float *tokens;
    const float *rows, *cls, *pos;
    wasi_int P, C, n_cls;
} token_job;

static wasi_status assemble(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const token_job *j = ctx;
    const wasi_int width = (j->n_cls + j->P) * j->C, skip = j->n_cls * j->C;
    for (wasi_int b = begin; b < end; b++) {
        float *t = j->tokens + b * width;
        const float *row = j->rows + b * j->P * j->C;
        for (wasi_int i = 0; i < skip; i++)
            t[i] = j->cls[i] + j->pos[i];
        for (wasi_int i = skip; i < width; i++)
            t[i] = row[i - skip] + j->pos[i];
    }
    return WASI_OK;
}

wasi_status wasi_assemble_tokens(float *tokens, const float *rows, const float *cls, const float *pos, wasi_int B,
                                 wasi_int P, wasi_int C, int n_cls, int n_threads)
{
    token_job j = {tokens, rows, cls, pos, P, C, n_cls};
    return wasi_parallel(n_threads, B, 1, assemble, &j);
}

typedef struct {
    float *drows, *dcls, *dpos;
    const float *dtokens;
    wasi_int B, P, C, n_cls;
} token_backward_job;

static wasi_status copy_rows(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const token_backward_job *j = ctx;
    const size_t bytes = (size_t)(j->P * j->C) * sizeof(float);
    for (wasi_int b = begin; b < end; b++)
        memcpy(j->drows + b * j->P * j->C, j->dtokens + (b * (j->n_cls + j->P) + j->n_cls) * j->C, bytes);
    return WASI_OK;
}

/* Sums over the batch in its order, for a range of (token, channel): the thread count does not change the bits. */
static wasi_status sum_batch(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const token_backward_job *j = ctx;
    const wasi_int width = (j->n_cls + j->P) * j->C;
    for (wasi_int b = 0; b < j->B; b++) {
        const float *d = j->dtokens + b * width;
        if (j->dpos)
            for (wasi_int i = begin; i < end; i++)
                j->dpos[i] += d[i];
        if (j->dcls)
            for (wasi_int i = begin; i < WASI_MIN(end, j->n_cls * j->C); i++)
                j->dcls[i] += d[i];
    }
    return WASI_OK;
}

wasi_status wasi_assemble_tokens_backward(float *drows, float *dcls, float *dpos, const float *dtokens, wasi_int B,
                                          wasi_int P, wasi_int C, int n_cls, int n_threads)
{
    token_backward_job j = {drows, dcls, dpos, dtokens, B, P, C, n_cls};
    WASI_TRY(wasi_parallel(n_threads, B, 1, copy_rows, &j));
    return wasi_parallel(n_threads, (n_cls + P) * C, 1024, sum_batch, &j);
}
