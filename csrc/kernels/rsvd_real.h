/* Template of rsvd.c, see common/real32.h. */

/* ---- Norms ---- */

static wasi_status T(norm_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const norm_job *job = ctx;
    job->sums[part] = T_PICK(sum_squares)((const real *)job->x + begin, end - begin);
    return WASI_OK;
}

wasi_status T(norm)(double *norm, const real *A, wasi_int n, int n_threads)
{
    double sums[WASI_MAX_THREADS] = {0}, sum = 0;
    norm_job job = {A, sums};
    WASI_TRY(wasi_parallel(n_threads, n, wasi_grain(1), T(norm_part), &job));
    for (int t = 0; t < n_threads; t++)
        sum += sums[t];
    *norm = sqrt(sum);
    if (isfinite(sum) && (sum > 1e-200 || WASI_IS_F32))
        return WASI_OK;
    if (!T_PICK(all_finite)(A, n))
        return WASI_ERR_NONFINITE;
    double largest = 0; /* float64 beyond the range of its squares */
    for (wasi_int i = 0; i < n; i++)
        largest = WASI_MAX(largest, fabs((double)A[i]));
    sum = 0;
    for (wasi_int i = 0; i < n && largest > 0; i++)
        sum += (double)A[i] / largest * ((double)A[i] / largest);
    *norm = largest * sqrt(sum);
    return WASI_OK;
}

/* ---- Products with B: A (m x n) where m >= n, else A' ---- */

typedef struct {
    const real *A;
    wasi_int n, p, q;
    bool wide;
    real alpha;
} T(operand);

static T(operand) T(operand_of)(const real *A, wasi_int m, wasi_int n, double alpha)
{
    bool wide = m < n;
    return (T(operand)){.A = A, .n = n, .p = wide ? n : m, .q = wide ? m : n, .wide = wide, .alpha = (real)alpha};
}

/* Y (p x c) = alpha B X, X (q x c) */
static wasi_status T(apply)(real *Y, const T(operand) *B, const real *X, wasi_int c, int n_threads)
{
    return T(gemm)(B->wide, false, B->p, c, B->q, B->alpha, B->A, B->n, X, c, 0, Y, c, n_threads);
}

/* X (q x c) = alpha B' Y */
static wasi_status T(apply_transposed)(real *X, const T(operand) *B, const real *Y, wasi_int c, int n_threads)
{
    return T(gemm)(!B->wide, false, B->q, c, B->p, B->alpha, B->A, B->n, Y, c, 0, X, c, n_threads);
}

/* Y (rows x c) = alpha B X for the rows begin.. of B, X (q x c), on this thread */
static wasi_status T(apply_rows)(real *Y, const T(operand) *B, wasi_int begin, wasi_int rows, const real *X, wasi_int c)
{
    const real *A = B->A + begin * (B->wide ? 1 : B->n);
    return T(gemm1)(B->wide, false, rows, c, B->q, B->alpha, A, B->n, X, c, 0, Y, c);
}

/* ---- Blocks ---- */

/* Scratch: [C: done b][numbers: b][orth]. */
typedef struct {
    real *C, *numbers;
    void *orth;
} T(complement_scratch);

static size_t T(cut_complement)(T(complement_scratch) *w, wasi_scratch s, wasi_int done, wasi_int q, wasi_int b,
                                int n_threads)
{
    w->C = wasi_take(&s, (size_t)(done * b) * sizeof(real));
    w->numbers = wasi_take(&s, (size_t)b * sizeof(real));
    w->orth = wasi_take(&s, T(orth_work)(q, b, n_threads));
    return s.used;
}

size_t T(complement_work)(wasi_int done, wasi_int q, wasi_int b, int n_threads)
{
    T(complement_scratch) w;
    return T(cut_complement)(&w, wasi_scratch_count(), done, q, b, n_threads);
}

