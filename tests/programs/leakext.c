/* A native extension of CPython. leak(count, size) leaks `count` blocks of `size` bytes through leak_in_extension;
 * balanced(count) leaks nothing. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>

static void *volatile kept;

__attribute__((noinline, noclone)) void leak_in_extension(long count, long size)
{
    for (long i = 0; i < count; i++)
        kept = malloc((size_t)size);
}

__attribute__((noinline, noclone)) void balanced_in_extension(long count)
{
    for (long i = 0; i < count; i++) {
        kept = malloc(100);
        free(kept);
    }
}

static PyObject *leak(PyObject *self, PyObject *arguments)
{
    long count, size;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "ll", &count, &size))
        return NULL;
    leak_in_extension(count, size);
    Py_RETURN_NONE;
}

static PyObject *balanced(PyObject *self, PyObject *arguments)
{
    long count;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "l", &count))
        return NULL;
    balanced_in_extension(count);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"leak", leak, METH_VARARGS, "Leak count blocks of size bytes."},
    {"balanced", balanced, METH_VARARGS, "Allocate and free."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "leakext", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_leakext(void)
{
    return PyModule_Create(&module);
}
