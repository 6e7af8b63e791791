/* Template of tucker.c, see common/real32.h. */

#undef MODERATE
#undef LEAST
#define MODERATE (WASI_IS_F32 ? 40 : 330) /* binary exponent up to which squares neither overflow nor vanish */
#define LEAST (WASI_IS_F32 ? -126 : -1022) /* of the smallest normal number */

/* ---- One pass over the pieces of an array, seen from one mode ---- */

/* Scratch of a pass, for each part of the loop: [sum: d d or d K][V: K step, or the widened piece: d step]. */
typedef struct {
    mode_view v;
    const real *A, *M;
    real *out;
    bool trans;   /* mode_dot: M is d x K */
    wasi_int K;   /* mode_dot: the new dimension; power: columns of M */
    real alpha;   /* scale of A in power and gram */
    real *sum, *V, *lanes; /* sums start as zeros */
    double *sum64, *wide;
    bool skinny;
} T(pass);

static wasi_status T(dot_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(pass) *j = ctx;
    wasi_int d = j->v.d, K = j->K, ldm = j->trans ? K : d;
    for (wasi_int i = begin; i < end; i++) {
        piece p = piece_of(&j->v, i);
        const real *A = j->A + p.offset;
        if (j->skinny)
            T_PICK(project)(j->out + p.index * K * j->v.length + p.at, p.ld, 1, j->M, A, p.ld, d, K, p.n,
                            ahead_of(&j->v, i, end));
        else if (j->v.last)
            WASI_TRY(T(gemm1)(false, !j->trans, p.n, K, d, 1, A, d, j->M, ldm, 0, j->out + p.at * K, K));
        else
            WASI_TRY(T(gemm1)(j->trans, false, K, p.n, d, 1, j->M, ldm, A, p.ld, 0,
                              j->out + p.index * K * j->v.length + p.at, p.ld));
    }
    return WASI_OK;
}

wasi_status T(mode_dot)(real *out, const real *A, const real *M, bool trans, int ndim, const wasi_int *dim, int mode,
                        wasi_int J, int n_threads)
{
    T(pass) job = {.v = view_of(ndim, dim, mode, n_threads), .A = A, .M = M, .out = out, .trans = trans, .K = J};
    job.skinny = trans && is_skinny(&job.v, J);
    return wasi_parallel(n_threads, job.v.n_pieces, 1, T(dot_part), &job);
}

/* power_part where K is small: the sums in progress lie in `lanes`. */
static void T(skinny_power_part)(const T(pass) *j, wasi_int begin, wasi_int end, int part)
{
    wasi_int d = j->v.d, K = j->K, n_lanes = d * K * (wasi_int)(WASI_LANE_BYTES / sizeof(real));
    real *V = j->V + part * K * j->v.step, *lanes = j->lanes + part * n_lanes;
    memset(lanes, 0, (size_t)n_lanes * sizeof(real));
    for (wasi_int i = begin; i < end; i++) {
        piece p = piece_of(&j->v, i);
        const real *A = j->A + p.offset;
        T_PICK(project)(V, p.n, j->alpha, j->M, A, p.ld, d, K, p.n, ahead_of(&j->v, i, end));
        T_PICK(gather)(lanes, A, p.ld, V, p.n, d, K, p.n);
    }
    T_PICK(join_lanes)(j->sum + part * d * K, j->alpha, lanes, d * K);
}

/* sum (d x K) += A (A' M) over the part's pieces, A' M of a piece staying in V. */
static wasi_status T(power_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(pass) *j = ctx;
    if (j->skinny) {
        T(skinny_power_part)(j, begin, end, part);
        return WASI_OK;
    }
    wasi_int d = j->v.d, K = j->K;
    real *sum = j->sum + part * d * K, *V = j->V + part * K * j->v.step;
    for (wasi_int i = begin; i < end; i++) {
        piece p = piece_of(&j->v, i);
        const real *A = j->A + p.offset;
        if (j->v.last) {
            WASI_TRY(T(gemm1)(false, false, p.n, K, d, j->alpha, A, d, j->M, K, 0, V, K));
            WASI_TRY(T(gemm1)(true, false, d, K, p.n, j->alpha, A, d, V, K, 1, sum, K));
        } else {
            WASI_TRY(T(gemm1)(true, false, K, p.n, d, j->alpha, j->M, K, A, p.ld, 0, V, p.n));
            WASI_TRY(T(gemm1)(false, true, d, K, p.n, j->alpha, A, p.ld, V, p.n, 1, sum, K));
        }
    }
    return WASI_OK;
}