wasi_status T(complement)(real *X, const real *V, wasi_int ldv, wasi_int done, wasi_int q, wasi_int b, uint64_t seed,
                          void *scratch, int n_threads)
{
    T(complement_scratch) w;
    T(cut_complement)(&w, wasi_scratch_on(scratch), done, q, b, n_threads);
    wasi_int rank;
    for (int round = 0, n_rounds = 2; round < n_rounds; round++) {
        WASI_TRY(T(gemm)(true, false, done, b, q, 1, V, ldv, X, b, 0, w.C, b, n_threads));
        WASI_TRY(T(gemm)(false, false, q, b, done, -1, V, ldv, w.C, b, 1, X, b, n_threads));
        WASI_TRY(T(orth)(X, &rank, X, q, b, w.orth, n_threads));
        if (rank == b || round > 0)
            continue;
        /* What completes a deficient block may lie in V's span: move it out, keeping the rest to FILLING^2. */
        n_rounds = 3;
        for (wasi_int i = 0; i < q; i++) {
            T_PICK(normal)(w.numbers, seed + (uint64_t)i, b);
            for (wasi_int j = 0; j < b; j++)
                X[i * b + j] += (real)(FILLING / sqrt((double)q)) * w.numbers[j];
        }
    }
    return WASI_OK;
}

size_t T(range_start_work)(wasi_int m, wasi_int n, wasi_int l, int n_threads)
{
    return T(orth_work)(WASI_MIN(m, n), l, n_threads);
}

wasi_status T(range_start)(real *V, real *Y, bool random, const real *A, wasi_int m, wasi_int n, wasi_int l,
                           double alpha, uint64_t seed, void *scratch, int n_threads)
{
    T(operand) B = T(operand_of)(A, m, n, alpha);
    if (random)
        T_PICK(normal)(Y, seed, B.p * l);
    WASI_TRY(T(apply_transposed)(V, &B, Y, l, n_threads));
    return T(orth)(V, NULL, V, B.q, l, scratch, n_threads);
}

/* ---- Products with G = alpha^2 B'B ----
 *
 * Of the symmetric matrix the blocks on and above the diagonal are kept, in bands of BAND rows one after another:
 * the band from row r on is BAND x (q - r). */

typedef struct {
    const T(operand) *B;
    real *G, *X;
    const real *V;
    wasi_int l;
    int n_parts;
} T(square_job);

/* Bands t, 2 T - 1 - t, 2 T + t, ... are part t's: equal shares of the triangle, nearly. */
static wasi_status T(square_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(square_job) *j = ctx;
    const T(operand) *B = j->B;
    wasi_int q = B->q, step = B->wide ? B->n : 1; /* step: from one column of B to the next, in A */
    for (wasi_int t = begin; t < end; t++) {
        wasi_int row = t * BAND, back = 2 * (j->n_parts - 1 - t) + 1;
        for (int turn = 0; row < q; turn++) {
            const real *from = B->A + row * step;
            WASI_TRY(T(gemm1)(!B->wide, B->wide, WASI_MIN(BAND, q - row), q - row, B->p, B->alpha * B->alpha, from, B->n,
                              from, B->n, 0, j->G + band_offset(q, row), q - row));
            row += BAND * (turn % 2 ? 2 * j->n_parts - back : back);
        }
    }
    return WASI_OK;
}

/* G, in bands, = alpha^2 B'B */
static wasi_status T(square)(real *G, const T(operand) *B, int n_threads)
{
    T(square_job) job = {.B = B, .G = G, .n_parts = n_threads};
    return wasi_parallel(n_threads, n_threads, 1, T(square_part), &job);
}

static wasi_status T(square_apply_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(square_job) *j = ctx;
    wasi_int q = j->B->q, l = j->l, cols = end - begin;
    for (wasi_int row = 0; row < q; row += BAND) {
        wasi_int rows = WASI_MIN(BAND, q - row), rest = q - row - rows, ld = q - row;
        const real *band = j->G + band_offset(q, row), *V = j->V + row * l + begin;
        real *X = j->X + row * l + begin, beta = row > 0;
        WASI_TRY(T(gemm1)(false, false, rows, cols, ld, 1, band, ld, V, l, beta, X, l));
        if (rest > 0)
            WASI_TRY(T(gemm1)(true, false, rest, cols, rows, 1, band + rows, ld, V, l, beta, X + rows * l, l));
    }
    return WASI_OK;
}

/* X (q x l) = G V; the threads share the columns. */
static wasi_status T(square_apply)(real *X, const real *G, const T(operand) *B, const real *V, wasi_int l,
                                   int n_threads)
{
    T(square_job) job = {.B = B, .G = (real *)(uintptr_t)G, .X = X, .V = V, .l = l};
    return wasi_parallel(n_threads, l, 16, T(square_apply_part), &job);
}

/* ---- The iteration ---- */

