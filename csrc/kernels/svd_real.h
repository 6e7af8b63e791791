/* Template of svd.c, see common/real32.h. */

wasi_int T(rank_by_variance)(const real *S, wasi_int n, double variance)
{
    double total = 0, sum = 0;
    for (wasi_int i = 0; i < n; i++)
        total += (double)S[i] * (double)S[i];
    wasi_int k = 0;
    do {
        sum += (double)S[k] * (double)S[k];
        k++;
    } while (k < n && sum < variance * total);
    return k;
}

/* Scratch: [A's copy, then its larger factor: m n][other factor: r r][work][iwork: 8 r]. */
typedef struct {
    real *large, *small, *work;
    int32_t *iwork;
    wasi_int lwork;
} T(exact_scratch);

static size_t T(cut_exact)(T(exact_scratch) *e, wasi_scratch s, wasi_int m, wasi_int n)
{
    wasi_int r = WASI_MIN(m, n);
    e->lwork = T(svd_lwork)(m, n);
    e->large = wasi_take(&s, (size_t)(m * n) * sizeof(real));
    e->small = wasi_take(&s, (size_t)(r * r) * sizeof(real));
    e->work = wasi_take(&s, (size_t)e->lwork * sizeof(real));
    e->iwork = wasi_take(&s, 8 * (size_t)r * sizeof(int32_t));
    return s.used;
}

size_t T(svd_exact_work)(wasi_int m, wasi_int n)
{
    T(exact_scratch) e;
    return T(cut_exact)(&e, wasi_scratch_count(), m, n);
}

wasi_status T(svd_exact)(real *S, const real *A, wasi_int m, wasi_int n, void *scratch)
{
    T(exact_scratch) e;
    T(cut_exact)(&e, wasi_scratch_on(scratch), m, n);
    if (!T_PICK(all_finite)(A, m * n))
        return WASI_ERR_NONFINITE;
    memcpy(e.large, A, (size_t)(m * n) * sizeof(real));
    wasi_status status = T(svd)(m, n, e.large, S, e.small, e.work, e.lwork, e.iwork);
    if (status != WASI_ERR_LAPACK)
        return status;
    memcpy(e.large, A, (size_t)(m * n) * sizeof(real));
    return T(svd_safe)(m, n, e.large, S, e.small, e.work, e.lwork);
}

/* The first `cols` columns of `rows` rows. */
static void T(take_columns)(real *to, const real *from, wasi_int ldfrom, wasi_int rows, wasi_int cols)
{
    for (wasi_int i = 0; i < rows; i++)
        memcpy(to + i * cols, from + i * ldfrom, (size_t)cols * sizeof(real));
}

void T(svd_exact_take)(real *U, real *Vt, wasi_int m, wasi_int n, wasi_int K, const void *scratch)
{
    T(exact_scratch) e;
    T(cut_exact)(&e, wasi_scratch_on((void *)(uintptr_t)scratch), m, n);
    wasi_int r = WASI_MIN(m, n);
    T(take_columns)(U, m > n ? e.large : e.small, r, m, K);
    memcpy(Vt, m > n ? e.small : e.large, (size_t)(K * n) * sizeof(real));
}

/* out (m x n, float64) = W op(B), W (m x k) of type real: rows of W are widened in turn. */
typedef struct {
    double *out, *chunks;
    const real *W;
    const double *B;
    bool tb;
    wasi_int n, k;
} T(wide_product);

static wasi_status T(wide_product_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(wide_product) *p = ctx;
    for (wasi_int at = begin; at < end; at += WIDEN_ROWS) {
        wasi_int rows = WASI_MIN(WIDEN_ROWS, end - at);
#if WASI_IS_F32
        double *A = p->chunks + part * WIDEN_ROWS * p->k;
        WASI_PICK(wasi_widen)(A, p->k, p->W + at * p->k, p->k, rows, p->k);
#else
        const double *A = p->W + at * p->k;
#endif
        WASI_TRY(wasi_dgemm1(false, p->tb, rows, p->n, p->k, 1, A, p->k, p->B, p->tb ? p->k : p->n, 0,
                             p->out + at * p->n, p->n));
    }
    return WASI_OK;
}

/* Scratch, r = min(O, I):
 * [B = W C or W F: O I][M, then its eigenvectors as rows: r r][w: r][Z: I I if I < O]
 * [chunks: WIDEN_ROWS I per thread] and, sharing memory: [eigen work][iwork: 3 + 5 r] | [L: O r][orth]. float64. */
typedef struct {
    double *B, *M, *w, *Z, *chunks, *work, *L;
    void *orth;
    int32_t *iwork;
    wasi_int lwork;
} T(whiten_scratch);

static size_t T(cut_whiten)(T(whiten_scratch) *c, wasi_scratch s, wasi_int O, wasi_int I, int n_threads)
{
    wasi_int r = WASI_MIN(O, I);
    c->lwork = wasi_deigh_lwork(r);
    c->B = wasi_take(&s, (size_t)(O * I) * sizeof(double));
    c->M = wasi_take(&s, (size_t)(r * r) * sizeof(double));
    c->w = wasi_take(&s, (size_t)r * sizeof(double));
    c->Z = wasi_take(&s, (size_t)(I < O ? I * I : 0) * sizeof(double));
    c->chunks = wasi_take(&s, (size_t)(n_threads * WIDEN_ROWS * I) * sizeof(double));
    wasi_scratch eigen = s, tall = s;
    c->work = wasi_take(&eigen, (size_t)c->lwork * sizeof(double));
    c->iwork = wasi_take(&eigen, (size_t)(3 + 5 * r) * sizeof(int32_t));
    c->L = wasi_take(&tall, (size_t)(I < O ? O * r : 0) * sizeof(double));
    c->orth = wasi_take(&tall, I < O ? wasi_dorth_work(O, r, n_threads) : 0);
    return WASI_MAX(eigen.used, tall.used);
}

