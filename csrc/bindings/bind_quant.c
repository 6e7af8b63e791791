#include "bindings/tables.h"

#include "kernels/qgemm.h"
#include "kernels/quantize.h"

static int need_group(Py_ssize_t group)
{
    if (group > 0 && group <= WASI_QUANT_MAX_DIM && group % WASI_QUANT_BLOCK == 0)
        return 1;
    PyErr_Format(PyExc_ValueError, "group: expected a multiple of %d up to %d, got %zd", WASI_QUANT_BLOCK,
                 WASI_QUANT_MAX_DIM, group);
    return 0;
}

static int need_size(npy_intp size, const char *name)
{
    if (size >= 1 && size <= WASI_QUANT_MAX_DIM)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: expected a size of 1 to %d, got %zd", name, WASI_QUANT_MAX_DIM,
                 (Py_ssize_t)size);
    return 0;
}

/* A packed matrix from its arrays: codes, s (None with 8 bits), r, c and the width of a group. `out` (or None, NULL)
 * may share no memory with it. */
static int need_quant(PyObject *codes_obj, PyObject *s_obj, PyObject *r_obj, PyObject *c_obj, Py_ssize_t group,
                      PyObject *out_obj, wasi_quant *Q)
{
    wasi_array codes, s, r, c;
    if (!wasi_need_array(codes_obj, NPY_UINT8, 2, "codes", &codes) || !wasi_maybe_array(s_obj, NPY_UINT8, 2, "s", &s) ||
        !wasi_need_f32(r_obj, 1, "r", &r) || !wasi_need_f32(c_obj, 1, "c", &c) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"codes", codes_obj}, {"s", s_obj}, {"r", r_obj}, {"c", c_obj}))
        return 0;
    if (!need_group(group))
        return 0;
    if (!need_size(r.dim[0], "r") || !need_size(c.dim[0], "c"))
        return 0;
    *Q = (wasi_quant){codes.data, s.data, r.data, c.data, r.dim[0], c.dim[0], group, s.data ? 4 : 8};
    if (!wasi_need_dim(&codes, 0, Q->O, "codes", "r.shape[0]") ||
        !wasi_need_dim(&codes, 1, wasi_quant_row_bytes(Q->I, Q->bits), "codes", "the bytes of a row"))
        return 0;
    if (Q->bits == 8)
        return 1;
    return wasi_need_dim(&s, 0, Q->O, "s", "r.shape[0]") &&
           wasi_need_dim(&s, 1, wasi_quant_groups(Q->I, group), "s", "the groups of a row");
}

static PyObject *quantize(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"W", "bits", "group", NULL};
    PyObject *W_obj, *result = NULL;
    int bits;
    Py_ssize_t group;
    wasi_array W;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Oin:quantize", names, &W_obj, &bits, &group))
        return NULL;
    if (!wasi_need_f32(W_obj, 2, "W", &W))
        return NULL;
    if (bits != 4 && bits != 8)
        return PyErr_Format(PyExc_ValueError, "bits: expected 4 or 8, got %d", bits);
    npy_intp O = W.dim[0], I = W.dim[1];
    if (!need_group(group) || !need_size(O, "W.shape[0]") || !need_size(I, "W.shape[1]"))
        return NULL;

    PyArrayObject *codes = NULL, *s = NULL, *r = NULL, *c = NULL, *work = NULL;
    npy_intp codes_dims[2] = {O, wasi_quant_row_bytes(I, bits)}, s_dims[2] = {O, wasi_quant_groups(I, group)};
    if ((codes = wasi_new_array(NPY_UINT8, 2, codes_dims)) == NULL ||
        (bits == 4 && (s = wasi_new_array(NPY_UINT8, 2, s_dims)) == NULL) || (r = wasi_new_f32(1, &O)) == NULL ||
        (c = wasi_new_f32(1, &I)) == NULL || (work = wasi_new_scratch(wasi_quantize_work(I))) == NULL)
        goto done;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_quantize(WASI_DATA(codes), s ? WASI_DATA(s) : NULL, WASI_DATA(r), WASI_DATA(c), W.data, O,
                                       I, group, bits, WASI_DATA(work), n_threads));
    result = status == WASI_OK ? PyTuple_Pack(4, codes, s ? (PyObject *)s : Py_None, r, c)
                               : wasi_raise(status, "quantize: W");
done:
    Py_XDECREF(codes);
    Py_XDECREF(s);
    Py_XDECREF(r);
    Py_XDECREF(c);
    Py_XDECREF(work);
    return result;
}

