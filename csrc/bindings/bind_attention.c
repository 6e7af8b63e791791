#include "bindings/tables.h"

#include <math.h>

#include "kernels/attention.h"

/* A float32 array B x N x heads x D whose last axis is contiguous; the other strides may be anything. */
static int need_heads(PyObject *object, const char *name, wasi_array *out)
{
    PyArrayObject *array = (PyArrayObject *)object;
    if (!PyArray_Check(object) || PyArray_TYPE(array) != NPY_FLOAT32 || PyArray_NDIM(array) != 4)
        return wasi_need_f32(object, 4, name, out); /* says what is wrong */
    int whole = PyArray_ISALIGNED(array) && PyArray_ISNOTSWAPPED(array) &&
                (PyArray_DIM(array, 3) == 1 || PyArray_STRIDE(array, 3) == sizeof(float));
    for (int i = 0; i < 3; i++)
        whole = whole && PyArray_STRIDE(array, i) % (npy_intp)sizeof(float) == 0;
    if (!whole) {
        PyErr_Format(PyExc_ValueError, "%s: expected an aligned array in native byte order with a contiguous last "
                     "axis, got a view that is not; pass numpy.ascontiguousarray(%s)", name, name);
        return 0;
    }
    *out = (wasi_array){array, PyArray_DATA(array), 4, .size = PyArray_SIZE(array)};
    for (int i = 0; i < 4; i++)
        out->dim[i] = PyArray_DIM(array, i);
    return 1;
}

static int need_heads_of(PyObject *object, const char *name, const npy_intp *dims, wasi_array *out)
{
    if (!need_heads(object, name, out))
        return 0;
    for (int i = 0; i < 4; i++)
        if (!wasi_need_dim(out, i, dims[i], name, "the shape of what it belongs to"))
            return 0;
    return 1;
}

static wasi_heads heads(const wasi_array *x)
{
    const npy_intp unit = sizeof(float), *stride = PyArray_STRIDES(x->object);
    return (wasi_heads){x->data, stride[0] / unit, stride[1] / unit, stride[2] / unit};
}

static wasi_const_heads const_heads(wasi_heads x)
{
    return (wasi_const_heads){x.data, x.batch, x.row, x.head};
}

/* The arguments that every form shares. */
typedef struct {
    wasi_maybe_double scale;
    wasi_maybe_size q_offset;
    PyObject *bias, *mask, *dbias;
    int causal;
} options;

#define NO_OPTIONS {.bias = Py_None, .mask = Py_None, .dbias = Py_None}

static int need_positive(npy_intp size, const char *name)
{
    if (size > 0)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: expected at least 1, got %zd", name, (Py_ssize_t)size);
    return 0;
}

/* Scores' terms: `n` x Nq x Nk. */
static int maybe_terms(PyObject *object, npy_intp n, const wasi_attention *a, const char *name, const char *why,
                       wasi_array *out)
{
    return wasi_maybe_array(object, NPY_FLOAT32, 3, name, out) &&
           (out->data == NULL ||
            (wasi_need_dim(out, 0, n < 0 ? out->dim[0] : n, name, why) &&
             wasi_need_dim(out, 1, a->Nq, name, "the number of queries") &&
             wasi_need_dim(out, 2, a->Nk, name, "the number of keys")));
}

/* Fills in what the sizes in `a` leave open. `dbias` receives its array. */
static int read_options(const options *o, wasi_attention *a, wasi_array *dbias)
{
    wasi_array bias, mask;
    if (!maybe_terms(o->bias, a->H, a, "bias", "the number of query heads", &bias) ||
        !maybe_terms(o->mask, -1, a, "mask", "", &mask) ||
        !maybe_terms(o->dbias, a->H, a, "dbias", "the number of query heads", dbias) ||
        (dbias->data && !wasi_need_writable(o->dbias, NPY_FLOAT32, 3, "dbias", dbias)))
        return 0;
    if (mask.data && (mask.dim[0] == 0 || a->B % mask.dim[0] != 0)) {
        PyErr_Format(PyExc_ValueError, "mask.shape[0]: expected a divisor of the batch size %zd, got %zd",
                     (Py_ssize_t)a->B, (Py_ssize_t)mask.dim[0]);
        return 0;
    }
    a->bias = bias.data;
    a->mask = mask.data;
    a->n_masks = mask.data ? mask.dim[0] : 0;
    a->causal = o->causal;
    a->scale = (float)(o->scale.given ? o->scale.value : 1 / sqrt((double)a->D));
    a->q_offset = a->Nk - a->Nq;
    if (o->q_offset.given) /* beyond these all keys are hidden, or none */
        a->q_offset = WASI_MAX(-a->Nq, WASI_MIN(o->q_offset.value, a->Nk));
    return 1;
}

