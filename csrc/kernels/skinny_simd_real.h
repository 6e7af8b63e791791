/* Template of skinny_simd.c, see common/real32.h. */

#undef vec
#undef loose_vec
#undef LANES
#undef EACH
#define vec T(vec)
#define loose_vec T(loose_vec)
#define LANES ((wasi_int)(VECTOR_BYTES / sizeof(real)))
#define EACH ((wasi_int)(WASI_LANE_BYTES / sizeof(real))) /* numbers of a sum in progress */
typedef real vec __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef real loose_vec __attribute__((vector_size(VECTOR_BYTES), may_alias, aligned(sizeof(real))));

/* k rows of V, `strips` vectors long; both are constants where this is inlined. Of what lies `ahead` of A, vectors
 * from `fetch` on are fetched, since the d rows are too many for the hardware to follow. */
INLINE void T(project_tile)(real *V, wasi_int ldv, real alpha, const real *M, const real *A, wasi_int lda, wasi_int d,
                            wasi_int K, int k, int strips, wasi_int ahead, int fetch, int fetch_end)
{
    vec sum[MOST][STRIPS] = {0};
    for (wasi_int i = 0; i < d; i++, A += lda, M += K) {
        for (int s = fetch; s < fetch_end; s++)
            __builtin_prefetch(A + ahead + s * LANES, 0, 2);
#pragma GCC unroll 4
        for (int s = 0; s < strips; s++) {
            vec a = *(const loose_vec *)(A + s * LANES);
#pragma GCC unroll 6
            for (int j = 0; j < k; j++)
                sum[j][s] += M[j] * a;
        }
    }
#pragma GCC unroll 6
    for (int j = 0; j < k; j++)
#pragma GCC unroll 4
        for (int s = 0; s < strips; s++)
            *(loose_vec *)(V + j * ldv + s * LANES) = alpha * sum[j][s];
}

/* All K rows of V, in tiles of nearly equal height, which share the fetching. */
INLINE void T(project_strip)(real *V, wasi_int ldv, real alpha, const real *M, const real *A, wasi_int lda, wasi_int d,
                             wasi_int K, int strips, wasi_int ahead)
{
    wasi_int n_tiles = (K + MOST - 1) / MOST;
    for (wasi_int t = 0, at = 0, k; t < n_tiles; t++, at += k) {
        k = (K - at + n_tiles - t - 1) / (n_tiles - t);
        real *to = V + at * ldv;
        int f = ahead ? (int)(t * strips / n_tiles) : 0, end = ahead ? (int)((t + 1) * strips / n_tiles) : 0;
        switch (k) {
        case 1: T(project_tile)(to, ldv, alpha, M + at, A, lda, d, K, 1, strips, ahead, f, end); break;
        case 2: T(project_tile)(to, ldv, alpha, M + at, A, lda, d, K, 2, strips, ahead, f, end); break;
        case 3: T(project_tile)(to, ldv, alpha, M + at, A, lda, d, K, 3, strips, ahead, f, end); break;
        case 4: T(project_tile)(to, ldv, alpha, M + at, A, lda, d, K, 4, strips, ahead, f, end); break;
        case 5: T(project_tile)(to, ldv, alpha, M + at, A, lda, d, K, 5, strips, ahead, f, end); break;
        default: T(project_tile)(to, ldv, alpha, M + at, A, lda, d, K, 6, strips, ahead, f, end); break;
        }
    }
}

void WASI_SIMD(T(project))(real *V, wasi_int ldv, real alpha, const real *M, const real *A, wasi_int lda, wasi_int d,
                           wasi_int K, wasi_int n, wasi_int ahead)
{
    wasi_int at = 0;
    for (; at + STRIPS * LANES <= n; at += STRIPS * LANES)
        T(project_strip)(V + at, ldv, alpha, M, A + at, lda, d, K, STRIPS, ahead);
    for (; at + LANES <= n; at += LANES)
        T(project_strip)(V + at, ldv, alpha, M, A + at, lda, d, K, 1, ahead);
    for (; at < n; at++)
        for (wasi_int k = 0; k < K; k++) {
            real sum = 0;
            for (wasi_int i = 0; i < d; i++)
                sum += M[i * K + k] * A[i * lda + at];
            V[k * ldv + at] = alpha * sum;
        }
}

