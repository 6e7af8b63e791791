/* Softmax attention without a stored Nq x Nk matrix, forward and backward.
 *
 *     s = scale q k' + bias + mask, hidden where causal;  lse = log sum_j exp(s_j);  o = exp(s - lse) v
 *
 * H query heads of width D share Hkv key/value heads (H a multiple of Hkv; query head h reads key head h / (H / Hkv)).
 * Every tensor is B x N x heads x D behind three strides, so packed, separate and cached keys are one code path.
 * With P = exp(s - lse) and delta = rowsum(do * o), recomputed block by block:
 *
 *     dv = P' do,  ds = P * (do v' - delta),  dq = scale ds k,  dk = scale ds' q,  dbias = sum over the batch of ds
 *
 * Windows of images: with window M > 0 batch element b is window (u, v) of M x M tokens of an image of height x width,
 * row by row; an image has height width / M^2 of them, and a tensor's `batch` is the stride of an image. The windows
 * are moved by `shift`, around the border: token (i, j) lies in the image's row (u M + i + shift) mod height and column
 * (v M + j + shift) mod width. Tokens that such a window joins from opposite borders do not see each other.
 *
 * A query that sees no key gets o = 0, lse = -Inf and passes no gradient on. The results' bits do not depend on the
 * thread count. Algorithm: FlashAttention-2 (arXiv 2307.08691), key-major; see attention.c. Windows: Swin transformer
 * (arXiv 2103.14030), section 3.2. */
#ifndef WASI_KERNELS_ATTENTION_H
#define WASI_KERNELS_ATTENTION_H

#include <stdbool.h>

#include "common/status.h"

/* Element (b, n, h, d) lies at data[b * batch + n * row + h * head + d]. */
typedef struct {
    float *data;
    wasi_int batch, row, head;
} wasi_heads;

typedef struct {
    const float *data;
    wasi_int batch, row, head;
} wasi_const_heads;

typedef struct {
    wasi_int B, Nq, Nk, H, Hkv, D; /* Nk >= 1 */
    float scale;
    bool causal;
    wasi_int q_offset;  /* causal: query i sees the keys j <= i + q_offset */
    const float *bias;  /* H x Nq x Nk, or NULL */
    const float *mask;  /* n_masks x Nq x Nk, batch element b adds mask b % n_masks; or NULL */
    wasi_int n_masks;
    wasi_int window; /* M, a divisor of height and width, or 0. With it Nq = Nk = M M, H = Hkv, not causal */
    wasi_int height, width, shift; /* 0 <= shift < M */
} wasi_attention;

/* Scratch bytes. `dbias`: whether the gradient of the bias is wanted. */
size_t wasi_attention_forward_work(const wasi_attention *a, int n_threads);
size_t wasi_attention_backward_work(const wasi_attention *a, bool dbias, int n_threads);

/* o (H heads) and lse (B x H x Nq) from q (H heads), k and v (Hkv heads). */
wasi_status wasi_attention_forward(wasi_heads o, float *lse, wasi_const_heads q, wasi_const_heads k,
                                   wasi_const_heads v, const wasi_attention *a, void *work, int n_threads);

/* dq, dk, dv are overwritten; dbias (H x Nq x Nk, may be NULL) is added to. dout is the gradient of o. */
wasi_status wasi_attention_backward(wasi_heads dq, wasi_heads dk, wasi_heads dv, float *dbias, wasi_const_heads dout,
                                    wasi_const_heads q, wasi_const_heads k, wasi_const_heads v, wasi_const_heads o,
                                    const float *lse, const wasi_attention *a, void *work, int n_threads);

#endif