/* Where a result goes: `out` (strides as in need_heads), or a new array. A new reference or NULL. */
static PyArrayObject *out_heads(PyObject *object, const npy_intp *dims, const char *name, wasi_array *out)
{
    PyArrayObject *array = object == Py_None ? wasi_new_f32(4, dims) : (PyArrayObject *)Py_NewRef(object);
    if (array == NULL)
        return NULL;
    int fits = need_heads_of((PyObject *)array, name, dims, out);
    if (fits && !PyArray_ISWRITEABLE(array)) {
        PyErr_Format(PyExc_ValueError, "%s: expected a writable array, got a read-only one", name);
        fits = 0;
    }
    if (!fits)
        Py_CLEAR(array);
    return array;
}

/* Runs the kernel into `o`; returns (o, lse) or NULL. */
static PyObject *run_forward(PyArrayObject *o, wasi_heads to, wasi_const_heads q, wasi_const_heads k,
                             wasi_const_heads v, const wasi_attention *a)
{
    int n_threads = wasi_get_num_threads();
    PyObject *result = NULL;
    npy_intp dims[] = {a->B, a->H, a->Nq};
    PyArrayObject *lse = wasi_new_f32(3, dims), *work = wasi_new_scratch(wasi_attention_forward_work(a, n_threads));
    if (lse == NULL || work == NULL)
        goto done;
    wasi_status status;
    WASI_NO_GIL(status = wasi_attention_forward(to, WASI_DATA(lse), q, k, v, a, WASI_DATA(work), n_threads));
    result = status == WASI_OK ? PyTuple_Pack(2, o, lse) : wasi_raise(status, "attention");
done:
    Py_XDECREF(lse);
    Py_XDECREF(work);
    return result;
}

/* Returns whether the gradients were computed. */
static int run_backward(wasi_heads dq, wasi_heads dk, wasi_heads dv, const wasi_array *dbias, wasi_const_heads dout,
                        wasi_const_heads q, wasi_const_heads k, wasi_const_heads v, wasi_const_heads o,
                        const wasi_array *lse, const wasi_attention *a)
{
    int n_threads = wasi_get_num_threads();
    PyArrayObject *work = wasi_new_scratch(wasi_attention_backward_work(a, dbias->data != NULL, n_threads));
    if (work == NULL)
        return 0;
    wasi_status status;
    WASI_NO_GIL(status = wasi_attention_backward(dq, dk, dv, dbias->data, dout, q, k, v, o, lse->data, a,
                                                 WASI_DATA(work), n_threads));
    Py_DECREF(work);
    if (status != WASI_OK)
        wasi_raise(status, "attention_backward");
    return status == WASI_OK;
}

static int need_lse(PyObject *object, const wasi_attention *a, wasi_array *lse)
{
    return wasi_need_f32(object, 3, "lse", lse) && wasi_need_dim(lse, 0, a->B, "lse", "the batch size") &&
           wasi_need_dim(lse, 1, a->H, "lse", "the number of query heads") &&
           wasi_need_dim(lse, 2, a->Nq, "lse", "the number of queries");
}

/* Whether qkv's last axis is 3C, with whole heads in C; `D` receives their width. */
static int need_thirds(const wasi_array *qkv, Py_ssize_t n_heads, wasi_int *D)
{
    int last = qkv->ndim - 1;
    npy_intp width = qkv->dim[last];
    if (width == 0 || width % 3 != 0 || width / 3 % n_heads != 0) {
        PyErr_Format(PyExc_ValueError, "qkv.shape[%d]: expected a multiple of 3 * n_heads (n_heads is %zd), got %zd", last,
                     n_heads, (Py_ssize_t)width);
        return 0;
    }
    *D = width / 3 / n_heads;
    return 1;
}

