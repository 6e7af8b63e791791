#include "kernels/patch_embed.h"

#include <string.h>

#include "common/parallel.h"

/* One of three copies between images and patches; what a copy does not use is NULL. */
typedef struct {
    float *patches;
    float *folded;         /* patches -> images */
    const float *images;   /* images -> patches */
    const uint8_t *bytes;  /* bytes, scaled and shifted -> patches */
    const float *scale, *shift;
    wasi_int C, S, p;
} patch_job;

static void to_floats(float *out, const uint8_t *bytes, float scale, float shift, wasi_int n)
{
    for (wasi_int i = 0; i < n; i++)
        out[i] = (float)bytes[i] * scale + shift;
}

/* Bands of g patches side by side: B g of them. A line of S pixels in a band falls into g runs of p, one a patch. */
static wasi_status copy_bands(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const patch_job *job = ctx;
    const wasi_int C = job->C, S = job->S, p = job->p, g = S / p, width = C * p * p;
    const size_t run = (size_t)p * sizeof(float);
    for (wasi_int band = begin; band < end; band++) {
        for (wasi_int c = 0; c < C; c++) {
            for (wasi_int line = 0; line < p; line++) {
                wasi_int pixel = ((band / g * C + c) * S + band % g * p + line) * S;
                float *patch = job->patches + band * g * width + (c * p + line) * p;
                for (wasi_int i = 0; i < g; i++, pixel += p, patch += width) {
                    if (job->bytes)
                        to_floats(patch, job->bytes + pixel, job->scale[c], job->shift[c], p);
                    else if (job->images)
                        memcpy(patch, job->images + pixel, run);
                    else
                        memcpy(job->folded + pixel, patch, run);
                }
            }
        }
    }
    return WASI_OK;
}

static wasi_status copy_patches(patch_job *job, wasi_int B, int n_threads)
{
    return wasi_parallel(n_threads, B * (job->S / job->p), wasi_grain(job->C * job->S * job->p), copy_bands, job);
}

wasi_status wasi_extract_patches_u8(float *patches, const uint8_t *images, const float *scale, const float *shift,
                                    wasi_int B, wasi_int C, wasi_int S, wasi_int p, int n_threads)
{
    patch_job job = {.patches = patches, .bytes = images, .scale = scale, .shift = shift, .C = C, .S = S, .p = p};
    return copy_patches(&job, B, n_threads);
}

wasi_status wasi_extract_patches_f32(float *patches, const float *images, wasi_int B, wasi_int C, wasi_int S,
                                     wasi_int p, int n_threads)
{
    patch_job job = {.patches = patches, .images = images, .C = C, .S = S, .p = p};
    return copy_patches(&job, B, n_threads);
}

wasi_status wasi_fold_patches(float *images, const float *patches, wasi_int B, wasi_int C, wasi_int S, wasi_int p,
                              int n_threads)
{
    patch_job job = {.patches = (float *)(uintptr_t)patches, .folded = images, .C = C, .S = S, .p = p}; /* only read */
    return copy_patches(&job, B, n_threads);
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
