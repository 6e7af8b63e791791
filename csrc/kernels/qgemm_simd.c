#include "kernels/qgemm_simd.h"

#include <math.h>
#include <string.h>

#if defined(WASI_ISA_AVX2) || defined(WASI_ISA_AVX512)
#include <immintrin.h>
#elif defined(WASI_ISA_DOTPROD)
#include <arm_neon.h>
#endif

/* Numbers of a panel and of a tile; PACK of them are a unit. AVX2 multiplies bytes only with saturation at 16 bits. */
#if defined(WASI_ISA_AVX512) || defined(WASI_ISA_DOTPROD)
typedef int8_t weight;
typedef uint8_t code;
#else
typedef int16_t weight, code;
#endif

enum { ROWS = WASI_TILE_ROWS, COLUMNS = WASI_PANEL_COLUMNS, BLOCK = WASI_QUANT_BLOCK, HALF = WASI_QUANT_BLOCK / 2 };
enum { PACK = WASI_UNIT_BYTES / sizeof(code), TILE_STEP = PACK * ROWS, PANEL_STEP = PACK * COLUMNS };

wasi_int WASI_SIMD(wasi_units)(wasi_int K)
{
    return (K + PACK - 1) / PACK;
}

/* ---- activations ---- */

static inline void see(float v, float *low, float *high, float *bad)
{
    *low = v < *low ? v : *low;
    *high = v > *high ? v : *high;
    *bad += v * 0;
}

static void quantize_token(code *u, float *t, int32_t *z, const float *a, const float *scale, wasi_int K)
{
    enum { STRIP = 64, LANES = 16 };
    float lows[LANES] = {0}, highs[LANES] = {0}, bad[LANES] = {0}; /* bad: 0, or NaN */
    wasi_int whole = K - K % LANES;
    for (wasi_int k = 0; k < whole; k += LANES)
        for (wasi_int j = 0; j < LANES; j++)
            see(a[k + j] * scale[k + j], lows + j, highs + j, bad + j);
    for (wasi_int k = whole; k < K; k++)
        see(a[k] * scale[k], lows, highs, bad);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++) {
            lows[j] = lows[j + half] < lows[j] ? lows[j + half] : lows[j];
            highs[j] = highs[j + half] > highs[j] ? highs[j + half] : highs[j];
            bad[j] += bad[j + half];
        }
    float low = lows[0], range = highs[0] - low;
    if (!isfinite(range + bad[0])) {
        *t = NAN;
        *z = 0;
        for (wasi_int k = 0; k < K; k += PACK, u += TILE_STEP)
            memset(u, 0, WASI_UNIT_BYTES);
        return;
    }
    bool flat = range < 1e-35f; /* 255 / range stays finite */
    float inverse = flat ? 0 : 255 / range;
    float zero = rintf(-low * inverse), half_up = zero + 0.5f;
    *t = flat ? 0 : range / 255;
    *z = (int32_t)zero;

    for (wasi_int k = 0; k < K; k += STRIP) {
        wasi_int n = WASI_MIN(STRIP, K - k);
        code strip[STRIP];
        for (wasi_int j = 0; j < n; j++) {
            float v = a[k + j] * scale[k + j] * inverse + half_up; /* > -1: the cast rounds to 0 */
            strip[j] = (code)(int32_t)(v < 255 ? v : 255);
        }
        for (wasi_int j = n; j % PACK; j++)
            strip[j] = (code)*z;
        for (wasi_int j = 0; j < n; j += PACK, u += TILE_STEP)
            memcpy(u, strip + j, WASI_UNIT_BYTES);
    }
}

void WASI_SIMD(wasi_quantize_tile)(void *u, float *t, int32_t *z, const float *A, const float *scale, wasi_int rows,
                                   wasi_int K)
{
    if (rows < ROWS) /* the products go through whole tiles */
        memset(u, 0, (size_t)(WASI_SIMD(wasi_units)(K) * ROWS * WASI_UNIT_BYTES));
    for (wasi_int m = 0; m < rows; m++)
        quantize_token((code *)u + PACK * m, t + m, z + m, A + m * K, scale, K);
}

