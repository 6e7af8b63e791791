#include "bindings/linalg.h"
#include "bindings/tables.h"

#include "kernels/linalg_simd.h"
#include "kernels/orth.h"
#include "kernels/svd.h"

PyObject *wasi_raise_for(wasi_status status, const char *where, const wasi_named *arrays, int n)
{
    char text[128];
    for (int i = 0; status == WASI_ERR_NONFINITE && i < n; i++) {
        const wasi_array *a = arrays[i].array;
        if (a->data == NULL)
            continue;
        int finite = PyArray_TYPE(a->object) == NPY_FLOAT32 ? WASI_PICK(wasi_sall_finite)(a->data, a->size)
                                                            : WASI_PICK(wasi_dall_finite)(a->data, a->size);
        if (!finite) {
            PyOS_snprintf(text, sizeof text, "%s: %s", where, arrays[i].name);
            return wasi_raise(status, text);
        }
    }
    return wasi_raise(status, where);
}

int wasi_need_matrix(PyObject *object, const char *name, wasi_array *out, int *typenum)
{
    if (!wasi_need_real(object, 2, name, out, typenum))
        return 0;
    if (out->size > 0)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: expected at least one row and one column, got shape (%zd, %zd)", name,
                 (Py_ssize_t)out->dim[0], (Py_ssize_t)out->dim[1]);
    return 0;
}

int wasi_need_rank(wasi_maybe_size given, npy_intp largest, npy_intp *rank)
{
    *rank = given.given ? given.value : largest;
    if (*rank >= 1 && *rank <= largest)
        return 1;
    PyErr_Format(PyExc_ValueError, "rank: expected 1 to %zd, the smaller side, got %zd", (Py_ssize_t)largest,
                 (Py_ssize_t)*rank);
    return 0;
}

int wasi_need_variance(wasi_maybe_double given, double *variance)
{
    *variance = given.given ? given.value : 2;
    return wasi_need_number(!given.given || (*variance > 0 && *variance <= 1), "variance", "a number in (0, 1]", *variance);
}

static PyObject *orthonormalize(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"A", "out", NULL};
    PyObject *A_obj, *out_obj = Py_None;
    PyArrayObject *Q = NULL, *scratch = NULL;
    PyObject *result = NULL;
    wasi_array A;
    int typenum;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:orthonormalize", names, &A_obj, &out_obj) ||
        !wasi_need_matrix(A_obj, "A", &A, &typenum))
        return NULL;
    npy_intp m = A.dim[0], k = A.dim[1];
    if (m < k)
        return PyErr_Format(PyExc_ValueError, "A: expected at least as many rows as columns, got shape (%zd, %zd)",
                            (Py_ssize_t)m, (Py_ssize_t)k);
    int n_threads = wasi_get_num_threads();
    if ((Q = wasi_out_array(out_obj, typenum, 2, A.dim, "out")) == NULL || !wasi_need_in_place(Q, "out", &A, "A") ||
        (scratch = wasi_new_scratch(WASI_CALL(typenum, orth_work, m, k, n_threads))) == NULL)
        goto done;
    wasi_int rank = 0;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, orth, WASI_DATA(Q), &rank, A.data, m, k, WASI_DATA(scratch), n_threads));
    result = status == WASI_OK ? Py_BuildValue("On", Q, (Py_ssize_t)rank)
                               : wasi_raise_for(status, "orthonormalize", &(wasi_named){"A", &A}, 1);
done:
    Py_XDECREF(Q);
    Py_XDECREF(scratch);
    return result;
}

/* A new 1-D array of the first K numbers of S. */
static PyArrayObject *head(PyArrayObject *S, npy_intp K)
{
    PyArrayObject *out = wasi_new_array(PyArray_TYPE(S), 1, &K);
    if (out)
        memcpy(WASI_DATA(out), WASI_DATA(S), (size_t)PyArray_NBYTES(out));
    return out;
}