/* rows x columns of the sums; both are constants where this is inlined. */
INLINE void T(gather_tile)(real *lanes, const real *A, wasi_int lda, const real *V, wasi_int ldv, wasi_int K,
                           wasi_int n, int rows, int columns)
{
    vec sum[ROWS][COLUMNS];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 6
        for (int j = 0; j < columns; j++)
            sum[i][j] = *(const vec *)(lanes + (i * K + j) * EACH);
    for (wasi_int at = 0; at < n; at += LANES) {
        vec v[COLUMNS];
#pragma GCC unroll 6
        for (int j = 0; j < columns; j++)
            v[j] = *(const loose_vec *)(V + j * ldv + at);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            vec a = *(const loose_vec *)(A + i * lda + at);
#pragma GCC unroll 6
            for (int j = 0; j < columns; j++)
                sum[i][j] += a * v[j];
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 6
        for (int j = 0; j < columns; j++)
            *(vec *)(lanes + (i * K + j) * EACH) = sum[i][j];
}

/* `rows` rows of the sums, over whole vectors. */
INLINE void T(gather_rows)(real *lanes, const real *A, wasi_int lda, const real *V, wasi_int ldv, wasi_int K,
                           wasi_int n, int rows)
{
    wasi_int n_tiles = (K + COLUMNS - 1) / COLUMNS;
    for (wasi_int t = 0, at = 0, k; t < n_tiles; t++, at += k) {
        k = (K - at + n_tiles - t - 1) / (n_tiles - t);
        real *to = lanes + at * EACH;
        const real *from = V + at * ldv;
        switch (k) {
        case 1: T(gather_tile)(to, A, lda, from, ldv, K, n, rows, 1); break;
        case 2: T(gather_tile)(to, A, lda, from, ldv, K, n, rows, 2); break;
        case 3: T(gather_tile)(to, A, lda, from, ldv, K, n, rows, 3); break;
#if defined(WASI_ISA_AVX512)
        case 5: T(gather_tile)(to, A, lda, from, ldv, K, n, rows, 5); break;
        case 6: T(gather_tile)(to, A, lda, from, ldv, K, n, rows, 6); break;
#endif
        default: T(gather_tile)(to, A, lda, from, ldv, K, n, rows, 4); break;
        }
    }
}

void WASI_SIMD(T(gather))(real *lanes, const real *A, wasi_int lda, const real *V, wasi_int ldv, wasi_int d, wasi_int K,
                          wasi_int n)
{
    enum { CHUNK = 512 }; /* K rows of V so long stay in the innermost cache */
    wasi_int whole = n / LANES * LANES;
    for (wasi_int begin = 0; begin < whole; begin += CHUNK) {
        wasi_int length = WASI_MIN(CHUNK, whole - begin), i = 0;
        for (; i + ROWS <= d; i += ROWS)
            T(gather_rows)(lanes + i * K * EACH, A + i * lda + begin, lda, V + begin, ldv, K, length, ROWS);
        for (; i < d; i++)
            T(gather_rows)(lanes + i * K * EACH, A + i * lda + begin, lda, V + begin, ldv, K, length, 1);
    }
    for (wasi_int i = 0; i < d && whole < n; i++)
        for (wasi_int k = 0; k < K; k++)
            for (wasi_int j = whole; j < n; j++)
                lanes[(i * K + k) * EACH] += A[i * lda + j] * V[k * ldv + j];
}

void WASI_SIMD(T(join_lanes))(real *sum, real alpha, const real *lanes, wasi_int n)
{
    for (wasi_int i = 0; i < n; i++, lanes += EACH) {
        real total = 0;
        for (wasi_int l = 0; l < LANES; l++)
            total += lanes[l];
        sum[i] = alpha * total;
    }
}