/* ---- panels ---- */

/* The 32 weights of a block from its codes; with 8 bits they are the codes, and there is no shape s. */
static inline void expand_block(int8_t *q, const uint8_t *codes, const uint8_t *s)
{
    if (s == NULL) {
        memcpy(q, codes, BLOCK);
        return;
    }
    const int8_t *levels = wasi_quant_table[*s % WASI_QUANT_SHAPES];
#if defined(WASI_ISA_AVX2) || defined(WASI_ISA_AVX512)
    __m128i both = _mm_loadu_si128((const __m128i *)codes);
    __m256i code = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(both, 4), both), _mm256_set1_epi8(15));
    __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)levels));
    _mm256_storeu_si256((__m256i *)q, _mm256_shuffle_epi8(table, code));
#elif defined(WASI_ISA_DOTPROD)
    uint8x16_t both = vld1q_u8(codes);
    int8x16_t table = vld1q_s8(levels);
    vst1q_s8(q, vqtbl1q_s8(table, vandq_u8(both, vdupq_n_u8(15))));
    vst1q_s8(q + HALF, vqtbl1q_s8(table, vshrq_n_u8(both, 4)));
#else
    for (int j = 0; j < HALF; j++) {
        q[j] = levels[codes[j] & 15];
        q[HALF + j] = levels[codes[j] >> 4];
    }
#endif
}

#if defined(WASI_ISA_AVX2) || defined(WASI_ISA_AVX512)
/* to[step j + n] = from[n][j]: 8 x 8 units. */
static inline void transpose_units(int32_t *to, wasi_int step, const __m256i from[8])
{
    __m256i v[8], w[8];
    for (int n = 0; n < 8; n += 2) {
        w[n] = _mm256_unpacklo_epi32(from[n], from[n + 1]);
        w[n + 1] = _mm256_unpackhi_epi32(from[n], from[n + 1]);
    }
    for (int n = 0; n < 8; n += 4)
        for (int j = 0; j < 2; j++) {
            v[n + 2 * j] = _mm256_unpacklo_epi64(w[n + j], w[n + 2 + j]);
            v[n + 2 * j + 1] = _mm256_unpackhi_epi64(w[n + j], w[n + 2 + j]);
        }
    for (int j = 0; j < 4; j++) {
        _mm256_storeu_si256((__m256i *)(to + j * step), _mm256_permute2x128_si256(v[j], v[4 + j], 0x20));
        _mm256_storeu_si256((__m256i *)(to + (4 + j) * step), _mm256_permute2x128_si256(v[j], v[4 + j], 0x31));
    }
}
#endif

/* The block of weights of each of eight rows of Q becomes eight columns of the panel. */
static inline void pack_8_rows(weight *panel, const int8_t q[8][BLOCK])
{
#if defined(WASI_ISA_AVX512)
    __m256i v[8];
    for (int n = 0; n < 8; n++)
        v[n] = _mm256_loadu_si256((const __m256i *)q[n]);
    transpose_units((int32_t *)panel, COLUMNS, v);
#elif defined(WASI_ISA_AVX2)
    __m256i v[8];
    for (int half = 0; half < 2; half++) {
        for (int n = 0; n < 8; n++)
            v[n] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)q[n] + half));
        transpose_units((int32_t *)panel + half * 8 * COLUMNS, COLUMNS, v);
    }
#else
    for (int n = 0; n < 8; n++)
        for (int k = 0; k < BLOCK; k++)
            panel[k / PACK * PANEL_STEP + n * PACK + k % PACK] = q[n][k];
#endif
}

