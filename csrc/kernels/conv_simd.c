#include "kernels/conv_simd.h"

#include <string.h>

/* Run u of a patch is its columns u k C .. (u + 1) k C; in x, `k C` numbers from offset(u) on, of which those of the
 * pixels lo <= v < hi are inside. */
typedef struct {
    wasi_int lo, hi; /* pixels of a run that are inside; lo = hi where none is */
} inside;

static inline inside inside_of(const wasi_conv *conv, wasi_int h, wasi_int w)
{
    if (h < 0 || h >= conv->H)
        return (inside){0, 0};
    wasi_int lo = WASI_MAX(0, -w), hi = WASI_MIN(conv->k, conv->W - w);
    return (inside){lo, WASI_MAX(lo, hi)};
}

void WASI_SIMD(wasi_conv_gather)(float *p, const float *x, const wasi_conv *conv, wasi_int begin, wasi_int end,
                                 wasi_int from, wasi_int to)
{
    const wasi_int C = conv->C, k = conv->k, run = k * C, width = to - from;
    for (wasi_int line = begin; line < end; line++) {
        const float *image = x + line / conv->Ho * conv->H * conv->W * C;
        wasi_int top = line % conv->Ho * conv->s - conv->pad;
        for (wasi_int j = 0; j < conv->Wo; j++, p += width) {
            wasi_int left = j * conv->s - conv->pad;
            for (wasi_int u = from / run; u * run < to; u++) {
                wasi_int first = WASI_MAX(from, u * run), last = WASI_MIN(to, (u + 1) * run);
                inside in = inside_of(conv, top + u, left);
                wasi_int a = WASI_MIN(WASI_MAX(first, u * run + in.lo * C), last);
                wasi_int b = WASI_MAX(WASI_MIN(last, u * run + in.hi * C), a);
                if (a > first)
                    memset(p + first - from, 0, (size_t)(a - first) * sizeof *p);
                if (b > a)
                    memcpy(p + a - from, image + ((top + u) * conv->W + left) * C + (a - u * run),
                           (size_t)(b - a) * sizeof *p);
                if (last > b)
                    memset(p + b - from, 0, (size_t)(last - b) * sizeof *p);
            }
        }
    }
}

void WASI_SIMD(wasi_conv_scatter)(float *dx, const float *p, const wasi_conv *conv, wasi_int begin, wasi_int end)
{
    const wasi_int C = conv->C, run = conv->k * C;
    for (wasi_int line = begin; line < end; line++) {
        float *image = dx + line / conv->Ho * conv->H * conv->W * C;
        wasi_int top = line % conv->Ho * conv->s - conv->pad;
        for (wasi_int j = 0; j < conv->Wo; j++) {
            wasi_int left = j * conv->s - conv->pad;
            for (wasi_int u = 0; u < conv->k; u++, p += run) {
                inside in = inside_of(conv, top + u, left);
                float *to = image + ((top + u) * conv->W + left) * C;
#pragma omp simd
                for (wasi_int q = in.lo * C; q < in.hi * C; q++)
                    to[q] += p[q];
            }
        }
    }
}
