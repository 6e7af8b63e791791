/* Template of wsi.c, see common/real32.h. */

/* ---- Elementwise passes, in ranges over the threads ---- */

typedef struct {
    real *out, *out2;
    const real *x, *y, *z;
    double a, b, c;
    const wasi_adam *adam;
} T(pass_job);

static wasi_status T(combine_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(pass_job) *j = ctx;
    T_PICK(combine)(j->out + begin, j->a, j->x + begin, j->b, j->y + begin, j->c, j->z + begin, end - begin);
    return WASI_OK;
}

/* out = a x + b y + c z */
static wasi_status T(add3)(real *out, double a, const real *x, double b, const real *y, double c, const real *z,
                           wasi_int n, int n_threads)
{
    T(pass_job) job = {.out = out, .x = x, .y = y, .z = z, .a = a, .b = b, .c = c};
    return wasi_parallel(n_threads, n, wasi_grain(1), T(combine_part), &job);
}

static wasi_status T(direction_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(pass_job) *j = ctx;
    T_PICK(adam_direction)(j->out + begin, j->x + begin, j->y + begin, j->z + begin, j->adam, end - begin);
    return WASI_OK;
}

static wasi_status T(direction)(real *u, const real *m, const real *v, const real *g, const wasi_adam *adam,
                                wasi_int n, int n_threads)
{
    T(pass_job) job = {.out = u, .x = m, .y = v, .z = g, .adam = adam};
    return wasi_parallel(n_threads, n, wasi_grain(1), T(direction_part), &job);
}

static wasi_status T(moments_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(pass_job) *j = ctx;
    T_PICK(adam_moments)(j->out + begin, j->out2 + begin, j->z + begin, j->adam, end - begin);
    return WASI_OK;
}

static wasi_status T(moments)(real *m, real *v, const real *g, const wasi_adam *adam, wasi_int n, int n_threads)
{
    T(pass_job) job = {.out = m, .out2 = v, .z = g, .adam = adam};
    return wasi_parallel(n_threads, n, wasi_grain(1), T(moments_part), &job);
}

/* ---- Small matrices ---- */

static void T(to_real)(real *to, double scale, const double *from, wasi_int n)
{
    for (wasi_int i = 0; i < n; i++)
        to[i] = (real)(scale * from[i]);
}

static void T(squares)(real *x, wasi_int n)
{
    for (wasi_int i = 0; i < n; i++)
        x[i] *= x[i];
}

/* ---- Tangent space ---- */

/* B (O x K) -= L (L' B); P (K x K) is scratch. */
static wasi_status T(project_out)(real *B, const real *L, real *P, wasi_int O, wasi_int K, int n_threads)
{
    WASI_TRY(T(gemm)(true, false, K, K, O, 1, L, K, B, K, 0, P, K, n_threads));
    return T(gemm)(false, false, O, K, K, -1, L, K, P, K, 1, B, K, n_threads);
}

/* B = (I - L L') dL T^-1, the gradient's part off L in the coordinates of R's orthonormal row basis. */
static wasi_status T(tangent)(real *B, const real *L, const real *dL, const double *Tinv, real *P, wasi_int O,
                              wasi_int K, void *pass, int n_threads)
{
    WASI_TRY(T(divide)(B, dL, Tinv, false, O, K, pass, n_threads));
    return T(project_out)(B, L, P, O, K, n_threads);
}

/* Scratch of the norm: [Tinv: K K, float64][P: K K][B: O K][first pass over R: K I][row_factor | divide]. */
typedef struct {
    double *Tinv;
    real *P, *B, *tmp;
    void *pass;
} T(norm_scratch);