/* PACK rows of a block column of Q become one unit of each of 32 columns of the panel. */
static inline void pack_unit(weight *panel, const int8_t q[PACK][BLOCK])
{
#if defined(WASI_ISA_AVX512)
    __m256i v[4], w[4];
    for (int k = 0; k < 4; k++)
        v[k] = _mm256_loadu_si256((const __m256i *)q[k]);
    __m256i low01 = _mm256_unpacklo_epi8(v[0], v[1]), high01 = _mm256_unpackhi_epi8(v[0], v[1]);
    __m256i low23 = _mm256_unpacklo_epi8(v[2], v[3]), high23 = _mm256_unpackhi_epi8(v[2], v[3]);
    w[0] = _mm256_unpacklo_epi16(low01, low23); /* columns 0-3 and 16-19 */
    w[1] = _mm256_unpackhi_epi16(low01, low23); /* 4-7, 20-23 */
    w[2] = _mm256_unpacklo_epi16(high01, high23);
    w[3] = _mm256_unpackhi_epi16(high01, high23);
    for (int j = 0; j < 2; j++) {
        _mm256_storeu_si256((__m256i *)panel + j, _mm256_permute2x128_si256(w[2 * j], w[2 * j + 1], 0x20));
        _mm256_storeu_si256((__m256i *)panel + 2 + j, _mm256_permute2x128_si256(w[2 * j], w[2 * j + 1], 0x31));
    }
#elif defined(WASI_ISA_AVX2)
    for (int half = 0; half < 2; half++) {
        __m256i v0 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)q[0] + half));
        __m256i v1 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)q[1] + half));
        __m256i low = _mm256_unpacklo_epi16(v0, v1), high = _mm256_unpackhi_epi16(v0, v1);
        _mm256_storeu_si256((__m256i *)panel + 2 * half, _mm256_permute2x128_si256(low, high, 0x20));
        _mm256_storeu_si256((__m256i *)panel + 2 * half + 1, _mm256_permute2x128_si256(low, high, 0x31));
    }
#elif defined(WASI_ISA_DOTPROD)
    for (int half = 0; half < BLOCK; half += HALF) {
        int8x16x4_t v = {{vld1q_s8(q[0] + half), vld1q_s8(q[1] + half), vld1q_s8(q[2] + half), vld1q_s8(q[3] + half)}};
        vst4q_s8(panel + 4 * half, v);
    }
#else
    for (int n = 0; n < BLOCK; n++)
        for (int k = 0; k < PACK; k++)
            panel[n * PACK + k] = q[k][n];
#endif
}

void WASI_SIMD(wasi_pack_rows)(void *panel, const wasi_quant *Q, wasi_int first)
{
    wasi_int row_bytes = wasi_quant_row_bytes(Q->I, Q->bits), block_bytes = BLOCK * Q->bits / 8;
    wasi_int n_groups = wasi_quant_groups(Q->I, Q->group), n_blocks = wasi_quant_blocks(Q->I);
    _Alignas(64) int8_t q[8][BLOCK];
    for (wasi_int n = 0; n < COLUMNS; n += 8) {
        wasi_int present = WASI_MIN(WASI_MAX(Q->O - first - n, 0), 8);
        const uint8_t *codes = Q->codes + (first + n) * row_bytes, *s = Q->s ? Q->s + (first + n) * n_groups : NULL;
        if (present < 8)
            memset(q[present], 0, (size_t)((8 - present) * BLOCK));
        for (wasi_int block = 0, left = Q->group; block < n_blocks; block++, left -= BLOCK, codes += block_bytes) {
            if (left == 0) { /* the next group */
                left = Q->group;
                s = s ? s + 1 : NULL;
            }
            for (int j = 0; j < present; j++)
                expand_block(q[j], codes + j * row_bytes, s ? s + j * n_groups : NULL);
            pack_8_rows((weight *)panel + block * (BLOCK / PACK * PANEL_STEP) + n * PACK, q);
        }
    }
}