/* qkv, B x N x 3C. */
static int need_packed(PyObject *object, Py_ssize_t n_heads, wasi_array *qkv, wasi_attention *a)
{
    wasi_int D;
    if (!wasi_need_f32(object, 3, "qkv", qkv) || !need_positive(n_heads, "n_heads") ||
        !need_positive(qkv->dim[1], "qkv.shape[1]") || !need_thirds(qkv, n_heads, &D))
        return 0;
    *a = (wasi_attention){.B = qkv->dim[0], .Nq = qkv->dim[1], .Nk = qkv->dim[1], .H = n_heads, .Hkv = n_heads, .D = D};
    return 1;
}

/* qkv, an array of images B x height x width x 3C, of which `a` attends within windows. */
static int need_windows(PyObject *object, Py_ssize_t n_heads, Py_ssize_t window, Py_ssize_t shift, wasi_array *qkv,
                        wasi_attention *a)
{
    wasi_int D;
    if (!wasi_need_f32(object, 4, "qkv", qkv) || !need_positive(n_heads, "n_heads") ||
        !need_positive(window, "window") || !need_positive(qkv->dim[1], "qkv.shape[1]") ||
        !need_positive(qkv->dim[2], "qkv.shape[2]") || !need_thirds(qkv, n_heads, &D))
        return 0;
    npy_intp height = qkv->dim[1], width = qkv->dim[2];
    if (height % window || width % window) {
        PyErr_Format(PyExc_ValueError, "window: expected a divisor of the height and width of qkv, %zd x %zd, got %zd",
                     (Py_ssize_t)height, (Py_ssize_t)width, window);
        return 0;
    }
    if (shift < 0 || shift >= window) {
        PyErr_Format(PyExc_ValueError, "shift: expected 0 to window - 1 = %zd, got %zd", window - 1, shift);
        return 0;
    }
    *a = (wasi_attention){.B = qkv->dim[0] * (height / window) * (width / window), .Nq = window * window,
                          .Nk = window * window, .H = n_heads, .Hkv = n_heads, .D = D, .window = window,
                          .height = height, .width = width, .shift = shift};
    return 1;
}

/* An array of the shape of o: qkv's, of tokens or of images, with C numbers in the place of 3C. */
static int need_result(PyObject *object, const wasi_array *qkv, const char *name, wasi_array *out)
{
    static const char *whence[] = {"qkv.shape[0]", "qkv.shape[1]", "qkv.shape[2]"};
    int last = qkv->ndim - 1;
    if (!wasi_need_f32(object, qkv->ndim, name, out))
        return 0;
    for (int i = 0; i < last; i++)
        if (!wasi_need_dim(out, i, qkv->dim[i], name, whence[i]))
            return 0;
    return wasi_need_dim(out, last, qkv->dim[last] / 3, name, last == 2 ? "qkv.shape[2] / 3" : "qkv.shape[3] / 3");
}

/* Part `i` of `parts` (q, k, v: of 3; o: of 1) of an array B x N x parts C, or of images. */
static wasi_heads packed(void *data, int i, int parts, const wasi_attention *a)
{
    npy_intp C = a->H * a->D, tokens = a->window ? a->height * a->width : a->Nq;
    return (wasi_heads){(float *)data + i * C, tokens * parts * C, parts * C, a->D};
}

static wasi_const_heads const_packed(void *data, int i, int parts, const wasi_attention *a)
{
    return const_heads(packed(data, i, parts, a));
}

