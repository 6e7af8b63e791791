/* The pieces of the randomised SVD. They trust their callers (wasi/linalg/rsvd.py) with the mathematics, such as
 * orthonormal inputs, and check what memory depends on: types, shapes, writability. */
#include "bindings/linalg.h"
#include "bindings/tables.h"

#include "kernels/rsvd.h"

/* A block that is written to: rows x columns (columns < 0: any). */
static int need_block(PyObject *object, int typenum, const char *name, npy_intp rows, npy_intp columns, wasi_array *out)
{
    return wasi_need_writable(object, typenum, 2, name, out) &&
           wasi_need_dim(out, 0, rows, name, "the matrix's side") &&
           (columns < 0 || wasi_need_dim(out, 1, columns, name, "the block's columns"));
}

static int need_optional_block(PyObject *object, int typenum, const char *name, npy_intp rows, npy_intp columns,
                               wasi_array *out)
{
    *out = (wasi_array){0};
    return object == Py_None || need_block(object, typenum, name, rows, columns, out);
}

static int need_columns(npy_intp K, npy_intp largest, const char *name)
{
    if (K >= 1 && K <= largest)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: expected 1 to %zd, got %zd", name, (Py_ssize_t)largest, (Py_ssize_t)K);
    return 0;
}

static PyObject *frobenius_norm(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"A", NULL};
    PyObject *A_obj;
    wasi_array A;
    int typenum, n_threads = wasi_get_num_threads();
    double norm = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:frobenius_norm", names, &A_obj) ||
        !wasi_need_matrix(A_obj, "A", &A, &typenum))
        return NULL;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, norm, &norm, A.data, A.size, n_threads));
    return status == WASI_OK ? PyFloat_FromDouble(norm) : wasi_raise(status, "A");
}

static PyObject *range_start(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"A", "V", "Y", "random", "alpha", "seed", NULL};
    PyObject *A_obj, *V_obj, *Y_obj;
    wasi_array A, V, Y;
    int random, typenum, n_threads = wasi_get_num_threads();
    double alpha;
    unsigned long long seed;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOpdK:range_start", names, &A_obj, &V_obj, &Y_obj, &random, &alpha,
                                     &seed) ||
        !wasi_need_matrix(A_obj, "A", &A, &typenum))
        return NULL;
    npy_intp m = A.dim[0], n = A.dim[1], q = WASI_MIN(m, n);
    if (!need_block(V_obj, typenum, "V", q, -1, &V) || !need_columns(V.dim[1], q, "V.shape[1]") ||
        !need_block(Y_obj, typenum, "Y", WASI_MAX(m, n), V.dim[1], &Y) ||
        !WASI_NEED_APART(2, {"V", V_obj}, {"Y", Y_obj}, {"A", A_obj}))
        return NULL;
    PyArrayObject *scratch = wasi_new_scratch(WASI_CALL(typenum, range_start_work, m, n, V.dim[1], n_threads));
    if (scratch == NULL)
        return NULL;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, range_start, V.data, Y.data, random, A.data, m, n, V.dim[1], alpha, seed,
                                   WASI_DATA(scratch), n_threads));
    Py_DECREF(scratch);
    return status == WASI_OK ? Py_NewRef(Py_None) : wasi_raise(status, "range_start");
}