/* sum (d x d, upper) += A A' over the part's pieces. */
static wasi_status T(gram_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(pass) *j = ctx;
    wasi_int d = j->v.d;
    real *sum = j->sum + part * d * d;
    for (wasi_int i = begin; i < end; i++) {
        piece p = piece_of(&j->v, i);
        WASI_TRY(T(syrk1)(j->v.last, d, p.n, j->alpha, j->A + p.offset, p.ld, 1, sum, d));
    }
    return WASI_OK;
}

/* The same in float64. */
static wasi_status T(gram64_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(pass) *j = ctx;
    wasi_int d = j->v.d;
    double *sum = j->sum64 + part * d * d;
    for (wasi_int i = begin; i < end; i++) {
        piece p = piece_of(&j->v, i);
#if WASI_IS_F32
        double *A = j->wide + part * d * j->v.step;
        wasi_int ld = j->v.last ? d : p.n;
        WASI_PICK(wasi_widen)(A, ld, j->A + p.offset, p.ld, j->v.last ? p.n : d, ld);
#else
        const double *A = j->A + p.offset;
        wasi_int ld = p.ld;
#endif
        WASI_TRY(wasi_dsyrk1(j->v.last, d, p.n, 1, A, ld, 1, sum, d));
    }
    return WASI_OK;
}

/* ---- Exact factors ---- */

/* Scratch: [sums: d d per thread][pieces: d step per thread][w: d][eigen work][iwork: 3 + 5 d], float64. */
static size_t T(cut_mode_svd)(T(pass) *job, double **w, double **work, wasi_int *lwork, int32_t **iwork, wasi_scratch s,
                              int n_threads)
{
    size_t d = (size_t)job->v.d;
    *lwork = wasi_deigh_lwork(job->v.d);
    job->sum64 = wasi_take(&s, (size_t)n_threads * d * d * sizeof(double));
    job->wide = wasi_take(&s, WASI_IS_F32 ? (size_t)n_threads * d * (size_t)job->v.step * sizeof(double) : 0);
    *w = wasi_take(&s, d * sizeof(double));
    *work = wasi_take(&s, (size_t)*lwork * sizeof(double));
    *iwork = wasi_take(&s, (3 + 5 * d) * sizeof(int32_t));
    return s.used;
}

size_t T(mode_svd_work)(int ndim, const wasi_int *dim, int mode, int n_threads)
{
    T(pass) job = {.v = view_of(ndim, dim, mode, n_threads)};
    double *w, *work;
    int32_t *iwork;
    wasi_int lwork;
    return T(cut_mode_svd)(&job, &w, &work, &lwork, &iwork, wasi_scratch_count(), n_threads);
}

wasi_status T(mode_svd)(double *S, double *Z, const real *A, int ndim, const wasi_int *dim, int mode, void *scratch,
                        int n_threads)
{
    T(pass) job = {.v = view_of(ndim, dim, mode, n_threads), .A = A};
    double *w, *work;
    int32_t *iwork;
    wasi_int lwork, d = job.v.d;
    T(cut_mode_svd)(&job, &w, &work, &lwork, &iwork, wasi_scratch_on(scratch), n_threads);
    memset(job.sum64, 0, (size_t)(n_threads * d * d) * sizeof(double));
    WASI_TRY(wasi_parallel(n_threads, job.v.n_pieces, 1, T(gram64_part), &job));
    for (int t = 1; t < n_threads; t++)
        for (wasi_int i = 0; i < d * d; i++)
            job.sum64[i] += job.sum64[t * d * d + i];
    if (!WASI_PICK(wasi_dall_finite)(job.sum64, d * d))
        return WASI_ERR_NONFINITE;
    WASI_TRY(wasi_deigh(d, job.sum64, w, work, lwork, iwork));
    for (wasi_int i = 0; i < d; i++) {
        S[i] = sqrt(WASI_MAX(w[d - 1 - i], 0));
        memcpy(Z + i * d, job.sum64 + (d - 1 - i) * d, (size_t)d * sizeof(double));
    }
    return WASI_OK;
}

/* ---- The ASI step ---- */

/* Scratch: [the array after even steps][after odd steps][sums, V, lanes: per thread][Y: d K][orth]. */
typedef struct {
    real *odd, *even, *sum, *V, *lanes, *Y;
    void *orth;
} T(asi_scratch);

