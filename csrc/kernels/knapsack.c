/* Dynamic programming over the groups on lists of partial sums instead of a table over weights, so that weights of 2^40
 * bytes cost no more than small ones:
 *
 *     S_0 = {(0, 0)},   S_g+1 = undominated {s + c : s in S_g, c in group g},
 *
 * sorted by weight, values falling. Merging keeps the order: one pointer for each choice walks over S_g, a heap picks the
 * lightest. A sum is dropped where the remaining groups cannot be paid from the limit, or where a bound says that no
 * completion beats the best solution known. The bound is Lagrange's: for any multiplier t >= 0
 *
 *     value >= v_s + sum_{later groups} min_c (v_c + t w_c) - t (limit - w_s),
 *
 * and the t that makes it best for the whole problem is found by bisection beforehand. Completing s with the minimisers
 * of the bound gives the solutions known (Dyer, Riha and Walker, "A hybrid dynamic programming / branch-and-bound
 * algorithm for the multiple-choice knapsack problem", 1995). All sums stay in one pool for the way back. */
#include "kernels/knapsack.h"

#include <math.h>
#include <stdbool.h>

#include "common/scratch.h"

typedef struct {
    double value, weight;
} sums;

typedef struct {
    double *value, *weight; /* max_states: the pool of partial sums */
    int32_t *parent, *pick; /* max_states: whence each came, and by which choice */
    int64_t *start;         /* n + 2: where each S_g begins */
    double *tail_min;       /* n + 1: least weight of the groups from g on */
    double *tail_bound;     /* n + 1: min of v + t w over them */
    sums *tail_known;       /* n + 1: sums of those minimisers */
    int64_t *at;            /* n_choices: for each choice of a group, how far it has walked over S_g */
    int32_t *heap;          /* n_choices: the choices that still walk, the lightest next sum on top */
} tables;

static size_t cut(tables *t, wasi_int n, int64_t n_choices, wasi_int max_states, wasi_scratch s)
{
    t->value = wasi_take(&s, (size_t)max_states * sizeof(double));
    t->weight = wasi_take(&s, (size_t)max_states * sizeof(double));
    t->parent = wasi_take(&s, (size_t)max_states * sizeof(int32_t));
    t->pick = wasi_take(&s, (size_t)max_states * sizeof(int32_t));
    t->start = wasi_take(&s, ((size_t)n + 2) * sizeof(int64_t));
    t->tail_min = wasi_take(&s, ((size_t)n + 1) * sizeof(double));
    t->tail_bound = wasi_take(&s, ((size_t)n + 1) * sizeof(double));
    t->tail_known = wasi_take(&s, ((size_t)n + 1) * sizeof(sums));
    t->at = wasi_take(&s, (size_t)n_choices * sizeof(int64_t));
    t->heap = wasi_take(&s, (size_t)n_choices * sizeof(int32_t));
    return s.used;
}

size_t wasi_knapsack_work(wasi_int n, int64_t n_choices, wasi_int max_states)
{
    tables t;
    return cut(&t, n, n_choices, max_states, wasi_scratch_count());
}

/* The choice of a group that minimises v + t w; of equals the lighter, then the first. t = INFINITY: the lightest, then
 * the one of least value. */
static int64_t minimiser(const double *v, const double *w, int64_t count, double t)
{
    int64_t best = 0;
    for (int64_t c = 1; c < count; c++) {
        double a = isinf(t) ? w[c] : v[c] + t * w[c], b = isinf(t) ? w[best] : v[best] + t * w[best];
        bool tied_better = isinf(t) ? v[c] < v[best] : w[c] < w[best];
        if (a < b || (a == b && tied_better))
            best = c;
    }
    return best;
}

static sums solution_at(const double *v, const double *w, const int64_t *first, wasi_int n, double t)
{
    sums s = {0, 0};
    for (wasi_int g = 0; g < n; g++) {
        int64_t c = first[g] + minimiser(v + first[g], w + first[g], first[g + 1] - first[g], t);
        s.value += v[c];
        s.weight += w[c];
    }
    return s;
}

/* The least multiplier, to 60 halvings, whose minimisers fit; INFINITY where only the lightest do. Any multiplier gives
 * a true bound, so the result's last bits do not matter. */
static double best_multiplier(const double *v, const double *w, const int64_t *first, wasi_int n, double limit)
{
    if (solution_at(v, w, first, n, 0).weight <= limit)
        return 0;
    double low = 0, high = 1e-30;
    while (solution_at(v, w, first, n, high).weight > limit) {
        low = high;
        high *= 16;
        if (high > 1e30)
            return INFINITY;
    }
    for (int i = 0; i < 60; i++) {
        double middle = low + (high - low) / 2;
        if (solution_at(v, w, first, n, middle).weight > limit)
            low = middle;
        else
            high = middle;
    }
    return high;
}

static void sift_down(int32_t *heap, int64_t size, int64_t i, const int64_t *at, const double *v, const double *w,
                      const double *sv, const double *sw)
{
    for (;;) {
        int64_t least = i;
        for (int64_t child = 2 * i + 1; child <= 2 * i + 2 && child < size; child++) {
            int32_t a = heap[child], b = heap[least];
            double wa = sw[at[a]] + w[a], wb = sw[at[b]] + w[b], va = sv[at[a]] + v[a], vb = sv[at[b]] + v[b];
            if (wa < wb || (wa == wb && (va < vb || (va == vb && a < b))))
                least = child;
        }
        if (least == i)
            return;
        int32_t moved = heap[i];
        heap[i] = heap[least];
        heap[least] = moved;
        i = least;
    }
}