static PyObject *truncated_svd(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"A", "rank", "variance", NULL};
    PyObject *A_obj, *result = NULL;
    wasi_maybe_size rank = {0};
    wasi_maybe_double share = {0};
    PyArrayObject *spectrum = NULL, *scratch = NULL, *U = NULL, *S = NULL, *Vt = NULL;
    wasi_array A;
    int typenum;
    npy_intp K;
    double variance;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O&O&:truncated_svd", names, &A_obj, wasi_as_size, &rank,
                                     wasi_as_double, &share) ||
        !wasi_need_matrix(A_obj, "A", &A, &typenum))
        return NULL;
    npy_intp m = A.dim[0], n = A.dim[1], r = WASI_MIN(m, n);
    if (!wasi_need_rank(rank, r, &K) || !wasi_need_variance(share, &variance))
        return NULL;
    if ((spectrum = wasi_new_array(typenum, 1, &r)) == NULL ||
        (scratch = wasi_new_scratch(WASI_CALL(typenum, svd_exact_work, m, n))) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, svd_exact, WASI_DATA(spectrum), A.data, m, n, WASI_DATA(scratch)));
    if (status != WASI_OK) {
        wasi_raise_for(status, "truncated_svd", &(wasi_named){"A", &A}, 1);
        goto done;
    }
    if (share.given)
        K = WASI_MIN(K, WASI_CALL(typenum, rank_by_variance, WASI_DATA(spectrum), r, variance));
    if ((S = head(spectrum, K)) == NULL || (U = wasi_new_array(typenum, 2, (npy_intp[]){m, K})) == NULL ||
        (Vt = wasi_new_array(typenum, 2, (npy_intp[]){K, n})) == NULL)
        goto done;
    WASI_NO_GIL(WASI_CALL(typenum, svd_exact_take, WASI_DATA(U), WASI_DATA(Vt), m, n, K, WASI_DATA(scratch)));
    result = PyTuple_Pack(3, U, S, Vt);
done:
    Py_XDECREF(spectrum);
    Py_XDECREF(scratch);
    Py_XDECREF(U);
    Py_XDECREF(S);
    Py_XDECREF(Vt);
    return result;
}

static PyObject *whitened_svd(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"W", "C", "rank", "variance", "ridge", NULL};
    PyObject *W_obj, *C_obj, *result = NULL;
    wasi_maybe_size rank = {0};
    wasi_maybe_double share = {0};
    PyArrayObject *spectrum = NULL, *scratch = NULL, *L = NULL, *R = NULL;
    wasi_array W, C;
    int typenum;
    npy_intp K;
    double variance, ridge = 1e-6;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O&O&d:whitened_svd", names, &W_obj, &C_obj, wasi_as_size, &rank,
                                     wasi_as_double, &share, &ridge) ||
        !wasi_need_matrix(W_obj, "W", &W, &typenum) || !wasi_need_array(C_obj, NPY_FLOAT64, 2, "C", &C) ||
        !wasi_need_dim(&C, 0, W.dim[1], "C", "W.shape[1]") || !wasi_need_dim(&C, 1, W.dim[1], "C", "W.shape[1]"))
        return NULL;
    npy_intp O = W.dim[0], I = W.dim[1], r = WASI_MIN(O, I);
    if (!wasi_need_rank(rank, r, &K) || !wasi_need_variance(share, &variance) ||
        !wasi_need_number(ridge >= 0 && ridge <= 1, "ridge", "a number in [0, 1]", ridge))
        return NULL;
    const wasi_named inputs[] = {{"W", &W}, {"C", &C}};
    int n_threads = wasi_get_num_threads();
    if ((spectrum = wasi_new_array(typenum, 1, &r)) == NULL ||
        (scratch = wasi_new_scratch(WASI_CALL(typenum, whiten_work, O, I, n_threads))) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, whiten, WASI_DATA(spectrum), W.data, C.data, ridge, O, I,
                                   WASI_DATA(scratch), n_threads));
    if (status != WASI_OK) {
        wasi_raise_for(status, "whitened_svd", inputs, 2);
        goto done;
    }
    if (share.given)
        K = WASI_MIN(K, WASI_CALL(typenum, rank_by_variance, WASI_DATA(spectrum), r, variance));
    if ((L = wasi_new_array(typenum, 2, (npy_intp[]){O, K})) == NULL ||
        (R = wasi_new_array(typenum, 2, (npy_intp[]){K, I})) == NULL)
        goto done;
    WASI_NO_GIL(status = WASI_CALL(typenum, whiten_take, WASI_DATA(L), WASI_DATA(R), W.data, O, I, K, WASI_DATA(scratch),
                                   n_threads));
    result = status == WASI_OK ? PyTuple_Pack(3, L, R, spectrum) : wasi_raise_for(status, "whitened_svd", inputs, 2);
done:
    Py_XDECREF(spectrum);
    Py_XDECREF(scratch);
    Py_XDECREF(L);
    Py_XDECREF(R);
    return result;
}

PyMethodDef wasi_linalg_methods[] = {
    WASI_METHOD("orthonormalize", orthonormalize, "orthonormalize(A, out=None) -> Q, rank"),
    WASI_METHOD("truncated_svd", truncated_svd, "truncated_svd(A, rank=None, variance=None) -> U, S, Vt"),
    WASI_METHOD("whitened_svd", whitened_svd,
                "whitened_svd(W, C, rank=None, variance=None, ridge=1e-6) -> L, R, spectrum"),
    {NULL},
};