static PyObject *range(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"A",          "V",   "W",              "X",     "previous", "K", "n_iter",
                            "accelerate", "two", "orthogonalize", "alpha", "seed",     "cold", NULL};
    PyObject *A_obj, *V_obj, *W_obj, *X_obj = Py_None, *previous_obj = Py_None;
    wasi_array A, V, W, X, previous;
    int typenum, n_iter = 0, accelerate = 0, two = 0, orthogonalize = 1, cold = 0, n_threads = wasi_get_num_threads();
    Py_ssize_t K = 1;
    double alpha = 1;
    unsigned long long seed = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|OOnipppdKp:range", names, &A_obj, &V_obj, &W_obj, &X_obj,
                                     &previous_obj, &K, &n_iter, &accelerate, &two, &orthogonalize, &alpha, &seed,
                                     &cold) ||
        !wasi_need_matrix(A_obj, "A", &A, &typenum))
        return NULL;
    npy_intp m = A.dim[0], n = A.dim[1], q = WASI_MIN(m, n);
    if (!need_block(V_obj, typenum, "V", q, -1, &V) || !need_columns(V.dim[1], q, "V.shape[1]") ||
        !need_block(W_obj, typenum, "W", WASI_MAX(m, n), V.dim[1], &W) ||
        !need_optional_block(X_obj, typenum, "X", q, V.dim[1], &X) ||
        !need_optional_block(previous_obj, typenum, "previous", q, V.dim[1], &previous) ||
        !need_columns(K, V.dim[1], "K") ||
        !WASI_NEED_APART(4, {"V", V_obj}, {"W", W_obj}, {"X", X_obj}, {"previous", previous_obj}, {"A", A_obj}))
        return NULL;
    if ((n_iter > 0 && X.data == NULL) || (accelerate && previous.data == NULL) || n_iter < 0 ||
        (two && (n_iter == 0 || 2 * V.dim[1] > q))) {
        PyErr_SetString(PyExc_ValueError,
                        "range: X and previous are needed for iterations, and 2 V.shape[1] <= q for two");
        return NULL;
    }
    wasi_range_options options = {.l = V.dim[1], .K = K, .n_iter = n_iter, .accelerate = accelerate, .two = two,
                                  .orthogonalize = orthogonalize, .cold = cold, .alpha = alpha, .seed = seed};
    PyArrayObject *scratch = wasi_new_scratch(WASI_CALL(typenum, range_work, m, n, V.dim[1], n_threads));
    if (scratch == NULL)
        return NULL;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, range, V.data, X.data, previous.data, W.data, A.data, m, n, &options,
                                   WASI_DATA(scratch), n_threads));
    Py_DECREF(scratch);
    return status == WASI_OK ? Py_NewRef(Py_None) : wasi_raise(status, "range");
}

static PyObject *complement(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"X", "V", "done", "seed", NULL};
    PyObject *X_obj, *V_obj;
    wasi_array X, V;
    int typenum, n_threads = wasi_get_num_threads();
    Py_ssize_t done;
    unsigned long long seed;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOnK:complement", names, &X_obj, &V_obj, &done, &seed) ||
        !wasi_need_matrix(V_obj, "V", &V, &typenum) || !need_block(X_obj, typenum, "X", V.dim[0], -1, &X) ||
        !WASI_NEED_APART(1, {"X", X_obj}, {"V", V_obj}))
        return NULL;
    npy_intp q = V.dim[0], b = X.dim[1];
    if (done < 0 || done > V.dim[1])
        return PyErr_Format(PyExc_ValueError, "done: expected 0 to %zd, got %zd", (Py_ssize_t)V.dim[1], done);
    if (!need_columns(b, q - done, "X.shape[1]"))
        return NULL;
    PyArrayObject *scratch = wasi_new_scratch(WASI_CALL(typenum, complement_work, done, q, b, n_threads));
    if (scratch == NULL)
        return NULL;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, complement, X.data, V.data, V.dim[1], done, q, b, seed, WASI_DATA(scratch),
                                   n_threads));
    Py_DECREF(scratch);
    return status == WASI_OK ? Py_NewRef(Py_None) : wasi_raise(status, "complement");
}