static size_t T(cut_asi)(T(asi_scratch) *w, wasi_scratch s, const asi_plan *plan, const wasi_tucker_shape *shape,
                         int n_threads)
{
    wasi_int dim[WASI_TUCKER_DIMS], even = 0, odd = 0, sum = 0, V = 0, lanes = 0, Y = 0;
    size_t orth = 0;
    memcpy(dim, shape->dim, sizeof dim);
    for (int i = 0; i < plan->n_steps; i++) {
        int n = plan->mode[i];
        mode_view v = view_of(shape->ndim, dim, n, n_threads);
        wasi_int K = shape->rank[n];
        sum = WASI_MAX(sum, v.d * (plan->gram[i] ? v.d : K));
        V = WASI_MAX(V, K * v.step);
        lanes = WASI_MAX(lanes, is_skinny(&v, K) ? v.d * K * WASI_LANE_BYTES : 0);
        Y = WASI_MAX(Y, v.d * K);
        orth = WASI_MAX(orth, T(orth_work)(v.d, K, n_threads));
        dim[n] = K;
        if (i + 1 < plan->n_steps) /* the last step writes the core */
            *(i % 2 ? &odd : &even) = WASI_MAX(i % 2 ? odd : even, product(dim, 0, shape->ndim));
    }
    w->even = wasi_take(&s, (size_t)even * sizeof(real));
    w->odd = wasi_take(&s, (size_t)odd * sizeof(real));
    w->sum = wasi_take(&s, (size_t)(n_threads * sum) * sizeof(real));
    w->V = wasi_take(&s, (size_t)(n_threads * V) * sizeof(real));
    w->lanes = wasi_take(&s, (size_t)(n_threads * lanes));
    w->Y = wasi_take(&s, (size_t)Y * sizeof(real));
    w->orth = wasi_take(&s, orth);
    return s.used;
}

size_t T(asi_step_work)(const wasi_tucker_shape *shape, int n_iter, int n_threads)
{
    T(asi_scratch) w;
    asi_plan plan = plan_asi(shape, n_iter);
    return T(cut_asi)(&w, wasi_scratch_count(), &plan, shape, n_threads);
}

/* The binary exponent of the largest of some thousand numbers of A: enough to keep squares in range. At least LEAST, so that a
 * number of its negative exponent exists. */
static int T(exponent_of)(const real *A, wasi_int n)
{
    real largest = 0;
    for (wasi_int i = 0; i < n; i += n / 4096 + 1)
        largest = WASI_MAX(largest, (real)fabs((double)A[i]));
    int exponent = 0;
    if (largest > 0 && isfinite(largest))
        frexp((double)largest, &exponent);
    return WASI_MAX(exponent, LEAST);
}

/* Adds up the parts' sums in the first. */
static void T(add_sums)(real *sum, wasi_int n, int n_parts)
{
    for (int t = 1; t < n_parts; t++)
        for (wasi_int i = 0; i < n; i++)
            sum[i] += sum[t * n + i];
}

/* U = orth(A A' U), n_iter times, on the Gram matrix. */
static wasi_status T(iterate_on_gram)(real *U, T(pass) *job, const T(asi_scratch) *w, int n_iter, int n_threads)
{
    wasi_int d = job->v.d, K = job->K;
    memset(w->sum, 0, (size_t)(n_threads * d * d) * sizeof(real));
    WASI_TRY(wasi_parallel(n_threads, job->v.n_pieces, 1, T(gram_part), job));
    T(add_sums)(w->sum, d * d, n_threads);
    for (wasi_int i = 0; i < d; i++)
        for (wasi_int j = 0; j < i; j++)
            w->sum[i * d + j] = w->sum[j * d + i];
    for (int it = 0; it < n_iter; it++) {
        WASI_TRY(T(gemm)(false, false, d, K, d, 1, w->sum, d, U, K, 0, w->Y, K, n_threads));
        WASI_TRY(T(orth)(U, NULL, w->Y, d, K, w->orth, n_threads));
    }
    return WASI_OK;
}

/* The same on the array itself. */
static wasi_status T(iterate_on_array)(real *U, T(pass) *job, const T(asi_scratch) *w, int n_iter, int n_threads)
{
    wasi_int d = job->v.d, K = job->K;
    job->M = U;
    for (int it = 0; it < n_iter; it++) {
        memset(w->sum, 0, (size_t)(n_threads * d * K) * sizeof(real));
        WASI_TRY(wasi_parallel(n_threads, job->v.n_pieces, 1, T(power_part), job));
        T(add_sums)(w->sum, d * K, n_threads);
        WASI_TRY(T(orth)(U, NULL, w->sum, d, K, w->orth, n_threads));
    }
    return WASI_OK;
}

