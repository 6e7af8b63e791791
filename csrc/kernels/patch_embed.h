/* Images to rows of patches, and patch embeddings to tokens.
 *
 * Images B x C x S x S (S = g p), patches (B g g) x (C p p): a row holds a patch channel by channel, row by row, the
 * order of a flattened convolution kernel O x C x p x p, so that the embedding is one GEMM. Pixels are float32, or
 * bytes that are scaled and shifted on the way. Tokens: P = g g patch embeddings, with a class token before them if
 * there is one, plus a position each. */
#ifndef WASI_KERNELS_PATCH_EMBED_H
#define WASI_KERNELS_PATCH_EMBED_H

#include "common/status.h"

/* A byte of channel c becomes byte scale[c] + shift[c]. */
wasi_status wasi_extract_patches_u8(float *patches, const uint8_t *images, const float *scale, const float *shift,
                                    wasi_int B, wasi_int C, wasi_int S, wasi_int p, int n_threads);
wasi_status wasi_extract_patches_f32(float *patches, const float *images, wasi_int B, wasi_int C, wasi_int S,
                                     wasi_int p, int n_threads);
/* The transpose: each pixel lies in one patch. */
wasi_status wasi_fold_patches(float *images, const float *patches, wasi_int B, wasi_int C, wasi_int S, wasi_int p,
                              int n_threads);

/* tokens (B x (n_cls + P) x C) from rows (B x P x C), cls (C, NULL where n_cls = 0) and pos ((n_cls + P) x C);
 * n_cls is 0 or 1. */
wasi_status wasi_assemble_tokens(float *tokens, const float *rows, const float *cls, const float *pos, wasi_int B,
                                 wasi_int P, wasi_int C, int n_cls, int n_threads);
/* drows = dtokens without the class token's; dcls, dpos add sums over the batch, each may be NULL. */
wasi_status wasi_assemble_tokens_backward(float *drows, float *dcls, float *dpos, const float *dtokens, wasi_int B,
                                          wasi_int P, wasi_int C, int n_cls, int n_threads);

#endif
