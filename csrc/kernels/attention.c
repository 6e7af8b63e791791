/* Blocks of ROWS queries against blocks of KEYS keys, all in scratch memory of one thread.
 *
 * The query heads that share a key head are stacked: "row" r = g Nq + i is query i of the group's head g, so grouped
 * queries differ from plain ones in the number of rows alone, and a single query of 8 heads is one block of 8 rows.
 *
 * Scores are key-major, S[j, r] = k_j . q_r: a query is a lane of a vector register, so the softmax along the keys
 * needs no sum across lanes, and P' v, P do, dS q, dS' k read P and dS as they lie. Only q (and do, and the bias) must
 * be transposed, once a block. All blocks are copied to scratch, padded to whole registers: the products have no ragged
 * ends, rows that lie 3 C apart do not evict each other from the L1 cache, and strides matter in load and store alone.
 *
 * Forward: one item is (batch, key head, block of rows); the keys pass by under an online softmax. Backward: one item
 * is (batch, key head); for each block of keys all rows pass by, dk and dv gather in scratch, dq in the output.
 *
 * The products are register tiles of our own (attention_simd.c). For heads of 50 to 200 tokens OpenBLAS is as fast on
 * P v, but takes 1.2 times as long on q k', where it packs a transposed operand anew at each call. */
#include "kernels/attention.h"

#include <math.h>
#include <string.h>

#include "common/parallel.h"
#include "common/scratch.h"
#include "kernels/attention_simd.h"

enum {
    ROWS = 64,      /* 4 AVX-512 registers */
    KEYS = 256,     /* K, V, S of 256 x 64 floats: together in L2 */
    BIAS_SLICES = 4 /* the batch is cut in so many pieces, each with its own sum of dbias: fixed, for the same bits */
};

typedef struct {
    const wasi_attention *a;
    wasi_heads o, dq, dk, dv;
    wasi_const_heads q, k, v, saved_o, dout;
    float *lse, *dbias;
    const float *saved_lse;
    wasi_int n_slices; /* backward: of the batch */
    float *slices;     /* n_slices x H x Nq x Nk: dbias of each */
    char *work;
    size_t part_bytes;
} attention_job;

/* The scratch of one thread. Rows of D are padded to `width`, rows of queries to the `lanes` of the block (at most
 * ROWS), rows of keys to `key_lanes`. */
typedef struct {
    float *K, *V, *S, *dS, *dK, *dV; /* a row for each key */
    float *Q, *O, *dO, *dQ, *terms;  /* a row for each query; Q: times scale; terms: bias, mask or dbias */
    float *Qt, *dOt;                 /* width x lanes */
    float *top, *sum, *shrink;       /* one for each query: the online softmax */
    float *lse, *delta, *scales;     /* scales: `scale` for each */
    int32_t *last;                   /* the last visible key of the block */
    wasi_int *place;                 /* windows: each token's row of the image; else NULL */
    int32_t *side;                   /* windows: which tokens see each other, where `seam` says that not all do */
    bool seam;
    wasi_int at; /* the window that place and side are about, or -1 */
    wasi_int width, key_lanes;
} blocks;

static wasi_int whole_lanes(wasi_int n)
{
    return (n + WASI_LANES - 1) / WASI_LANES * WASI_LANES;
}

static wasi_int group_rows(const wasi_attention *a)
{
    return a->H / a->Hkv * a->Nq;
}

static float *take(wasi_scratch *s, wasi_int rows, wasi_int columns)
{
    return wasi_take(s, (size_t)rows * (size_t)columns * sizeof(float));
}

static blocks take_blocks(wasi_scratch *s, const wasi_attention *a, bool backward, bool dbias)
{
    wasi_int rows = whole_lanes(WASI_MIN(ROWS, group_rows(a))), keys = whole_lanes(WASI_MIN(KEYS, a->Nk));
    wasi_int width = whole_lanes(a->D);
    blocks w = {.width = width, .key_lanes = keys, .at = -1};
    w.K = take(s, keys, width);
    w.V = take(s, keys, width);
    w.S = take(s, keys, rows);
    w.Q = take(s, rows, width);
    w.O = take(s, rows, width);
    w.Qt = take(s, width, rows);
    w.last = wasi_take(s, (size_t)rows * sizeof(int32_t));
    if (a->window) {
        w.place = wasi_take(s, (size_t)a->Nq * sizeof(wasi_int));
        w.side = wasi_take(s, (size_t)whole_lanes(a->Nq) * sizeof(int32_t));
    }
    if (a->bias || a->mask || dbias)
        w.terms = take(s, rows, keys);
    if (backward) {
        w.dS = take(s, keys, rows);
        w.dK = take(s, keys, width);
        w.dV = take(s, keys, width);
        w.dO = take(s, rows, width);
        w.dQ = take(s, rows, width);
        w.dOt = take(s, width, rows);
        w.lse = take(s, 1, rows);
        w.delta = take(s, 1, rows);
        w.scales = take(s, 1, rows);
    } else {
        w.top = take(s, 1, rows);
        w.sum = take(s, 1, rows);
        w.shrink = take(s, 1, rows);
    }
    return w;
}