/* Scratch: [Tinv, or the interval's matrix: l l, float64][w: l][eigenvalue work: 2 l + 1]
 * and, sharing memory: [C: l l] | [divide | complement]. */
typedef struct {
    double *Tinv, *w, *work;
    real *C;
    void *other;
} T(range_scratch);

static size_t T(cut_range)(T(range_scratch) *w, wasi_scratch s, wasi_int q, wasi_int l, int n_threads)
{
    w->Tinv = wasi_take(&s, (size_t)(l * l) * sizeof(double));
    w->w = wasi_take(&s, (size_t)l * sizeof(double));
    w->work = wasi_take(&s, (size_t)(2 * l + 1) * sizeof(double));
    wasi_scratch interval = s;
    w->C = wasi_take(&interval, (size_t)(l * l) * sizeof(real));
    w->other = wasi_take(&s, T(complement_work)(l, q, l, n_threads));
    return WASI_MAX(s.used, interval.used);
}

size_t T(range_work)(wasi_int m, wasi_int n, wasi_int l, int n_threads)
{
    T(range_scratch) w;
    return T(cut_range)(&w, wasi_scratch_count(), WASI_MIN(m, n), l, n_threads);
}

/* Chebyshev's interval from the Ritz values, the eigenvalues of V' X with X = alpha^2 B'B V: its length a, 0 where
 * acceleration has no use. `slow`: the Ritz values hardly fall, and V is far from invariant. */
static wasi_status T(interval)(double *a, bool *slow, T(range_scratch) *w, const real *V, const real *X, wasi_int q,
                               const wasi_range_options *o, int n_threads)
{
    wasi_int l = o->l, K = o->K;
    wasi_reuse(w->C, w->C + l * l);
    WASI_TRY(T(gemm)(true, false, l, l, q, 1, V, l, X, l, 0, w->C, l, n_threads));
    for (wasi_int i = 0; i < l * l; i++)
        w->Tinv[i] = (double)w->C[i];
    if (!WASI_PICK(wasi_dall_finite)(w->Tinv, l * l))
        return WASI_ERR_NONFINITE;
    WASI_TRY(wasi_deigvals(l, w->Tinv, w->w, w->work));
    double within = 0, next = w->w[K < l ? l - 1 - K : 0];
    for (wasi_int i = 0; i < l; i++)
        within += w->w[i] * w->w[i];
    *slow = next > SLOW_FALL * w->w[l - 1] && within < INVARIANT * T_PICK(sum_squares)(X, q * l);
    *a = (o->two ? INTERVAL_TWO : INTERVAL_ONE) * next;
    if (!(*a > SMALLEST_INTERVAL * w->w[l - 1]))
        *a = 0;
    return WASI_OK;
}

/* Iterates V, products with alpha^2 B'B by G where that is given, else through W = alpha B V. Stops after the first
 * product, with `accelerated` false, where G is given and Chebyshev's interval is negligible. */
static wasi_status T(iterate)(real *V, bool *accelerated, real *X, real *previous, real *W, const real *G,
                              const T(operand) *B, const wasi_range_options *o, T(range_scratch) *w, int n_threads)
{
    wasi_int l = o->l, q = B->q;
    double a = 0;
    int n_iter = o->n_iter;
    *accelerated = false;
    for (int it = 0; it < n_iter; it++) {
        bool regular, slow = false;
        if (G) {
            WASI_TRY(T(square_apply)(X, G, B, V, l, n_threads));
        } else {
            WASI_TRY(T(apply)(W, B, V, l, n_threads));
            WASI_TRY(T(apply_transposed)(X, B, W, l, n_threads));
        }
        if (o->accelerate && it == 0)
            WASI_TRY(T(interval)(&a, &slow, w, V, X, q, o, n_threads));
        if (slow && o->cold)
            n_iter++;
        bool last = it + 1 == n_iter;
        *accelerated = a > 0 || it > 0;
        if (G && !*accelerated)
            return WASI_OK;
        if (a > 0 && it == 0) /* T1(M) V = M V with M = 2 B'B / a - 1 */
            T_PICK(combine)(X, 2 / a, X, -1, V, 0, V, q * l);
        else if (a > 0) /* T[j+1] = 2 M T[j] - T[j-1] */
            T_PICK(combine)(X, 4 / a, X, -2, V, -1, previous, q * l);
        if (last && o->two)
            return T(complement)(X, V, l, l, q, l, o->seed, w->other, n_threads);
        if (o->orthogonalize || last) {
            WASI_TRY(T(orth_factor)(X, NULL, w->Tinv, &regular, NULL, X, q, l, w->other, n_threads));
            if (!regular)
                a = 0;
            if (a > 0)
                WASI_TRY(T(divide)(previous, V, w->Tinv, false, q, l, w->other, n_threads));
        }
        memcpy(V, X, (size_t)(q * l) * sizeof(real));
    }
    return WASI_OK;
}

