#include "kernels/tucker.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/blas.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "kernels/gemm.h"
#include "kernels/linalg_simd.h"
#include "kernels/orth.h"
#include "kernels/random_simd.h"
#include "kernels/skinny_simd.h"

enum {
    PIECE_NUMBERS = 32768, /* a piece of the array that one GEMM works on fits in L2, with the next one on its way */
    PIECE_MIN = 64,
    PASS_COST = 16,      /* reading a number of the array costs as much as so many FLOPs of a GEMM */
    GRAM_MAX = 512,      /* widest mode whose Gram matrix is iterated on */
    GRAM_ITERATIONS = 3, /* and how often */
    SKINNY_AVX512 = 64,  /* columns up to which our own loops beat packing the array for BLAS, with 32 registers ... */
    SKINNY_AVX2 = 16,    /* ... and with 16 */
    SKINNY_LENGTH = 256, /* ... and the length from which on */
};

/* An array of the given dimensions seen from one mode: `count` matrices of d x length, or one of length x d where the
 * mode is the last, in pieces of `step` along the length. */
typedef struct {
    bool last;
    wasi_int count, d, length, step, n_pieces;
} mode_view;

static wasi_int product(const wasi_int *dim, int begin, int end)
{
    wasi_int n = 1;
    for (int i = begin; i < end; i++)
        n *= dim[i];
    return n;
}

static mode_view view_of(int ndim, const wasi_int *dim, int mode, int n_threads)
{
    mode_view v = {.last = mode == ndim - 1, .d = dim[mode]};
    v.count = v.last ? 1 : product(dim, 0, mode);
    v.length = v.last ? product(dim, 0, mode) : product(dim, mode + 1, ndim);
    wasi_int step = WASI_MAX(PIECE_MIN, PIECE_NUMBERS / v.d), pieces = (v.length + step - 1) / step;
    if (v.count == 1) /* as many for each thread */
        pieces = (pieces + n_threads - 1) / n_threads * n_threads;
    v.step = WASI_MIN(((v.length + pieces - 1) / pieces + 15) / 16 * 16, v.length);
    v.n_pieces = v.count * ((v.length + v.step - 1) / v.step);
    return v;
}

typedef struct {
    wasi_int offset, n, ld; /* first element, positions along the length, distance between rows */
    wasi_int index, at;     /* the matrix and the position that the piece begins at */
} piece;

static piece piece_of(const mode_view *v, wasi_int number)
{
    wasi_int per_matrix = (v->length + v->step - 1) / v->step;
    piece p = {.index = number / per_matrix, .at = number % per_matrix * v->step};
    p.n = WASI_MIN(v->step, v->length - p.at);
    p.ld = v->last ? v->d : v->length;
    p.offset = v->last ? p.at * v->d : p.index * v->d * v->length + p.at;
    return p;
}

/* How far beyond the piece the next of those before `end` lies, 0 if there is none. */
static wasi_int ahead_of(const mode_view *v, wasi_int number, wasi_int end)
{
    return number + 1 < end ? piece_of(v, number + 1).offset - piece_of(v, number).offset : 0;
}

/* Whether products with K columns go through skinny_simd.h; it needs registers that hold a tile. */
static bool is_skinny(const mode_view *v, wasi_int K)
{
    wasi_int most = wasi_isa == WASI_ISA_LEVEL_AVX512 ? SKINNY_AVX512 : SKINNY_AVX2;
    return !v->last && K <= most && v->length >= SKINNY_LENGTH &&
           (wasi_isa == WASI_ISA_LEVEL_AVX2 || wasi_isa == WASI_ISA_LEVEL_AVX512);
}

/* ---- The order of the modes of an ASI step ---- */

typedef struct {
    int n_steps, mode[WASI_TUCKER_DIMS];
    bool gram[WASI_TUCKER_DIMS]; /* by step */
    double cost;
} asi_plan;

/* The cost of one mode on an array of t numbers, in FLOPs at GEMM's speed (syrk runs at half of it); whether the Gram
 * matrix is the cheaper way. */
static double mode_cost(double t, wasi_int d, wasi_int K, int n_iter, bool *gram)
{
    double direct = n_iter * t * (4.0 * (double)K + PASS_COST);
    double by_gram = t * (2.0 * (double)d + PASS_COST) + 2.0 * GRAM_ITERATIONS * (double)d * (double)d * (double)K;
    *gram = d <= GRAM_MAX && by_gram < direct;
    return (*gram ? by_gram : direct) + t * (2.0 * (double)K + PASS_COST);
}

