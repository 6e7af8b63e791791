#include "bindings/linalg.h"
#include "bindings/tables.h"

#include "kernels/tucker.h"

/* An array of 2 to 5 dimensions, none of them empty. */
static int need_tensor(PyObject *object, const char *name, wasi_array *out, int *typenum)
{
    if (!wasi_need_real(object, -1, name, out, typenum))
        return 0;
    if (out->ndim < 2 || out->ndim > WASI_TUCKER_DIMS) {
        PyErr_Format(PyExc_ValueError, "%s: expected 2 to %d dimensions, got %d", name, WASI_TUCKER_DIMS, out->ndim);
        return 0;
    }
    if (out->size == 0) {
        PyErr_Format(PyExc_ValueError, "%s: expected no empty dimension", name);
        return 0;
    }
    return 1;
}

static int need_mode(int *mode, int ndim)
{
    if (*mode >= -ndim && *mode < ndim) {
        *mode += *mode < 0 ? ndim : 0;
        return 1;
    }
    PyErr_Format(PyExc_ValueError, "mode: expected %d to %d, got %d", -ndim, ndim - 1, *mode);
    return 0;
}

static void to_dims(const npy_intp *from, int ndim, wasi_int *to)
{
    for (int i = 0; i < ndim; i++)
        to[i] = from[i];
}

static PyObject *mode_dot(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"A", "M", "mode", "transpose", "out", NULL};
    PyObject *A_obj, *M_obj, *out_obj = Py_None;
    int mode, trans = 0, typenum;
    wasi_array A, M;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOi|pO:mode_dot", names, &A_obj, &M_obj, &mode, &trans, &out_obj) ||
        !need_tensor(A_obj, "A", &A, &typenum) || !wasi_need_array(M_obj, typenum, 2, "M", &M) ||
        !need_mode(&mode, A.ndim) || !wasi_need_dim(&M, trans ? 0 : 1, A.dim[mode], "M", "A.shape[mode]") ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"A", A_obj}, {"M", M_obj}))
        return NULL;
    npy_intp dims[WASI_TUCKER_DIMS];
    wasi_int dim[WASI_TUCKER_DIMS], J = M.dim[trans ? 1 : 0];
    to_dims(A.dim, A.ndim, dim);
    memcpy(dims, A.dim, (size_t)A.ndim * sizeof(npy_intp));
    dims[mode] = J;
    PyArrayObject *out = wasi_out_array(out_obj, typenum, A.ndim, dims, "out");
    if (out == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, mode_dot, WASI_DATA(out), A.data, M.data, trans, A.ndim, dim, mode, J,
                                   n_threads));
    return wasi_finish(status, out, "mode_dot");
}

static PyObject *mode_svd(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"A", "mode", NULL};
    PyObject *A_obj, *result = NULL;
    PyArrayObject *S = NULL, *Z = NULL, *scratch = NULL;
    int mode, typenum;
    wasi_array A;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Oi:mode_svd", names, &A_obj, &mode) ||
        !need_tensor(A_obj, "A", &A, &typenum) || !need_mode(&mode, A.ndim))
        return NULL;
    wasi_int dim[WASI_TUCKER_DIMS];
    to_dims(A.dim, A.ndim, dim);
    npy_intp d = A.dim[mode];
    int n_threads = wasi_get_num_threads();
    size_t bytes = WASI_CALL(typenum, mode_svd_work, A.ndim, dim, mode, n_threads);
    if ((S = wasi_new_array(NPY_FLOAT64, 1, &d)) == NULL ||
        (Z = wasi_new_array(NPY_FLOAT64, 2, (npy_intp[]){d, d})) == NULL || (scratch = wasi_new_scratch(bytes)) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, mode_svd, WASI_DATA(S), WASI_DATA(Z), A.data, A.ndim, dim, mode,
                                   WASI_DATA(scratch), n_threads));
    result = status == WASI_OK ? PyTuple_Pack(2, S, Z) : wasi_raise_for(status, "mode_svd", &(wasi_named){"A", &A}, 1);
done:
    Py_XDECREF(S);
    Py_XDECREF(Z);
    Py_XDECREF(scratch);
    return result;
}

