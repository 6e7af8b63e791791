/* Template of orth.c, see common/real32.h. */

#undef ONE_PASS
#undef HOUSEHOLDER
#undef RANK_TOLERANCE
#if WASI_IS_F32
#define ONE_PASS 1e-8      /* rcond(G) from which a single pass is orthonormal to 1e-7 */
#define HOUSEHOLDER 1e-13  /* rcond(G) below which a second pass does not repair the first */
#define RANK_TOLERANCE 1e-6
#else
#define ONE_PASS 2 /* never */
#define HOUSEHOLDER 1e-10
#define RANK_TOLERANCE 1e-14
#endif

/* Scratch of the passes, for each part of the loop: [G: k k][chunk: min(CHUNK, m) k] float64. */
typedef struct {
    const real *A;
    real *B;
    const double *Tinv;
    double *base; /* part p's scratch starts at base + p * stride */
    size_t stride;
    bool wide;
    wasi_int m, k;
} T(pass);

static size_t T(cut_pass)(T(pass) *pass, wasi_scratch s, wasi_int m, wasi_int k, int n_threads)
{
    pass->stride = (size_t)(k * k + WASI_MIN(CHUNK, m) * k + 8);
    pass->base = wasi_take(&s, pass->stride * (size_t)n_threads * sizeof(double));
    return s.used;
}

size_t T(gram_work)(wasi_int m, wasi_int k, int n_threads)
{
    T(pass) pass;
    return T(cut_pass)(&pass, wasi_scratch_count(), m, k, n_threads);
}

/* Positions begin..end of the long dimension, as float64: where they lie (float64) or widened into `chunk`. */
static const double *T(as_double)(const T(pass) *p, wasi_int begin, wasi_int end, double *chunk, wasi_int *ld)
{
    const real *from = p->A + begin * (p->wide ? 1 : p->k);
    wasi_int ldfrom = p->wide ? p->m : p->k;
#if WASI_IS_F32
    *ld = p->wide ? end - begin : p->k;
    WASI_PICK(wasi_widen)(chunk, *ld, from, ldfrom, p->wide ? p->k : end - begin, *ld);
    return chunk;
#else
    *ld = ldfrom;
    return from;
#endif
}

static wasi_status T(gram_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(pass) *p = ctx;
    double *G = p->base + (size_t)part * p->stride, *chunk = G + p->k * p->k;
    wasi_int length = WASI_IS_F32 ? CHUNK : end - begin, ld;
    for (wasi_int at = begin; at < end; at += length) {
        wasi_int to = WASI_MIN(at + length, end);
        const double *A = T(as_double)(p, at, to, chunk, &ld);
        WASI_TRY(wasi_dsyrk1(!p->wide, p->k, to - at, 1, A, ld, 1, G, p->k));
    }
    return WASI_OK;
}

wasi_status T(gram)(double *G, const real *A, bool wide, wasi_int m, wasi_int k, void *scratch, int n_threads)
{
    T(pass) pass = {.A = A, .wide = wide, .m = m, .k = k};
    T(cut_pass)(&pass, wasi_scratch_on(scratch), m, k, n_threads);
    n_threads = threads_for(m, k, n_threads);
    for (int p = 0; p < n_threads; p++)
        memset(pass.base + (size_t)p * pass.stride, 0, (size_t)(k * k) * sizeof(double));
    WASI_TRY(wasi_parallel(n_threads, m, 16, T(gram_part), &pass));
    for (wasi_int i = 0; i < k; i++)
        for (wasi_int j = i; j < k; j++) {
            double sum = 0;
            for (int p = 0; p < n_threads; p++)
                sum += pass.base[(size_t)p * pass.stride + (size_t)(i * k + j)];
            G[i * k + j] = G[j * k + i] = sum;
        }
    return WASI_OK;
}

static wasi_status T(divide_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(pass) *p = ctx;
    for (wasi_int at = begin; at < end; at += CHUNK) {
        wasi_int n = WASI_MIN(CHUNK, end - at), offset = at * (p->wide ? 1 : p->k);
        wasi_int ld = p->wide ? p->m : p->k, rows = p->wide ? p->k : n, cols = p->wide ? n : p->k;
#if WASI_IS_F32
        double *chunk = p->base + (size_t)part * p->stride + p->k * p->k;
        WASI_PICK(wasi_widen)(chunk, cols, p->A + offset, ld, rows, cols);
        WASI_TRY(wasi_dtrmm1(p->wide, p->wide, rows, cols, p->Tinv, p->k, chunk, cols));
        WASI_PICK(wasi_narrow)(p->B + offset, ld, chunk, cols, rows, cols);
#else
        if (p->B != p->A)
            for (wasi_int i = 0; i < rows; i++)
                memcpy(p->B + offset + i * ld, p->A + offset + i * ld, (size_t)cols * sizeof(real));
        WASI_TRY(wasi_dtrmm1(p->wide, p->wide, rows, cols, p->Tinv, p->k, p->B + offset, ld));
#endif
    }
    return WASI_OK;
}

