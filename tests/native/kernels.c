/* Kernels with scratch memory on blocks of exactly the sizes that their headers name, for valgrind and sanitizers: what is read
 * or written beyond one, or used before it was set, is theirs. Prints the number of calls; exit status 1 where one fails or a
 * result depends on what scratch memory held. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/blas.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "kernels/attention.h"
#include "kernels/conv.h"
#include "kernels/layernorm.h"
#include "kernels/linear.h"
#include "kernels/orth.h"
#include "kernels/qgemm.h"
#include "kernels/quantize.h"
#include "kernels/svd.h"
#include "kernels/wsi.h"

static int calls;
static void *blocks[64];
static int n_blocks;
static unsigned char fill; /* of scratch memory: a result must not depend on it */

static void *take(size_t bytes)
{
    void *block = malloc(bytes ? bytes : 1);
    if (block == NULL || n_blocks == 64)
        abort();
    blocks[n_blocks++] = block;
    return block;
}

static void *scratch(size_t bytes)
{
    return memset(take(bytes), fill, bytes);
}

static void release(void)
{
    while (n_blocks > 0)
        free(blocks[--n_blocks]);
}

static float *floats(wasi_int n)
{
    static uint32_t state = 1;
    float *x = take((size_t)n * sizeof *x);
    for (wasi_int i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)state / 2147483648.0f;
    }
    return x;
}

static void need(wasi_status status, const char *what)
{
    calls++;
    if (status != WASI_OK) {
        fprintf(stderr, "%s: %s\n", what, wasi_status_text(status));
        exit(1);
    }
}

/* Reads every number, so that one that was never set is seen to be used. */
static double sum(const float *x, wasi_int n)
{
    double total = 0;
    for (wasi_int i = 0; i < n; i++)
        total += x[i];
    return total;
}

static double linear(wasi_int M, wasi_int O, wasi_int I, int T)
{
    float *x = floats(M * I), *W = floats(O * I), *b = floats(O), *y = take(M * O * 4), *dx = take(M * I * 4);
    float *dW = floats(O * I), *db = floats(O);
    need(wasi_linear_forward(y, x, W, b, M, O, I, NULL, T), "linear_forward");
    need(wasi_linear_backward(dx, dW, db, y, x, W, M, O, I, NULL, T), "linear_backward");
    return sum(y, M * O) + sum(dx, M * I) + sum(dW, O * I) + sum(db, O);
}

static double layer_norm(wasi_int M, wasi_int C, int T)
{
    float *x = floats(M * C), *w = floats(C), *b = floats(C), *y = take(M * C * 4), *dx = take(M * C * 4);
    float *mean = take(M * 4), *rstd = take(M * 4), *dw = floats(C), *db = floats(C);
    need(wasi_layer_norm_forward(NULL, y, mean, rstd, x, NULL, w, b, 1e-5f, M, C, T), "layer_norm_forward");
    need(wasi_layer_norm_backward(dx, dw, db, y, x, mean, rstd, w, NULL, M, C, scratch(wasi_layer_norm_backward_work(C, T)), T),
         "layer_norm_backward");
    return sum(y, M * C) + sum(dx, M * C) + sum(dw, C) + sum(db, C);
}

static double attention(wasi_int N, wasi_int H, wasi_int D, int T)
{
    wasi_int n = N * H * D;
    wasi_attention a = {.B = 1, .Nq = N, .Nk = N, .H = H, .Hkv = H, .D = D, .scale = 0.5f, .causal = true, .n_masks = 0};
    float *q = floats(n), *k = floats(n), *v = floats(n), *o = take(n * 4), *lse = take(H * N * 4);
    float *dq = take(n * 4), *dk = take(n * 4), *dv = take(n * 4);
#define HEADS(x) {x, n, H * D, D}
    need(wasi_attention_forward((wasi_heads)HEADS(o), lse, (wasi_const_heads)HEADS(q), (wasi_const_heads)HEADS(k),
                                (wasi_const_heads)HEADS(v), &a, scratch(wasi_attention_forward_work(&a, T)), T), "attention_forward");
    need(wasi_attention_backward((wasi_heads)HEADS(dq), (wasi_heads)HEADS(dk), (wasi_heads)HEADS(dv), NULL,
                                 (wasi_const_heads)HEADS(o), (wasi_const_heads)HEADS(q), (wasi_const_heads)HEADS(k),
                                 (wasi_const_heads)HEADS(v), (wasi_const_heads)HEADS(o), lse, &a,
                                 scratch(wasi_attention_backward_work(&a, false, T)), T), "attention_backward");
    return sum(o, n) + sum(dq, n) + sum(dk, n) + sum(dv, n);
}