wasi_status T(asi_step)(real *S, real *const *U, const bool *warm, const real *A, const wasi_tucker_shape *shape,
                        int n_iter, uint64_t seed, void *scratch, int n_threads)
{
    asi_plan plan = plan_asi(shape, n_iter);
    T(asi_scratch) w;
    T(cut_asi)(&w, wasi_scratch_on(scratch), &plan, shape, n_threads);
    wasi_int dim[WASI_TUCKER_DIMS], size = product(shape->dim, 0, shape->ndim);
    memcpy(dim, shape->dim, sizeof dim);
    if (plan.n_steps == 0)
        memcpy(S, A, (size_t)size * sizeof(real));
    int exponent = T(exponent_of)(A, size);
    bool moderate = abs(exponent) < MODERATE;
    for (int i = 0; i < plan.n_steps; i++) {
        int n = plan.mode[i], more = 0;
        wasi_int K = shape->rank[n];
        real *to = i + 1 == plan.n_steps ? S : i % 2 ? w.odd : w.even;
        mode_view view = view_of(shape->ndim, dim, n, n_threads);
        T(pass) job = {.v = view, .A = A, .K = K, .sum = w.sum, .V = w.V,
                       .lanes = w.lanes, .alpha = 1, .skinny = is_skinny(&view, K)};
        if (!warm[n]) {
            T_PICK(normal)(U[n], seed + (uint64_t)n, job.v.d * K);
            more = 2;
        }
        if (plan.gram[i] && moderate) {
            WASI_TRY(T(iterate_on_gram)(U[n], &job, &w, GRAM_ITERATIONS * (1 + more), n_threads));
        } else {
            job.alpha = (real)ldexp(1, -exponent);
            WASI_TRY(T(iterate_on_array)(U[n], &job, &w, n_iter + more, n_threads));
        }
        WASI_TRY(T(mode_dot)(to, A, U[n], true, shape->ndim, dim, n, K, n_threads));
        dim[n] = K;
        A = to;
    }
    return WASI_OK;
}

/* ---- The weight gradient ---- */

/* Scratch: [g after even steps][odd][S after even steps][odd][H: G K_N]; sizes of the larger result for each. */
typedef struct {
    real *g[2], *S[2], *H;
} T(matmul_scratch);

static size_t T(cut_matmul)(T(matmul_scratch) *w, wasi_scratch s, const matmul_plan *plan,
                            const wasi_tucker_shape *shape, wasi_int G)
{
    for (int i = 0; i < 2; i++) {
        w->g[i] = wasi_take(&s, (size_t)plan->g_numbers * sizeof(real));
        w->S[i] = wasi_take(&s, (size_t)plan->S_numbers * sizeof(real));
    }
    w->H = wasi_take(&s, (size_t)(G * shape->rank[shape->ndim - 1]) * sizeof(real));
    return s.used;
}

size_t T(matmul_tucker_work)(const wasi_tucker_shape *shape, wasi_int G)
{
    T(matmul_scratch) w;
    matmul_plan plan = plan_matmul(shape, G);
    return T(cut_matmul)(&w, wasi_scratch_count(), &plan, shape, G);
}

wasi_status T(matmul_tucker)(real *dW, const real *g, const real *S, const real *const *U,
                             const wasi_tucker_shape *shape, wasi_int G, void *scratch, int n_threads)
{
    if (G == 0)
        return WASI_OK;
    matmul_plan plan = plan_matmul(shape, G);
    T(matmul_scratch) w;
    T(cut_matmul)(&w, wasi_scratch_on(scratch), &plan, shape, G);
    int ndim = shape->ndim, last = ndim - 1, n_g = 0, n_S = 0;
    wasi_int g_dim[WASI_TUCKER_DIMS], S_dim[WASI_TUCKER_DIMS], K = shape->rank[last], d = shape->dim[last];
    memcpy(g_dim, shape->dim, sizeof g_dim);
    memcpy(S_dim, shape->rank, sizeof S_dim);
    g_dim[last] = G;
    for (int i = 0; i < plan.n_steps; i++) {
        int n = plan.mode[i];
        if (plan.grow[i]) {
            real *to = w.S[n_S++ % 2];
            WASI_TRY(T(mode_dot)(to, S, U[n], false, ndim, S_dim, n, shape->dim[n], n_threads));
            S_dim[n] = shape->dim[n];
            S = to;
        } else {
            real *to = w.g[n_g++ % 2];
            WASI_TRY(T(mode_dot)(to, g, U[n], true, ndim, g_dim, n, shape->rank[n], n_threads));
            g_dim[n] = shape->rank[n];
            g = to;
        }
    }
    wasi_int rows = product(g_dim, 0, last);
    if (plan.grow_last) {
        real *to = w.S[n_S % 2];
        WASI_TRY(T(gemm)(false, true, rows, d, K, 1, S, K, U[last], K, 0, to, d, n_threads));
        return T(gemm)(true, false, G, d, rows, 1, g, G, to, d, 1, dW, d, n_threads);
    }
    if (!shape->cut[last])
        return T(gemm)(true, false, G, d, rows, 1, g, G, S, d, 1, dW, d, n_threads);
    WASI_TRY(T(gemm)(true, false, G, K, rows, 1, g, G, S, K, 0, w.H, K, n_threads));
    return T(gemm)(false, true, G, d, K, 1, w.H, K, U[last], K, 1, dW, d, n_threads);
}
