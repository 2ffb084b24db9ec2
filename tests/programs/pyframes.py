"""Python functions that call the C library's malloc in all the ways in which functions come to run, each with a size of its own. Prints of each
which functions and lines the interpreter itself says were running. Says "ready", allocates at "go", ends at "quit"."""

import asyncio
import contextlib
import ctypes
import functools
import json
import os
import re
import sys
import threading
import weakref

# The first gives the interpreter's lock away for the call, the second keeps it.
unlocked = ctypes.CDLL(None)
locked = ctypes.PyDLL(None)
for library in (unlocked, locked):
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]

TIMES = 3
truths = {}


def name_of(code):
    return getattr(code, "co_qualname", code.co_name)


def note(name, size):
    frame = sys._getframe(1)
    stack = []
    while frame is not None:
        stack.append("%s:%d" % (name_of(frame.f_code), frame.f_lineno))
        frame = frame.f_back
    known = truths.setdefault((name, size), {"stack": stack, "objects": 0})
    if known["stack"] != stack:
        raise SystemExit("%s has two stacks: %r %r" % (name, known["stack"], stack))
    known["objects"] += 1


def leak(name, size):
    (note(name, size), unlocked.malloc(size))
    (note(name, size + 1), locked.malloc(size + 1))


def nested(depth):
    if depth == 0:
        leak("nested", 20000)
    else:
        nested(depth - 1)


class Built:
    def __init__(self):
        leak("class", 20100)


class Base:
    def __init__(self, *arguments, **options):
        leak("super", 20200)


class Derived(Base):
    def __init__(self):
        super().__init__(
            1,
            *[2, 3],
            key=4,
        )


def generator():
    yield 1
    leak("generator", 20300)
    yield 2


def delegating():
    yield from generator()


def decorated(function):
    @functools.wraps(function)
    def wrapper(*arguments, **options):
        return function(*arguments, **options)

    return wrapper


@decorated
def behind_wrapper():
    leak("wrapper", 20400)


class Manager:
    def __enter__(self):
        leak("enter", 20500)

    def __exit__(self, *reason):
        leak("exit", 20600)


@contextlib.contextmanager
def managing():
    yield
    leak("contextmanager", 20700)


class Dying:
    def __del__(self):
        leak("destructor", 20800)


def in_handler():
    try:
        try:
            raise ValueError
        finally:
            leak("finally", 20900)
    except ValueError:
        leak("except", 21000)


class Lazy:
    @property
    def value(self):
        leak("property", 21100)

    def __getattr__(self, name):
        leak("getattr", 21200)

    def __lt__(self, other):
        leak("compare", 21300)
        return False


async def inner_task():
    await asyncio.sleep(0)
    leak("coroutine", 21400)


async def tasks():
    await inner_task()
    await asyncio.get_running_loop().create_task(inner_task_alone())


async def inner_task_alone():
    leak("task", 21500)


callback_type = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def compared(one, two):
    leak("callback", 21600)
    return 0


SOURCE = "\n\ndef made():\n    leak('%s', %d)\nmade()\n"
compiled = compile(SOURCE % ("exec", 21700), "made.py", "exec")


def evaluated():
    exec(compiled, {"leak": leak})
    # Its code is gone by the time that anybody could read it.
    exec(compile(SOURCE % ("gone", 21750), "made.py", "exec"), {"leak": leak})


def below_a_comprehension():
    return [leak("comprehension", 21800) for _ in range(1)]


def sorting():
    sorted([1], key=lambda value: leak("key", 21900) or value)
    re.sub("a", lambda match: leak("match", 22000) or "b", "a")
    list(map(lambda value: leak("map", 22100), [1]))


def long_way(depth):
    return leak("deep", 22200) if depth == 0 else functools.partial(long_way, depth - 1)()


def everything():
    nested(4)
    Built()
    Derived()
    list(delegating())
    behind_wrapper()
    with Manager():
        pass
    with managing():
        pass
    dying = Dying()
    del dying
    in_handler()
    lazy = Lazy()
    lazy.value
    lazy.other
    sorted([lazy, lazy])
    asyncio.run(tasks())
    numbers = (ctypes.c_int * 2)(1, 2)
    locked.qsort(numbers, 2, 4, callback_type(compared))
    evaluated()
    below_a_comprehension()
    sorting()
    long_way(12)
    kept = Base.__new__(Base)
    noted = weakref.ref(kept, lambda _: leak("weakref", 22300))
    del kept
    del noted


def main():
    print("ready", os.getpid(), flush=True)
    for line in sys.stdin:
        if line.strip() == "go":
            for _ in range(TIMES):
                everything()
                thread = threading.Thread(target=in_thread)
                thread.start()
                thread.join()
            for (name, size), truth in truths.items():
                said = dict(function=name, bytes=size * truth["objects"], **truth)
                print(json.dumps(said), flush=True)
            print("done", flush=True)
        elif line.strip() == "quit":
            return


def in_thread():
    leak("thread", 22400)


main()