wasi_status T(range)(real *V, real *X, real *previous, real *W, const real *A, wasi_int m, wasi_int n,
                     const wasi_range_options *options, void *scratch, int n_threads)
{
    T(operand) B = T(operand_of)(A, m, n, options->alpha);
    T(range_scratch) w;
    bool accelerated;
    T(cut_range)(&w, wasi_scratch_on(scratch), B.q, options->l, n_threads);
    if (options->cold) {
        T_PICK(normal)(V, options->seed, B.q * options->l);
        WASI_TRY(T(orth)(V, NULL, V, B.q, options->l, w.other, n_threads));
    }
    WASI_TRY(T(iterate)(V, &accelerated, X, previous, W, NULL, &B, options, &w, n_threads));
    if (options->two) /* the last iteration has left V, and W, as they were */
        return WASI_OK;
    return T(apply)(W, &B, V, options->l, n_threads);
}

/* Scratch: [G, in bands][X, previous: q l each][range]. */
typedef struct {
    real *G, *X, *previous;
    T(range_scratch) range;
} T(gram_range_scratch);

static size_t T(cut_gram_range)(T(gram_range_scratch) *w, wasi_scratch s, wasi_int q, wasi_int l, int n_threads)
{
    w->G = wasi_take(&s, (size_t)band_offset(q, q) * sizeof(real));
    w->X = wasi_take(&s, (size_t)(q * l) * sizeof(real));
    w->previous = wasi_take(&s, (size_t)(q * l) * sizeof(real));
    return T(cut_range)(&w->range, s, q, l, n_threads);
}

size_t T(gram_range_work)(wasi_int m, wasi_int n, wasi_int l, int n_threads)
{
    T(gram_range_scratch) w;
    return T(cut_gram_range)(&w, wasi_scratch_count(), WASI_MIN(m, n), l, n_threads);
}

wasi_status T(gram_range)(real *V, bool *useful, const real *A, wasi_int m, wasi_int n,
                          const wasi_range_options *options, void *scratch, int n_threads)
{
    T(operand) B = T(operand_of)(A, m, n, options->alpha);
    T(gram_range_scratch) w;
    wasi_int q = B.q, l = options->l;
    T(cut_gram_range)(&w, wasi_scratch_on(scratch), q, l, n_threads);
    WASI_TRY(T(square)(w.G, &B, n_threads));
    T_PICK(normal)(w.X, options->seed, q * l);
    WASI_TRY(T(square_apply)(V, w.G, &B, w.X, l, n_threads));
    WASI_TRY(T(orth)(V, NULL, V, q, l, w.range.other, n_threads));
    return T(iterate)(V, useful, w.X, w.previous, NULL, w.G, &B, options, &w.range, n_threads);
}

/* ---- Rayleigh and Ritz ---- */

/* Scratch, D = l or 2 l columns of the basis:
 * [G, then its eigenvectors: D D][w: D][Tri: K K, float64][Y: K D]
 * [BX: p l, for two blocks] and, sharing memory: spectrum, unless `right` has room for it
 * | [rows: ROWS K per thread] | [orth]
 * | float64 only: [other factor: K K][svd work][iwork: 8 K][rows: ROWS K per thread][right: q K].
 * Spectrum, sharing memory: [eigen work][iwork: 3 + 5 D] | [gram]
 * | [sums: D D per thread][pieces: WIDENED D per thread, float64]. */
typedef struct {
    double *G, *w, *Tri, *eigen, *sums, *pieces, *other, *svd_work;
    real *Y, *BX, *rows, *turned_rows, *turned;
    int32_t *eigen_iwork, *svd_iwork;
    void *orth, *gram;
    wasi_int eigen_lwork, svd_lwork;
} T(ritz_scratch);

