#include "kernels/attention_simd.h"

#include <math.h>

#include "common/exp.h"

/* A register of the instruction set, and the tile of C that the registers hold: TILE_ROWS x TILE_VECS of them, with
 * room for one row of B and one element of A. */
#if defined(__AVX512F__)
enum { WIDTH = 16, TILE_VECS = 4 };
#elif defined(__AVX__)
enum { WIDTH = 8, TILE_VECS = 2 };
#elif defined(__aarch64__)
enum { WIDTH = 4, TILE_VECS = 4 };
#else
enum { WIDTH = 4, TILE_VECS = 2 };
#endif
enum { TILE_ROWS = 6 };

typedef float vec __attribute__((vector_size(WIDTH * sizeof(float)), may_alias));
typedef float loose_vec __attribute__((vector_size(WIDTH * sizeof(float)), may_alias, aligned(sizeof(float))));

/* One tile of C; rows, vecs and one of am, ak are constants in every inlined copy. */
static inline __attribute__((always_inline)) void tile(float *C, wasi_int ldc, const float *A, wasi_int am,
                                                       wasi_int ak, const float *B, wasi_int ldb, wasi_int K, bool add,
                                                       const int rows, const int vecs)
{
    vec sum[TILE_ROWS][TILE_VECS] = {0};
    for (wasi_int k = 0; k < K; k++) {
        vec b[TILE_VECS];
        for (int v = 0; v < vecs; v++)
            b[v] = *(const vec *)(B + k * ldb + v * WIDTH);
        for (int i = 0; i < rows; i++) {
            float a = A[i * am + k * ak];
            for (int v = 0; v < vecs; v++)
                sum[i][v] += a * b[v];
        }
    }
    for (int i = 0; i < rows; i++) {
        for (int v = 0; v < vecs; v++) {
            vec *c = (vec *)(C + i * ldc + v * WIDTH);
            if (add)
                sum[i][v] += *c;
            *c = sum[i][v];
        }
    }
}

/* A column of tiles, vecs registers wide. */
static inline __attribute__((always_inline)) void panel(float *C, wasi_int ldc, const float *A, wasi_int am,
                                                        wasi_int ak, const float *B, wasi_int ldb, wasi_int m,
                                                        wasi_int K, bool add, const int vecs)
{
    wasi_int i = 0;
    for (; i + TILE_ROWS <= m; i += TILE_ROWS)
        tile(C + i * ldc, ldc, A + i * am, am, ak, B, ldb, K, add, TILE_ROWS, vecs);
    C += i * ldc;
    A += i * am;
    switch (m - i) {
    case 5: tile(C, ldc, A, am, ak, B, ldb, K, add, 5, vecs); break;
    case 4: tile(C, ldc, A, am, ak, B, ldb, K, add, 4, vecs); break;
    case 3: tile(C, ldc, A, am, ak, B, ldb, K, add, 3, vecs); break;
    case 2: tile(C, ldc, A, am, ak, B, ldb, K, add, 2, vecs); break;
    case 1: tile(C, ldc, A, am, ak, B, ldb, K, add, 1, vecs); break;
    }
}

static inline __attribute__((always_inline)) void product(float *C, wasi_int ldc, const float *A, wasi_int am,
                                                          wasi_int ak, const float *B, wasi_int ldb, wasi_int m,
                                                          wasi_int n, wasi_int K, bool add)
{
    wasi_int j = 0;
    for (; j + TILE_VECS * WIDTH <= n; j += TILE_VECS * WIDTH)
        panel(C + j, ldc, A, am, ak, B + j, ldb, m, K, add, TILE_VECS);
#if defined(__AVX512F__) /* elsewhere WASI_LANES is a multiple of the tile's width */
    switch ((n - j) / WIDTH) {
    case 3: panel(C + j, ldc, A, am, ak, B + j, ldb, m, K, add, 3); break;
    case 2: panel(C + j, ldc, A, am, ak, B + j, ldb, m, K, add, 2); break;
    case 1: panel(C + j, ldc, A, am, ak, B + j, ldb, m, K, add, 1); break;
    }
#endif
}

void WASI_SIMD(wasi_attention_product)(float *C, wasi_int ldc, const float *A, wasi_int am, wasi_int ak,
                                       const float *B, wasi_int ldb, wasi_int m, wasi_int n, wasi_int K, bool add)
{
    if (ak == 1)
        product(C, ldc, A, am, 1, B, ldb, m, n, K, add);
    else
        product(C, ldc, A, 1, ak, B, ldb, m, n, K, add);
}