static size_t T(cut_norm)(T(norm_scratch) *w, wasi_scratch s, wasi_int O, wasi_int I, wasi_int K, int n_threads)
{
    w->Tinv = wasi_take(&s, (size_t)(K * K) * sizeof(double));
    w->P = wasi_take(&s, (size_t)(K * K) * sizeof(real));
    w->B = wasi_take(&s, (size_t)(O * K) * sizeof(real));
    w->tmp = wasi_take(&s, (size_t)(K * I) * sizeof(real));
    w->pass = wasi_take(&s, WASI_MAX(T(row_factor_work)(K, I, n_threads), T(gram_work)(O, K, n_threads)));
    return s.used;
}

size_t T(wsi_gradient_norm2_work)(wasi_int O, wasi_int I, wasi_int K, int n_threads)
{
    T(norm_scratch) w;
    return T(cut_norm)(&w, wasi_scratch_count(), O, I, K, n_threads);
}

wasi_status T(wsi_gradient_norm2)(double *norm2, double *Tri, const real *L, const real *R, const real *dL,
                                  const real *dR, wasi_int O, wasi_int I, wasi_int K, void *scratch, int n_threads)
{
    T(norm_scratch) w;
    T(cut_norm)(&w, wasi_scratch_on(scratch), O, I, K, n_threads);
    WASI_TRY(T(row_factor)(Tri, w.Tinv, R, w.tmp, K, I, w.pass, n_threads));
    WASI_TRY(T(tangent)(w.B, L, dL, w.Tinv, w.P, O, K, w.pass, n_threads));
    *norm2 = T_PICK(sum_squares)(dR, K * I) + T_PICK(sum_squares)(w.B, O * K);
    return isfinite(*norm2) ? WASI_OK : WASI_ERR_NONFINITE;
}

/* ---- The step ---- */

/* Scratch, float64 first: [Tri][Tinv][T1][T1inv][M][GL][GB][GBM][N][Ninv][X][Z: K K each], then of type real:
 * [P][D][E: K K each][Q][A1][Qnew: K I each][B][B2, where the rule keeps a state: O K each][passes]. */
typedef struct {
    double *Tri, *Tinv, *T1, *T1inv, *M, *GL, *GB, *GBM, *N, *Ninv, *X, *Z;
    real *P, *D, *E, *Q, *A1, *Qnew, *B, *B2;
    void *pass;
} T(step_scratch);

static size_t T(cut_step)(T(step_scratch) *w, wasi_scratch s, wasi_wsi_rule rule, wasi_int O, wasi_int I, wasi_int K,
                          int n_threads)
{
    double **squares[] = {&w->Tri, &w->Tinv, &w->T1, &w->T1inv, &w->M, &w->GL,
                          &w->GB,  &w->GBM,  &w->N,  &w->Ninv,  &w->X, &w->Z};
    for (size_t i = 0; i < sizeof squares / sizeof *squares; i++)
        *squares[i] = wasi_take(&s, (size_t)(K * K) * sizeof(double));
    real **small[] = {&w->P, &w->D, &w->E};
    for (size_t i = 0; i < sizeof small / sizeof *small; i++)
        *small[i] = wasi_take(&s, (size_t)(K * K) * sizeof(real));
    w->Q = wasi_take(&s, (size_t)(K * I) * sizeof(real));
    w->A1 = wasi_take(&s, (size_t)(K * I) * sizeof(real));
    w->Qnew = wasi_take(&s, (size_t)(K * I) * sizeof(real));
    w->B = wasi_take(&s, (size_t)(O * K) * sizeof(real));
    w->B2 = wasi_take(&s, rule == WASI_WSI_SGD ? 0 : (size_t)(O * K) * sizeof(real));
    size_t factor = WASI_MAX(T(row_factor_work)(K, I, n_threads), wasi_gram_factor_work(K));
    w->pass = wasi_take(&s, WASI_MAX(factor, T(gram_work)(O, K, n_threads)));
    return s.used;
}

size_t T(wsi_step_work)(wasi_wsi_rule rule, wasi_int O, wasi_int I, wasi_int K, int n_threads)
{
    T(step_scratch) w;
    return T(cut_step)(&w, wasi_scratch_count(), rule, O, I, K, n_threads);
}