static size_t T(cut_spectrum)(T(ritz_scratch) *r, wasi_scratch s, wasi_int p, wasi_int l, bool two, int n_threads)
{
    wasi_int D = two ? 2 * l : l, t = n_threads;
    wasi_scratch eigen = s, gram = s;
    r->eigen_lwork = wasi_deigh_lwork(D);
    r->eigen = wasi_take(&eigen, (size_t)r->eigen_lwork * sizeof(double));
    r->eigen_iwork = wasi_take(&eigen, (size_t)(3 + 5 * D) * sizeof(int32_t));
    if (two) {
        r->sums = wasi_take(&gram, (size_t)(t * D * D) * sizeof(double));
        r->pieces = wasi_take(&gram, (size_t)(t * WIDENED * D) * sizeof(double));
    } else {
        r->gram = wasi_take(&gram, T(gram_work)(p, l, n_threads));
    }
    return WASI_MAX(eigen.used, gram.used);
}

/* `right` is NULL while counting. */
static size_t T(cut_ritz)(T(ritz_scratch) *r, wasi_scratch s, real *right, wasi_int p, wasi_int q, wasi_int l,
                          wasi_int K, bool two, int n_threads)
{
    wasi_int D = two ? 2 * l : l, t = n_threads;
    r->G = wasi_take(&s, (size_t)(D * D) * sizeof(double));
    r->w = wasi_take(&s, (size_t)D * sizeof(double));
    r->Tri = wasi_take(&s, (size_t)(K * K) * sizeof(double));
    r->Y = wasi_take(&s, (size_t)(K * D) * sizeof(real));
    r->BX = wasi_take(&s, two ? (size_t)(p * l) * sizeof(real) : 0);
    wasi_scratch rows = s, orth = s, turn = s;
    r->rows = wasi_take(&rows, (size_t)(t * ROWS * K) * sizeof(real));
    r->orth = wasi_take(&orth, T(orth_work)(p, K, n_threads));
    r->svd_lwork = WASI_IS_F32 ? 0 : wasi_dsvd_lwork(K, K);
    if (!WASI_IS_F32) {
        r->other = wasi_take(&turn, (size_t)(K * K) * sizeof(double));
        r->svd_work = wasi_take(&turn, (size_t)r->svd_lwork * sizeof(double));
        r->svd_iwork = wasi_take(&turn, 8 * (size_t)K * sizeof(int32_t));
        r->turned_rows = wasi_take(&turn, (size_t)(t * ROWS * K) * sizeof(real));
        r->turned = wasi_take(&turn, (size_t)(q * K) * sizeof(real));
    }
    size_t most = WASI_MAX(WASI_MAX(rows.used, orth.used), turn.used);
    if (T(cut_spectrum)(r, wasi_scratch_count(), p, l, two, n_threads) > (size_t)(q * K) * sizeof(real))
        return WASI_MAX(most, T(cut_spectrum)(r, s, p, l, two, n_threads));
    if (right)
        T(cut_spectrum)(r, wasi_scratch_on(right), p, l, two, n_threads);
    return most;
}

size_t T(ritz_work)(wasi_int m, wasi_int n, wasi_int l, wasi_int K, bool two, int n_threads)
{
    T(ritz_scratch) r;
    return T(cut_ritz)(&r, wasi_scratch_count(), NULL, WASI_MAX(m, n), WASI_MIN(m, n), l, K, two, n_threads);
}

typedef struct {
    const T(operand) *B;
    T(ritz_scratch) *r;
    real *W;
    const real *X, *M; /* M: the small matrix that rows are multiplied by */
    wasi_int l, K, D;
} T(rows_job);

/* BX = alpha B X and sums += [W, BX]' [W, BX] over rows begin..end */
static wasi_status T(joint_gram_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(rows_job) *j = ctx;
    wasi_int l = j->l, D = j->D;
    double *sum = j->r->sums + part * D * D, *piece = j->r->pieces + part * WIDENED * D;
    WASI_TRY(T(apply_rows)(j->r->BX + begin * l, j->B, begin, end - begin, j->X, l));
    for (wasi_int at = begin, n; at < end; at += n) {
        const real *product = j->r->BX + at * l;
        n = WASI_MIN(WIDENED, end - at);
#if WASI_IS_F32
        WASI_PICK(wasi_widen)(piece, D, j->W + at * l, l, n, l);
        WASI_PICK(wasi_widen)(piece + l, D, product, l, n, l);
#else
        for (wasi_int i = 0; i < n; i++) {
            memcpy(piece + i * D, j->W + (at + i) * l, (size_t)l * sizeof(real));
            memcpy(piece + i * D + l, product + i * l, (size_t)l * sizeof(real));
        }
#endif
        WASI_TRY(wasi_dsyrk1(true, D, n, 1, piece, D, 1, sum, D));
    }
    return WASI_OK;
}

