#include "kernels/qgemm.h"

#include "common/blas.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "kernels/qgemm_simd.h"
#include "kernels/quantize_simd.h"

enum {
    CHUNK_BYTES = 2 << 20, /* tiles of a chunk: they go by once a panel, from L2 or L3 */
    TOKENS_GRAIN = 32768,  /* activations that are worth waking a thread for to quantise them */
    EXACT_COLUMNS = 2 * WASI_QUANT_BLOCK
};

/* Below this many multiply-adds, expanding a panel counted as 16 tokens, a second thread costs more than it brings. */
#define QGEMM_SERIAL_BELOW 2e6

/* C (M x N) (+)= A (M x K) times Q' (forward: N = O, K = I) or Q (N = I, K = O). */
typedef struct {
    float *C;
    const float *A;
    const wasi_quant *Q;
    const float *b; /* N, or NULL */
    bool forward, add;
    wasi_int M, N, K;
    wasi_int chunk; /* tokens, a multiple of WASI_TILE_ROWS */
    /* Scratch of the integer path. */
    char *tiles; /* of a chunk, with t and z of its tokens */
    float *t;
    int32_t *z;
    char *panels; /* one a thread */
    /* Scratch of the exact path: EXACT_COLUMNS x K or K x EXACT_COLUMNS a thread. */
    float *weights;
} qgemm_job;

static wasi_int tile_bytes(wasi_int K)
{
    return WASI_PICK(wasi_units)(K) * WASI_TILE_ROWS * WASI_UNIT_BYTES;
}

static wasi_int panel_bytes(wasi_int K)
{
    return WASI_PICK(wasi_units)(wasi_quant_blocks(K) * WASI_QUANT_BLOCK) * WASI_PANEL_COLUMNS * WASI_UNIT_BYTES;
}

/* Chunks of equal size, none larger than CHUNK_BYTES (but for one tile). */
static wasi_int chunk_tokens(wasi_int M, wasi_int K)
{
    wasi_int n_tiles = WASI_MAX(1, (M + WASI_TILE_ROWS - 1) / WASI_TILE_ROWS);
    wasi_int most = WASI_MAX(1, CHUNK_BYTES / tile_bytes(K));
    wasi_int n_chunks = (n_tiles + most - 1) / most;
    return (n_tiles + n_chunks - 1) / n_chunks * WASI_TILE_ROWS;
}

static void cut(wasi_scratch *scratch, qgemm_job *job, bool exact, int n_threads)
{
    if (exact) {
        job->weights = wasi_take(scratch, (size_t)(n_threads * EXACT_COLUMNS * job->K) * sizeof *job->weights);
        return;
    }
    job->chunk = chunk_tokens(job->M, job->K);
    job->tiles = wasi_take(scratch, (size_t)(job->chunk / WASI_TILE_ROWS * tile_bytes(job->K)));
    job->t = wasi_take(scratch, (size_t)job->chunk * sizeof *job->t);
    job->z = wasi_take(scratch, (size_t)job->chunk * sizeof *job->z);
    job->panels = wasi_take(scratch, (size_t)(n_threads * panel_bytes(job->K)));
}

/* The tile that starts with token m of the chunk. */
static char *tile(const qgemm_job *job, wasi_int m)
{
    return job->tiles + m / WASI_TILE_ROWS * tile_bytes(job->K);
}

static wasi_status tokens_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const qgemm_job *job = ctx;
    const float *scale = job->forward ? job->Q->c : job->Q->r;
    for (wasi_int m = begin; m < end; m += WASI_TILE_ROWS)
        WASI_PICK(wasi_quantize_tile)(tile(job, m), job->t + m, job->z + m, job->A + m * job->K, scale,
                                      WASI_MIN(WASI_TILE_ROWS, end - m), job->K);
    return WASI_OK;
}

