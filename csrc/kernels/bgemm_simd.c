#include "kernels/bgemm_simd.h"

#if defined(WASI_ISA_AVX512) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)

#include <immintrin.h>

#define BF16 __attribute__((target("avx512bf16")))

enum { ROWS = WASI_BGEMM_ROWS, COLUMNS = WASI_BGEMM_COLUMNS, LANES = 16, HALVES = COLUMNS / LANES, AHEAD = 8 * LANES };

bool WASI_SIMD(wasi_bgemm_supported)(void)
{
    return __builtin_cpu_supports("avx512bf16");
}

/* The first n of 16 lanes; n may be negative or larger. */
static inline __mmask16 first(wasi_int n)
{
    return n >= LANES ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

/* Lane j of vector i becomes lane i of vector j. */
static inline void transpose(__m512i v[LANES])
{
    __m512i t[LANES];
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; j++) {
            v[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            v[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    /* v[4 q + c] now holds, in its lane quarter p, column 4 p + c of the rows 4 q to 4 q + 3. */
    for (int c = 0; c < 4; c++)
        for (int q = 0; q < 2; q++) {
            t[4 * c + q] = _mm512_shuffle_i32x4(v[8 * q + c], v[8 * q + 4 + c], 0x88);
            t[4 * c + q + 2] = _mm512_shuffle_i32x4(v[8 * q + c], v[8 * q + 4 + c], 0xdd);
        }
    for (int c = 0; c < 4; c++) {
        v[c] = _mm512_shuffle_i32x4(t[4 * c], t[4 * c + 1], 0x88);
        v[c + 8] = _mm512_shuffle_i32x4(t[4 * c], t[4 * c + 1], 0xdd);
        v[c + 4] = _mm512_shuffle_i32x4(t[4 * c + 2], t[4 * c + 3], 0x88);
        v[c + 12] = _mm512_shuffle_i32x4(t[4 * c + 2], t[4 * c + 3], 0xdd);
    }
}

/* The first n_units units of 16 vectors, those that are wanted, side by side unit for unit. */
static inline void put_vectors(uint32_t *units, int width, __mmask16 wanted, __m512i v[LANES], wasi_int n_units)
{
    transpose(v);
    for (wasi_int u = 0; u < n_units; u++)
        _mm512_mask_storeu_epi32(units + u * width, wanted, v[u]);
}

BF16 void WASI_SIMD(wasi_bgemm_pack_rows)(uint32_t *units, int width, const float *source, wasi_int ld, wasi_int n,
                                          wasi_int K)
{
    for (wasi_int k = 0; k < K; k += 2 * LANES) {
        __mmask16 low = first(K - k), high = first(K - k - LANES);
        wasi_int n_units = WASI_MIN((K - k + 1) / 2, LANES);
        for (int j = 0; j < width; j += LANES) {
            __m512i v[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                const float *row = source + (j + i) * ld + k;
                _mm_prefetch(row + AHEAD, _MM_HINT_T1);
                _mm_prefetch(row + AHEAD + LANES, _MM_HINT_T1);
                v[i] = j + i < n ? (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(high, row + LANES),
                                                                 _mm512_maskz_loadu_ps(low, row))
                                 : _mm512_setzero_si512();
            }
            put_vectors(units + j, width, first(width - j), v, n_units);
        }
        units += LANES * width;
    }
}

BF16 void WASI_SIMD(wasi_bgemm_pack_columns)(uint32_t *units, int width, const float *source, wasi_int ld, wasi_int n,
                                             wasi_int K)
{
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (wasi_int k = 0; k < K; k += 2, units += width)
        for (int j = 0; j < width; j += LANES) {
            const float *row = source + k * ld + j;
            __mmask16 here = first(n - j);
            __m512 even = _mm512_maskz_loadu_ps(here, row);
            __m512 odd = k + 1 < K ? _mm512_maskz_loadu_ps(here, row + ld) : _mm512_setzero_ps();
            __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
            _mm512_mask_storeu_epi32(units + j, first(width - j), _mm512_permutexvar_epi16(pairs, both));
        }
}

/* The first n of 32 halves of lanes. */
static inline __mmask32 first_halves(wasi_int n)
{
    return n >= 2 * LANES ? 0xffffffff : n <= 0 ? 0 : (1u << n) - 1;
}

void WASI_SIMD(wasi_bgemm_take_rows)(uint32_t *units, int width, const uint16_t *source, wasi_int ld, wasi_int n, wasi_int K)
{
    for (wasi_int k = 0; k < K; k += 2 * LANES) {
        __mmask32 here = first_halves(K - k);
        wasi_int n_units = WASI_MIN((K - k + 1) / 2, LANES);
        for (int j = 0; j < width; j += LANES) {
            __m512i v[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                v[i] = j + i < n ? _mm512_maskz_loadu_epi16(here, source + (j + i) * ld + k) : _mm512_setzero_si512();
            put_vectors(units + j, width, first(width - j), v, n_units);
        }
        units += LANES * width;
    }
}

void WASI_SIMD(wasi_bgemm_take_columns)(uint32_t *units, int width, const uint16_t *source, wasi_int ld, wasi_int n,
                                        wasi_int K)
{
    for (wasi_int k = 0; k < K; k += 2, units += width)
        for (int j = 0; j < width; j += LANES) {
            const uint16_t *row = source + k * ld + j;
            __mmask16 here = first(n - j), below = k + 1 < K ? here : 0;
            __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(here, row));
            __m512i odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(below, row + ld));
            _mm512_mask_storeu_epi32(units + j, first(width - j), _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
        }
}

BF16 void WASI_SIMD(wasi_bgemm_tile)(float *C, wasi_int ldc, const uint32_t *tile, const uint32_t *panel, wasi_int n,
                                     const float *b, bool add, wasi_int rows, wasi_int columns)
{
    __m512 sum[ROWS][HALVES];
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 2
        for (int h = 0; h < HALVES; h++)
            sum[m][h] = _mm512_setzero_ps();
    for (wasi_int u = 0; u < n; u++, tile += ROWS, panel += COLUMNS) {
        __m512bh p[HALVES];
#pragma GCC unroll 2
        for (int h = 0; h < HALVES; h++)
            p[h] = (__m512bh)_mm512_load_si512(panel + LANES * h);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; m++) {
            __m512bh t = (__m512bh)_mm512_set1_epi32((int)tile[m]);
#pragma GCC unroll 2
            for (int h = 0; h < HALVES; h++)
                sum[m][h] = _mm512_dpbf16_ps(sum[m][h], t, p[h]);
        }
    }
    __mmask16 wanted[HALVES];
    __m512 bias[HALVES];
    for (int h = 0; h < HALVES; h++) {
        wanted[h] = first(columns - LANES * h);
        bias[h] = b ? _mm512_maskz_loadu_ps(wanted[h], b + LANES * h) : _mm512_setzero_ps();
    }
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++) {
        if (m >= rows)
            break;
        float *row = C + m * ldc;
#pragma GCC unroll 2
        for (int h = 0; h < HALVES; h++) {
            __m512 value = _mm512_add_ps(sum[m][h], bias[h]);
            if (add)
                value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(wanted[h], row + LANES * h));
            _mm512_mask_storeu_ps(row + LANES * h, wanted[h], value);
        }
    }
}

#else

bool WASI_SIMD(wasi_bgemm_supported)(void)
{
    return false;
}

void WASI_SIMD(wasi_bgemm_pack_rows)(uint32_t *units, int width, const float *source, wasi_int ld, wasi_int n, wasi_int K)
{
}

void WASI_SIMD(wasi_bgemm_pack_columns)(uint32_t *units, int width, const float *source, wasi_int ld, wasi_int n,
                                        wasi_int K)
{
}

void WASI_SIMD(wasi_bgemm_take_rows)(uint32_t *units, int width, const uint16_t *source, wasi_int ld, wasi_int n, wasi_int K)
{
}

void WASI_SIMD(wasi_bgemm_take_columns)(uint32_t *units, int width, const uint16_t *source, wasi_int ld, wasi_int n,
                                        wasi_int K)
{
}

void WASI_SIMD(wasi_bgemm_tile)(float *C, wasi_int ldc, const uint32_t *tile, const uint32_t *panel, wasi_int n,
                                const float *b, bool add, wasi_int rows, wasi_int columns)
{
}

#endif