/* What the packed forms do once qkv and the sizes in `a` are known: options, `out`, the kernel. */
static PyObject *packed_forward(PyObject *out_obj, const options *opt, const wasi_array *qkv, wasi_attention *a)
{
    wasi_array dbias;
    if (!read_options(opt, a, &dbias) || !WASI_NEED_APART(1, {"out", out_obj}, {"bias", opt->bias}, {"mask", opt->mask},
                                                          {"qkv", (PyObject *)qkv->object}))
        return NULL;
    npy_intp dims[WASI_MAX_DIMS];
    wasi_like_rows(qkv, a->H * a->D, dims);
    PyObject *result = NULL;
    PyArrayObject *out = wasi_out_array(out_obj, NPY_FLOAT32, qkv->ndim, dims, "out");
    if (out != NULL)
        result = run_forward(out, packed(WASI_DATA(out), 0, 1, a), const_packed(qkv->data, 0, 3, a),
                             const_packed(qkv->data, 1, 3, a), const_packed(qkv->data, 2, 3, a), a);
    Py_XDECREF(out);
    return result;
}

static PyObject *packed_backward(PyObject *do_obj, PyObject *o_obj, PyObject *lse_obj, PyObject *out_obj,
                                 const options *opt, const wasi_array *qkv, wasi_attention *a)
{
    wasi_array dout, o, lse, dbias;
    if (!need_result(do_obj, qkv, "do", &dout) || !need_result(o_obj, qkv, "o", &o) || !need_lse(lse_obj, a, &lse) ||
        !read_options(opt, a, &dbias) ||
        !WASI_NEED_APART(2, {"out", out_obj}, {"dbias", opt->dbias}, {"lse", lse_obj}, {"bias", opt->bias},
                         {"mask", opt->mask}, {"do", do_obj}, {"o", o_obj}, {"qkv", (PyObject *)qkv->object}))
        return NULL;
    PyArrayObject *out = wasi_out_array(out_obj, NPY_FLOAT32, qkv->ndim, qkv->dim, "out");
    if (out == NULL)
        return NULL;
    void *dqkv = WASI_DATA(out);
    if (!run_backward(packed(dqkv, 0, 3, a), packed(dqkv, 1, 3, a), packed(dqkv, 2, 3, a), &dbias,
                      const_packed(dout.data, 0, 1, a), const_packed(qkv->data, 0, 3, a),
                      const_packed(qkv->data, 1, 3, a), const_packed(qkv->data, 2, 3, a),
                      const_packed(o.data, 0, 1, a), &lse, a))
        Py_CLEAR(out);
    return (PyObject *)out;
}

static PyObject *attention_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"qkv", "n_heads", "scale", "causal", "bias", "mask", "out", NULL};
    PyObject *qkv_obj, *out_obj = Py_None;
    Py_ssize_t n_heads;
    options opt = NO_OPTIONS;
    wasi_attention a;
    wasi_array qkv;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "On|O&pOOO:attention_forward", names, &qkv_obj, &n_heads, wasi_as_double,
                                     &opt.scale, &opt.causal, &opt.bias, &opt.mask, &out_obj))
        return NULL;
    return need_packed(qkv_obj, n_heads, &qkv, &a) ? packed_forward(out_obj, &opt, &qkv, &a) : NULL;
}

static PyObject *attention_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"do",     "qkv",  "o",     "lse", "n_heads", "scale",
                            "causal", "bias", "mask",  "dbias", "out",   NULL};
    PyObject *do_obj, *qkv_obj, *o_obj, *lse_obj, *out_obj = Py_None;
    Py_ssize_t n_heads;
    options opt = NO_OPTIONS;
    wasi_attention a;
    wasi_array qkv;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOn|O&pOOOO:attention_backward", names, &do_obj, &qkv_obj, &o_obj,
                                     &lse_obj, &n_heads, wasi_as_double, &opt.scale, &opt.causal, &opt.bias, &opt.mask,
                                     &opt.dbias, &out_obj))
        return NULL;
    return need_packed(qkv_obj, n_heads, &qkv, &a)
               ? packed_backward(do_obj, o_obj, lse_obj, out_obj, &opt, &qkv, &a)
               : NULL;
}

