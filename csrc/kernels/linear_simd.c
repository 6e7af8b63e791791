#include "kernels/linear_simd.h"

void WASI_SIMD(wasi_add_bias)(float *y, const float *b, wasi_int M, wasi_int O)
{
    for (wasi_int m = 0; m < M; m++, y += O)
        for (wasi_int o = 0; o < O; o++)
            y[o] += b[o];
}

/* Columns in groups that stay in registers or L1 while the rows stream by; the sum of a column runs in
 * row order whatever the grouping, so the thread count does not change it. */
void WASI_SIMD(wasi_sum_rows)(float *db, const float *dy, wasi_int M, wasi_int O, wasi_int begin, wasi_int end)
{
    enum { GROUP = 64 };
    for (wasi_int o = begin; o < end; o += GROUP) {
        wasi_int width = WASI_MIN(GROUP, end - o);
        float sum[GROUP] = {0};
        for (wasi_int m = 0; m < M; m++)
            for (wasi_int i = 0; i < width; i++)
                sum[i] += dy[m * O + o + i];
        for (wasi_int i = 0; i < width; i++)
            db[o + i] += sum[i];
    }
}
