/* wasi.Arena: a NumPy memory handler (NEP 49) over common/arena.c.
 *
 * While `with arena:` is active in a context, every array that NumPy or wasi makes there lives in the
 * arena, scratch included. An array keeps the handler, hence the arena, alive: it may outlive the `with`.
 * Several threads may be within one arena at a time. */
#include "bindings/tables.h"

#include <string.h>
#include <unistd.h>

#include "common/arena.h"

enum { LEAST_CAPACITY = 1 << 20 };

static void *arena_malloc(void *ctx, size_t size)
{
    return wasi_arena_alloc(ctx, size);
}

static void *arena_calloc(void *ctx, size_t n, size_t size)
{
    if (size != 0 && n > SIZE_MAX / size)
        return NULL;
    void *block = wasi_arena_alloc(ctx, n * size);
    if (block != NULL)
        memset(block, 0, n * size);
    return block;
}

static void arena_free(void *ctx, void *block, size_t size)
{
    wasi_arena_free(ctx, block);
}

static void *arena_realloc(void *ctx, void *block, size_t size)
{
    void *moved = wasi_arena_alloc(ctx, size);
    if (moved != NULL && block != NULL) {
        memcpy(moved, block, WASI_MIN(size, wasi_arena_block_size(block)));
        wasi_arena_free(ctx, block);
    }
    return moved;
}

static void handler_delete(PyObject *capsule)
{
    PyDataMem_Handler *handler = PyCapsule_GetPointer(capsule, "mem_handler");
    wasi_arena_delete(handler->allocator.ctx);
    PyMem_Free(handler);
}

typedef struct {
    PyObject_HEAD
    PyObject *handler;  /* the capsule that NumPy's arrays refer to; owns the wasi_arena */
    PyObject *previous; /* a list: (thread, handler that a `with` block of it replaced), in the order of entering */
} ArenaObject;

static wasi_arena *arena_of(ArenaObject *self)
{
    PyDataMem_Handler *handler = PyCapsule_GetPointer(self->handler, "mem_handler");
    return handler->allocator.ctx;
}

/* A region of `capacity_object` bytes. None: of this machine's memory, or under a limit on address space (ulimit -v) of half of
 * what can be had. NULL with an exception. */
static wasi_arena *reserve(PyObject *capacity_object)
{
    size_t capacity;
    wasi_arena *arena;
    if (capacity_object == Py_None) {
        capacity = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
        arena = wasi_arena_new(capacity);
        if (arena != NULL)
            return arena;
        while (arena == NULL && capacity > 2 * LEAST_CAPACITY)
            arena = wasi_arena_new(capacity /= 2);
        if (arena != NULL) {
            wasi_arena_delete(arena);
            arena = wasi_arena_new(capacity /= 2);
        }
    } else {
        capacity = PyLong_AsSize_t(capacity_object);
        if (capacity == (size_t)-1 && PyErr_Occurred())
            return NULL;
        if (capacity == 0) {
            PyErr_SetString(PyExc_ValueError, "capacity_bytes: expected a positive number of bytes, got 0");
            return NULL;
        }
        arena = wasi_arena_new(capacity);
    }
    if (arena == NULL)
        PyErr_Format(PyExc_MemoryError, "capacity_bytes: the system does not reserve %zu bytes", capacity);
    return arena;
}

/* NumPy's handler over an arena, whose owner it becomes; where that fails the arena is gone. */
static PyObject *new_handler(wasi_arena *arena)
{
    PyObject *capsule = NULL;
    PyDataMem_Handler *handler = PyMem_Calloc(1, sizeof *handler);
    if (handler == NULL) {
        PyErr_NoMemory();
    } else {
        strcpy(handler->name, "wasi_arena");
        handler->version = 1;
        handler->allocator = (PyDataMemAllocator){arena, arena_malloc, arena_calloc, arena_realloc, arena_free};
        capsule = PyCapsule_New(handler, "mem_handler", handler_delete);
    }
    if (capsule == NULL) {
        PyMem_Free(handler);
        wasi_arena_delete(arena);
    }
    return capsule;
}