static PyObject *ritz(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"W", "V", "wide", "K", "alpha", "X", "A", NULL};
    PyObject *W_obj, *V_obj, *X_obj = Py_None, *A_obj = Py_None, *result = NULL;
    PyArrayObject *S = NULL, *right = NULL, *scratch = NULL;
    wasi_array W, V, X, A;
    int typenum, wide, n_threads = wasi_get_num_threads();
    Py_ssize_t K;
    double alpha = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOpn|dOO:ritz", names, &W_obj, &V_obj, &wide, &K, &alpha, &X_obj,
                                     &A_obj) ||
        !wasi_need_matrix(V_obj, "V", &V, &typenum) || !wasi_need_writable(W_obj, typenum, 2, "W", &W) ||
        !wasi_need_dim(&W, 1, V.dim[1], "W", "V.shape[1]") || !need_columns(K, V.dim[1], "K") ||
        !wasi_maybe_array(X_obj, typenum, 2, "X", &X) || (X.data && !wasi_need_same_shape(&X, "X", &V, "V")) ||
        !wasi_maybe_array(A_obj, typenum, 2, "A", &A) ||
        !WASI_NEED_APART(1, {"W", W_obj}, {"X", X_obj}, {"V", V_obj}, {"A", A_obj}))
        return NULL;
    npy_intp p = W.dim[0], q = V.dim[0], m = wide ? q : p, n = wide ? p : q;
    if (p < q || (wide && p == q) || (X.data && A.data == NULL)) {
        PyErr_SetString(PyExc_ValueError, "ritz: expected W.shape[0] >= V.shape[0], more where wide, and A beside X");
        return NULL;
    }
    if (A.data && (!wasi_need_dim(&A, 0, m, "A", "W and V") || !wasi_need_dim(&A, 1, n, "A", "W and V")))
        return NULL;
    size_t bytes = WASI_CALL(typenum, ritz_work, m, n, V.dim[1], K, X.data != NULL, n_threads);
    if ((S = wasi_new_array(typenum, 1, &K)) == NULL ||
        (right = wasi_new_array(typenum, 2, wide ? (npy_intp[]){q, K} : (npy_intp[]){K, q})) == NULL ||
        (scratch = wasi_new_scratch(bytes)) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, ritz, WASI_DATA(S), WASI_DATA(right), W.data, V.data, X.data, A.data, m, n,
                                   V.dim[1], K, alpha, WASI_DATA(scratch), n_threads));
    result = status == WASI_OK ? PyTuple_Pack(2, S, right) : wasi_raise(status, "ritz");
done:
    Py_XDECREF(S);
    Py_XDECREF(right);
    Py_XDECREF(scratch);
    return result;
}

static PyObject *gram_range(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"A", "V", "K", "n_iter", "alpha", "seed", NULL};
    PyObject *A_obj, *V_obj;
    wasi_array A, V;
    int typenum, n_iter, n_threads = wasi_get_num_threads();
    Py_ssize_t K;
    double alpha;
    unsigned long long seed;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOnidK:gram_range", names, &A_obj, &V_obj, &K, &n_iter, &alpha,
                                     &seed) ||
        !wasi_need_matrix(A_obj, "A", &A, &typenum))
        return NULL;
    npy_intp m = A.dim[0], n = A.dim[1], q = WASI_MIN(m, n);
    if (!need_block(V_obj, typenum, "V", q, -1, &V) || !need_columns(V.dim[1], q, "V.shape[1]") ||
        !need_columns(K, V.dim[1], "K") || !need_columns(n_iter, INT_MAX, "n_iter") ||
        !WASI_NEED_APART(1, {"V", V_obj}, {"A", A_obj}))
        return NULL;
    wasi_range_options options = {.l = V.dim[1], .K = K, .n_iter = n_iter, .accelerate = true, .orthogonalize = true,
                                  .alpha = alpha, .seed = seed};
    PyArrayObject *scratch = wasi_new_scratch(WASI_CALL(typenum, gram_range_work, m, n, V.dim[1], n_threads));
    if (scratch == NULL)
        return NULL;
    bool useful = false;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, gram_range, V.data, &useful, A.data, m, n, &options, WASI_DATA(scratch),
                                   n_threads));
    Py_DECREF(scratch);
    return status == WASI_OK ? PyBool_FromLong(useful) : wasi_raise(status, "gram_range");
}