static PyObject *window_attention_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"qkv", "n_heads", "window", "shift", "scale", "bias", "out", NULL};
    PyObject *qkv_obj, *out_obj = Py_None;
    Py_ssize_t n_heads, window, shift = 0;
    options opt = NO_OPTIONS;
    wasi_attention a;
    wasi_array qkv;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Onn|nO&OO:window_attention_forward", names, &qkv_obj, &n_heads,
                                     &window, &shift, wasi_as_double, &opt.scale, &opt.bias, &out_obj))
        return NULL;
    return need_windows(qkv_obj, n_heads, window, shift, &qkv, &a) ? packed_forward(out_obj, &opt, &qkv, &a) : NULL;
}

static PyObject *window_attention_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"do",    "qkv",   "o",    "lse",   "n_heads", "window",
                            "shift", "scale", "bias", "dbias", "out",     NULL};
    PyObject *do_obj, *qkv_obj, *o_obj, *lse_obj, *out_obj = Py_None;
    Py_ssize_t n_heads, window, shift = 0;
    options opt = NO_OPTIONS;
    wasi_attention a;
    wasi_array qkv;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOnn|nO&OOO:window_attention_backward", names, &do_obj, &qkv_obj,
                                     &o_obj, &lse_obj, &n_heads, &window, &shift, wasi_as_double, &opt.scale, &opt.bias,
                                     &opt.dbias, &out_obj))
        return NULL;
    return need_windows(qkv_obj, n_heads, window, shift, &qkv, &a)
               ? packed_backward(do_obj, o_obj, lse_obj, out_obj, &opt, &qkv, &a)
               : NULL;
}

/* q B x Nq x H x D, k and v B x Nk x Hkv x D. */
static int need_separate(PyObject *q_obj, PyObject *k_obj, PyObject *v_obj, wasi_array *q, wasi_array *k,
                         wasi_array *v, wasi_attention *a)
{
    if (!need_heads(q_obj, "q", q) || !need_heads(k_obj, "k", k) ||
        !wasi_need_dim(k, 0, q->dim[0], "k", "q.shape[0]") ||
        !wasi_need_dim(k, 3, q->dim[3], "k", "q.shape[3]") || !need_positive(k->dim[1], "k.shape[1]") ||
        !need_positive(k->dim[2], "k.shape[2]") || !need_positive(k->dim[3], "k.shape[3]") ||
        !need_heads_of(v_obj, "v", k->dim, v))
        return 0;
    if (q->dim[2] % k->dim[2] != 0) {
        PyErr_Format(PyExc_ValueError, "q.shape[2]: expected a multiple of k.shape[2] = %zd heads, got %zd",
                     (Py_ssize_t)k->dim[2], (Py_ssize_t)q->dim[2]);
        return 0;
    }
    *a = (wasi_attention){.B = q->dim[0], .Nq = q->dim[1], .Nk = k->dim[1], .H = q->dim[2], .Hkv = k->dim[2],
                          .D = q->dim[3]};
    return 1;
}

static PyObject *attention_gqa_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"q", "k", "v", "scale", "causal", "q_offset", "bias", "mask", "out", NULL};
    PyObject *q_obj, *k_obj, *v_obj, *out_obj = Py_None, *result = NULL;
    options opt = NO_OPTIONS;
    wasi_attention a;
    wasi_array q, k, v, o, dbias;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|O&pO&OOO:attention_gqa_forward", names, &q_obj, &k_obj, &v_obj,
                                     wasi_as_double, &opt.scale, &opt.causal, wasi_as_size, &opt.q_offset, &opt.bias,
                                     &opt.mask, &out_obj))
        return NULL;
    if (!need_separate(q_obj, k_obj, v_obj, &q, &k, &v, &a) || !read_options(&opt, &a, &dbias) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"bias", opt.bias}, {"mask", opt.mask}, {"q", q_obj}, {"k", k_obj}, {"v", v_obj}))
        return NULL;
    PyArrayObject *out = out_heads(out_obj, q.dim, "out", &o);
    if (out != NULL)
        result = run_forward(out, heads(&o), const_heads(heads(&q)), const_heads(heads(&k)), const_heads(heads(&v)),
                             &a);
    Py_XDECREF(out);
    return result;
}

