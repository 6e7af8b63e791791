#include "bindings/tables.h"

#include "kernels/bgemm.h"
#include "kernels/linear.h"

/* Scratch for products in bfloat16, or an empty block (*data NULL) where products are to be in float32. */
static PyArrayObject *products_scratch(int n_threads, void **data)
{
    bool bfloat16 = wasi_bgemm_chosen();
    PyArrayObject *work = wasi_new_scratch(bfloat16 ? wasi_bgemm_work(n_threads) : 0);
    *data = work && bfloat16 ? WASI_DATA(work) : NULL;
    return work;
}

/* What a weight's gradient is made of, beside dy: M rows of `width`. */
static int need_input(PyObject *object, const char *name, npy_intp M, npy_intp width, const char *why, wasi_array *out)
{
    return wasi_need_rows(object, name, out) && wasi_need_same_rows(out, M, name) &&
           wasi_need_dim(out, out->ndim - 1, width, name, why);
}

static PyObject *linear_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "W", "b", "out", NULL};
    PyObject *x_obj, *W_obj, *b_obj = Py_None, *out_obj = Py_None;
    wasi_array x, W, b;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|OO:linear_forward", names, &x_obj, &W_obj, &b_obj, &out_obj))
        return NULL;
    if (!wasi_need_rows(x_obj, "x", &x) || !wasi_need_f32(W_obj, 2, "W", &W) ||
        !wasi_maybe_array(b_obj, NPY_FLOAT32, 1, "b", &b) ||
        !wasi_need_dim(&x, x.ndim - 1, W.dim[1], "x", "W.shape[1]") ||
        (b.data && !wasi_need_dim(&b, 0, W.dim[0], "b", "W.shape[0]")) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"x", x_obj}, {"W", W_obj}, {"b", b_obj}))
        return NULL;

    npy_intp dims[WASI_MAX_DIMS];
    wasi_like_rows(&x, W.dim[0], dims);
    PyObject *result = NULL;
    PyArrayObject *y = NULL, *work = NULL;
    void *scratch;
    int n_threads = wasi_get_num_threads();
    if ((y = wasi_out_array(out_obj, NPY_FLOAT32, x.ndim, dims, "out")) == NULL ||
        (work = products_scratch(n_threads, &scratch)) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = wasi_linear_forward(WASI_DATA(y), x.data, W.data, b.data, wasi_rows_of(&x), W.dim[0], W.dim[1],
                                             scratch, n_threads));
    result = status == WASI_OK ? Py_NewRef(y) : wasi_raise(status, "linear_forward");
done:
    Py_XDECREF(y);
    Py_XDECREF(work);
    return result;
}

static PyObject *linear_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "x", "W", "dW", "db", "need_dx", "out", NULL};
    PyObject *dy_obj, *x_obj, *W_obj, *dW_obj = Py_None, *db_obj = Py_None, *out_obj = Py_None;
    int need_dx = 1;
    wasi_array dy, x, W, dW, db;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|OOpO:linear_backward", names, &dy_obj, &x_obj, &W_obj, &dW_obj,
                                     &db_obj, &need_dx, &out_obj))
        return NULL;
    if (!wasi_need_rows(dy_obj, "dy", &dy) || !wasi_need_f32(W_obj, 2, "W", &W) ||
        !wasi_need_dim(&dy, dy.ndim - 1, W.dim[0], "dy", "W.shape[0]") ||
        !wasi_maybe_array(x_obj, NPY_FLOAT32, -1, "x", &x) || !wasi_maybe_sums_like(dW_obj, "dW", &W, "W", &dW) ||
        !wasi_maybe_sums(db_obj, "db", W.dim[0], "W.shape[0]", &db))
        return NULL;
    npy_intp M = wasi_rows_of(&dy);
    if ((dW.data && !need_input(x_obj, "x", M, W.dim[1], "W.shape[1]", &x)) ||
        !WASI_NEED_APART(3, {"out", need_dx ? out_obj : NULL}, {"dW", dW_obj}, {"db", db_obj}, {"dy", dy_obj},
                         {"W", need_dx ? W_obj : NULL}, {"x", dW.data ? x_obj : NULL}))
        return NULL;

    npy_intp dims[WASI_MAX_DIMS];
    wasi_like_rows(&dy, W.dim[1], dims);
    PyObject *result = NULL;
    PyArrayObject *dx = NULL, *work = NULL;
    void *scratch;
    int n_threads = wasi_get_num_threads();
    if ((need_dx && (dx = wasi_out_array(out_obj, NPY_FLOAT32, dy.ndim, dims, "out")) == NULL) ||
        (work = products_scratch(n_threads, &scratch)) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = wasi_linear_backward(dx ? WASI_DATA(dx) : NULL, dW.data, db.data, dy.data, x.data, W.data, M,
                                              W.dim[0], W.dim[1], scratch, n_threads));
    result = status == WASI_OK ? Py_NewRef(dx ? (PyObject *)dx : Py_None) : wasi_raise(status, "linear_backward");
