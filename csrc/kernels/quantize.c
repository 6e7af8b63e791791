#include "kernels/quantize.h"

#include <math.h>

#include "common/parallel.h"
#include "common/scratch.h"
#include "kernels/quantize_simd.h"

typedef struct {
    uint8_t *codes, *s;
    float *r, *c;
    double *squares; /* scratch, I */
    float *c_inv;    /* scratch, I */
    const float *W;
    wasi_int O, I, group;
    int bits;
} quantize_job;

static void cut(wasi_scratch *scratch, quantize_job *job, wasi_int I)
{
    job->squares = wasi_take(scratch, (size_t)I * sizeof *job->squares);
    job->c_inv = wasi_take(scratch, (size_t)I * sizeof *job->c_inv);
}

static wasi_status columns_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const quantize_job *job = ctx;
    WASI_PICK(wasi_quant_column_squares)(job->squares, job->W, job->O, job->I, begin, end);
    for (wasi_int i = begin; i < end; i++) {
        if (!isfinite(job->squares[i]))
            return WASI_ERR_NONFINITE;
        job->c[i] = (float)sqrt(sqrt(job->squares[i] / (double)job->O));
        job->c_inv[i] = job->c[i] > 0 ? 1 / job->c[i] : 0;
    }
    return WASI_OK;
}

static wasi_status rows_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const quantize_job *job = ctx;
    wasi_int row_bytes = wasi_quant_row_bytes(job->I, job->bits), n_groups = wasi_quant_groups(job->I, job->group);
    for (wasi_int o = begin; o < end; o++)
        WASI_PICK(wasi_quantize_row)(job->codes + o * row_bytes, job->s + o * n_groups, job->r + o, job->W + o * job->I,
                                     job->c, job->c_inv, job->I, job->group, job->bits);
    return WASI_OK;
}

size_t wasi_quantize_work(wasi_int I)
{
    wasi_scratch scratch = wasi_scratch_count();
    cut(&scratch, &(quantize_job){0}, I);
    return scratch.used;
}

wasi_status wasi_quantize(uint8_t *codes, uint8_t *s, float *r, float *c, const float *W, wasi_int O, wasi_int I,
                          wasi_int group, int bits, void *work, int n_threads)
{
    quantize_job job = {.codes = codes, .s = s, .r = r, .c = c, .W = W, .O = O, .I = I, .group = group, .bits = bits};
    wasi_scratch scratch = wasi_scratch_on(work);
    cut(&scratch, &job, I);
    WASI_TRY(wasi_parallel(n_threads, I, 64, columns_part, &job));
    return wasi_parallel(n_threads, O, 1, rows_part, &job);
}

typedef struct {
    float *W;
    const wasi_quant *Q;
} dequantize_job;

static wasi_status dequantize_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const dequantize_job *job = ctx;
    for (wasi_int o = begin; o < end; o++)
        WASI_PICK(wasi_dequantize_row)(job->W + o * job->Q->I, job->Q, o, 0, job->Q->I);
    return WASI_OK;
}

wasi_status wasi_dequantize(float *W, const wasi_quant *Q, int n_threads)
{
    dequantize_job job = {W, Q};
    return wasi_parallel(n_threads, Q->O, wasi_grain(Q->I), dequantize_part, &job);
}