static PyObject *dequantize(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"codes", "s", "r", "c", "group", NULL};
    PyObject *codes_obj, *s_obj, *r_obj, *c_obj;
    Py_ssize_t group;
    wasi_quant Q;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOn:dequantize", names, &codes_obj, &s_obj, &r_obj, &c_obj,
                                     &group) ||
        !need_quant(codes_obj, s_obj, r_obj, c_obj, group, NULL, &Q))
        return NULL;
    npy_intp dims[2] = {Q.O, Q.I};
    PyArrayObject *W = wasi_new_f32(2, dims);
    if (W == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_dequantize(WASI_DATA(W), &Q, n_threads));
    return wasi_finish(status, W, "dequantize");
}

/* Both directions: the rows of `in` have `width` numbers, those of the result `out_width`. */
static PyObject *product(int forward, PyObject *in_obj, const char *in_name, const wasi_quant *Q, PyObject *b_obj,
                         PyObject *out_obj, int add, int exact)
{
    wasi_array in, b;
    npy_intp width = forward ? Q->I : Q->O, out_width = forward ? Q->O : Q->I;
    if (!wasi_need_rows(in_obj, in_name, &in) ||
        !wasi_need_dim(&in, in.ndim - 1, width, in_name, forward ? "c.shape[0]" : "r.shape[0]") ||
        !wasi_maybe_array(b_obj, NPY_FLOAT32, 1, "b", &b) ||
        (b.data && !wasi_need_dim(&b, 0, out_width, "b", "r.shape[0]")))
        return NULL;
    if (add && out_obj == Py_None) {
        PyErr_SetString(PyExc_TypeError, "out: expected an array to add to, got None");
        return NULL;
    }
    if (!WASI_NEED_APART(1, {"out", out_obj}, {in_name, in_obj}, {"b", b_obj}))
        return NULL;

    npy_intp dims[WASI_MAX_DIMS], M = wasi_rows_of(&in);
    int n_threads = wasi_get_num_threads();
    wasi_like_rows(&in, out_width, dims);
    PyArrayObject *result = wasi_out_array(out_obj, NPY_FLOAT32, in.ndim, dims, "out");
    if (result == NULL)
        return NULL;
    PyArrayObject *work = wasi_new_scratch(wasi_qgemm_work(M, Q->O, Q->I, exact, n_threads));
    if (work == NULL) {
        Py_DECREF(result);
        return NULL;
    }
    wasi_status status;
    if (forward)
        WASI_NO_GIL(status = wasi_qgemm_forward(WASI_DATA(result), in.data, Q, b.data, add, exact, M, WASI_DATA(work),
                                                n_threads));
    else
        WASI_NO_GIL(status = wasi_qgemm_backward(WASI_DATA(result), in.data, Q, add, exact, M, WASI_DATA(work), n_threads));
    Py_DECREF(work);
    return wasi_finish(status, result, forward ? "quant_forward" : "quant_backward");
}

static PyObject *quant_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "codes", "s", "r", "c", "group", "b", "out", "add", "exact", NULL};
    PyObject *x_obj, *codes_obj, *s_obj, *r_obj, *c_obj, *b_obj = Py_None, *out_obj = Py_None;
    Py_ssize_t group;
    int add = 0, exact = 0;
    wasi_quant Q;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOn|OOpp:quant_forward", names, &x_obj, &codes_obj, &s_obj,
                                     &r_obj, &c_obj, &group, &b_obj, &out_obj, &add, &exact) ||
        !need_quant(codes_obj, s_obj, r_obj, c_obj, group, out_obj, &Q))
        return NULL;
    return product(1, x_obj, "x", &Q, b_obj, out_obj, add, exact);
}

static PyObject *quant_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "codes", "s", "r", "c", "group", "out", "add", "exact", NULL};
    PyObject *dy_obj, *codes_obj, *s_obj, *r_obj, *c_obj, *out_obj = Py_None;
    Py_ssize_t group;
    int add = 0, exact = 0;
    wasi_quant Q;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOn|Opp:quant_backward", names, &dy_obj, &codes_obj, &s_obj,
                                     &r_obj, &c_obj, &group, &out_obj, &add, &exact) ||
        !need_quant(codes_obj, s_obj, r_obj, c_obj, group, out_obj, &Q))
        return NULL;
    return product(0, dy_obj, "dy", &Q, Py_None, out_obj, add, exact);
}

PyMethodDef wasi_quant_methods[] = {
    WASI_METHOD("quantize", quantize, "quantize(W, bits, group) -> (codes, s, r, c)"),
    WASI_METHOD("dequantize", dequantize, "dequantize(codes, s, r, c, group) -> W"),
    WASI_METHOD("quant_forward", quant_forward,
                "quant_forward(x, codes, s, r, c, group, b=None, out=None, add=False, exact=False) -> y"),
    WASI_METHOD("quant_backward", quant_backward,
                "quant_backward(dy, codes, s, r, c, group, out=None, add=False, exact=False) -> dx"),
    {NULL},
};