static inline wasi_int row_of(wasi_row_walk walk, wasi_int query, wasi_int head)
{
    return (walk.place ? walk.place[query] : query) * walk.row + head * walk.head;
}

void WASI_SIMD(wasi_attention_load)(float *to, wasi_int width, const float *from, wasi_row_walk walk, wasi_int r0,
                                    wasi_int rows, wasi_int D, float factor)
{
    wasi_int query = r0 % walk.per_head, head = r0 / walk.per_head;
    for (wasi_int r = 0; r < rows; r++, to += width) {
        const float *row = from + row_of(walk, query, head);
        wasi_int d = 0;
        for (; d + WIDTH <= D; d += WIDTH)
            *(vec *)(to + d) = factor * *(const loose_vec *)(row + d);
        for (; d < D; d++)
            to[d] = factor * row[d];
        for (; d < width; d++)
            to[d] = 0;
        if (++query == walk.per_head) {
            query = 0;
            head++;
        }
    }
    memset(to, 0, (size_t)(-rows & (WASI_LANES - 1)) * (size_t)width * sizeof(float));
}

void WASI_SIMD(wasi_attention_store)(float *to, wasi_row_walk walk, const float *from, wasi_int width, wasi_int r0,
                                     wasi_int rows, wasi_int D, const float *factor, bool add)
{
    wasi_int query = r0 % walk.per_head, head = r0 / walk.per_head;
    for (wasi_int r = 0; r < rows; r++, from += width) {
        float *row = to + row_of(walk, query, head);
        float f = factor ? factor[r] : 1;
        if (add) {
#pragma omp simd
            for (wasi_int d = 0; d < D; d++)
                row[d] += f * from[d];
        } else {
#pragma omp simd
            for (wasi_int d = 0; d < D; d++)
                row[d] = f * from[d];
        }
        if (++query == walk.per_head) {
            query = 0;
            head++;
        }
    }
}

typedef float vec4 __attribute__((vector_size(16), may_alias));
#if defined(__clang__)
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t int4 __attribute__((vector_size(16)));
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (int4){i, j, k, l})
#endif

static inline void transpose4(float *out, wasi_int ld_out, const float *x, wasi_int ld, bool add)
{
    vec4 a = *(const vec4 *)x, b = *(const vec4 *)(x + ld), c = *(const vec4 *)(x + 2 * ld);
    vec4 d = *(const vec4 *)(x + 3 * ld);
    vec4 ac_low = SHUFFLE(a, c, 0, 4, 1, 5), ac_high = SHUFFLE(a, c, 2, 6, 3, 7);
    vec4 bd_low = SHUFFLE(b, d, 0, 4, 1, 5), bd_high = SHUFFLE(b, d, 2, 6, 3, 7);
    vec4 column[4] = {SHUFFLE(ac_low, bd_low, 0, 4, 1, 5), SHUFFLE(ac_low, bd_low, 2, 6, 3, 7),
                      SHUFFLE(ac_high, bd_high, 0, 4, 1, 5), SHUFFLE(ac_high, bd_high, 2, 6, 3, 7)};
    for (int i = 0; i < 4; i++) {
        vec4 *to = (vec4 *)(out + i * ld_out);
        if (add)
            column[i] += *to;
        *to = column[i];
    }
}

void WASI_SIMD(wasi_attention_transpose)(float *out, wasi_int ld_out, const float *x, wasi_int ld, wasi_int rows,
                                         wasi_int columns, bool add)
{
    for (wasi_int r = 0; r < rows; r += 4)
        for (wasi_int c = 0; c < columns; c += 4)
            transpose4(out + c * ld_out + r, ld_out, x + r * ld + c, ld, add);
}

void WASI_SIMD(wasi_attention_scale_rows)(float *x, wasi_int ld, const float *factor, wasi_int rows, wasi_int width)
{
    for (wasi_int r = 0; r < rows; r++)
        for (wasi_int c = 0; c < width; c++)
            x[r * ld + c] *= factor[r];
}

void WASI_SIMD(wasi_attention_row_dots)(float *out, const float *x, const float *y, wasi_int ld, wasi_int rows,
                                        wasi_int width)
{
    for (wasi_int r = 0; r < rows; r++, x += ld, y += ld) {
        vec sums = {0};
        for (wasi_int c = 0; c < width; c += WIDTH)
            sums += *(const vec *)(x + c) * *(const vec *)(y + c);
        float total = 0;
        for (int l = 0; l < WIDTH; l++)
            total += sums[l];
        out[r] = total;
    }
}

