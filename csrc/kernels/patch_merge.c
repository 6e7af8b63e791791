#include "kernels/patch_merge.h"

#include <string.h>

#include "common/parallel.h"

/* One of two copies: from x to y where `to_y`, else from y to x. */
typedef struct {
    float *out;
    const float *in;
    wasi_int W, C;
    int to_y;
} merge_job;

/* A line is a row of x: W tokens of C numbers, every other one of which goes to the same half of a merged token. */
static wasi_status copy_lines(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const merge_job *job = ctx;
    const wasi_int W = job->W, C = job->C;
    const size_t bytes = (size_t)C * sizeof(float);
    for (wasi_int line = begin; line < end; line++) {
        for (wasi_int w = 0; w < W; w++) {
            wasi_int x = (line * W + w) * C, y = line / 2 * 2 * W * C + (w / 2 * 4 + w % 2 * 2 + line % 2) * C;
            memcpy(job->out + (job->to_y ? y : x), job->in + (job->to_y ? x : y), bytes);
        }
    }
    return WASI_OK;
}

wasi_status wasi_merge_patches(float *y, const float *x, wasi_int B, wasi_int H, wasi_int W, wasi_int C, int n_threads)
{
    merge_job job = {y, x, W, C, 1};
    return wasi_parallel(n_threads, B * H, wasi_grain(W * C), copy_lines, &job);
}

wasi_status wasi_merge_patches_backward(float *dx, const float *dy, wasi_int B, wasi_int H, wasi_int W, wasi_int C,
                                        int n_threads)
{
    merge_job job = {dx, dy, W, C, 0};
    return wasi_parallel(n_threads, B * H, wasi_grain(W * C), copy_lines, &job);
}
