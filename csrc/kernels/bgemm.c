#include "kernels/bgemm.h"

#include "common/parallel.h"
#include "common/scratch.h"
#include "kernels/bgemm_simd.h"

enum {
    ROWS = WASI_BGEMM_ROWS,
    COLUMNS = WASI_BGEMM_COLUMNS,
    DEPTH = 1024,           /* most of k in a block */
    BLOCK_BYTES = 768 << 10 /* of A: it stays in L2 while the panels of B go by */
};

typedef struct {
    bool ta, tb, by_rows, add;
    wasi_int m, n, k, lda, ldb, ldc;
    const float *A, *B, *b;
    const uint16_t *bits; /* B, where it is NULL */
    float *C;
    char *work;
} bgemm_job;

static size_t part_bytes(void)
{
    wasi_scratch scratch = wasi_scratch_count();
    wasi_take(&scratch, BLOCK_BYTES);
    wasi_take(&scratch, DEPTH / 2 * COLUMNS * sizeof(uint32_t));
    return scratch.used;
}

/* The vectors first.. of op(A) or op(B)', their numbers k.. */
static void pack(uint32_t *units, int width, bool side_by_side, const float *source, wasi_int ld, wasi_int first, wasi_int n,
                 wasi_int k, wasi_int depth)
{
    if (side_by_side)
        WASI_PICK(wasi_bgemm_pack_rows)(units, width, source + first * ld + k, ld, n, depth);
    else
        WASI_PICK(wasi_bgemm_pack_columns)(units, width, source + k * ld + first, ld, n, depth);
}

/* Columns of op(B), their numbers k.. */
static void pack_panel(uint32_t *panel, const bgemm_job *g, wasi_int first, wasi_int n, wasi_int k, wasi_int depth)
{
    if (g->B)
        pack(panel, COLUMNS, g->tb, g->B, g->ldb, first, n, k, depth);
    else if (g->tb)
        WASI_PICK(wasi_bgemm_take_rows)(panel, COLUMNS, g->bits + first * g->ldb + k, g->ldb, n, depth);
    else
        WASI_PICK(wasi_bgemm_take_columns)(panel, COLUMNS, g->bits + k * g->ldb + first, g->ldb, n, depth);
}

/* The rows and columns of C that one thread has, the numbers k.. of the sums. */
static void product(const bgemm_job *g, wasi_int row, wasi_int rows, wasi_int column, wasi_int columns, wasi_int k,
                    wasi_int depth, uint32_t *block, uint32_t *panel)
{
    wasi_int n_units = (depth + 1) / 2, most = BLOCK_BYTES / (wasi_int)sizeof *block / n_units / ROWS * ROWS;
    for (wasi_int m = 0; m < rows; m += most) {
        wasi_int taken = WASI_MIN(most, rows - m);
        for (wasi_int i = 0; i < taken; i += ROWS)
            pack(block + i * n_units, ROWS, !g->ta, g->A, g->lda, row + m + i, WASI_MIN(ROWS, taken - i), k, depth);
        for (wasi_int n = 0; n < columns; n += COLUMNS) {
            wasi_int wide = WASI_MIN(COLUMNS, columns - n);
            pack_panel(panel, g, column + n, wide, k, depth);
            for (wasi_int i = 0; i < taken; i += ROWS)
                WASI_PICK(wasi_bgemm_tile)(g->C + (row + m + i) * g->ldc + column + n, g->ldc, block + i * n_units, panel,
                                           n_units, g->b && k == 0 ? g->b + column + n : NULL, g->add || k > 0,
                                           WASI_MIN(ROWS, taken - i), wide);
        }
    }
}

static wasi_status product_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const bgemm_job *g = ctx;
    wasi_scratch scratch = wasi_scratch_on(g->work + (size_t)part * part_bytes());
    uint32_t *block = wasi_take(&scratch, BLOCK_BYTES);
    uint32_t *panel = wasi_take(&scratch, DEPTH / 2 * COLUMNS * sizeof *panel);
    wasi_int n_blocks = (g->k + DEPTH - 1) / DEPTH, depth = (g->k + n_blocks - 1) / n_blocks;
    depth += depth % 2; /* whole units but for the last */
    for (wasi_int k = 0; k < g->k; k += depth)
        product(g, g->by_rows ? begin : 0, g->by_rows ? end - begin : g->m, g->by_rows ? 0 : begin,
                g->by_rows ? g->n : end - begin, k, WASI_MIN(depth, g->k - k), block, panel);
    return WASI_OK;
}

bool wasi_bgemm_available(void)
{
    return WASI_PICK(wasi_bgemm_supported)();
}

static bool knob;

bool wasi_bgemm_chosen(void)
{
    return knob && wasi_bgemm_available();
}

void wasi_bgemm_choose(bool chosen)
{
    knob = chosen;
}

bool wasi_bgemm_pays(wasi_int m, wasi_int n, wasi_int k)
{
    return m >= 2 * ROWS && n > COLUMNS / 2 && k >= 32;
}

size_t wasi_bgemm_work(int n_threads)
{
    return (size_t)n_threads * part_bytes();
}

static wasi_status run(bgemm_job *g, int n_threads)
{
    g->by_rows = g->m >= g->n;
    return wasi_parallel(n_threads, g->by_rows ? g->m : g->n, g->by_rows ? ROWS : COLUMNS, product_part, g);
}

wasi_status wasi_bgemm(bool ta, bool tb, wasi_int m, wasi_int n, wasi_int k, const float *A, wasi_int lda, const float *B,
                       wasi_int ldb, const float *b, bool add, float *C, wasi_int ldc, void *work, int n_threads)
{
    bgemm_job job = {.ta = ta, .tb = tb, .add = add, .m = m, .n = n, .k = k, .A = A, .lda = lda, .B = B, .ldb = ldb,
                     .b = b, .C = C, .ldc = ldc, .work = work};
    return run(&job, n_threads);
}

wasi_status wasi_bgemm_bits(bool tb, wasi_int m, wasi_int n, wasi_int k, const float *A, wasi_int lda, const uint16_t *B,
                            wasi_int ldb, float *C, wasi_int ldc, void *work, int n_threads)
{
    bgemm_job job = {.tb = tb, .m = m, .n = n, .k = k, .A = A, .lda = lda, .bits = B, .ldb = ldb, .C = C, .ldc = ldc,
                     .work = work};
    return run(&job, n_threads);
}
