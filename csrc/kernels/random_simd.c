#include "kernels/random_simd.h"

#include <math.h>

#include "common/rng.h"

/* One block of 4 LANES normals from LANES counters, in loops that vectorise: lane l's words go to out[l],
 * out[LANES + l], ... */
enum { LANES = 64, BLOCK = 4 * LANES };

/* ln(u) for u in (0, 1]: u = 2^e m with m in [sqrt(1/2), sqrt(2)), then Cephes' polynomial in m - 1. */
static inline float log_unit(float u)
{
    union {
        float f;
        uint32_t i;
    } bits = {u};
    int32_t e = (int32_t)(bits.i - 0x3f3504f3u) >> 23;
    bits.i -= (uint32_t)e << 23;
    float x = bits.f - 1, z = x * x;
    float y = 7.0376836292e-2f;
    y = y * x - 1.1514610310e-1f;
    y = y * x + 1.1676998740e-1f;
    y = y * x - 1.2420140846e-1f;
    y = y * x + 1.4249322787e-1f;
    y = y * x - 1.6668057665e-1f;
    y = y * x + 2.0000714765e-1f;
    y = y * x - 2.4999993993e-1f;
    y = y * x + 3.3333331174e-1f;
    return x + (y * x * z - 0.5f * z) + (float)e * 0.693147181f;
}

/* sin(pi y) for |y| <= 1/2 */
static inline float sin_pi(float y)
{
    float z = y * y;
    float s = -7.3704309e-3f;
    s = s * z + 8.2145887e-2f;
    s = s * z - 5.9926453e-1f;
    s = s * z + 2.5501640f;
    s = s * z - 5.1677128f;
    s = s * z + 3.1415927f;
    return s * y;
}

/* Two normals from two words: the radius from the first, the angle pi x, -1 <= x < 1, from the second. */
static inline void box_muller(float *a, float *b, uint32_t first, uint32_t second)
{
    float u = (float)(int32_t)((first >> 8) + 1) * 0x1p-24f, x = (float)(int32_t)second * 0x1p-31f;
    float radius = sqrtf(-2 * log_unit(u)), size = fabsf(x);
    float folded = size > 0.5f ? 1 - size : size; /* sin(pi |x|) = sin(pi folded) */
    *a = radius * sin_pi(0.5f - size);            /* cos(pi x) */
    *b = radius * copysignf(sin_pi(folded), x);
}

static inline void normal_block(float *out, uint64_t seed, uint64_t block)
{
    for (int l = 0; l < LANES; l++) {
        uint64_t i = block * LANES + (uint64_t)l;
        uint32_t word[4] = {(uint32_t)i, (uint32_t)(i >> 32), 0, 0};
        wasi_philox(word, seed);
        box_muller(&out[l], &out[LANES + l], word[0], word[1]);
        box_muller(&out[2 * LANES + l], &out[3 * LANES + l], word[2], word[3]);
    }
}

#define NORMAL(name, real)                                                                                             \
    void WASI_SIMD(name)(real *out, uint64_t seed, wasi_int n)                                                         \
    {                                                                                                                  \
        float numbers[BLOCK];                                                                                          \
        for (wasi_int begin = 0; begin < n; begin += BLOCK) {                                                          \
            normal_block(numbers, seed, (uint64_t)(begin / BLOCK));                                                    \
            for (wasi_int i = 0; i < WASI_MIN(BLOCK, n - begin); i++)                                                  \
                out[begin + i] = numbers[i];                                                                           \
        }                                                                                                              \
    }

NORMAL(wasi_snormal, float)
NORMAL(wasi_dnormal, double)
