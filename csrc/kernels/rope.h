/* Rotary position embedding (RoPE; Su et al., arXiv 2104.09864), in place on heads of width D.
 *
 * Numbers d and D/2 + d of a head are a point in the plane, turned by the angle of the token's position n:
 *
 *     x[d], x[D/2 + d] = x[d] c - x[D/2 + d] s,  x[D/2 + d] c + x[d] s,   c, s = table of row `start + n`, column d
 *
 * This is Hugging Face's order ("rotate half"). Models whose pairs are neighbours (llama2.c, Meta's files) are served
 * by a permutation of the rows of their query and key weights. The transpose, which backward needs, turns back.
 * x is B x N x H x D; cosines and sines are rows x D/2, rows >= start + N. */
#ifndef WASI_KERNELS_ROPE_H
#define WASI_KERNELS_ROPE_H

#include <stdbool.h>

#include "common/status.h"

wasi_status wasi_rope(float *x, const float *cosines, const float *sines, wasi_int start, bool back, wasi_int B,
                      wasi_int N, wasi_int H, wasi_int D, int n_threads);

#endif