static wasi_status panels_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const qgemm_job *job = ctx;
    const float *scale = job->forward ? job->Q->r : job->Q->c;
    wasi_int units = WASI_PICK(wasi_units)(job->K);
    char *panel = job->panels + part * panel_bytes(job->K);
    _Alignas(64) int32_t acc[WASI_TILE_ROWS * WASI_PANEL_COLUMNS], sum[WASI_PANEL_COLUMNS];
    for (wasi_int n = begin; n < end; n += WASI_PANEL_COLUMNS) {
        wasi_int columns = WASI_MIN(WASI_PANEL_COLUMNS, end - n);
        if (job->forward)
            WASI_PICK(wasi_pack_rows)(panel, job->Q, n);
        else
            WASI_PICK(wasi_pack_columns)(panel, job->Q, n);
        WASI_PICK(wasi_panel_sum)(sum, panel, units);
        for (wasi_int m = 0; m < job->M; m += WASI_TILE_ROWS) {
            wasi_int rows = WASI_MIN(WASI_TILE_ROWS, job->M - m);
            float *C = job->C + m * job->N + n;
            for (wasi_int i = 0; i < rows; i++)
                for (wasi_int j = 0; j < columns + 16; j += 16) /* wanted when the sums are ready */
                    __builtin_prefetch(C + i * job->N + WASI_MIN(j, columns - 1), 1);
            WASI_PICK(wasi_tile_dot)(acc, tile(job, m), panel, sum, rows, units);
            WASI_PICK(wasi_tile_finish)(C, job->N, acc, sum, job->t + m, job->z + m, scale + n,
                                        job->b ? job->b + n : NULL, job->add, rows, columns);
        }
    }
    return WASI_OK;
}

static wasi_status integer_product(const qgemm_job *whole, int n_threads)
{
    qgemm_job job = *whole;
    wasi_int grain = WASI_MAX(1, TOKENS_GRAIN / (WASI_TILE_ROWS * job.K)) * WASI_TILE_ROWS;
    for (wasi_int m = 0; m < whole->M; m += whole->chunk) {
        job.M = WASI_MIN(whole->chunk, whole->M - m);
        job.A = whole->A + m * whole->K;
        job.C = whole->C + m * whole->N;
        WASI_TRY(wasi_parallel(n_threads, job.M, grain, tokens_part, &job));
        WASI_TRY(wasi_parallel(n_threads, job.N, WASI_PANEL_COLUMNS, panels_part, &job));
    }
    return WASI_OK;
}

static wasi_status exact_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const qgemm_job *job = ctx;
    const wasi_quant *Q = job->Q;
    float *weights = job->weights + part * EXACT_COLUMNS * job->K;
    for (wasi_int n = begin; n < end; n += EXACT_COLUMNS) {
        wasi_int columns = WASI_MIN(EXACT_COLUMNS, end - n);
        wasi_int ld = job->forward ? job->K : columns;
        if (job->forward)
            for (wasi_int j = 0; j < columns; j++)
                WASI_PICK(wasi_dequantize_row)(weights + j * ld, Q, n + j, 0, job->K);
        else
            for (wasi_int k = 0; k < job->K; k++)
                WASI_PICK(wasi_dequantize_row)(weights + k * ld, Q, k, n, columns);
        WASI_TRY(wasi_sgemm1(false, job->forward, job->M, columns, job->K, 1, job->A, job->K, weights, ld,
                             job->add ? 1 : 0, job->C + n, job->N));
        if (job->b)
            for (wasi_int m = 0; m < job->M; m++)
                for (wasi_int j = n; j < n + columns; j++)
                    job->C[m * job->N + j] += job->b[j];
    }
    return WASI_OK;
}

static wasi_status product(qgemm_job *job, bool exact, void *work, int n_threads)
{
    wasi_scratch scratch = wasi_scratch_on(work);
    cut(&scratch, job, exact, n_threads);
    if ((double)(job->M + 16) * (double)job->N * (double)job->K < QGEMM_SERIAL_BELOW)
        n_threads = 1;
    return exact ? wasi_parallel(n_threads, job->N, EXACT_COLUMNS, exact_part, job) : integer_product(job, n_threads);
}

size_t wasi_qgemm_work(wasi_int M, wasi_int O, wasi_int I, bool exact, int n_threads)
{
    size_t bytes = 0;
    for (int forward = 0; forward < 2; forward++) {
        qgemm_job job = {.M = M, .N = forward ? O : I, .K = forward ? I : O};
        wasi_scratch scratch = wasi_scratch_count();
        cut(&scratch, &job, exact, n_threads);
        bytes = WASI_MAX(bytes, scratch.used);
    }
    return bytes;
}

wasi_status wasi_qgemm_forward(float *y, const float *x, const wasi_quant *Q, const float *b, bool add, bool exact,
                               wasi_int M, void *work, int n_threads)
{
    qgemm_job job = {.C = y, .A = x, .Q = Q, .b = b, .forward = true, .add = add, .M = M, .N = Q->O, .K = Q->I};
    return product(&job, exact, work, n_threads);
}

wasi_status wasi_qgemm_backward(float *dx, const float *dy, const wasi_quant *Q, bool add, bool exact, wasi_int M,
                                void *work, int n_threads)
{
    qgemm_job job = {.C = dx, .A = dy, .Q = Q, .add = add, .M = M, .N = Q->I, .K = Q->O};
    return product(&job, exact, work, n_threads);
}