size_t T(whiten_work)(wasi_int O, wasi_int I, int n_threads)
{
    T(whiten_scratch) c;
    return T(cut_whiten)(&c, wasi_scratch_count(), O, I, n_threads);
}

/* M = W C W' (O x O) with the ridge added to C. */
static wasi_status T(whiten_wide)(T(whiten_scratch) *c, const real *W, const double *C, double ridge, wasi_int O,
                                  wasi_int I, int n_threads)
{
    T(wide_product) WC = {c->B, c->chunks, W, C, false, I, I}, WCW = {c->M, c->chunks, W, c->B, true, O, I};
    WASI_TRY(wasi_parallel(n_threads, O, 16, T(wide_product_part), &WC));
    for (wasi_int i = 0; i < O * I; i++)
        c->B[i] += ridge * (double)W[i];
    return wasi_parallel(n_threads, O, 16, T(wide_product_part), &WCW);
}

/* M = F' W' W F (I x I), B = W F. */
static wasi_status T(whiten_tall)(T(whiten_scratch) *c, const real *W, const double *C, double ridge, wasi_int O,
                                  wasi_int I, int n_threads)
{
    memcpy(c->Z, C, (size_t)(I * I) * sizeof(double));
    for (wasi_int i = 0; i < I; i++)
        c->Z[i * I + i] += ridge;
    WASI_TRY(wasi_deigh(I, c->Z, c->w, c->work, c->lwork, c->iwork));
    for (wasi_int i = 0; i < I; i++) {
        double root = sqrt(WASI_MAX(c->w[i], 0));
        for (wasi_int j = 0; j < I; j++)
            c->Z[i * I + j] *= root;
    }
    T(wide_product) WF = {c->B, c->chunks, W, c->Z, true, I, I};
    WASI_TRY(wasi_parallel(n_threads, O, 16, T(wide_product_part), &WF));
    return wasi_dgemm(true, false, I, I, O, 1, c->B, I, c->B, I, 0, c->M, I, n_threads);
}

wasi_status T(whiten)(real *S, const real *W, const double *C, double ridge, wasi_int O, wasi_int I, void *scratch,
                      int n_threads)
{
    T(whiten_scratch) c;
    T(cut_whiten)(&c, wasi_scratch_on(scratch), O, I, n_threads);
    wasi_reuse(c.work, c.iwork + 3 + 5 * WASI_MIN(O, I));
    if (!T_PICK(all_finite)(W, O * I) || !WASI_PICK(wasi_dall_finite)(C, I * I))
        return WASI_ERR_NONFINITE;
    wasi_int r = WASI_MIN(O, I);
    double trace = 0;
    for (wasi_int i = 0; i < I; i++)
        trace += C[i * I + i];
    ridge *= trace / (double)I;
    if (O <= I)
        WASI_TRY(T(whiten_wide)(&c, W, C, ridge, O, I, n_threads));
    else
        WASI_TRY(T(whiten_tall)(&c, W, C, ridge, O, I, n_threads));
    if (!WASI_PICK(wasi_dall_finite)(c.M, r * r)) /* squares beyond float64 */
        return WASI_ERR_NONFINITE;
    WASI_TRY(wasi_deigh(r, c.M, c.w, c.work, c.lwork, c.iwork));
    for (wasi_int i = 0; i < r; i++)
        S[i] = (real)sqrt(WASI_MAX(c.w[r - 1 - i], 0));
    for (wasi_int i = 0; i < r / 2; i++) /* eigenvectors in S's order */
        for (wasi_int j = 0; j < r; j++) {
            double swap = c.M[i * r + j];
            c.M[i * r + j] = c.M[(r - 1 - i) * r + j];
            c.M[(r - 1 - i) * r + j] = swap;
        }
    return WASI_OK;
}

wasi_status T(whiten_take)(real *L, real *R, const real *W, wasi_int O, wasi_int I, wasi_int K, void *scratch,
                           int n_threads)
{
    T(whiten_scratch) c;
    T(cut_whiten)(&c, wasi_scratch_on(scratch), O, I, n_threads);
    const double *V = c.M; /* rows in S's order */
    if (O <= I) {
        for (wasi_int o = 0; o < O; o++)
            for (wasi_int k = 0; k < K; k++)
                L[o * K + k] = (real)V[k * O + o];
    } else {
        wasi_reuse(c.L, c.L + O * I);
        WASI_TRY(wasi_dgemm(false, true, O, K, I, 1, c.B, I, V, I, 0, c.L, K, n_threads));
        WASI_TRY(wasi_dorth(c.L, NULL, c.L, O, K, c.orth, n_threads)); /* divides by S, and more safely */
        for (wasi_int i = 0; i < O * K; i++)
            L[i] = (real)c.L[i];
    }
    return T(gemm)(true, false, K, I, O, 1, L, K, W, I, 0, R, I, n_threads);
}