static const char *const factor_name[] = {"factors[0]", "factors[1]", "factors[2]", "factors[3]", "factors[4]"};

/* A sequence with one factor (d_n x K_n) or None for each dimension. The objects are borrowed from the tuple. */
typedef struct {
    PyObject *tuple; /* a new reference: another thread may change the caller's list while a kernel runs */
    wasi_array array[WASI_TUCKER_DIMS];
    void *data[WASI_TUCKER_DIMS];
} factor_list;

/* To be done before arrays are looked at: a sequence of any kind may run Python code. */
static int take_factors(PyObject *object, factor_list *f)
{
    PyObject *sequence = PySequence_Fast(object, "factors: expected a sequence of arrays or None");
    if (sequence == NULL)
        return 0;
    f->tuple = PySequence_Tuple(sequence);
    Py_DECREF(sequence);
    return f->tuple != NULL;
}

static int need_factors(int ndim, int typenum, int writable, factor_list *f)
{
    if (PyTuple_GET_SIZE(f->tuple) != ndim) {
        PyErr_Format(PyExc_ValueError, "factors: expected %d, one for each dimension, got %zd", ndim,
                     PyTuple_GET_SIZE(f->tuple));
        return 0;
    }
    for (int n = 0; n < ndim; n++) {
        PyObject *item = PyTuple_GET_ITEM(f->tuple, n);
        f->array[n] = (wasi_array){0};
        f->data[n] = NULL;
        if (item == Py_None)
            continue;
        if (!(writable ? wasi_need_writable : wasi_need_array)(item, typenum, 2, factor_name[n], &f->array[n]))
            return 0;
        npy_intp d = f->array[n].dim[0], K = f->array[n].dim[1];
        if (d < 1 || K < 1 || (writable && K > d)) { /* a factor to be made orthonormal */
            PyErr_Format(PyExc_ValueError, "%s: expected 1 to %zd columns, got %zd", factor_name[n], (Py_ssize_t)d,
                         (Py_ssize_t)K);
            return 0;
        }
        f->data[n] = f->array[n].data;
    }
    return 1;
}

/* `first`, and the factors where these are written too, share no memory with each other, nor with the `others`. */
static int need_factors_apart(wasi_operand first, const factor_list *f, bool written, const wasi_operand others[2])
{
    wasi_operand operands[WASI_TUCKER_DIMS + 3] = {first};
    int n = 1, ndim = (int)PyTuple_GET_SIZE(f->tuple);
    for (int i = 0; i < ndim; i++)
        operands[n++] = (wasi_operand){factor_name[i], PyTuple_GET_ITEM(f->tuple, i)};
    for (int i = 0; i < 2; i++)
        operands[n++] = others[i];
    return wasi_need_apart(written ? 1 + ndim : 1, operands, n);
}

static PyObject *asi_step(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"A", "factors", "cold", "n_iter", "seed", "out", NULL};
    PyObject *A_obj, *factors_obj, *out_obj = Py_None, *result = NULL;
    PyArrayObject *core = NULL, *scratch = NULL;
    int cold = 0, n_iter = 1, typenum;
    unsigned long long seed = 0;
    wasi_array A;
    factor_list f = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|iiKO:asi_step", names, &A_obj, &factors_obj, &cold, &n_iter,
                                     &seed, &out_obj))
        return NULL;
    if (n_iter < 1)
        return PyErr_Format(PyExc_ValueError, "n_iter: expected at least 1, got %d", n_iter);
    if (!take_factors(factors_obj, &f) || !need_tensor(A_obj, "A", &A, &typenum) ||
        !need_factors(A.ndim, typenum, 1, &f))
        goto done;
    wasi_tucker_shape shape = {.ndim = A.ndim};
    npy_intp dims[WASI_TUCKER_DIMS];
    bool warm[WASI_TUCKER_DIMS];
    for (int n = 0; n < A.ndim; n++) {
        if (f.data[n] && !wasi_need_dim(&f.array[n], 0, A.dim[n], factor_name[n], "the dimension of A"))
            goto done;
        shape.dim[n] = A.dim[n];
        dims[n] = shape.rank[n] = f.data[n] ? f.array[n].dim[1] : A.dim[n];
        shape.cut[n] = f.data[n] != NULL;
        warm[n] = !(cold >> n & 1);
    }
    if (!need_factors_apart((wasi_operand){"out", out_obj}, &f, true, (wasi_operand[2]){{"A", A_obj}}))
        goto done;
    int n_threads = wasi_get_num_threads();
    if ((core = wasi_out_array(out_obj, typenum, A.ndim, dims, "out")) == NULL ||
        (scratch = wasi_new_scratch(WASI_CALL(typenum, asi_step_work, &shape, n_iter, n_threads))) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, asi_step, WASI_DATA(core), (void *)f.data, warm, A.data, &shape, n_iter,
                                   seed, WASI_DATA(scratch), n_threads));
    result = status == WASI_OK ? Py_NewRef((PyObject *)core)
                               : wasi_raise_for(status, "asi_step", &(wasi_named){"A", &A}, 1);
