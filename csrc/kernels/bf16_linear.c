#include "kernels/bf16_linear.h"

#include <string.h>

#include "kernels/bf16.h"
#include "kernels/bgemm.h"
#include "kernels/linear.h"

static wasi_int tile_rows(wasi_int O, wasi_int I)
{
    return WASI_MIN(O, WASI_MAX(1, WASI_BF16_TILE / WASI_MAX(1, I)));
}

/* Are both products done in bfloat16? */
static bool in_bits(wasi_int M, wasi_int O, wasi_int I, bool rounded)
{
    return rounded && wasi_bgemm_pays(M, O, I) && wasi_bgemm_pays(M, I, O);
}

size_t wasi_bf16_linear_work(wasi_int M, wasi_int O, wasi_int I, bool rounded, int n_threads)
{
    return in_bits(M, O, I, rounded) ? wasi_bgemm_work(n_threads) : (size_t)tile_rows(O, I) * I * sizeof(float);
}

wasi_status wasi_bf16_linear_forward(float *y, const float *x, const uint16_t *W, wasi_int M, wasi_int O, wasi_int I,
                                     bool rounded, void *work, int n_threads)
{
    if (in_bits(M, O, I, rounded))
        return wasi_bgemm_bits(true, M, O, I, x, I, W, I, y, O, work, n_threads);
    float *tile = work;
    wasi_int T = tile_rows(O, I);
    for (wasi_int o = 0; o < O; o += T) {
        wasi_int rows = WASI_MIN(T, O - o);
        WASI_TRY(wasi_bf16_expand(tile, W + o * I, rows * I, n_threads));
        WASI_TRY(wasi_product(false, true, M, rows, I, x, I, tile, I, NULL, false, y + o, O, NULL, n_threads));
    }
    return WASI_OK;
}

wasi_status wasi_bf16_linear_backward(float *dx, const float *dy, const uint16_t *W, wasi_int M, wasi_int O, wasi_int I,
                                      bool rounded, void *work, int n_threads)
{
    if (in_bits(M, O, I, rounded))
        return wasi_bgemm_bits(false, M, I, O, dy, O, W, I, dx, I, work, n_threads);
    float *tile = work;
    wasi_int T = tile_rows(O, I);
    if (O == 0)
        memset(dx, 0, (size_t)M * I * sizeof(float));
    for (wasi_int o = 0; o < O; o += T) {
        wasi_int rows = WASI_MIN(T, O - o);
        WASI_TRY(wasi_bf16_expand(tile, W + o * I, rows * I, n_threads));
        WASI_TRY(wasi_product(false, false, M, I, rows, dy + o, O, tile, I, NULL, o > 0, dx, I, NULL, n_threads));
    }
    return WASI_OK;
}