void WASI_SIMD(wasi_attention_hide)(float *S, const int32_t *last, wasi_int n_keys, wasi_int lanes)
{
    for (int32_t j = 0; j < n_keys; j++)
        for (wasi_int i = 0; i < lanes; i++)
            S[j * lanes + i] = j > last[i] ? -INFINITY : S[j * lanes + i];
}

void WASI_SIMD(wasi_attention_separate)(float *S, const int32_t *query_side, const int32_t *key_side, wasi_int n_keys,
                                        wasi_int lanes)
{
    for (wasi_int j = 0; j < n_keys; j++)
        for (wasi_int i = 0; i < lanes; i++)
            S[j * lanes + i] = query_side[i] != key_side[j] ? -INFINITY : S[j * lanes + i];
}

void WASI_SIMD(wasi_attention_softmax)(float *S, float *top, float *sum, float *shrink, wasi_int n_keys,
                                       wasi_int lanes)
{
    for (wasi_int i = 0; i < lanes; i += WASI_LANES) {
        float high[WASI_LANES], base[WASI_LANES], total[WASI_LANES];
        for (wasi_int l = 0; l < WASI_LANES; l++)
            high[l] = top[i + l];
        for (wasi_int j = 0; j < n_keys; j++) {
            const float *s = S + j * lanes + i;
#pragma omp simd
            for (wasi_int l = 0; l < WASI_LANES; l++)
                high[l] = s[l] > high[l] ? s[l] : high[l];
        }
        /* Where no key was visible yet any finite number may be subtracted: exp(-Inf - 0) = 0. */
#pragma omp simd
        for (wasi_int l = 0; l < WASI_LANES; l++)
            base[l] = high[l] == -INFINITY ? 0 : high[l];
#pragma omp simd
        for (wasi_int l = 0; l < WASI_LANES; l++) {
            shrink[i + l] = wasi_exp(top[i + l] - base[l]);
            total[l] = sum[i + l] * shrink[i + l];
            top[i + l] = high[l];
        }
        for (wasi_int j = 0; j < n_keys; j++) {
            float *s = S + j * lanes + i;
#pragma omp simd
            for (wasi_int l = 0; l < WASI_LANES; l++) {
                s[l] = wasi_exp(s[l] - base[l]);
                total[l] += s[l];
            }
        }
        for (wasi_int l = 0; l < WASI_LANES; l++)
            sum[i + l] = total[l];
    }
}

/* log(x) by two steps of Halley's method on exp(y) = x. The start, straight lines between the powers of two, is 0.06
 * off at most; a step makes an error e into e^3 / 12. For 1 <= x, as the sum of a softmax is. */
static inline float log_of_sum(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    float y = (float)(int32_t)(bits - 0x3f800000u) * 8.2629582e-8f; /* ln 2 / 2^23 */
    for (int step = 0; step < 2; step++) {
        float e = wasi_exp(y);
        y += 2 * (x - e) / (x + e);
    }
    return y;
}

void WASI_SIMD(wasi_attention_finish)(float *top, float *sum, wasi_int lanes)
{
    for (wasi_int i = 0; i < lanes; i++)
        top[i] = sum[i] == 0 ? -INFINITY : top[i] + log_of_sum(sum[i]);
    for (wasi_int i = 0; i < lanes; i++)
        sum[i] = sum[i] == 0 ? 0 : 1 / sum[i];
}

void WASI_SIMD(wasi_attention_softmax_backward)(float *P, float *dP, const float *lse, const float *delta,
                                                wasi_int n_keys, wasi_int lanes)
{
    for (wasi_int j = 0; j < n_keys; j++) {
        float *p = P + j * lanes, *dp = dP + j * lanes;
#pragma omp simd
        for (wasi_int i = 0; i < lanes; i++) {
            p[i] = wasi_exp(p[i] - lse[i]);
            dp[i] = p[i] * (dp[i] - delta[i]);
        }
    }
}

void WASI_SIMD(wasi_attention_sum_slices)(float *out, const float *slices, wasi_int n, wasi_int n_slices,
                                          wasi_int begin, wasi_int end)
{
    for (wasi_int s = 0; s < n_slices; s++)
        for (wasi_int i = begin; i < end; i++)
            out[i] += slices[s * n + i];
}