done:
    Py_XDECREF(dx);
    Py_XDECREF(work);
    return result;
}

/* L (O x K), R (K x I) and what they say about each other. */
static int need_factors(PyObject *L_obj, PyObject *R_obj, wasi_array *L, wasi_array *R)
{
    return wasi_need_f32(L_obj, 2, "L", L) && wasi_need_f32(R_obj, 2, "R", R) &&
           wasi_need_dim(R, 0, L->dim[1], "R", "L.shape[1]");
}

static PyObject *factored_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "L", "R", "b", "out", NULL};
    PyObject *x_obj, *L_obj, *R_obj, *b_obj = Py_None, *out_obj = Py_None, *result = NULL;
    wasi_array x, L, R, b;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|OO:factored_forward", names, &x_obj, &L_obj, &R_obj, &b_obj,
                                     &out_obj))
        return NULL;
    if (!wasi_need_rows(x_obj, "x", &x) || !need_factors(L_obj, R_obj, &L, &R) ||
        !wasi_maybe_array(b_obj, NPY_FLOAT32, 1, "b", &b) ||
        !wasi_need_dim(&x, x.ndim - 1, R.dim[1], "x", "R.shape[1]") ||
        (b.data && !wasi_need_dim(&b, 0, L.dim[0], "b", "L.shape[0]")) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"x", x_obj}, {"L", L_obj}, {"R", R_obj}, {"b", b_obj}))
        return NULL;

    npy_intp dims[WASI_MAX_DIMS];
    PyArrayObject *y = NULL, *z = NULL, *work = NULL;
    void *scratch;
    int n_threads = wasi_get_num_threads();
    wasi_like_rows(&x, L.dim[0], dims);
    if ((y = wasi_out_array(out_obj, NPY_FLOAT32, x.ndim, dims, "out")) == NULL)
        goto done;
    wasi_like_rows(&x, L.dim[1], dims);
    if ((z = wasi_new_f32(x.ndim, dims)) == NULL || (work = products_scratch(n_threads, &scratch)) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = wasi_factored_forward(WASI_DATA(y), WASI_DATA(z), x.data, L.data, R.data, b.data,
                                               wasi_rows_of(&x), L.dim[0], R.dim[1], L.dim[1], scratch, n_threads));
    result = status == WASI_OK ? PyTuple_Pack(2, y, z) : wasi_raise(status, "factored_forward");
done:
    Py_XDECREF(y);
    Py_XDECREF(z);
    Py_XDECREF(work);
    return result;
}

