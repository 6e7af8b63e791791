#include "bindings/tables.h"

#include "kernels/optim.h"

/* A buffer of the parameter's size; anything flat or not, as long as the number of elements agrees. */
static int need_like(PyObject *object, const wasi_array *param, const char *name, int writable, wasi_array *out)
{
    if (!(writable ? wasi_need_writable : wasi_need_array)(object, NPY_FLOAT32, -1, name, out))
        return 0;
    if (out->size == param->size)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: expected %zd elements, as param has, got %zd", name, (Py_ssize_t)param->size,
                 (Py_ssize_t)out->size);
    return 0;
}

static PyObject *sgd_update(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"param", "grad", "buffer", "lr", "momentum", "weight_decay", "nesterov", "grad_scale",
                            NULL};
    PyObject *param_obj, *grad_obj, *buffer_obj;
    double lr, momentum = 0, weight_decay = 0, grad_scale = 1;
    int nesterov = 0;
    wasi_array param, grad, buffer = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOd|ddpd:sgd_update", names, &param_obj, &grad_obj, &buffer_obj,
                                     &lr, &momentum, &weight_decay, &nesterov, &grad_scale))
        return NULL;
    if (!wasi_need_writable(param_obj, NPY_FLOAT32, -1, "param", &param) ||
        !need_like(grad_obj, &param, "grad", 0, &grad) ||
        (buffer_obj != Py_None && !need_like(buffer_obj, &param, "buffer", 1, &buffer)) ||
        !WASI_NEED_APART(2, {"param", param_obj}, {"buffer", buffer_obj}, {"grad", grad_obj}))
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_sgd_update(param.data, buffer.data, grad.data, (float)lr, (float)momentum,
                                         (float)weight_decay, nesterov, (float)grad_scale, param.size, n_threads));
    return status == WASI_OK ? Py_NewRef(Py_None) : wasi_raise(status, "sgd_update");
}

static PyObject *adamw_update(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"param", "grad", "m", "v", "lr", "beta1", "beta2", "eps", "weight_decay", "step",
                            "grad_scale", NULL};
    PyObject *param_obj, *grad_obj, *m_obj, *v_obj;
    double lr, beta1, beta2, eps, weight_decay, grad_scale = 1;
    long long step;
    wasi_array param, grad, m, v;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOdddddL|d:adamw_update", names, &param_obj, &grad_obj, &m_obj,
                                     &v_obj, &lr, &beta1, &beta2, &eps, &weight_decay, &step, &grad_scale))
        return NULL;
    if (!wasi_need_writable(param_obj, NPY_FLOAT32, -1, "param", &param) ||
        !need_like(grad_obj, &param, "grad", 0, &grad) || !need_like(m_obj, &param, "m", 1, &m) ||
        !need_like(v_obj, &param, "v", 1, &v) ||
        !WASI_NEED_APART(3, {"param", param_obj}, {"m", m_obj}, {"v", v_obj}, {"grad", grad_obj}))
        return NULL;
    if (step < 1)
        return PyErr_Format(PyExc_ValueError, "step: expected 1 or more, got %lld", step);
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_adamw_update(param.data, m.data, v.data, grad.data, lr, beta1, beta2, eps, weight_decay,
                                           step, (float)grad_scale, param.size, n_threads));
    return status == WASI_OK ? Py_NewRef(Py_None) : wasi_raise(status, "adamw_update");
}

static PyObject *sum_of_squares(PyObject *self, PyObject *argument)
{
    wasi_array x;
    if (!wasi_need_f32(argument, -1, "x", &x))
        return NULL;
    PyArrayObject *scratch = wasi_new_scratch(wasi_sum_of_squares_work(x.size));
    if (scratch == NULL)
        return NULL;
    double sum = 0;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_sum_of_squares(&sum, x.data, x.size, WASI_DATA(scratch), n_threads));
    Py_DECREF(scratch);
    return status == WASI_OK ? PyFloat_FromDouble(sum) : wasi_raise(status, "sum_of_squares");
}

static PyObject *all_finite(PyObject *self, PyObject *argument)
{
    wasi_array x;
    if (!wasi_need_f32(argument, -1, "x", &x))
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_all_finite(x.data, x.size, n_threads));
    return PyBool_FromLong(status == WASI_OK);
}

static PyObject *scale_(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "a", NULL};
    PyObject *x_obj;
    double a;
    wasi_array x;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Od:scale_", names, &x_obj, &a))
        return NULL;
    if (!wasi_need_writable(x_obj, NPY_FLOAT32, -1, "x", &x))
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_scale(x.data, (float)a, x.size, n_threads));
    return status == WASI_OK ? Py_NewRef(Py_None) : wasi_raise(status, "scale_");
}

static PyObject *axpy_(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"y", "a", "x", NULL};
    PyObject *y_obj, *x_obj;
    double a;
    wasi_array y, x;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OdO:axpy_", names, &y_obj, &a, &x_obj))
        return NULL;
    if (!wasi_need_writable(y_obj, NPY_FLOAT32, -1, "y", &y) || !wasi_need_f32(x_obj, -1, "x", &x) ||
        !wasi_need_same_shape(&x, "x", &y, "y") || !wasi_need_in_place(y.object, "y", &x, "x"))
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_axpy(y.data, (float)a, x.data, y.size, n_threads));
    return status == WASI_OK ? Py_NewRef(Py_None) : wasi_raise(status, "axpy_");
}

static PyObject *add(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "y", "out", NULL};
    PyObject *x_obj, *y_obj, *out_obj = Py_None;
    wasi_array x, y;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:add", names, &x_obj, &y_obj, &out_obj))
        return NULL;
    if (!wasi_need_f32(x_obj, -1, "x", &x) || !wasi_need_f32(y_obj, -1, "y", &y) ||
        !wasi_need_same_shape(&y, "y", &x, "x"))
        return NULL;
    PyArrayObject *out = wasi_out_in_place(out_obj, &x, "x", &y, "y");
    if (out == NULL)
        return NULL;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    WASI_NO_GIL(status = wasi_add(WASI_DATA(out), x.data, y.data, x.size, n_threads));
    return wasi_finish(status, out, "add");
}

PyMethodDef wasi_optim_methods[] = {
    WASI_METHOD("sgd_update", sgd_update,
                "sgd_update(param, grad, buffer, lr, momentum=0.0, weight_decay=0.0, nesterov=False, grad_scale=1.0)"),
    WASI_METHOD("adamw_update", adamw_update,
                "adamw_update(param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale=1.0)"),
    {"sum_of_squares", sum_of_squares, METH_O, "sum_of_squares(x) -> float"},
    {"all_finite", all_finite, METH_O, "all_finite(x) -> bool"},
    WASI_METHOD("add", add, "add(x, y, out=None) -> x + y"),
    WASI_METHOD("scale_", scale_, "scale_(x, a)"),
    WASI_METHOD("axpy_", axpy_, "axpy_(y, a, x)"),
    {NULL},
};