done:
    Py_XDECREF(f.tuple);
    Py_XDECREF(core);
    Py_XDECREF(scratch);
    return result;
}

static PyObject *matmul_tucker(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dW", "g", "core", "factors", NULL};
    PyObject *dW_obj, *g_obj, *core_obj, *factors_obj, *result = NULL;
    PyArrayObject *scratch = NULL;
    wasi_array dW, g, core;
    int typenum;
    factor_list f = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO:matmul_tucker", names, &dW_obj, &g_obj, &core_obj,
                                     &factors_obj))
        return NULL;
    if (!take_factors(factors_obj, &f) || !need_tensor(core_obj, "core", &core, &typenum) ||
        !wasi_need_array(g_obj, typenum, core.ndim, "g", &g) || !wasi_need_writable(dW_obj, typenum, 2, "dW", &dW) ||
        !need_factors(core.ndim, typenum, 0, &f))
        goto done;
    int ndim = core.ndim, last = ndim - 1;
    wasi_tucker_shape shape = {.ndim = ndim};
    for (int n = 0; n < ndim; n++) {
        if (f.data[n] && !wasi_need_dim(&f.array[n], 1, core.dim[n], factor_name[n], "the dimension of core"))
            goto done;
        shape.rank[n] = core.dim[n];
        shape.dim[n] = f.data[n] ? f.array[n].dim[0] : core.dim[n];
        shape.cut[n] = f.data[n] != NULL;
        if (n < last && !wasi_need_dim(&g, n, shape.dim[n], "g", "the decomposed array's shape"))
            goto done;
    }
    npy_intp G = g.dim[last];
    if (!wasi_need_dim(&dW, 0, G, "dW", "g.shape[-1]") ||
        !wasi_need_dim(&dW, 1, shape.dim[last], "dW", "the decomposed array's last dimension") ||
        !need_factors_apart((wasi_operand){"dW", dW_obj}, &f, false, (wasi_operand[2]){{"g", g_obj}, {"core", core_obj}}) ||
        (scratch = wasi_new_scratch(WASI_CALL(typenum, matmul_tucker_work, &shape, G))) == NULL)
        goto done;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = WASI_CALL(typenum, matmul_tucker, dW.data, g.data, core.data, (void *)f.data, &shape, G,
                                   WASI_DATA(scratch), n_threads));
    result = status == WASI_OK ? Py_NewRef(Py_None) : wasi_raise(status, "matmul_tucker");
done:
    Py_XDECREF(f.tuple);
    Py_XDECREF(scratch);
    return result;
}

PyMethodDef wasi_tucker_methods[] = {
    WASI_METHOD("asi_step", asi_step, "asi_step(A, factors, cold=0, n_iter=1, seed=0, out=None) -> core"),
    WASI_METHOD("matmul_tucker", matmul_tucker, "matmul_tucker(dW, g, core, factors)"),
    WASI_METHOD("mode_dot", mode_dot, "mode_dot(A, M, mode, transpose=False, out=None)"),
    WASI_METHOD("mode_svd", mode_svd, "mode_svd(A, mode) -> S, Z"),
    {NULL},
};