/* A1 = R - lr A and B of the rule's direction, from the gradient's coordinates (dR, B). Writes no state; AdamW leaves
 * the gradient's B in B2. */
static wasi_status T(choose_direction)(T(step_scratch) *w, const real *L, const real *R, const real *mA, const real *mB,
                                       const real *vA, const real *vB, const real *dR, const wasi_wsi_options *o,
                                       wasi_int O, wasi_int I, wasi_int K, int n_threads)
{
    double keep = 1 - o->lr * o->weight_decay, s = o->grad_scale;
    wasi_int nA = K * I, nB = O * K;
    if (o->rule == WASI_WSI_ADAMW) {
        wasi_adam adam = adam_of(o);
        memcpy(w->B2, w->B, (size_t)nB * sizeof(real));
        WASI_TRY(T(direction)(w->B, mB, vB, w->B2, &adam, nB, n_threads));
        WASI_TRY(T(project_out)(w->B, L, w->P, O, K, n_threads));
        WASI_TRY(T(direction)(w->A1, mA, vA, dR, &adam, nA, n_threads));
        return T(add3)(w->A1, keep, R, -o->lr, w->A1, 0, R, nA, n_threads);
    }
    double mu = o->rule == WASI_WSI_MOMENTUM ? o->momentum : 0;
    WASI_TRY(T(add3)(w->B, s, w->B, mu, mB ? mB : w->B, 0, w->B, nB, n_threads));
    return T(add3)(w->A1, keep, R, -o->lr * s, dR, -o->lr * mu, mA ? mA : R, nA, n_threads);
}

/* The state takes the gradient in: the buffer of momentum, the moments of AdamW. Still at the old point. */
static wasi_status T(update_state)(T(step_scratch) *w, const real *R, real *mA, real *mB, real *vA, real *vB,
                                   const real *dR, const wasi_wsi_options *o, wasi_int O, wasi_int I, wasi_int K,
                                   int n_threads)
{
    if (o->rule == WASI_WSI_ADAMW) {
        wasi_adam adam = adam_of(o);
        WASI_TRY(T(moments)(mA, vA, dR, &adam, K * I, n_threads));
        return T(moments)(mB, vB, w->B2, &adam, O * K, n_threads);
    }
    memcpy(mB, w->B, (size_t)(O * K) * sizeof(real));
    return T(add3)(mA, o->momentum, mA, o->grad_scale, dR, o->weight_decay, R, K * I, n_threads);
}

/* The state moves to the new tangent space. L, R are new, R's triangle is in T1; Q is the old row basis; w->B the direction,
 * so that the old L = (L N + lr B M) is at hand up to a part in the span of the new L. */