/* What the groups from each on cost at least, and the solutions known of them: `multiplier` picks these, `slope`, a finite
 * one, bounds. */
static void bound_tails(tables *t, const double *values, const double *weights, const int64_t *first, wasi_int n,
                        double multiplier, double slope)
{
    t->tail_min[n] = t->tail_bound[n] = 0;
    t->tail_known[n] = (sums){0, 0};
    for (wasi_int g = n - 1; g >= 0; g--) {
        const double *v = values + first[g], *w = weights + first[g];
        int64_t count = first[g + 1] - first[g];
        int64_t likely = minimiser(v, w, count, multiplier), bound = minimiser(v, w, count, slope);
        t->tail_min[g] = t->tail_min[g + 1] + w[minimiser(v, w, count, INFINITY)];
        t->tail_bound[g] = t->tail_bound[g + 1] + (v[bound] + slope * w[bound]);
        t->tail_known[g].value = t->tail_known[g + 1].value + v[likely];
        t->tail_known[g].weight = t->tail_known[g + 1].weight + w[likely];
    }
}

typedef struct {
    double limit, slope;
    double known;      /* the least value of the solutions known */
    int64_t used, max; /* sums in the pool, and room there */
} search;

/* S_g+1 from S_g and the choices v, w of group g. */
static wasi_status add_group(tables *t, search *s, wasi_int g, const double *v, const double *w, int64_t size)
{
    /* Sums in another order than that of the groups may round otherwise: bounds get room, solutions known lose some. */
    const double room = 1e-12;
    const double *sv = t->value + t->start[g], *sw = t->weight + t->start[g];
    int64_t n_sums = t->start[g + 1] - t->start[g];
    for (int64_t c = 0; c < size; c++) {
        t->at[c] = 0;
        t->heap[c] = (int32_t)c;
    }
    for (int64_t i = size / 2 - 1; i >= 0; i--)
        sift_down(t->heap, size, i, t->at, v, w, sv, sw);
    double last_value = INFINITY;
    while (size > 0) {
        int32_t c = t->heap[0];
        int64_t from = t->at[c]++;
        double new_value = sv[from] + v[c], new_weight = sw[from] + w[c];
        if (t->at[c] == n_sums)
            t->heap[0] = t->heap[--size];
        if (size > 0)
            sift_down(t->heap, size, 0, t->at, v, w, sv, sw);
        if ((new_weight + t->tail_min[g + 1]) * (1 - room) > s->limit)
            break; /* those to come are heavier */
        if (new_value >= last_value)
            continue;
        last_value = new_value;
        if (new_weight + t->tail_known[g + 1].weight <= s->limit * (1 - room))
            s->known = WASI_MIN(s->known, new_value + t->tail_known[g + 1].value);
        double bound = new_value + t->tail_bound[g + 1] - s->slope * (s->limit - new_weight);
        if (bound > s->known + room * (new_value + t->tail_bound[g + 1] + s->slope * s->limit + s->known))
            continue;
        if (s->used == s->max)
            return WASI_ERR_MEMORY;
        t->value[s->used] = new_value;
        t->weight[s->used] = new_weight;
        t->parent[s->used] = (int32_t)from;
        t->pick[s->used] = c;
        s->used++;
    }
    t->start[g + 2] = s->used;
    return WASI_OK;
}

wasi_status wasi_knapsack(int32_t *choice, double *value, double *weight, const double *values, const double *weights,
                          const int64_t *first, wasi_int n, double limit, wasi_int max_states, void *work)
{
    double heaviest = 0, dearest = 0;
    for (int64_t c = first[0]; c < first[n]; c++) {
        if (!(values[c] >= 0 && weights[c] >= 0))
            return WASI_ERR_NONFINITE;
        heaviest += weights[c];
        dearest += values[c];
    }
    if (isnan(limit) || isinf(heaviest) || isinf(dearest))
        return WASI_ERR_NONFINITE;
    limit = WASI_MIN(limit, heaviest); /* finite, for the bound */

    sums lightest = solution_at(values, weights, first, n, INFINITY);
    if (lightest.weight > limit) {
        for (wasi_int g = 0; g < n; g++)
            choice[g] = (int32_t)minimiser(values + first[g], weights + first[g], first[g + 1] - first[g], INFINITY);
        *value = lightest.value;
        *weight = lightest.weight;
        return WASI_ERR_RANGE;
    }

    tables t;
    cut(&t, n, first[n], max_states, wasi_scratch_on(work));
    double multiplier = best_multiplier(values, weights, first, n, limit);
    search s = {.limit = limit, .slope = multiplier, .known = lightest.value, .used = 1, .max = max_states};
    if (isinf(multiplier))
        s.slope = 0; /* bound by values alone */
    else
        s.known = WASI_MIN(s.known, solution_at(values, weights, first, n, multiplier).value);
    bound_tails(&t, values, weights, first, n, multiplier, s.slope);
    t.value[0] = t.weight[0] = 0;
    t.parent[0] = t.pick[0] = 0;
    t.start[0] = 0;
    t.start[1] = 1;
    for (wasi_int g = 0; g < n; g++)
        WASI_TRY(add_group(&t, &s, g, values + first[g], weights + first[g], first[g + 1] - first[g]));

    int64_t best = -1;
    for (int64_t i = t.start[n]; i < t.start[n + 1]; i++) /* the last that fits has the least value */
        if (t.weight[i] <= limit)
            best = i;
    *value = t.value[best];
    *weight = t.weight[best];
    for (wasi_int g = n; g > 0; g--) {
        choice[g - 1] = t.pick[best];
        best = t.start[g - 1] + t.parent[best];
    }
    return WASI_OK;
}
