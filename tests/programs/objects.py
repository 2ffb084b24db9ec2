"""CPython objects of which it is known who holds them: by attributes of instances (with shared names, with a dictionary of their own,
with slots), by variables of a module, by a class, by keys of dictionaries, by a closure's cell and by an lru_cache; and cycles that nobody
collects. Prints what the interpreter itself counts, and waits to be killed."""

import collections
import functools
import gc
import sys
import threading
import time


class InAttribute(object):
    pass


class InDict(object):
    pass


class InSlot(object):
    pass


class InModule(object):
    pass


class InClass(object):
    pass


class InKey(object):
    pass


class InCache(object):
    pass


class InList(object):
    pass


class OnStack(object):
    pass


class Parent(object):
    pass


class Child(object):
    pass


class Analyzer(object):
    registry = []

    def __init__(self):
        self.first = None
        self.metrics = []


class Odd(object):
    """Its instances have no names in common."""


class Slotted(object):
    __slots__ = ("before", "entries", "after")


COUNT = 20000
analyzer = Analyzer()
analyzer.metrics.extend(InAttribute() for _ in range(COUNT))

odd = Odd()
for number in range(40):
    setattr(odd, "own_%d" % number, number)
odd.__dict__["größe"] = [InDict() for _ in range(COUNT)]

slotted = Slotted()
slotted.entries = [InSlot() for _ in range(COUNT)]

table = tuple(InModule() for _ in range(COUNT))
Analyzer.registry.extend(InClass() for _ in range(COUNT))
settings = {"limits": {"daily": [InKey() for _ in range(COUNT)]}, 7: [InList() for _ in range(COUNT)]}


@functools.lru_cache(maxsize=None)
def remembered(number):
    return InCache()


for number in range(COUNT):
    remembered(number)


def hold_on_stack(ready):
    kept = [OnStack() for _ in range(COUNT)]
    ready.set()
    while True:
        time.sleep(1000)
        if not kept:
            break


ready = threading.Event()
thread = threading.Thread(target=hold_on_stack, args=(ready,), daemon=True)
thread.start()
ready.wait()

gc.collect()
gc.disable()
for number in range(2 * COUNT):
    parent, child = Parent(), Child()
    parent.child, child.parent = child, parent
del parent, child, number

counts = collections.Counter(type(known).__name__ for known in gc.get_objects())
# Dictionaries that hold no containers are none of the collector's.
names = sorted(name for name, count in counts.items() if count >= 3000 and name != "dict")
truth = ["%s %d" % (name, counts[name]) for name in names]
truth.append("blocks %d" % sys.getallocatedblocks())
print(" ".join(truth), flush=True)
time.sleep(1000)