static wasi_status T(transport_state)(T(step_scratch) *w, const real *L, const real *R, real *mA, real *mB, real *vA,
                                      real *vB, double lr, wasi_int O, wasi_int I, wasi_int K, int n_threads)
{
    wasi_int KK = K * K, nA = K * I, nB = O * K;
    WASI_TRY(T(divide)(w->Qnew, R, w->T1inv, true, I, K, w->pass, n_threads));
    WASI_TRY(T(gemm)(false, true, K, K, I, 1, w->Q, I, w->Qnew, I, 0, w->D, K, n_threads));

    /* B2 = (I - L L') (lr B M (mA Q_new') + mB D) */
    WASI_TRY(T(gemm)(false, true, K, K, I, 1, mA, I, w->Qnew, I, 0, w->E, K, n_threads));
    for (wasi_int i = 0; i < KK; i++)
        w->Z[i] = (double)w->E[i];
    WASI_TRY(wasi_dgemm(false, false, K, K, K, lr, w->M, K, w->Z, K, 0, w->GBM, K, n_threads));
    T(to_real)(w->E, 1, w->GBM, KK);
    WASI_TRY(T(gemm)(false, false, O, K, K, 1, w->B, K, w->E, K, 0, w->B2, K, n_threads));
    WASI_TRY(T(gemm)(false, false, O, K, K, 1, mB, K, w->D, K, 1, w->B2, K, n_threads));
    WASI_TRY(T(project_out)(w->B2, L, w->P, O, K, n_threads));

    /* A1 = X mA + (L' mB) Q */
    T(to_real)(w->P, 1, w->X, KK);
    WASI_TRY(T(gemm)(true, false, K, K, O, 1, L, K, mB, K, 0, w->E, K, n_threads));
    WASI_TRY(T(gemm)(false, false, K, I, K, 1, w->P, K, mA, I, 0, w->A1, I, n_threads));
    WASI_TRY(T(gemm)(false, false, K, I, K, 1, w->E, K, w->Q, I, 1, w->A1, I, n_threads));
    memcpy(mA, w->A1, (size_t)nA * sizeof(real));
    memcpy(mB, w->B2, (size_t)nB * sizeof(real));

    if (vA) {
        T(squares)(w->P, KK);
        T(squares)(w->D, KK);
        WASI_TRY(T(gemm)(false, false, K, I, K, 1, w->P, K, vA, I, 0, w->A1, I, n_threads));
        WASI_TRY(T(gemm)(false, false, O, K, K, 1, vB, K, w->D, K, 0, w->B2, K, n_threads));
        memcpy(vA, w->A1, (size_t)nA * sizeof(real));
        memcpy(vB, w->B2, (size_t)nB * sizeof(real));
    }
    return WASI_OK;
}

/* Whether R_new = P A1 + D Q stays within the range of the type: |A1_k|^2 = sum_i T1_ik^2, and Q's rows have norm 1. */
static bool T(in_range)(const T(step_scratch) *w, wasi_int K)
{
    const double largest = (WASI_IS_F32 ? FLT_MAX : DBL_MAX) / 2;
    double *norm = w->GBM; /* no longer needed */
    for (wasi_int k = 0; k < K; k++) {
        double square = 0;
        for (wasi_int i = 0; i <= k; i++)
            square += w->T1[i * K + k] * w->T1[i * K + k];
        norm[k] = sqrt(square);
    }
    for (wasi_int i = 0; i < K; i++) {
        double bound = 0;
        for (wasi_int k = 0; k < K; k++)
            bound += fabs(w->X[i * K + k]) * norm[k] + fabs(w->Z[i * K + k]);
        if (!(bound < largest))
            return false;
    }
    return true;
}

/* The new factors from K x K products, before anything is written: M = Q A1' (A1 A1')^-1, N^-1, X = L_new' L, and of type
 * real P = X, D = -lr L_new' B, E = -lr M N^-1, so that R_new = P A1 + D Q and L_new = L N^-1 + B E. */
