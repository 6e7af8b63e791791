#include "bindings/tables.h"

#include "kernels/cross_entropy.h"

static PyObject *cross_entropy(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"logits", "targets", "label_smoothing", "need_gradient", NULL};
    PyObject *logits_obj, *targets_obj, *result = NULL;
    double smoothing = 0;
    int need_gradient = 1;
    wasi_array logits, targets;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|dp:cross_entropy", names, &logits_obj, &targets_obj, &smoothing,
                                     &need_gradient))
        return NULL;
    if (!wasi_need_f32(logits_obj, 2, "logits", &logits) ||
        !wasi_need_array(targets_obj, NPY_INT64, 1, "targets", &targets) ||
        !wasi_need_dim(&targets, 0, logits.dim[0], "targets", "logits.shape[0]"))
        return NULL;
    if (logits.size == 0) {
        PyErr_SetString(PyExc_ValueError, "logits: expected at least one row and one class, got none");
        return NULL;
    }
    if (!(smoothing >= 0 && smoothing < 1)) {
        PyErr_SetString(PyExc_ValueError, "label_smoothing: expected a number in [0, 1)");
        return NULL;
    }

    PyArrayObject *dlogits = NULL, *scratch = NULL;
    if ((need_gradient && (dlogits = wasi_new_f32(2, logits.dim)) == NULL) ||
        (scratch = wasi_new_scratch(wasi_cross_entropy_work(logits.dim[0]))) == NULL)
        goto done;
    double loss = 0;
    int64_t n_correct = 0;
    int n_threads = wasi_get_num_threads();
    wasi_status status;
    Py_BEGIN_ALLOW_THREADS
    status = wasi_cross_entropy(&loss, &n_correct, dlogits ? WASI_DATA(dlogits) : NULL, logits.data, targets.data,
                                (float)smoothing, logits.dim[0], logits.dim[1], WASI_DATA(scratch), n_threads);
    Py_END_ALLOW_THREADS
    if (status == WASI_ERR_RANGE)
        PyErr_Format(PyExc_ValueError, "targets: expected classes 0 to %zd, got one outside", (Py_ssize_t)logits.dim[1] - 1);
    else if (status != WASI_OK)
        wasi_raise(status, "cross_entropy");
    else
        result = Py_BuildValue("dOL", loss, dlogits ? (PyObject *)dlogits : Py_None, (long long)n_correct);
done:
    Py_XDECREF(dlogits);
    Py_XDECREF(scratch);
    return result;
}

PyMethodDef wasi_loss_methods[] = {
    WASI_METHOD("cross_entropy", cross_entropy,
                "cross_entropy(logits, targets, label_smoothing=0.0, need_gradient=True) -> (loss, dlogits, n_correct)"),
    {NULL},
};