static PyObject *factored_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "x", "z", "L", "R", "dL", "dR", "db", "need_dx", "out", NULL};
    PyObject *dy_obj, *x_obj, *z_obj, *L_obj, *R_obj, *dL_obj = Py_None, *dR_obj = Py_None, *db_obj = Py_None;
    PyObject *out_obj = Py_None, *result = NULL;
    int need_dx = 1;
    wasi_array dy, x, z, L, R, dL, dR, db;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO|OOOpO:factored_backward", names, &dy_obj, &x_obj, &z_obj,
                                     &L_obj, &R_obj, &dL_obj, &dR_obj, &db_obj, &need_dx, &out_obj))
        return NULL;
    if (!wasi_need_rows(dy_obj, "dy", &dy) || !need_factors(L_obj, R_obj, &L, &R) ||
        !wasi_need_dim(&dy, dy.ndim - 1, L.dim[0], "dy", "L.shape[0]") ||
        !wasi_maybe_array(x_obj, NPY_FLOAT32, -1, "x", &x) || !wasi_maybe_array(z_obj, NPY_FLOAT32, -1, "z", &z) ||
        !wasi_maybe_sums_like(dL_obj, "dL", &L, "L", &dL) || !wasi_maybe_sums_like(dR_obj, "dR", &R, "R", &dR) ||
        !wasi_maybe_sums(db_obj, "db", L.dim[0], "L.shape[0]", &db))
        return NULL;
    npy_intp M = wasi_rows_of(&dy), O = L.dim[0], K = L.dim[1], I = R.dim[1];
    if ((dR.data && !need_input(x_obj, "x", M, I, "R.shape[1]", &x)) ||
        (dL.data && !need_input(z_obj, "z", M, K, "L.shape[1]", &z)) ||
        !WASI_NEED_APART(4, {"out", need_dx ? out_obj : NULL}, {"dL", dL_obj}, {"dR", dR_obj}, {"db", db_obj}, {"dy", dy_obj},
                         {"L", L_obj}, {"R", need_dx ? R_obj : NULL}, {"x", dR.data ? x_obj : NULL},
                         {"z", dL.data ? z_obj : NULL}))
        return NULL;

    npy_intp dims[WASI_MAX_DIMS];
    PyArrayObject *dx = NULL, *gl = NULL, *work = NULL;
    void *scratch;
    int n_threads = wasi_get_num_threads();
    wasi_like_rows(&dy, K, dims);
    if ((gl = wasi_new_f32(dy.ndim, dims)) == NULL || (work = products_scratch(n_threads, &scratch)) == NULL)
        goto done;
    wasi_like_rows(&dy, I, dims);
    if (need_dx && (dx = wasi_out_array(out_obj, NPY_FLOAT32, dy.ndim, dims, "out")) == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = wasi_factored_backward(dx ? WASI_DATA(dx) : NULL, WASI_DATA(gl), dL.data, dR.data, db.data,
                                                dy.data, x.data, z.data, L.data, R.data, M, O, I, K, scratch,
                                                n_threads));
    result = status == WASI_OK ? PyTuple_Pack(2, dx ? (PyObject *)dx : Py_None, gl)
                               : wasi_raise(status, "factored_backward");
done:
    Py_XDECREF(dx);
    Py_XDECREF(gl);
    Py_XDECREF(work);
    return result;
}

static PyObject *set_bfloat16_products(PyObject *self, PyObject *chosen)
{
    int truth = PyObject_IsTrue(chosen);
    if (truth < 0)
        return NULL;
    if (truth && !wasi_bgemm_available()) {
        PyErr_SetString(PyExc_ValueError, "this processor does not multiply bfloat16 numbers (AVX512-BF16)");
        return NULL;
    }
    wasi_bgemm_choose(truth);
    Py_RETURN_NONE;
}

static PyObject *get_bfloat16_products(PyObject *self, PyObject *unused)
{
    return PyBool_FromLong(wasi_bgemm_chosen());
}

PyMethodDef wasi_linear_methods[] = {
    {"set_bfloat16_products", set_bfloat16_products, METH_O, "set_bfloat16_products(chosen)"},
    {"get_bfloat16_products", get_bfloat16_products, METH_NOARGS, "get_bfloat16_products()"},
    WASI_METHOD("linear_forward", linear_forward, "linear_forward(x, W, b=None, out=None) -> y"),
    WASI_METHOD("linear_backward", linear_backward,
                "linear_backward(dy, x, W, dW=None, db=None, need_dx=True, out=None) -> dx"),
    WASI_METHOD("factored_forward", factored_forward, "factored_forward(x, L, R, b=None, out=None) -> (y, z)"),
    WASI_METHOD("factored_backward", factored_backward,
                "factored_backward(dy, x, z, L, R, dL=None, dR=None, db=None, need_dx=True, out=None) -> (dx, gl)"),
    {NULL},
};