static size_t blocks_bytes(const wasi_attention *a, bool backward, bool dbias)
{
    wasi_scratch s = wasi_scratch_count();
    take_blocks(&s, a, backward, dbias);
    return s.used;
}

static blocks part_blocks(const attention_job *job, int part, bool backward)
{
    wasi_scratch s = wasi_scratch_on(job->work + (size_t)part * job->part_bytes);
    return take_blocks(&s, job->a, backward, job->dbias);
}

static wasi_int bias_size(const wasi_attention *a)
{
    return a->H * a->Nq * a->Nk;
}

static wasi_int n_slices(const wasi_attention *a, bool dbias)
{
    return dbias ? WASI_MIN(BIAS_SLICES, a->B) : a->B;
}

size_t wasi_attention_forward_work(const wasi_attention *a, int n_threads)
{
    return blocks_bytes(a, false, false) * (size_t)n_threads;
}

size_t wasi_attention_backward_work(const wasi_attention *a, bool dbias, int n_threads)
{
    size_t slices = dbias ? (size_t)(n_slices(a, true) * bias_size(a)) * sizeof(float) : 0;
    return slices + blocks_bytes(a, true, dbias) * (size_t)n_threads;
}

/* Finds the tokens of window b. Those of a window on the border are on up to four sides of the image's seams. */
static void set_window(const wasi_attention *a, blocks *w, wasi_int b)
{
    wasi_int M = a->window, down = a->height / M, across = a->width / M, n = 0;
    wasi_int top = b / across % down * M + a->shift, left = b % across * M + a->shift;
    for (wasi_int y = top; y < top + M; y++) {
        for (wasi_int x = left; x < left + M; x++, n++) {
            bool below = y >= a->height, right = x >= a->width;
            w->place[n] = (y - below * a->height) * a->width + x - right * a->width;
            w->side[n] = 2 * below + right;
        }
    }
    for (; n < whole_lanes(a->Nq); n++)
        w->side[n] = 0;
    w->seam = top + M > a->height || left + M > a->width;
    w->at = b;
}

/* Where batch element b begins. */
static wasi_int start_of(const wasi_attention *a, wasi_int b, wasi_int stride)
{
    return (a->window ? b / (a->height / a->window * (a->width / a->window)) : b) * stride;
}

/* Rows of a group of query heads, and rows of a key head. */
static wasi_row_walk query_walk(const wasi_attention *a, const blocks *w, wasi_int row, wasi_int head)
{
    return (wasi_row_walk){row, head, a->Nq, w->place};
}

static wasi_row_walk key_walk(const wasi_attention *a, const blocks *w, wasi_int row)
{
    return (wasi_row_walk){row, 0, a->Nk, w->place};
}

/* Rows of a matrix of scores for each head, `head` apart. */
static wasi_row_walk term_walk(const wasi_attention *a, wasi_int head)
{
    return (wasi_row_walk){a->Nk, head, a->Nq, NULL};
}

static void load_queries(const wasi_attention *a, const blocks *w, float *to, wasi_const_heads from, float factor,
                         wasi_int b, wasi_int kv, wasi_int r0, wasi_int rows)
{
    const float *start = from.data + start_of(a, b, from.batch) + kv * (a->H / a->Hkv) * from.head;
    WASI_PICK(wasi_attention_load)(to, w->width, start, query_walk(a, w, from.row, from.head), r0, rows, a->D, factor);
}

static void load_keys(const wasi_attention *a, const blocks *w, float *to, wasi_const_heads from, wasi_int b,
                      wasi_int kv, wasi_int j0, wasi_int keys)
{
    const float *start = from.data + start_of(a, b, from.batch) + kv * from.head;
    wasi_row_walk walk = key_walk(a, w, from.row);
    WASI_PICK(wasi_attention_load)(to, w->width, start, walk, j0, keys, a->D, 1);
}