static PyObject *attention_gqa_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"do", "q", "k", "v", "o", "lse", "scale", "causal", "q_offset", "bias", "mask", "dbias",
                            "dq", "dk", "dv", NULL};
    PyObject *do_obj, *q_obj, *k_obj, *v_obj, *o_obj, *lse_obj, *dq_obj = Py_None, *dk_obj = Py_None, *dv_obj = Py_None;
    PyObject *result = NULL;
    options opt = NO_OPTIONS;
    wasi_attention a;
    wasi_array in[5], to[3], lse, dbias; /* in: q, k, v, o, do; to: dq, dk, dv */
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOO|O&pO&OOOOOO:attention_gqa_backward", names, &do_obj, &q_obj,
                                     &k_obj, &v_obj, &o_obj, &lse_obj, wasi_as_double, &opt.scale, &opt.causal,
                                     wasi_as_size, &opt.q_offset, &opt.bias, &opt.mask, &opt.dbias, &dq_obj, &dk_obj, &dv_obj))
        return NULL;
    if (!need_separate(q_obj, k_obj, v_obj, &in[0], &in[1], &in[2], &a) ||
        !need_heads_of(o_obj, "o", in[0].dim, &in[3]) || !need_heads_of(do_obj, "do", in[0].dim, &in[4]) ||
        !need_lse(lse_obj, &a, &lse) || !read_options(&opt, &a, &dbias) ||
        !WASI_NEED_APART(4, {"dq", dq_obj}, {"dk", dk_obj}, {"dv", dv_obj}, {"dbias", opt.dbias}, {"q", q_obj}, {"k", k_obj},
                         {"v", v_obj}, {"o", o_obj}, {"do", do_obj}, {"lse", lse_obj}, {"bias", opt.bias}, {"mask", opt.mask}))
        return NULL;

    PyArrayObject *dq = NULL, *dk = NULL, *dv = NULL;
    if ((dq = out_heads(dq_obj, in[0].dim, "dq", &to[0])) == NULL ||
        (dk = out_heads(dk_obj, in[1].dim, "dk", &to[1])) == NULL ||
        (dv = out_heads(dv_obj, in[2].dim, "dv", &to[2])) == NULL)
        goto done;
    if (run_backward(heads(&to[0]), heads(&to[1]), heads(&to[2]), &dbias, const_heads(heads(&in[4])),
                     const_heads(heads(&in[0])), const_heads(heads(&in[1])), const_heads(heads(&in[2])),
                     const_heads(heads(&in[3])), &lse, &a))
        result = PyTuple_Pack(3, dq, dk, dv);
done:
    Py_XDECREF(dq);
    Py_XDECREF(dk);
    Py_XDECREF(dv);
    return result;
}

PyMethodDef wasi_attention_methods[] = {
    WASI_METHOD("attention_forward", attention_forward,
                "attention_forward(qkv, n_heads, scale=None, causal=False, bias=None, mask=None, out=None) "
                "-> (o, lse)"),
    WASI_METHOD("attention_backward", attention_backward,
                "attention_backward(do, qkv, o, lse, n_heads, scale=None, causal=False, bias=None, mask=None, "
                "dbias=None, out=None) -> dqkv"),
    WASI_METHOD("attention_gqa_forward", attention_gqa_forward,
                "attention_gqa_forward(q, k, v, scale=None, causal=False, q_offset=None, bias=None, mask=None, "
                "out=None) -> (o, lse)"),
    WASI_METHOD("attention_gqa_backward", attention_gqa_backward,
                "attention_gqa_backward(do, q, k, v, o, lse, scale=None, causal=False, q_offset=None, bias=None, "
                "mask=None, dbias=None, dq=None, dk=None, dv=None) -> (dq, dk, dv)"),
    WASI_METHOD("window_attention_forward", window_attention_forward,
                "window_attention_forward(qkv, n_heads, window, shift=0, scale=None, bias=None, out=None) -> (o, lse)"),
    WASI_METHOD("window_attention_backward", window_attention_backward,
                "window_attention_backward(do, qkv, o, lse, n_heads, window, shift=0, scale=None, bias=None, "
                "dbias=None, out=None) -> dqkv"),
    {NULL},
};