static PyObject *arena_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"capacity_bytes", NULL};
    PyObject *capacity_object = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:Arena", names, &capacity_object))
        return NULL;
    ArenaObject *self = (ArenaObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    wasi_arena *arena;
    if ((self->previous = PyList_New(0)) == NULL || (arena = reserve(capacity_object)) == NULL ||
        (self->handler = new_handler(arena)) == NULL)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void arena_dealloc(ArenaObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->handler);
    Py_XDECREF(self->previous);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *arena_enter(ArenaObject *self, PyObject *unused)
{
    PyObject *before = PyDataMem_SetHandler(self->handler);
    if (before == NULL)
        return NULL;
    PyObject *entry = Py_BuildValue("kO", PyThread_get_thread_ident(), before);
    int failed = entry == NULL || PyList_Append(self->previous, entry) < 0;
    if (failed)
        Py_XDECREF(PyDataMem_SetHandler(before));
    Py_XDECREF(entry);
    Py_DECREF(before);
    return failed ? NULL : Py_NewRef((PyObject *)self);
}

/* The place of this thread's last entry, -1 where it has none. */
static Py_ssize_t last_entry(ArenaObject *self)
{
    unsigned long thread = PyThread_get_thread_ident();
    Py_ssize_t i = PyList_GET_SIZE(self->previous) - 1;
    while (i >= 0 && PyLong_AsUnsignedLong(PyTuple_GET_ITEM(PyList_GET_ITEM(self->previous, i), 0)) != thread)
        i--;
    return i;
}

static PyObject *arena_exit(ArenaObject *self, PyObject *unused)
{
    Py_ssize_t i = last_entry(self);
    if (i < 0) {
        PyErr_SetString(PyExc_RuntimeError, "Arena: left without having been entered");
        return NULL;
    }
    PyObject *replaced = PyDataMem_SetHandler(PyTuple_GET_ITEM(PyList_GET_ITEM(self->previous, i), 1));
    if (replaced == NULL || PyList_SetSlice(self->previous, i, i + 1, NULL) < 0) {
        Py_XDECREF(replaced);
        return NULL;
    }
    Py_DECREF(replaced);
    Py_RETURN_NONE;
}

static PyObject *arena_stats(ArenaObject *self, PyObject *unused)
{
    wasi_arena_stats s;
    wasi_arena_get_stats(arena_of(self), &s);
    return Py_BuildValue("{sn sn sn sn sn sn sn}", "capacity_bytes", (Py_ssize_t)s.capacity, "current_bytes",
                         (Py_ssize_t)s.current, "peak_bytes", (Py_ssize_t)s.peak, "extent_bytes", (Py_ssize_t)s.extent,
                         "largest_bytes", (Py_ssize_t)s.largest, "n_blocks", (Py_ssize_t)s.n_blocks, "n_calls",
                         (Py_ssize_t)s.n_calls);
}

static PyObject *arena_reset_stats(ArenaObject *self, PyObject *unused)
{
    wasi_arena_reset_stats(arena_of(self));
    Py_RETURN_NONE;
}

static PyObject *arena_trim(ArenaObject *self, PyObject *unused)
{
    wasi_arena_trim(arena_of(self));
    Py_RETURN_NONE;
}

static PyMethodDef arena_methods[] = {
    {"__enter__", (PyCFunction)arena_enter, METH_NOARGS, "Serve the arrays made in this context from the arena."},
    {"__exit__", (PyCFunction)arena_exit, METH_VARARGS, "Restore the memory handler that was active before."},
    {"stats", (PyCFunction)arena_stats, METH_NOARGS,
     "stats($self, /)\n--\n\nBytes and counts as a dict: capacity_bytes, current_bytes, peak_bytes, extent_bytes, "
     "largest_bytes, n_blocks, n_calls."},
    {"reset_stats", (PyCFunction)arena_reset_stats, METH_NOARGS,
     "reset_stats($self, /)\n--\n\nStart the peaks and counters anew from what is live now."},
    {"trim", (PyCFunction)arena_trim, METH_NOARGS, "trim($self, /)\n--\n\nGive the pages of free blocks back to the system."},
    {NULL},
};

static PyType_Slot arena_slots[] = {
    {Py_tp_doc, "Arena(capacity_bytes=None)\n--\n\n"
                "A memory region that serves NumPy's arrays inside ``with arena:`` and remembers its peak.\n\n"
                "capacity_bytes: bytes of address space to reserve (default: this machine's memory, or half of what a\n"
                "limit on address space leaves). Pages cost memory only once they are used. A full arena raises\n"
                "MemoryError."},
    {Py_tp_new, (void *)(uintptr_t)arena_new},
    {Py_tp_dealloc, (void *)(uintptr_t)arena_dealloc},
    {Py_tp_methods, arena_methods},
    {0, NULL},
};

static PyType_Spec arena_spec = {
    .name = "wasi.Arena",
    .basicsize = sizeof(ArenaObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = arena_slots,
};

int wasi_add_arena_type(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&arena_spec);
    int failed = type == NULL || PyModule_AddObjectRef(module, "Arena", type) < 0;
    Py_XDECREF(type);
    return failed ? -1 : 0;
}