static void store_queries(const wasi_attention *a, const blocks *w, wasi_heads to, const float *from,
                          const float *factor, bool add, wasi_int b, wasi_int kv, wasi_int r0, wasi_int rows)
{
    float *start = to.data + start_of(a, b, to.batch) + kv * (a->H / a->Hkv) * to.head;
    wasi_row_walk walk = query_walk(a, w, to.row, to.head);
    WASI_PICK(wasi_attention_store)(start, walk, from, w->width, r0, rows, a->D, factor, add);
}

static void store_keys(const wasi_attention *a, const blocks *w, wasi_heads to, const float *from, wasi_int b,
                       wasi_int kv, wasi_int j0, wasi_int keys)
{
    float *start = to.data + start_of(a, b, to.batch) + kv * to.head;
    WASI_PICK(wasi_attention_store)(start, key_walk(a, w, to.row), from, w->width, j0, keys, a->D, NULL, false);
}

/* The keys of the block [j0, j0 + keys) up to the last that any of the rows sees. */
static wasi_int visible_keys(const wasi_attention *a, wasi_int r0, wasi_int rows, wasi_int j0, wasi_int keys)
{
    if (!a->causal)
        return keys;
    bool wraps = r0 % a->Nq + rows > a->Nq;
    wasi_int last_query = wraps ? a->Nq - 1 : (r0 + rows - 1) % a->Nq;
    return WASI_MAX(0, WASI_MIN(keys, last_query + a->q_offset + 1 - j0));
}

/* S += the bias or the mask of the block, from the rows behind `walk`. */
static void add_terms(blocks *w, const float *from, wasi_row_walk walk, wasi_int r0, wasi_int rows, wasi_int keys)
{
    wasi_int lanes = whole_lanes(rows);
    WASI_PICK(wasi_attention_load)(w->terms, w->key_lanes, from, walk, r0, rows, keys, 1);
    WASI_PICK(wasi_attention_transpose)(w->S, lanes, w->terms, w->key_lanes, lanes, whole_lanes(keys), true);
}

/* S = scale k q' + bias + mask, -Inf where the key is hidden. Qt and K are loaded. */
static void scores(const wasi_attention *a, blocks *w, wasi_int b, wasi_int kv, wasi_int r0, wasi_int rows, wasi_int j0,
                   wasi_int keys)
{
    wasi_int lanes = whole_lanes(rows);
    WASI_PICK(wasi_attention_product)(w->S, lanes, w->K, w->width, 1, w->Qt, lanes, keys, lanes, a->D, false);
    if (a->bias)
        add_terms(w, a->bias + kv * group_rows(a) * a->Nk + j0, term_walk(a, a->Nq * a->Nk), r0, rows, keys);
    if (a->mask)
        add_terms(w, a->mask + b % a->n_masks * a->Nq * a->Nk + j0, term_walk(a, 0), r0, rows, keys);
    if (a->window && w->seam)
        WASI_PICK(wasi_attention_separate)(w->S, w->side + r0, w->side + j0, keys, lanes);
    if (!a->causal)
        return;
    wasi_int nearest = keys;
    for (wasi_int r = 0; r < lanes; r++) {
        wasi_int last = r < rows ? (r0 + r) % a->Nq + a->q_offset - j0 : keys;
        w->last[r] = (int32_t)WASI_MAX(-1, WASI_MIN(last, keys));
        nearest = WASI_MIN(nearest, w->last[r]);
    }
    if (nearest < keys - 1)
        WASI_PICK(wasi_attention_hide)(w->S, w->last, keys, lanes);
}