void WASI_SIMD(wasi_pack_columns)(void *panel, const wasi_quant *Q, wasi_int first)
{
    wasi_int row_bytes = wasi_quant_row_bytes(Q->I, Q->bits), n_groups = wasi_quant_groups(Q->I, Q->group);
    const uint8_t *codes = Q->codes + first * Q->bits / 8, *s = Q->s ? Q->s + first / Q->group : NULL;
    _Alignas(64) int8_t q[PACK][BLOCK];
    for (wasi_int o = 0; o < Q->O; o += PACK) {
        wasi_int present = WASI_MIN(Q->O - o, PACK);
        if (present < PACK)
            memset(q[present], 0, (size_t)((PACK - present) * BLOCK));
        for (wasi_int j = 0; j < present; j++)
            expand_block(q[j], codes + (o + j) * row_bytes, s ? s + (o + j) * n_groups : NULL);
        pack_unit((weight *)panel + o / PACK * PANEL_STEP, q);
    }
}

/* ---- products ---- */

#if defined(WASI_ISA_AVX512) || defined(WASI_ISA_AVX2)
static inline int32_t unit_at(const code *u)
{
    int32_t unit;
    memcpy(&unit, u, sizeof unit);
    return unit;
}
#endif

#if defined(WASI_ISA_AVX512)

void WASI_SIMD(wasi_panel_sum)(int32_t *sum, const void *panel, wasi_int units)
{
    __m512i s0 = _mm512_setzero_si512(), s1 = s0, one = _mm512_set1_epi8(1);
    for (const __m512i *q = panel, *end = q + 2 * units; q < end; q += 2) {
        s0 = _mm512_dpbusd_epi32(s0, one, _mm512_loadu_si512(q));
        s1 = _mm512_dpbusd_epi32(s1, one, _mm512_loadu_si512(q + 1));
    }
    _mm512_storeu_si512(sum, s0);
    _mm512_storeu_si512(sum + 16, s1);
}

/* `rows` is a constant where this is inlined, so the sums stay in registers: 24 of the 32 for a full tile. */
static inline __attribute__((always_inline)) void dot_rows(int32_t *acc, const code *u, const weight *panel,
                                                           wasi_int units, const int rows)
{
    __m512i s[ROWS][2];
#pragma GCC unroll 12
    for (int m = 0; m < rows; m++)
        s[m][0] = s[m][1] = _mm512_setzero_si512();
    for (wasi_int i = 0; i < units; i++, u += TILE_STEP, panel += PANEL_STEP) {
        __m512i q0 = _mm512_loadu_si512(panel), q1 = _mm512_loadu_si512(panel + 64);
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++) {
            __m512i a = _mm512_set1_epi32(unit_at(u + m * PACK));
            s[m][0] = _mm512_dpbusd_epi32(s[m][0], a, q0);
            s[m][1] = _mm512_dpbusd_epi32(s[m][1], a, q1);
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < rows; m++) {
        _mm512_storeu_si512(acc + m * COLUMNS, s[m][0]);
        _mm512_storeu_si512(acc + m * COLUMNS + 16, s[m][1]);
    }
}

void WASI_SIMD(wasi_tile_dot)(int32_t *acc, const void *u, const void *panel, const int32_t *sum, wasi_int rows,
                              wasi_int units)
{
    if (rows > 8)
        dot_rows(acc, u, panel, units, 12);
    else if (rows > 4)
        dot_rows(acc, u, panel, units, 8);
    else if (rows > 1)
        dot_rows(acc, u, panel, units, 4);
    else
        dot_rows(acc, u, panel, units, 1);
}

#elif defined(WASI_ISA_AVX2)