static double quantized(wasi_int M, wasi_int O, wasi_int I, int bits, bool exact, int T)
{
    float *W = floats(O * I), *x = floats(M * I), *y = take(M * O * 4), *dx = take(M * I * 4), *r = take(O * 4), *c = take(I * 4);
    uint8_t *codes = take(O * wasi_quant_row_bytes(I, bits)), *s = bits == 4 ? take(O * wasi_quant_groups(I, 32)) : NULL;
    need(wasi_quantize(codes, s, r, c, W, O, I, 32, bits, scratch(wasi_quantize_work(I)), T), "quantize");
    wasi_quant Q = {codes, s, r, c, O, I, 32, bits};
    need(wasi_qgemm_forward(y, x, &Q, NULL, false, exact, M, scratch(wasi_qgemm_work(M, O, I, exact, T)), T), "qgemm_forward");
    need(wasi_qgemm_backward(dx, y, &Q, false, exact, M, scratch(wasi_qgemm_work(M, O, I, exact, T)), T), "qgemm_backward");
    return sum(y, M * O) + sum(dx, M * I);
}

static double convolution(wasi_int H, wasi_int C, wasi_int O, wasi_int k, wasi_int s, int T)
{
    wasi_int pad = k / 2, Ho = (H + 2 * pad - k) / s + 1, in = 2 * H * H * C, out = 2 * Ho * Ho * O;
    wasi_conv conv = {2, H, H, C, k, s, pad, Ho, Ho};
    float *x = floats(in), *W = floats(O * k * k * C), *y = take(out * 4), *dx = take(in * 4), *dW = floats(O * k * k * C);
    need(wasi_conv_forward(y, x, W, NULL, &conv, O, false, scratch(wasi_conv_work(&conv, false, T)), T), "conv_forward");
    need(wasi_conv_backward(dx, dW, NULL, y, x, W, &conv, O, false, scratch(wasi_conv_work(&conv, false, T)), T), "conv_backward");
    return sum(y, out) + sum(dx, in) + sum(dW, O * k * k * C);
}

static double algebra(wasi_int m, wasi_int n, wasi_int K, int T)
{
    float *A = floats(m * n), *S = take(WASI_MIN(m, n) * 4), *U = take(m * K * 4), *Vt = take(K * n * 4);
    void *work = scratch(wasi_ssvd_exact_work(m, n));
    need(wasi_ssvd_exact(S, A, m, n, work), "svd");
    wasi_ssvd_exact_take(U, Vt, m, n, K, work);
    float *L = take(m * K * 4), *R = take(K * n * 4), *dL = floats(m * K), *dR = floats(K * n);
    need(wasi_sorth(L, NULL, U, m, K, scratch(wasi_sorth_work(m, K, T)), T), "orth");
    memcpy(R, Vt, K * n * 4);
    wasi_wsi_options options = {WASI_WSI_ADAMW, 0.01, 1, 0.01, 0.9, 0.9, 0.999, 1e-8, 1};
    float *state[] = {floats(K * n), floats(m * K), floats(K * n), floats(m * K)};
    for (wasi_int i = 0; i < K * n; i++)
        state[2][i] = fabsf(state[2][i]);
    for (wasi_int i = 0; i < m * K; i++)
        state[3][i] = fabsf(state[3][i]);
    need(wasi_swsi_step(L, R, state[0], state[1], state[2], state[3], NULL, dL, dR, &options, m, n, K,
                        scratch(wasi_swsi_step_work(WASI_WSI_ADAMW, m, n, K, T)), T), "wsi_step");
    return sum(S, WASI_MIN(m, n)) + sum(L, m * K) + sum(R, K * n);
}

static double all(int T)
{
    double total = 0;
    static const wasi_int sizes[][3] = {{1, 1, 1}, {3, 5, 7}, {13, 17, 33}, {33, 20, 41}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        wasi_int a = sizes[i][0], b = sizes[i][1], c = sizes[i][2];
        total += linear(a, b, c, T) + layer_norm(b, c, T) + attention(c, 2, b, T) + convolution(b, a, c, 3, 1, T);
        release();
        total += convolution(c / 2 + 1, a, b, 1, 2, T) + quantized(a, b, c, 4, false, T) + quantized(a, b, c, 8, true, T);
        release();
        total += algebra(c, b, (a + 1) / 2 > b ? b : (a + 1) / 2, T) + algebra(b, c, 1, T);
        release();
    }
    return total;
}

int main(void)
{
    wasi_blas_init();
    wasi_isa_init();
    for (int level = WASI_ISA_LEVEL_PLAIN; level <= WASI_ISA_LEVEL_DOTPROD; level++) {
        if (!wasi_isa_select(wasi_isa_name((wasi_isa_level)level)))
            continue;
        for (int T = 1; T <= 3; T += 2) {
            calls = 0;
            fill = 0;
            double zeros = all(T);
            fill = 0xFF; /* NaN */
            double nans = all(T);
            printf("%s, %d threads: %d calls\n", wasi_isa_name(wasi_isa), T, calls);
            if (!isfinite(zeros) || !isfinite(nans)) {
                fprintf(stderr, "a result depends on what scratch memory held: %g and %g\n", zeros, nans);
                return 1;
            }
        }
    }
    return 0;
}
