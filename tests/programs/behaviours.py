"""Programs of known truth for the verdicts, of CPython's own kind: objects from arenas, cycles that wait for the collector. As
behaviours.c, by the same commands:

    behaviours.py list       a line for each: NAME, a tab, its truth, a tab, what it does
    behaviours.py NAME WAIT  waits so many seconds, then does that until its standard input ends

Of those whose truth is `leak` there is ever more that is never freed; all others have a bound that is reached within 40 s.
"""

import collections
import ctypes
import functools
import gc
import json
import random
import select
import sys
import time

now = 0.0
BEHAVIOURS = {}


class Pace:
    """How many are due of so many a second."""

    def __init__(self, rate):
        self.rate = rate
        self.last = 0.0

    def __iter__(self):
        count = int((now - self.last) * self.rate)
        self.last += count / self.rate
        return iter(range(count))


def behaviour(truth, what):
    """Registers a function that makes the behaviour's tick."""

    def register(make):
        BEHAVIOURS["py_" + make.__name__] = (truth, make, what)
        return make

    return register


@behaviour("leak", "a list of dictionaries that is never cleared")
def leak_of_dictionaries():
    kept, pace = [], Pace(800)

    def tick():
        for _ in pace:
            kept.append({"id": len(kept), "name": "entry %d" % len(kept)})

    return tick


@behaviour("leak", "a list of bytes, each larger than what arenas hold")
def leak_of_bytes():
    kept, pace = [], Pace(20)

    def tick():
        for _ in pace:
            kept.append(b"%d" % len(kept) + bytes(900))

    return tick


@behaviour("leak", "a reference that an extension does not give back")
def leak_of_references():
    pace = Pace(15)

    def tick():
        for number in pace:
            lost = bytearray(b"%d" % number * 700)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(lost))

    return tick


@behaviour("leak", "a cache without a bound, asked for ever new keys")
def leak_by_cache_without_bound():
    pace = Pace(25)
    cached = functools.cache(lambda key: bytes(800 + key % 100))
    keys = iter(range(1 << 40))

    def tick():
        for _ in pace:
            cached(next(keys))

    return tick


class Node:
    pass


def pair(size):
    """Two objects that refer to each other."""
    one, two = Node(), Node()
    one.other, two.other = two, one
    one.data = bytearray(random.randbytes(size))


@behaviour("leak", "cycles, while the collector is off")
def leak_of_cycles_never_collected():
    gc.disable()
    pace = Pace(20)

    def tick():
        for _ in pace:
            pair(900)

    return tick


@behaviour("bounded", "lru_cache of 300 entries")
def lru_cache_of_300():
    pace = Pace(80)
    cached = functools.lru_cache(maxsize=300)(lambda key: bytes(700 + key % 200))

    def tick():
        for _ in pace:
            cached(int(3000 * random.random() ** 2))

    return tick


@behaviour("bounded", "lru_cache of 1,500 entries")
def lru_cache_of_1500():
    pace = Pace(100)
    cached = functools.lru_cache(maxsize=1500)(lambda key: bytes(700 + key % 200))

    def tick():
        for _ in pace:
            cached(int(9000 * random.random() ** 2))

    return tick


@behaviour("bounded", "cycles, which the collector finds when there are enough")
def cycles_collected():
    pace = Pace(100)

    def tick():
        for _ in pace:
            pair(800)

    return tick


@behaviour("bounded", "cycles, which are collected every 9 s")
def cycles_collected_every_9s():
    gc.disable()
    pace, collected = Pace(50), [9.0]

    def tick():
        for _ in pace:
            pair(800)
        if now >= collected[0]:
            gc.collect()
            collected[0] += 9.0

    return tick


@behaviour("bounded", "3,000 keys with values of changing length, met at random")
def dictionary_of_3000_keys():
    table, pace = {}, Pace(150)

    def tick():
        for _ in pace:
            table[int(3000 * random.random() ** 2)] = "v" * random.randrange(600, 1200)

    return tick


@behaviour("bounded", "120,000 small objects, made and dropped every 7 s")
def arenas_in_batches():
    kept, due = [], [0.0]

    def tick():
        if now >= due[0]:
            due[0] += 7.0
            kept.clear()
            kept.extend((number, str(number)) for number in range(120000))

    return tick


@behaviour("bounded", "a deque of the last 400 messages")
def last_messages():
    messages, pace = collections.deque(maxlen=400), Pace(60)

    def tick():
        for number in pace:
            messages.append("message %d " % number * 60)

    return tick


@behaviour("bounded", "documents that are read and written")
def json_read_and_written():
    pace = Pace(10)

    def tick():
        for _ in pace:
            json.loads(json.dumps([{"a": number, "b": "x" * 700} for number in range(30)]))

    return tick


def main():
    global now
    if sys.argv[1:] == ["list"]:
        for name, (truth, _, what) in BEHAVIOURS.items():
            print(name, truth, what, sep="\t")
        return 0
    if len(sys.argv) != 3 or sys.argv[1] not in BEHAVIOURS:
        print("usage: behaviours.py list | behaviours.py NAME WAIT", file=sys.stderr)
        return 2
    tick = BEHAVIOURS[sys.argv[1]][1]()
    begun = time.monotonic() + float(sys.argv[2])
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], 0.02)
        if readable and not sys.stdin.buffer.raw.read(1):
            return 0
        now = time.monotonic() - begun
        if now >= 0:
            tick()


if __name__ == "__main__":
    sys.exit(main())