wasi_status T(divide)(real *B, const real *A, const double *Tinv, bool wide, wasi_int m, wasi_int k, void *scratch,
                      int n_threads)
{
    T(pass) pass = {.A = A, .B = B, .Tinv = Tinv, .wide = wide, .m = m, .k = k};
    T(cut_pass)(&pass, wasi_scratch_on(scratch), m, k, n_threads);
    return wasi_parallel(threads_for(m, k, n_threads), m, 16, T(divide_part), &pass);
}

/* Scratch: [G, T, Tinv: k k each][factor][passes | Householder: [tau, tau of R, signs: k each][work][iwork: k]]. */
typedef struct {
    double *G, *T, *Tinv, *R_tau, *R_work, *sign;
    void *factor, *pass;
    real *tau, *work;
    int32_t *iwork;
    wasi_int lwork, R_lwork;
} T(orth_scratch);

static size_t T(cut_orth)(T(orth_scratch) *o, wasi_scratch s, wasi_int m, wasi_int k, int n_threads)
{
    size_t square = (size_t)(k * k) * sizeof(double);
    o->G = wasi_take(&s, square);
    o->T = wasi_take(&s, square);
    o->Tinv = wasi_take(&s, square);
    o->sign = wasi_take(&s, (size_t)k * sizeof(double));
    o->factor = wasi_take(&s, wasi_gram_factor_work(k));
    wasi_scratch passes = s, householder = s;
    o->pass = wasi_take(&passes, T(gram_work)(m, k, n_threads));
    o->lwork = T(qr_lwork)(m, k);
    o->R_lwork = wasi_dpivoted_qr_lwork(k);
    o->tau = wasi_take(&householder, (size_t)k * sizeof(real));
    o->work = wasi_take(&householder, (size_t)o->lwork * sizeof(real));
    o->R_tau = wasi_take(&householder, (size_t)k * sizeof(double));
    o->R_work = wasi_take(&householder, (size_t)o->R_lwork * sizeof(double));
    o->iwork = wasi_take(&householder, (size_t)k * sizeof(int32_t));
    return WASI_MAX(passes.used, householder.used);
}

size_t T(orth_work)(wasi_int m, wasi_int k, int n_threads)
{
    T(orth_scratch) o;
    return T(cut_orth)(&o, wasi_scratch_count(), m, k, n_threads);
}

/* The Gram matrix of A and its factor; rcond = 0 also where float64 squares overflow. */
static wasi_status T(factor)(T(orth_scratch) *o, double *rcond, const real *A, bool wide, wasi_int m, wasi_int k,
                             int n_threads)
{
    WASI_TRY(T(gram)(o->G, A, wide, m, k, o->pass, n_threads));
    wasi_status status = wasi_gram_factor(o->T, o->Tinv, rcond, o->G, k, o->factor);
    if (status == WASI_ERR_NONFINITE && T_PICK(all_finite)(A, m * k)) {
        *rcond = 0;
        return WASI_OK;
    }
    return status;
}

/* The numerical rank of R (k x k, upper triangle of A) with its columns scaled to unit norm, by pivoted QR. */
static wasi_status T(rank_of)(wasi_int *rank, T(orth_scratch) *o, const real *A, wasi_int k)
{
    memset(o->G, 0, (size_t)(k * k) * sizeof(double));
    for (wasi_int j = 0; j < k; j++) {
        double largest = 0, sum = 0;
        for (wasi_int i = 0; i <= j; i++)
            largest = WASI_MAX(largest, fabs((double)A[i * k + j]));
        for (wasi_int i = 0; i <= j && largest > 0; i++) {
            o->G[i * k + j] = (double)A[i * k + j] / largest;
            sum += o->G[i * k + j] * o->G[i * k + j];
        }
        for (wasi_int i = 0; i <= j && largest > 0; i++)
            o->G[i * k + j] /= sqrt(sum);
    }
    WASI_TRY(wasi_dpivoted_qr(k, o->G, o->iwork, o->R_tau, o->R_work, o->R_lwork));
    *rank = 0;
    while (*rank < k && fabs(o->G[*rank * (k + 1)]) > RANK_TOLERANCE * fabs(o->G[0]))
        ++*rank;
    return WASI_OK;
}

/* One more CholeskyQR pass on a Q that is nearly orthonormal; what came off it, T and T^-1, joins Tri and Tinv. */
static wasi_status T(polish)(T(orth_scratch) *o, real *Q, double *Tri, double *Tinv, wasi_int m, wasi_int k,
                             int n_threads)
{
    double rcond;
    WASI_TRY(T(factor)(o, &rcond, Q, false, m, k, n_threads));
    if (Tri)
        WASI_TRY(wasi_dtrmm1(true, false, k, k, o->T, k, Tri, k));
    if (Tinv)
        WASI_TRY(wasi_dtrmm1(false, false, k, k, o->Tinv, k, Tinv, k));
    return T(divide)(Q, Q, o->Tinv, false, m, k, o->pass, n_threads);
}

