#define WASI_IMPORTS_NUMPY
#include "bindings/tables.h"

#include "common/blas.h"
#include "common/isa.h"

static PyObject *set_num_threads(PyObject *self, PyObject *argument)
{
    long n = PyLong_AsLong(argument);
    if (n == -1 && PyErr_Occurred())
        return NULL;
    if (n < 1 || n > WASI_MAX_THREADS)
        return PyErr_Format(PyExc_ValueError, "n: expected 1 to %d threads, got %ld", WASI_MAX_THREADS, n);
    wasi_set_num_threads((int)n);
    Py_RETURN_NONE;
}

static PyObject *get_num_threads(PyObject *self, PyObject *unused)
{
    return PyLong_FromLong(wasi_get_num_threads());
}

static PyObject *set_isa(PyObject *self, PyObject *argument)
{
    const char *name = PyUnicode_AsUTF8(argument);
    if (name == NULL)
        return NULL;
    if (!wasi_isa_select(name))
        return PyErr_Format(PyExc_ValueError, "name: expected an instruction set of this machine and build, got '%s'",
                            name);
    Py_RETURN_NONE;
}

static PyObject *get_isa(PyObject *self, PyObject *unused)
{
    return PyUnicode_FromString(wasi_isa_name(wasi_isa));
}

static PyObject *blas_config(PyObject *self, PyObject *unused)
{
    return PyUnicode_FromString(wasi_blas_config());
}

static PyMethodDef module_methods[] = {
    {"set_num_threads", set_num_threads, METH_O, "set_num_threads(n)"},
    {"get_num_threads", get_num_threads, METH_NOARGS, "get_num_threads()"},
    {"set_isa", set_isa, METH_O, "set_isa(name)"},
    {"get_isa", get_isa, METH_NOARGS, "get_isa()"},
    {"blas_config", blas_config, METH_NOARGS, "blas_config()"},
    {NULL},
};

/* The thread pool, its settings and NumPy's memory handlers belong to the process: one interpreter, with its lock. */
static int need_main_interpreter(void)
{
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "wasi cannot be used in a sub-interpreter: import it in the main one");
        return 0;
    }
#ifdef Py_GIL_DISABLED
    PyObject *enabled = PyObject_CallMethod(PyImport_AddModule("sys"), "_is_gil_enabled", NULL);
    int locked = enabled == NULL ? -1 : PyObject_IsTrue(enabled);
    Py_XDECREF(enabled);
    if (locked == 0)
        PyErr_SetString(PyExc_ImportError, "wasi needs the global interpreter lock, which importing it turns on: leave out "
                                           "PYTHON_GIL=0 and -X gil=0");
    return locked > 0;
#else
    return 1;
#endif
}

static int module_exec(PyObject *module)
{
    if (!need_main_interpreter())
        return -1;
    if (PyArray_ImportNumPyAPI() < 0)
        return -1;
    wasi_blas_init();
    wasi_isa_init();
    PyMethodDef *const tables[] = {
        module_methods,
        wasi_activation_methods,
        wasi_attention_methods,
        wasi_batchnorm_methods,
        wasi_bf16_methods,
        wasi_conv_methods,
        wasi_decoder_methods,
        wasi_embed_methods,
        wasi_knapsack_methods,
        wasi_linalg_methods,
        wasi_linear_methods,
        wasi_loss_methods,
        wasi_norm_methods,
        wasi_optim_methods,
        wasi_quant_methods,
        wasi_rsvd_methods,
        wasi_store_methods,
        wasi_tucker_methods,
        wasi_wsi_methods,
    };
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (PyModule_AddFunctions(module, tables[i]) < 0)
            return -1;
    return wasi_add_arena_type(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)(uintptr_t)module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    /* NumPy's own limit, and ours: one interpreter a process. */
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_USED}, /* a free-threaded interpreter turns its lock on, and says so */
#endif
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "wasi._core",
    .m_doc = "The C core of wasi. Private: use wasi.ops, wasi.linalg and what stands above them.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&module_definition);
}