static PyObject *gram_svd(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"A", "K", NULL};
    PyObject *A_obj, *result = NULL;
    PyArrayObject *S = NULL, *V = NULL, *scratch = NULL;
    wasi_array A;
    int typenum, n_threads = wasi_get_num_threads();
    Py_ssize_t K;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "On:gram_svd", names, &A_obj, &K) ||
        !wasi_need_matrix(A_obj, "A", &A, &typenum))
        return NULL;
    npy_intp m = A.dim[0], n = A.dim[1], q = WASI_MIN(m, n);
    if (!need_columns(K, q, "K"))
        return NULL;
    if ((S = wasi_new_array(typenum, 1, &K)) == NULL ||
        (V = wasi_new_array(typenum, 2, (npy_intp[]){q, K})) == NULL ||
        (scratch = wasi_new_scratch(WASI_CALL(typenum, gram_svd_work, m, n, n_threads))) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, gram_svd, WASI_DATA(S), WASI_DATA(V), A.data, m, n, K, WASI_DATA(scratch),
                                   n_threads));
    result = status == WASI_OK ? PyTuple_Pack(2, S, V) : wasi_raise_for(status, "gram_svd", &(wasi_named){"A", &A}, 1);
done:
    Py_XDECREF(S);
    Py_XDECREF(V);
    Py_XDECREF(scratch);
    return result;
}

static PyObject *diff_norm(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"A", "U", "S", "Vt", NULL};
    PyObject *A_obj, *U_obj, *S_obj, *Vt_obj;
    wasi_array A, U, S, Vt;
    int typenum, n_threads = wasi_get_num_threads();
    double norm = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO:diff_norm", names, &A_obj, &U_obj, &S_obj, &Vt_obj) ||
        !wasi_need_matrix(A_obj, "A", &A, &typenum) || !wasi_need_array(U_obj, typenum, 2, "U", &U) ||
        !wasi_need_dim(&U, 0, A.dim[0], "U", "A.shape[0]") || !wasi_need_array(S_obj, typenum, 1, "S", &S) ||
        !wasi_need_dim(&S, 0, U.dim[1], "S", "U.shape[1]") || !wasi_need_array(Vt_obj, typenum, 2, "Vt", &Vt) ||
        !wasi_need_dim(&Vt, 0, U.dim[1], "Vt", "U.shape[1]") || !wasi_need_dim(&Vt, 1, A.dim[1], "Vt", "A.shape[1]"))
        return NULL;
    npy_intp m = A.dim[0], n = A.dim[1], K = U.dim[1];
    PyArrayObject *scratch = wasi_new_scratch(WASI_CALL(typenum, diff_norm_work, n, K, n_threads));
    if (scratch == NULL)
        return NULL;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, diff_norm, &norm, A.data, U.data, S.data, Vt.data, m, n, K,
                                   WASI_DATA(scratch), n_threads));
    Py_DECREF(scratch);
    return status == WASI_OK ? PyFloat_FromDouble(norm) : wasi_raise(status, "diff_norm");
}

PyMethodDef wasi_rsvd_methods[] = {
    WASI_METHOD("complement", complement, "complement(X, V, done, seed)"),
    WASI_METHOD("diff_norm", diff_norm, "diff_norm(A, U, S, Vt) -> float"),
    WASI_METHOD("frobenius_norm", frobenius_norm, "frobenius_norm(A) -> float"),
    WASI_METHOD("gram_range", gram_range, "gram_range(A, V, K, n_iter, alpha, seed) -> bool"),
    WASI_METHOD("gram_svd", gram_svd, "gram_svd(A, K) -> S, V"),
    WASI_METHOD("range", range,
                "range(A, V, W, X=None, previous=None, K=1, n_iter=0, accelerate=False, two=False, orthogonalize=True, "
                "alpha=1, seed=0, cold=False)"),
    WASI_METHOD("range_start", range_start, "range_start(A, V, Y, random, alpha, seed)"),
    WASI_METHOD("ritz", ritz, "ritz(W, V, wide, K, alpha=1, X=None, A=None) -> S, right"),
    {NULL},
};