/* Householder on A, already in Q: the reflectors' signs are turned so that T's diagonal is not negative. */
static wasi_status T(householder)(T(orth_scratch) *o, real *Q, double *Tri, wasi_int *rank, wasi_int m, wasi_int k)
{
    wasi_reuse(o->tau, o->iwork + k);
    WASI_TRY(T(qr)(m, k, Q, k, o->tau, o->work, o->lwork));
    if (rank)
        WASI_TRY(T(rank_of)(rank, o, Q, k));
    for (wasi_int i = 0; i < k; i++) {
        o->sign[i] = Q[i * k + i] < 0 ? -1 : 1;
        for (wasi_int j = 0; j < k && Tri; j++)
            Tri[i * k + j] = j < i ? 0 : o->sign[i] * (double)Q[i * k + j];
    }
    WASI_TRY(T(qr_q)(m, k, Q, k, o->tau, o->work, o->lwork));
    for (wasi_int i = 0; i < m; i++)
        for (wasi_int j = 0; j < k; j++)
            Q[i * k + j] *= (real)o->sign[j];
    return WASI_OK;
}

wasi_status T(orth_factor)(real *Q, double *Tri, double *Tinv, bool *regular, wasi_int *rank, const real *A, wasi_int m,
                           wasi_int k, void *scratch, int n_threads)
{
    T(orth_scratch) o;
    T(cut_orth)(&o, wasi_scratch_on(scratch), m, k, n_threads);
    double rcond;
    WASI_TRY(T(factor)(&o, &rcond, A, false, m, k, n_threads));
    *regular = rcond >= HOUSEHOLDER;
    if (*regular) {
        if (rank)
            *rank = k;
        if (Tri)
            memcpy(Tri, o.T, (size_t)(k * k) * sizeof(double));
        if (Tinv)
            memcpy(Tinv, o.Tinv, (size_t)(k * k) * sizeof(double));
        WASI_TRY(T(divide)(Q, A, o.Tinv, false, m, k, o.pass, n_threads));
        return rcond >= ONE_PASS ? WASI_OK : T(polish)(&o, Q, Tri, Tinv, m, k, n_threads);
    }
    if (Q != A)
        memcpy(Q, A, (size_t)(m * k) * sizeof(real));
    WASI_TRY(T(householder)(&o, Q, Tri, rank, m, k));
    return WASI_IS_F32 ? T(polish)(&o, Q, Tri, NULL, m, k, n_threads) : WASI_OK;
}

wasi_status T(orth)(real *Q, wasi_int *rank, const real *A, wasi_int m, wasi_int k, void *scratch, int n_threads)
{
    bool regular;
    return T(orth_factor)(Q, NULL, NULL, &regular, rank, A, m, k, scratch, n_threads);
}

/* Scratch: [G, T, Tinv: k k each][factor][passes]. */
static size_t T(cut_row_factor)(T(orth_scratch) *o, wasi_scratch s, wasi_int k, wasi_int n, int n_threads)
{
    size_t square = (size_t)(k * k) * sizeof(double);
    o->G = wasi_take(&s, square);
    o->T = wasi_take(&s, square);
    o->Tinv = wasi_take(&s, square);
    o->factor = wasi_take(&s, wasi_gram_factor_work(k));
    o->pass = wasi_take(&s, T(gram_work)(n, k, n_threads));
    return s.used;
}

size_t T(row_factor_work)(wasi_int k, wasi_int n, int n_threads)
{
    T(orth_scratch) o;
    return T(cut_row_factor)(&o, wasi_scratch_count(), k, n, n_threads);
}

wasi_status T(row_factor)(double *Tri, double *Tinv, const real *A, real *tmp, wasi_int k, wasi_int n, void *scratch,
                          int n_threads)
{
    T(orth_scratch) o;
    T(cut_row_factor)(&o, wasi_scratch_on(scratch), k, n, n_threads);
    double rcond;
    WASI_TRY(T(factor)(&o, &rcond, A, true, n, k, n_threads));
    if (!(rcond >= COLLAPSED))
        return WASI_ERR_RANK;
    memcpy(Tri, o.T, (size_t)(k * k) * sizeof(double));
    memcpy(Tinv, o.Tinv, (size_t)(k * k) * sizeof(double));
    if (rcond >= ONE_PASS)
        return WASI_OK;
    WASI_TRY(T(divide)(tmp, A, Tinv, true, n, k, o.pass, n_threads)); /* A = T' tmp, tmp = T2' Q */
    WASI_TRY(T(factor)(&o, &rcond, tmp, true, n, k, n_threads));
    WASI_TRY(wasi_dtrmm1(true, false, k, k, o.T, k, Tri, k));
    return wasi_dtrmm1(false, false, k, k, o.Tinv, k, Tinv, k);
}
