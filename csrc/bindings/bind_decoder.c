#include "bindings/tables.h"

#include "kernels/embedding.h"
#include "kernels/rope.h"

static PyObject *embedding_forward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"tokens", "table", "out", NULL};
    PyObject *tokens_obj, *table_obj, *out_obj = Py_None;
    wasi_array tokens, table;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:embedding_forward", names, &tokens_obj, &table_obj, &out_obj))
        return NULL;
    if (!wasi_need_array(tokens_obj, NPY_INT64, -1, "tokens", &tokens) || !wasi_need_f32(table_obj, 2, "table", &table) ||
        !WASI_NEED_APART(1, {"out", out_obj}, {"tokens", tokens_obj}, {"table", table_obj}))
        return NULL;
    if (tokens.ndim >= WASI_MAX_DIMS)
        return PyErr_Format(PyExc_ValueError, "tokens: expected fewer than %d dimensions, got %d", WASI_MAX_DIMS,
                            tokens.ndim);

    npy_intp dims[WASI_MAX_DIMS];
    for (int i = 0; i < tokens.ndim; i++)
        dims[i] = tokens.dim[i];
    dims[tokens.ndim] = table.dim[1];
    PyArrayObject *y = wasi_out_array(out_obj, NPY_FLOAT32, tokens.ndim + 1, dims, "out");
    if (y == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_embedding_forward(WASI_DATA(y), tokens.data, table.data, tokens.size, table.dim[0],
                                                table.dim[1], n_threads));
    if (status != WASI_ERR_RANGE)
        return wasi_finish(status, y, "embedding_forward");
    Py_DECREF(y);
    return wasi_raise_index(&tokens, table.dim[0], "tokens", "ids");
}

static PyObject *embedding_backward(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "tokens", "dtable", NULL};
    PyObject *dy_obj, *tokens_obj, *dtable_obj;
    wasi_array dy, tokens, dtable;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO:embedding_backward", names, &dy_obj, &tokens_obj, &dtable_obj))
        return NULL;
    if (!wasi_need_rows(dy_obj, "dy", &dy) || !wasi_need_array(tokens_obj, NPY_INT64, -1, "tokens", &tokens) ||
        !wasi_need_writable(dtable_obj, NPY_FLOAT32, 2, "dtable", &dtable) ||
        !wasi_need_same_rows(&dy, tokens.size, "dy") ||
        !wasi_need_dim(&dy, dy.ndim - 1, dtable.dim[1], "dy", "dtable.shape[1]") ||
        !WASI_NEED_APART(1, {"dtable", dtable_obj}, {"dy", dy_obj}, {"tokens", tokens_obj}))
        return NULL;

    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_embedding_backward(dtable.data, dy.data, tokens.data, tokens.size, dtable.dim[0],
                                                 dtable.dim[1], n_threads));
    if (status == WASI_ERR_RANGE)
        return wasi_raise_index(&tokens, dtable.dim[0], "tokens", "ids");
    return status == WASI_OK ? Py_NewRef(Py_None) : wasi_raise(status, "embedding_backward");
}

static PyObject *rope(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "cosines", "sines", "start", "back", NULL};
    PyObject *x_obj, *cos_obj, *sin_obj;
    Py_ssize_t start = 0;
    int back = 0;
    wasi_array x, cosines, sines;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|np:rope", names, &x_obj, &cos_obj, &sin_obj, &start, &back))
        return NULL;
    if (!wasi_need_writable(x_obj, NPY_FLOAT32, 4, "x", &x) || !wasi_need_f32(cos_obj, 2, "cosines", &cosines) ||
        !wasi_need_f32(sin_obj, 2, "sines", &sines) || !wasi_need_same_shape(&sines, "sines", &cosines, "cosines") ||
        !WASI_NEED_APART(1, {"x", x_obj}, {"cosines", cos_obj}, {"sines", sin_obj}))
        return NULL;
    if (x.dim[3] % 2)
        return PyErr_Format(PyExc_ValueError, "x.shape[3]: expected an even width of a head, got %zd",
                            (Py_ssize_t)x.dim[3]);
    if (!wasi_need_dim(&cosines, 1, x.dim[3] / 2, "cosines", "x.shape[3] / 2"))
        return NULL;
    if (start < 0 || x.dim[1] > cosines.dim[0] || start > cosines.dim[0] - x.dim[1])
        return PyErr_Format(PyExc_ValueError, "start: expected %zd positions from 0 within the tables' %zd, got start %zd",
                            (Py_ssize_t)x.dim[1], (Py_ssize_t)cosines.dim[0], start);

    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_rope(x.data, cosines.data, sines.data, start, back, x.dim[0], x.dim[1], x.dim[2],
                                   x.dim[3], n_threads));
    return status == WASI_OK ? Py_NewRef(x_obj) : wasi_raise(status, "rope");
}

PyMethodDef wasi_decoder_methods[] = {
    WASI_METHOD("embedding_forward", embedding_forward, "embedding_forward(tokens, table, out=None) -> y"),
    WASI_METHOD("embedding_backward", embedding_backward, "embedding_backward(dy, tokens, dtable)"),
    WASI_METHOD("rope", rope, "rope(x, cosines, sines, start=0, back=False) -> x"),
    {NULL},
};