void WASI_SIMD(wasi_panel_sum)(int32_t *sum, const void *panel, wasi_int units)
{
    __m256i s[4], one = _mm256_set1_epi16(1);
    for (int j = 0; j < 4; j++)
        s[j] = _mm256_setzero_si256();
    for (const __m256i *q = panel, *end = q + 4 * units; q < end; q += 4)
        for (int j = 0; j < 4; j++)
            s[j] = _mm256_add_epi32(s[j], _mm256_madd_epi16(_mm256_loadu_si256(q + j), one));
    for (int j = 0; j < 4; j++)
        _mm256_storeu_si256((__m256i *)sum + j, s[j]);
}

/* Three tokens: their sums take 12 of the 16 registers. */
static inline __attribute__((always_inline)) void dot_rows(int32_t *acc, const code *u, const weight *panel,
                                                           wasi_int units, const int rows)
{
    __m256i s[3][4];
    for (int m = 0; m < rows; m++)
        for (int j = 0; j < 4; j++)
            s[m][j] = _mm256_setzero_si256();
    for (wasi_int i = 0; i < units; i++, u += TILE_STEP, panel += PANEL_STEP)
        for (int j = 0; j < 4; j++) {
            __m256i q = _mm256_loadu_si256((const __m256i *)panel + j);
            for (int m = 0; m < rows; m++)
                s[m][j] = _mm256_add_epi32(s[m][j], _mm256_madd_epi16(q, _mm256_set1_epi32(unit_at(u + m * PACK))));
        }
    for (int m = 0; m < rows; m++)
        for (int j = 0; j < 4; j++)
            _mm256_storeu_si256((__m256i *)(acc + m * COLUMNS) + j, s[m][j]);
}

void WASI_SIMD(wasi_tile_dot)(int32_t *acc, const void *u, const void *panel, const int32_t *sum, wasi_int rows,
                              wasi_int units)
{
    wasi_int m = 0;
    for (; m + 3 <= rows; m += 3)
        dot_rows(acc + m * COLUMNS, (const code *)u + m * PACK, panel, units, 3);
    for (; m < rows; m++)
        dot_rows(acc + m * COLUMNS, (const code *)u + m * PACK, panel, units, 1);
}

#elif defined(WASI_ISA_DOTPROD)

void WASI_SIMD(wasi_panel_sum)(int32_t *sum, const void *panel, wasi_int units)
{
    for (int j = 0; j < 8; j++) {
        int32x4_t s = vdupq_n_s32(0);
        for (wasi_int i = 0; i < units; i++)
            s = vdotq_s32(s, vld1q_s8((const weight *)panel + i * PANEL_STEP + 16 * j), vdupq_n_s8(1));
        vst1q_s32(sum + 4 * j, s);
    }
}

/* sdot wants both operands signed: a = u - 128, and the 128 comes back as 128 sum[n]. A call covers `fours` times four
 * tokens and eight columns: 24 sums for a full tile. */
static inline __attribute__((always_inline)) void dot_columns(int32_t *acc, const code *u, const weight *panel,
                                                              const int32_t *sum, wasi_int units, const int fours)
{
    int32x4_t s[ROWS][2];
    for (int m = 0; m < 4 * fours; m++) {
        s[m][0] = vshlq_n_s32(vld1q_s32(sum), 7);
        s[m][1] = vshlq_n_s32(vld1q_s32(sum + 4), 7);
    }
    for (wasi_int i = 0; i < units; i++, u += TILE_STEP, panel += PANEL_STEP) {
        int8x16_t q0 = vld1q_s8(panel), q1 = vld1q_s8(panel + 16);
        for (int f = 0; f < fours; f++) {
            int8x16_t a = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(u + 16 * f), vdupq_n_u8(0x80)));
            s[4 * f][0] = vdotq_laneq_s32(s[4 * f][0], q0, a, 0);
            s[4 * f][1] = vdotq_laneq_s32(s[4 * f][1], q1, a, 0);
            s[4 * f + 1][0] = vdotq_laneq_s32(s[4 * f + 1][0], q0, a, 1);
            s[4 * f + 1][1] = vdotq_laneq_s32(s[4 * f + 1][1], q1, a, 1);
            s[4 * f + 2][0] = vdotq_laneq_s32(s[4 * f + 2][0], q0, a, 2);
            s[4 * f + 2][1] = vdotq_laneq_s32(s[4 * f + 2][1], q1, a, 2);
            s[4 * f + 3][0] = vdotq_laneq_s32(s[4 * f + 3][0], q0, a, 3);
            s[4 * f + 3][1] = vdotq_laneq_s32(s[4 * f + 3][1], q1, a, 3);
        }
    }
    for (int m = 0; m < 4 * fours; m++) {
        vst1q_s32(acc + m * COLUMNS, s[m][0]);
        vst1q_s32(acc + m * COLUMNS + 4, s[m][1]);
    }
}