static wasi_status T(solve_step)(T(step_scratch) *w, const real *L, double lr, wasi_int O, wasi_int I, wasi_int K,
                                 int n_threads)
{
    wasi_int KK = K * K;
    WASI_TRY(T(row_factor)(w->T1, w->T1inv, w->A1, w->Qnew, K, I, w->pass, n_threads));
    WASI_TRY(T(gemm)(false, true, K, K, I, 1, w->Q, I, w->A1, I, 0, w->D, K, n_threads));
    for (wasi_int i = 0; i < KK; i++)
        w->M[i] = (double)w->D[i];
    WASI_TRY(wasi_dtrmm1(false, false, K, K, w->T1inv, K, w->M, K));
    WASI_TRY(wasi_dtrmm1(false, true, K, K, w->T1inv, K, w->M, K));

    /* N' N = (L - lr B M)' (L - lr B M) */
    double rcond;
    WASI_TRY(T(gram)(w->GL, L, false, O, K, w->pass, n_threads));
    WASI_TRY(T(gram)(w->GB, w->B, false, O, K, w->pass, n_threads));
    WASI_TRY(wasi_dgemm(false, false, K, K, K, 1, w->GB, K, w->M, K, 0, w->GBM, K, n_threads));
    memcpy(w->Z, w->GL, (size_t)KK * sizeof(double));
    WASI_TRY(wasi_dgemm(true, false, K, K, K, lr * lr, w->M, K, w->GBM, K, 1, w->Z, K, n_threads));
    WASI_TRY(wasi_gram_factor(w->N, w->Ninv, &rcond, w->Z, K, w->pass));
    if (!(rcond > 0))
        return WASI_ERR_RANK;

    memcpy(w->X, w->GL, (size_t)KK * sizeof(double));
    WASI_TRY(wasi_dtrmm1(true, true, K, K, w->Ninv, K, w->X, K));
    for (wasi_int i = 0; i < K; i++)
        for (wasi_int j = 0; j < K; j++)
            w->Z[i * K + j] = lr * lr * w->GBM[j * K + i];
    WASI_TRY(wasi_dtrmm1(true, true, K, K, w->Ninv, K, w->Z, K));
    memcpy(w->N, w->M, (size_t)KK * sizeof(double));
    WASI_TRY(wasi_dtrmm1(false, false, K, K, w->Ninv, K, w->N, K));
    T(to_real)(w->P, 1, w->X, KK);
    T(to_real)(w->D, 1, w->Z, KK);
    T(to_real)(w->E, -lr, w->N, KK);
    return T(in_range)(w, K) && T_PICK(all_finite)(w->E, KK) ? WASI_OK : WASI_ERR_NONFINITE;
}

wasi_status T(wsi_step)(real *L, real *R, real *mA, real *mB, real *vA, real *vB, const double *Tri, const real *dL,
                        const real *dR, const wasi_wsi_options *o, wasi_int O, wasi_int I, wasi_int K, void *scratch,
                        int n_threads)
{
    T(step_scratch) w;
    T(cut_step)(&w, wasi_scratch_on(scratch), o->rule, O, I, K, n_threads);

    /* R = T' Q, the gradient's coordinates, the direction. */
    if (Tri) {
        memcpy(w.Tinv, Tri, (size_t)(K * K) * sizeof(double));
        WASI_TRY(wasi_dtrtri(K, w.Tinv, K));
    } else {
        WASI_TRY(T(row_factor)(w.Tri, w.Tinv, R, w.A1, K, I, w.pass, n_threads));
    }
    WASI_TRY(T(divide)(w.Q, R, w.Tinv, true, I, K, w.pass, n_threads));
    WASI_TRY(T(tangent)(w.B, L, dL, w.Tinv, w.P, O, K, w.pass, n_threads));
    WASI_TRY(T(choose_direction)(&w, L, R, mA, mB, vA, vB, dR, o, O, I, K, n_threads));

    WASI_TRY(T(solve_step)(&w, L, o->lr, O, I, K, n_threads));
    real *R_new = mA ? w.Qnew : R; /* the state wants its triangle, which may fail, and the old R after that */
    WASI_TRY(T(gemm)(false, false, K, I, K, 1, w.P, K, w.A1, I, 0, R_new, I, n_threads));
    WASI_TRY(T(gemm)(false, false, K, I, K, 1, w.D, K, w.Q, I, 1, R_new, I, n_threads));
    if (mA) {
        WASI_TRY(T(row_factor)(w.T1, w.T1inv, R_new, w.A1, K, I, w.pass, n_threads));
        WASI_TRY(T(update_state)(&w, R, mA, mB, vA, vB, dR, o, O, I, K, n_threads));
        memcpy(R, R_new, (size_t)(K * I) * sizeof(real));
    }
    WASI_TRY(T(divide)(L, L, w.Ninv, false, O, K, w.pass, n_threads));
    WASI_TRY(T(gemm)(false, false, O, K, K, 1, w.B, K, w.E, K, 1, L, K, n_threads));
    return mA ? T(transport_state)(&w, L, R, mA, mB, vA, vB, o->lr, O, I, K, n_threads) : WASI_OK;
}