/* o and lse of the block of rows from r0. `loaded` numbers the block of keys that K and V hold from call to call. */
static void forward_rows(const attention_job *job, blocks *w, wasi_int b, wasi_int kv, wasi_int r0, wasi_int *loaded)
{
    const wasi_attention *a = job->a;
    wasi_int rows = WASI_MIN(ROWS, group_rows(a) - r0), lanes = whole_lanes(rows), width = w->width;
    wasi_int key_blocks = (a->Nk + KEYS - 1) / KEYS;
    if (a->window && w->at != b)
        set_window(a, w, b);
    load_queries(a, w, w->Q, job->q, a->scale, b, kv, r0, rows);
    WASI_PICK(wasi_attention_transpose)(w->Qt, lanes, w->Q, width, lanes, width, false);
    for (wasi_int r = 0; r < lanes; r++) {
        w->top[r] = -INFINITY;
        w->sum[r] = 0;
    }
    bool started = false;
    for (wasi_int block = 0; block < key_blocks; block++) {
        wasi_int j0 = block * KEYS, all = WASI_MIN(KEYS, a->Nk - j0), keys = visible_keys(a, r0, rows, j0, all);
        if (keys == 0)
            break;
        wasi_int number = (b * a->Hkv + kv) * key_blocks + block;
        if (*loaded != number) {
            load_keys(a, w, w->K, job->k, b, kv, j0, all);
            load_keys(a, w, w->V, job->v, b, kv, j0, all);
            *loaded = number;
        }
        scores(a, w, b, kv, r0, rows, j0, keys);
        WASI_PICK(wasi_attention_softmax)(w->S, w->top, w->sum, w->shrink, keys, lanes);
        if (started)
            WASI_PICK(wasi_attention_scale_rows)(w->O, width, w->shrink, rows, width);
        WASI_PICK(wasi_attention_product)(w->O, width, w->S, 1, lanes, w->V, width, rows, width, keys, started);
        started = true;
    }
    if (!started)
        memset(w->O, 0, (size_t)(rows * width) * sizeof(float));
    WASI_PICK(wasi_attention_finish)(w->top, w->sum, lanes);
    memcpy(job->lse + (b * a->Hkv + kv) * group_rows(a) + r0, w->top, (size_t)rows * sizeof(float));
    store_queries(a, w, job->o, w->O, w->sum, false, b, kv, r0, rows);
}

static wasi_status forward_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const attention_job *job = ctx;
    blocks w = part_blocks(job, part, false);
    wasi_int loaded = -1, row_blocks = (group_rows(job->a) + ROWS - 1) / ROWS;
    for (wasi_int item = begin; item < end; item++) {
        wasi_int head = item / row_blocks;
        forward_rows(job, &w, head / job->a->Hkv, head % job->a->Hkv, item % row_blocks * ROWS, &loaded);
    }
    return WASI_OK;
}

wasi_status wasi_attention_forward(wasi_heads o, float *lse, wasi_const_heads q, wasi_const_heads k,
                                   wasi_const_heads v, const wasi_attention *a, void *work, int n_threads)
{
    attention_job job = {.a = a, .o = o, .q = q, .k = k, .v = v, .lse = lse, .work = work};
    job.part_bytes = blocks_bytes(a, false, false);
    wasi_int row_blocks = (group_rows(a) + ROWS - 1) / ROWS;
    return wasi_parallel(n_threads, a->B * a->Hkv * row_blocks, 1, forward_part, &job);
}

/* The block of rows from r0 against the block of keys in K and V: adds to dK and dV, to dq in the output (or starts it,
 * at the first block of keys) and to the slice's dbias. */
static void backward_rows(const attention_job *job, blocks *w, wasi_int slice, wasi_int b, wasi_int kv, wasi_int r0,
                          wasi_int j0, wasi_int all_keys)
{
    const wasi_attention *a = job->a;
    wasi_int rows = WASI_MIN(ROWS, group_rows(a) - r0), lanes = whole_lanes(rows), width = w->width;
    wasi_int keys = visible_keys(a, r0, rows, j0, all_keys);
    if (keys == 0) {
        if (j0 == 0) {
            memset(w->dQ, 0, (size_t)(rows * width) * sizeof(float));
            store_queries(a, w, job->dq, w->dQ, NULL, false, b, kv, r0, rows);
        }
        return;
    }
    load_queries(a, w, w->Q, job->q, a->scale, b, kv, r0, rows);
    load_queries(a, w, w->O, job->saved_o, 1, b, kv, r0, rows);
    load_queries(a, w, w->dO, job->dout, 1, b, kv, r0, rows);
    WASI_PICK(wasi_attention_transpose)(w->Qt, lanes, w->Q, width, lanes, width, false);
    WASI_PICK(wasi_attention_transpose)(w->dOt, lanes, w->dO, width, lanes, width, false);
    WASI_PICK(wasi_attention_row_dots)(w->delta, w->O, w->dO, width, lanes, width);
    const float *lse = job->saved_lse + (b * a->Hkv + kv) * group_rows(a) + r0;
    for (wasi_int r = 0; r < lanes; r++) /* exp(s - Inf) = 0: nothing comes from a row that sees no key, or padding */
        w->lse[r] = r < rows && lse[r] != -INFINITY ? lse[r] : INFINITY;

    scores(a, w, b, kv, r0, rows, j0, keys);
    WASI_PICK(wasi_attention_product)(w->dS, lanes, w->V, width, 1, w->dOt, lanes, keys, lanes, a->D, false);
    WASI_PICK(wasi_attention_softmax_backward)(w->S, w->dS, w->lse, w->delta, keys, lanes);
    WASI_PICK(wasi_attention_product)(w->dV, width, w->S, lanes, 1, w->dO, width, keys, width, rows, true);
    WASI_PICK(wasi_attention_product)(w->dK, width, w->dS, lanes, 1, w->Q, width, keys, width, rows, true);
    WASI_PICK(wasi_attention_product)(w->dQ, width, w->dS, 1, lanes, w->K, width, rows, width, keys, false);
    store_queries(a, w, job->dq, w->dQ, w->scales, j0 > 0, b, kv, r0, rows);
    if (job->dbias) {
        float *to = job->slices + slice * bias_size(a) + kv * group_rows(a) * a->Nk + j0;
        WASI_PICK(wasi_attention_transpose)(w->terms, w->key_lanes, w->dS, lanes, whole_lanes(keys), lanes, false);
        WASI_PICK(wasi_attention_store)(to, term_walk(a, a->Nq * a->Nk), w->terms, w->key_lanes, r0, rows, keys,
                                        NULL, true);
    }
}