void WASI_SIMD(wasi_tile_dot)(int32_t *acc, const void *u, const void *panel, const int32_t *sum, wasi_int rows,
                              wasi_int units)
{
    for (int n = 0; n < COLUMNS; n += 8) {
        if (rows > 8)
            dot_columns(acc + n, u, (const weight *)panel + n * PACK, sum + n, units, 3);
        else if (rows > 4)
            dot_columns(acc + n, u, (const weight *)panel + n * PACK, sum + n, units, 2);
        else
            dot_columns(acc + n, u, (const weight *)panel + n * PACK, sum + n, units, 1);
    }
}

#else

void WASI_SIMD(wasi_panel_sum)(int32_t *sum, const void *panel, wasi_int units)
{
    memset(sum, 0, COLUMNS * sizeof *sum);
    for (const weight *q = panel, *end = q + units * PANEL_STEP; q < end; q += PANEL_STEP)
        for (int n = 0; n < COLUMNS; n++)
            for (int j = 0; j < PACK; j++)
                sum[n] += q[n * PACK + j];
}

void WASI_SIMD(wasi_tile_dot)(int32_t *acc, const void *u, const void *panel, const int32_t *sum, wasi_int rows,
                              wasi_int units)
{
    const code *a = u;
    const weight *q = panel;
    memset(acc, 0, (size_t)rows * COLUMNS * sizeof *acc);
    for (wasi_int i = 0; i < units; i++, a += TILE_STEP, q += PANEL_STEP)
        for (wasi_int m = 0; m < rows; m++)
            for (int n = 0; n < COLUMNS; n++)
                for (int j = 0; j < PACK; j++)
                    acc[m * COLUMNS + n] += (int32_t)a[m * PACK + j] * q[n * PACK + j];
}

#endif

static inline __attribute__((always_inline)) void finish_columns(float *C, wasi_int ldc, const int32_t *acc,
                                                                 const int32_t *sum, const float *t, const int32_t *z,
                                                                 const float *scale, const float *b, const bool add,
                                                                 wasi_int rows, const wasi_int columns)
{
    for (wasi_int m = 0; m < rows; m++, C += ldc, acc += COLUMNS)
#pragma omp simd
        for (wasi_int n = 0; n < columns; n++) {
            float y = (float)(acc[n] - z[m] * sum[n]) * (t[m] * scale[n]) + b[n];
            C[n] = add ? C[n] + y : y;
        }
}

void WASI_SIMD(wasi_tile_finish)(float *C, wasi_int ldc, const int32_t *acc, const int32_t *sum, const float *t,
                                 const int32_t *z, const float *scale, const float *b, bool add, wasi_int rows,
                                 wasi_int columns)
{
    static const float zeros[COLUMNS] = {0};
    b = b ? b : zeros;
    if (columns < COLUMNS)
        finish_columns(C, ldc, acc, sum, t, z, scale, b, add, rows, columns);
    else if (add)
        finish_columns(C, ldc, acc, sum, t, z, scale, b, true, rows, COLUMNS);
    else
        finish_columns(C, ldc, acc, sum, t, z, scale, b, false, rows, COLUMNS);
}