static wasi_status T(joint_gram)(const T(rows_job) *job, int n_threads)
{
    wasi_int DD = job->D * job->D;
    T(ritz_scratch) *r = job->r;
    memset(r->sums, 0, (size_t)(n_threads * DD) * sizeof(double));
    WASI_TRY(wasi_parallel(n_threads, job->B->p, ROWS, T(joint_gram_part), (void *)(uintptr_t)job));
    memcpy(r->G, r->sums, (size_t)DD * sizeof(double));
    for (int t = 1; t < n_threads; t++)
        for (wasi_int i = 0; i < DD; i++)
            r->G[i] += r->sums[t * DD + i];
    return WASI_OK; /* the upper triangle, which is all that eigh reads */
}

/* Row i of W (ld l) becomes [W Y1' + BX Y2']_i in its first K places. */
static wasi_status T(long_vectors_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(rows_job) *j = ctx;
    real *rows = j->r->rows + part * ROWS * j->K;
    for (wasi_int at = begin; at < end; at += ROWS) {
        wasi_int n = WASI_MIN(ROWS, end - at), K = j->K;
        WASI_TRY(T(gemm1)(false, true, n, K, j->l, 1, j->W + at * j->l, j->l, j->M, j->D, 0, rows, K));
        if (j->X)
            WASI_TRY(T(gemm1)(false, true, n, K, j->l, 1, j->r->BX + at * j->l, j->l, j->M + j->l, j->D, 1, rows, K));
        for (wasi_int i = 0; i < n; i++)
            memcpy(j->W + (at + i) * j->l, rows + i * K, (size_t)K * sizeof(real));
    }
    return WASI_OK;
}

#if !WASI_IS_F32
/* W (p x K) <- W M */
static wasi_status T(turn_rows_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(rows_job) *j = ctx;
    real *rows = j->r->turned_rows + part * ROWS * j->K;
    for (wasi_int at = begin; at < end; at += ROWS) {
        wasi_int n = WASI_MIN(ROWS, end - at), K = j->K;
        WASI_TRY(T(gemm1)(false, false, n, K, K, 1, j->W + at * K, K, j->M, K, 0, rows, K));
        memcpy(j->W + at * K, rows, (size_t)(n * K) * sizeof(real));
    }
    return WASI_OK;
}

/* W = U T: T's singular values are more accurate than the roots of G's eigenvalues. Both sides turn to its vectors. */
static wasi_status T(refine)(double *S, real *right, real *W, const T(operand) *B, T(ritz_scratch) *r, wasi_int K,
                             int n_threads)
{
    if (!WASI_PICK(wasi_dall_finite)(r->Tri, K * K))
        return WASI_ERR_NONFINITE;
    wasi_reuse(r->other, r->turned + B->q * K);
    WASI_TRY(wasi_dsvd(K, K, r->Tri, S, r->other, r->svd_work, r->svd_lwork, r->svd_iwork)); /* Tri becomes Vt */
    T(rows_job) job = {.r = r, .W = W, .M = r->other, .K = K};
    WASI_TRY(wasi_parallel(n_threads, B->p, ROWS, T(turn_rows_part), &job));
    if (B->wide)
        WASI_TRY(T(gemm)(false, true, B->q, K, K, 1, right, K, r->Tri, K, 0, r->turned, K, n_threads));
    else
        WASI_TRY(T(gemm)(false, false, K, B->q, K, 1, r->Tri, K, right, B->q, 0, r->turned, B->q, n_threads));
    memcpy(right, r->turned, (size_t)(B->q * K) * sizeof(real));
    return WASI_OK;
}
#endif

