#include "kernels/bf16_linear.h"

#include <string.h>

#include "common/scratch.h"
#include "kernels/bf16.h"
#include "kernels/gemm.h"

static wasi_int tile_rows(wasi_int O, wasi_int I)
{
    return WASI_MIN(O, WASI_MAX(1, WASI_BF16_TILE / WASI_MAX(1, I)));
}

wasi_status wasi_bf16_linear_forward(float *y, const float *x, const uint16_t *W, wasi_int M, wasi_int O, wasi_int I,
                                     void *work, int n_threads)
{
    wasi_scratch scratch = wasi_scratch_on(work);
    wasi_int T = tile_rows(O, I);
    float *tile = wasi_take(&scratch, (size_t)T * I * sizeof(float));
    for (wasi_int o = 0; o < O; o += T) {
        wasi_int rows = WASI_MIN(T, O - o);
        WASI_TRY(wasi_bf16_expand(tile, W + o * I, rows * I, n_threads));
        WASI_TRY(wasi_sgemm(false, true, M, rows, I, 1, x, I, tile, I, 0, y + o, O, n_threads));
    }
    return WASI_OK;
}

wasi_status wasi_bf16_linear_backward(float *dx, const float *dy, const uint16_t *W, wasi_int M, wasi_int O, wasi_int I,
                                      void *work, int n_threads)
{
    wasi_scratch scratch = wasi_scratch_on(work);
    wasi_int T = tile_rows(O, I);
    float *tile = wasi_take(&scratch, (size_t)T * I * sizeof(float));
    if (O == 0)
        memset(dx, 0, (size_t)M * I * sizeof(float));
    for (wasi_int o = 0; o < O; o += T) {
        wasi_int rows = WASI_MIN(T, O - o);
        WASI_TRY(wasi_bf16_expand(tile, W + o * I, rows * I, n_threads));
        WASI_TRY(wasi_sgemm(false, false, M, I, rows, 1, dy + o, O, tile, I, o > 0, dx, I, n_threads));
    }
    return WASI_OK;
}

size_t wasi_bf16_linear_work(wasi_int O, wasi_int I)
{
    wasi_scratch scratch = wasi_scratch_count();
    wasi_take(&scratch, (size_t)tile_rows(O, I) * I * sizeof(float));
    return scratch.used;
}