static void search_order(const wasi_tucker_shape *s, int n_iter, int done, double t, asi_plan *current, asi_plan *best)
{
    bool complete = true;
    for (int n = 0; n < s->ndim; n++) {
        if (done >> n & 1 || !s->cut[n])
            continue;
        complete = false;
        double before = current->cost;
        current->mode[current->n_steps] = n;
        current->cost += mode_cost(t, s->dim[n], s->rank[n], n_iter, &current->gram[current->n_steps]);
        current->n_steps++;
        search_order(s, n_iter, done | 1 << n, t * (double)s->rank[n] / (double)s->dim[n], current, best);
        current->n_steps--;
        current->cost = before;
    }
    if (complete && current->cost < best->cost)
        *best = *current;
}

static asi_plan plan_asi(const wasi_tucker_shape *s, int n_iter)
{
    asi_plan current = {0}, best = {.cost = INFINITY};
    search_order(s, n_iter, 0, (double)product(s->dim, 0, s->ndim), &current, &best);
    return best;
}

/* ---- The order of the contractions of matmul_tucker ---- */

typedef struct {
    int n_steps, mode[WASI_TUCKER_DIMS];
    bool grow[WASI_TUCKER_DIMS]; /* by step: S grows by U_n instead of g shrinking by U_n' */
    bool grow_last;              /* S grows by U_N too, before the product */
    wasi_int g_numbers, S_numbers; /* the largest results among the steps, and S grown by U_N */
    double cost;
} matmul_plan;

typedef struct {
    wasi_int g[WASI_TUCKER_DIMS], S[WASI_TUCKER_DIMS]; /* current dimensions */
} matmul_sizes;

static void search_contraction(const wasi_tucker_shape *s, int done, matmul_sizes size, matmul_plan *current,
                               matmul_plan *best)
{
    int last = s->ndim - 1;
    bool complete = true;
    for (int n = 0; n < last; n++) {
        if (done >> n & 1 || !s->cut[n])
            continue;
        complete = false;
        for (int grow = 0; grow < 2; grow++) {
            matmul_plan next = *current;
            matmul_sizes after = size;
            next.mode[next.n_steps] = n;
            next.grow[next.n_steps++] = grow;
            if (grow) {
                next.cost += 2.0 * (double)product(size.S, 0, s->ndim) * (double)s->dim[n];
                after.S[n] = s->dim[n];
                next.S_numbers = WASI_MAX(next.S_numbers, product(after.S, 0, s->ndim));
            } else {
                next.cost += 2.0 * (double)product(size.g, 0, s->ndim) * (double)s->rank[n];
                after.g[n] = s->rank[n];
                next.g_numbers = WASI_MAX(next.g_numbers, product(after.g, 0, s->ndim));
            }
            if (next.cost < best->cost)
                search_contraction(s, done | 1 << n, after, &next, best);
        }
    }
    if (!complete)
        return;
    double rows = (double)product(size.g, 0, last), G = (double)size.g[last];
    double K = (double)s->rank[last], d = (double)s->dim[last];
    double by_H = 2 * rows * G * K + (s->cut[last] ? 2 * G * K * d : 0);
    double by_growth = 2 * rows * K * d + 2 * rows * G * d;
    current->grow_last = by_growth < by_H && s->cut[last];
    if (current->grow_last)
        current->S_numbers = WASI_MAX(current->S_numbers, (wasi_int)(rows * d));
    current->cost += current->grow_last ? by_growth : by_H;
    if (current->cost < best->cost)
        *best = *current;
}

static matmul_plan plan_matmul(const wasi_tucker_shape *s, wasi_int G)
{
    matmul_plan current = {0}, best = {.cost = INFINITY};
    matmul_sizes size;
    for (int n = 0; n < s->ndim; n++) {
        size.g[n] = n == s->ndim - 1 ? G : s->dim[n];
        size.S[n] = s->rank[n];
    }
    search_contraction(s, 0, size, &current, &best);
    return best;
}

#include "common/real32.h"
#include "kernels/tucker_real.h"

#include "common/real64.h"
#include "kernels/tucker_real.h"