wasi_status T(ritz)(real *S, real *right, real *W, const real *V, const real *X, const real *A, wasi_int m, wasi_int n,
                    wasi_int l, wasi_int K, double alpha, void *scratch, int n_threads)
{
    T(operand) B = T(operand_of)(A, m, n, alpha);
    wasi_int p = B.p, q = B.q, D = X ? 2 * l : l;
    T(ritz_scratch) r;
    T(cut_ritz)(&r, wasi_scratch_on(scratch), right, p, q, l, K, X != NULL, n_threads);
    T(rows_job) job = {.B = &B, .r = &r, .W = W, .X = X, .M = r.Y, .l = l, .K = K, .D = D};
    if (X) {
        wasi_reuse(r.sums, r.pieces + n_threads * WIDENED * D);
        WASI_TRY(T(joint_gram)(&job, n_threads));
    } else {
        WASI_TRY(T(gram)(r.G, W, false, p, l, r.gram, n_threads));
    }
    if (!WASI_PICK(wasi_dall_finite)(r.G, D * D))
        return WASI_ERR_NONFINITE;
    wasi_reuse(r.eigen, r.eigen_iwork + 3 + 5 * D);
    WASI_TRY(wasi_deigh(D, r.G, r.w, r.eigen, r.eigen_lwork, r.eigen_iwork));
    for (wasi_int k = 0; k < K; k++) {
        S[k] = (real)sqrt(WASI_MAX(r.w[D - 1 - k], 0));
        for (wasi_int i = 0; i < D; i++)
            r.Y[k * D + i] = (real)r.G[(D - 1 - k) * D + i];
    }

    wasi_reuse(right, right + q * K);
    wasi_reuse(r.rows, r.rows + n_threads * ROWS * K);
    WASI_TRY(wasi_parallel(n_threads, p, ROWS, T(long_vectors_part), &job));
    for (wasi_int i = 0; i < p; i++)
        memmove(W + i * K, W + i * l, (size_t)K * sizeof(real));
    for (int block = 0; block < (X ? 2 : 1); block++) { /* right = V Y1' + X Y2' */
        const real *basis = block ? X : V, *Y = r.Y + block * l;
        if (B.wide)
            WASI_TRY(T(gemm)(false, true, q, K, l, 1, basis, l, Y, D, (real)block, right, K, n_threads));
        else
            WASI_TRY(T(gemm)(false, true, K, q, l, 1, Y, D, basis, l, (real)block, right, q, n_threads));
    }

    bool regular;
    WASI_TRY(T(orth_factor)(W, r.Tri, NULL, &regular, NULL, W, p, K, r.orth, n_threads));
#if !WASI_IS_F32
    WASI_TRY(T(refine)(S, right, W, &B, &r, K, n_threads));
#endif
    for (wasi_int k = 0; k < K; k++)
        S[k] = (real)((double)S[k] / alpha);
    return WASI_OK;
}

/* ---- The Gram matrix of the short side ---- */

/* Scratch, float64: [G, then its eigenvectors: q q][w: q] and, sharing memory: [gram] | [work][iwork: 3 + 5 q]. */
static size_t T(cut_gram_svd)(double **G, double **w, void **gram, double **work, int32_t **iwork, wasi_int *lwork,
                              wasi_scratch s, wasi_int p, wasi_int q, int n_threads)
{
    *G = wasi_take(&s, (size_t)(q * q) * sizeof(double));
    *w = wasi_take(&s, (size_t)q * sizeof(double));
    wasi_scratch eigen = s;
    *gram = wasi_take(&s, T(gram_work)(p, q, n_threads));
    *lwork = wasi_deigh_lwork(q);
    *work = wasi_take(&eigen, (size_t)*lwork * sizeof(double));
    *iwork = wasi_take(&eigen, (size_t)(3 + 5 * q) * sizeof(int32_t));
    return WASI_MAX(s.used, eigen.used);
}

size_t T(gram_svd_work)(wasi_int m, wasi_int n, int n_threads)
{
    double *G, *w, *work;
    void *gram;
    int32_t *iwork;
    wasi_int lwork;
    return T(cut_gram_svd)(&G, &w, &gram, &work, &iwork, &lwork, wasi_scratch_count(), WASI_MAX(m, n), WASI_MIN(m, n),
                           n_threads);
}