static void backward_head(const attention_job *job, blocks *w, wasi_int slice, wasi_int b, wasi_int kv)
{
    const wasi_attention *a = job->a;
    if (a->window && w->at != b)
        set_window(a, w, b);
    for (wasi_int j0 = 0; j0 < a->Nk; j0 += KEYS) {
        wasi_int keys = WASI_MIN(KEYS, a->Nk - j0);
        load_keys(a, w, w->K, job->k, b, kv, j0, keys);
        load_keys(a, w, w->V, job->v, b, kv, j0, keys);
        memset(w->dK, 0, (size_t)(keys * w->width) * sizeof(float));
        memset(w->dV, 0, (size_t)(keys * w->width) * sizeof(float));
        for (wasi_int r0 = 0; r0 < group_rows(a); r0 += ROWS)
            backward_rows(job, w, slice, b, kv, r0, j0, keys);
        store_keys(a, w, job->dk, w->dK, b, kv, j0, keys);
        store_keys(a, w, job->dv, w->dV, b, kv, j0, keys);
    }
}

static wasi_status backward_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const attention_job *job = ctx;
    const wasi_attention *a = job->a;
    blocks w = part_blocks(job, part, true);
    for (wasi_int r = 0; r < WASI_MIN(ROWS, group_rows(a)); r++)
        w.scales[r] = a->scale;
    for (wasi_int item = begin; item < end; item++) {
        wasi_int slice = item / a->Hkv, kv = item % a->Hkv, share = group_rows(a) * a->Nk;
        if (job->dbias)
            memset(job->slices + slice * bias_size(a) + kv * share, 0, (size_t)share * sizeof(float));
        for (wasi_int b = slice * a->B / job->n_slices; b < (slice + 1) * a->B / job->n_slices; b++)
            backward_head(job, &w, slice, b, kv);
    }
    return WASI_OK;
}

static wasi_status sum_slices_part(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const attention_job *job = ctx;
    WASI_PICK(wasi_attention_sum_slices)(job->dbias, job->slices, bias_size(job->a), job->n_slices, begin, end);
    return WASI_OK;
}

wasi_status wasi_attention_backward(wasi_heads dq, wasi_heads dk, wasi_heads dv, float *dbias, wasi_const_heads dout,
                                    wasi_const_heads q, wasi_const_heads k, wasi_const_heads v, wasi_const_heads o,
                                    const float *lse, const wasi_attention *a, void *work, int n_threads)
{
    attention_job job = {.a = a, .dq = dq, .dk = dk, .dv = dv, .q = q, .k = k, .v = v, .saved_o = o, .dout = dout,
                         .dbias = dbias, .saved_lse = lse, .work = work};
    job.n_slices = n_slices(a, dbias);
    job.part_bytes = blocks_bytes(a, true, dbias);
    job.slices = (float *)(job.work + job.part_bytes * (size_t)n_threads);
    WASI_TRY(wasi_parallel(n_threads, job.n_slices * a->Hkv, 1, backward_part, &job));
    return dbias ? wasi_parallel(n_threads, bias_size(a), wasi_grain(1), sum_slices_part, &job) : WASI_OK;
}