wasi_status T(gram_svd)(real *S, real *V, const real *A, wasi_int m, wasi_int n, wasi_int K, void *scratch,
                        int n_threads)
{
    double *G, *w, *work;
    void *gram;
    int32_t *iwork;
    wasi_int lwork, p = WASI_MAX(m, n), q = WASI_MIN(m, n);
    T(cut_gram_svd)(&G, &w, &gram, &work, &iwork, &lwork, wasi_scratch_on(scratch), p, q, n_threads);
    WASI_TRY(T(gram)(G, A, m < n, p, q, gram, n_threads));
    if (!WASI_PICK(wasi_dall_finite)(G, q * q))
        return WASI_ERR_NONFINITE;
    wasi_reuse(work, iwork + 3 + 5 * q);
    WASI_TRY(wasi_deigh(q, G, w, work, lwork, iwork));
    for (wasi_int k = 0; k < K; k++) {
        S[k] = (real)sqrt(WASI_MAX(w[q - 1 - k], 0));
        for (wasi_int i = 0; i < q; i++)
            V[i * K + k] = (real)G[(q - 1 - k) * q + i];
    }
    return WASI_OK;
}

/* ---- The error of a decomposition ---- */

/* Scratch, for each thread: [U S: DIFF_ROWS K][the difference: DIFF_ROWS n]. */
typedef struct {
    const real *A, *U, *S, *Vt;
    real *US, *slab;
    double *sums;
    wasi_int n, K;
    real scale; /* of A and S, a power of two */
} T(diff_job);

static size_t T(cut_diff)(T(diff_job) *job, wasi_scratch s, wasi_int n, wasi_int K, int n_threads)
{
    size_t rows = (size_t)n_threads * DIFF_ROWS;
    job->US = wasi_take(&s, rows * (size_t)K * sizeof(real));
    job->slab = wasi_take(&s, rows * (size_t)n * sizeof(real));
    job->sums = wasi_take(&s, (size_t)n_threads * sizeof(double));
    return s.used;
}

size_t T(diff_norm_work)(wasi_int n, wasi_int K, int n_threads)
{
    T(diff_job) job;
    return T(cut_diff)(&job, wasi_scratch_count(), n, K, n_threads);
}

static wasi_status T(diff_part)(void *ctx, wasi_int begin, wasi_int end, int part)
{
    const T(diff_job) *j = ctx;
    wasi_int n = j->n, K = j->K;
    real *US = j->US + part * DIFF_ROWS * K, *slab = j->slab + part * DIFF_ROWS * n;
    for (wasi_int at = begin; at < end; at += DIFF_ROWS) {
        wasi_int rows = WASI_MIN(DIFF_ROWS, end - at);
        for (wasi_int i = 0; i < rows; i++)
            for (wasi_int k = 0; k < K; k++)
                US[i * K + k] = j->U[(at + i) * K + k] * (j->scale * j->S[k]);
        for (wasi_int i = 0; i < rows * n; i++)
            slab[i] = j->scale * j->A[at * n + i];
        WASI_TRY(T(gemm1)(false, false, rows, n, K, -1, US, K, j->Vt, n, 1, slab, n));
        j->sums[part] += T_PICK(sum_squares)(slab, rows * n);
    }
    return WASI_OK;
}

wasi_status T(diff_norm)(double *norm, const real *A, const real *U, const real *S, const real *Vt, wasi_int m,
                         wasi_int n, wasi_int K, void *scratch, int n_threads)
{
    T(diff_job) job = {.A = A, .U = U, .S = S, .Vt = Vt, .n = n, .K = K, .scale = 1};
    T(cut_diff)(&job, wasi_scratch_on(scratch), n, K, n_threads);
    for (bool again = false;; again = true) {
        memset(job.sums, 0, (size_t)n_threads * sizeof(double));
        WASI_TRY(wasi_parallel(n_threads, m, DIFF_ROWS, T(diff_part), &job));
        double sum = 0, largest = 0;
        for (int t = 0; t < n_threads; t++)
            sum += job.sums[t];
        *norm = sqrt(sum) / (double)job.scale;
        if (again || WASI_IS_F32 || (isfinite(sum) && sum > 1e-200))
            return WASI_OK;
        for (wasi_int i = 0; i < m * n; i++) /* float64 beyond the range of its squares */
            largest = WASI_MAX(largest, fabs((double)A[i]));
        int exponent = 0;
        if (!(largest > 0) || !isfinite(largest))
            return WASI_OK;
        frexp(largest, &exponent);
        job.scale = (real)ldexp(1, -WASI_MAX(WASI_MIN(exponent, 1000), -1000));
    }
}
