"""Fourteen leaks and four healthy programs of CPython's, each of known truth, with nothing but the standard library.

    pyleaks.py list    a line for each: NAME, a tab, `leak` or `healthy`, a tab, the lines that leak, a tab, what it does
    pyleaks.py NAME    does that until its standard input ends; says each second how many objects it has kept so far

The lines that leak are those with the mark `leaks: NAME`. Beside each leak objects are made and dropped, as programs do.
"""

import array
import collections
import functools
import gc
import os
import re
import select
import sqlite3
import sys
import threading
import time

PROGRAMS = {}
AT_MOST_AT_ONCE = 2000


def program(truth, rate, what):
    """Registers a function that makes the program's turn: what it does `rate` times a second."""

    def register(make):
        PROGRAMS[make.__name__] = (truth, rate, what, make)
        return make

    return register


class Metric:
    def __init__(self, number):
        self.name = "metric %d" % number  # leaks: lists malloc
        self.value = number * 1.5  # leaks: lists malloc
        self.tags = ["a", "b"]  # leaks: lists malloc


@program("leak", 1000, "objects of a class, appended to a list")
def lists():
    metrics = []

    def turn(number):
        metrics.append(Metric(number))  # leaks: lists

    return turn


@program("leak", 700, "a registry of dictionaries")
def dicts():
    registry = {}

    def turn(number):
        registry["id %d" % number] = {"id": number, "name": "entry %d" % number}  # leaks: dicts

    return turn


@program("leak", 1500, "lru_cache without a bound, asked for ever new keys")
def lru_cache():
    @functools.lru_cache(maxsize=None)
    def lookup(key):
        return "value of %s" % key  # leaks: lru_cache

    def turn(number):
        lookup("key %d" % number)  # leaks: lru_cache

    return turn


class Parent:
    def __init__(self, number):
        self.number = number + 100_000  # leaks: cycles
        self.child = Child(self)  # leaks: cycles


class Child:
    def __init__(self, parent):
        self.parent = parent
        self.text = "child of %d" % parent.number  # leaks: cycles


@program("leak", 600, "cycles, while the collector is off")
def cycles():
    gc.disable()

    def turn(number):
        Parent(number)  # leaks: cycles

    return turn


@program("leak", 100, "bytearrays, larger than what pools hold")
def bytearrays():
    buffers = []

    def turn(number):
        buffers.append(bytearray(b"%d" % number * 300))  # leaks: bytearrays

    return turn


@program("leak", 80, "arrays of numbers")
def arrays():
    history = collections.deque()

    def turn(number):
        history.append(array.array("d", range(number, number + 250)))  # leaks: arrays

    return turn


@program("leak", 2000, "names that are interned and kept")
def intern():
    names = set()

    def turn(number):
        names.add(sys.intern("a name of some length %d" % number))  # leaks: intern

    return turn


class Axes:
    def __init__(self, figure, place):
        self.figure = figure
        self.lines = [[x * 0.5 for x in range(place, place + 40)]]  # leaks: figures
        self.labels = {"x": "time %d" % place, "y": "value %d" % place}  # leaks: figures


class Figure:
    open = {}

    def __init__(self, number):
        self.axes = [Axes(self, number * 10 + place) for place in range(4)]  # leaks: figures
        Figure.open[number] = self


@program("leak", 20, "figures that are never closed")
def figures():
    def turn(number):
        Figure(number)  # leaks: figures

    return turn


class Table:
    def __init__(self, rows):
        self.columns = {name: [row[name] for row in rows] for name in ("when", "price", "count")}  # leaks: tables


@program("leak", 15, "tables of columns that are collected")
def tables():
    results = []

    def turn(number):
        rows = [{"when": number * 1000 + row, "price": row * 0.25, "count": row + 1000} for row in range(120)]  # leaks: tables
        results.append(Table(rows))  # leaks: tables

    return turn


@program("leak", 4, "threads that wait for what never comes")
def threads():
    never = threading.Event()

    def work(number):
        scratch = [number + at for at in range(3000)]  # leaks: threads
        never.wait()
        return scratch

    def turn(number):
        threading.Thread(target=work, args=(number,), daemon=True).start()  # leaks: threads

    return turn


@program("leak", 60, "cursors of a database that are not closed")
def cursors():
    database = sqlite3.connect(":memory:")
    database.execute("create table orders (id integer, name text)")
    database.executemany("insert into orders values (?, ?)", [(row, "order %d" % row) for row in range(50)])
    open_cursors = []

    def turn(number):
        cursor = database.execute("select name from orders where id > ? and id <> %d" % number, (3,))  # leaks: cursors
        cursor.fetchone()
        open_cursors.append(cursor)

    return turn


@program("leak", 800, "objects of a class, with PYTHONMALLOC=malloc")
def malloc():
    metrics = []

    def turn(number):
        metrics.append(Metric(number))  # leaks: malloc

    return turn


class Bus:
    def __init__(self):
        self.handlers = collections.defaultdict(list)

    def subscribe(self, event, handler):
        self.handlers[event].append(handler)


@program("leak", 500, "handlers that are subscribed for each request, and never taken off")
def handlers():
    bus = Bus()

    def turn(number):  # leaks: handlers
        session = {"user": "user %d" % number}  # leaks: handlers
        bus.subscribe("close", lambda: session.clear())  # leaks: handlers

    return turn


@program("leak", 150, "exceptions that are kept with their tracebacks")
def tracebacks():
    errors = []

    def parse(number):
        tokens = ["token %d" % (number + at) for at in range(12)]  # leaks: tracebacks
        raise ValueError("at %d of %d" % (number, len(tokens)))  # leaks: tracebacks

    def turn(number):
        try:
            parse(number)  # leaks: tracebacks
        except ValueError as error:
            errors.append(error)

    return turn


@program("healthy", 300, "patterns that change all the time: the cache of re")
def re_cache():
    def turn(number):
        re.match("(a|b)%d[x-z]+" % (number % 5000), "a%dxyz" % (number % 5000))

    return turn


@program("healthy", 1500, "a cache of 3,000 entries")
def bounded_cache():
    @functools.lru_cache(maxsize=3000)
    def lookup(key):
        return {"key": key, "value": "value of %d" % key}

    def turn(number):
        lookup(number * 7919 % 40_000)

    return turn


@program("healthy", 3000, "objects that are made and dropped")
def churn():
    recent = collections.deque(maxlen=500)

    def turn(number):
        recent.append(Metric(number))

    return turn


@program("healthy", 20, "a pipeline of generators")
def generators():
    def records(number):
        for row in range(200):
            yield {"row": row + number, "text": "row %d" % row}

    def texts(rows):
        for row in rows:
            yield row["text"].upper()

    def turn(number):
        sum(len(text) for text in texts(records(number)))

    return turn


def beside():
    """What programs do besides: nothing stays of it."""
    return [{"n": number} for number in range(20)]


def run(name):
    _, rate, _, make = PROGRAMS[name]
    turn = make()
    begun, said, done = time.monotonic(), 0, 0
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], 0.01)
        if readable and not sys.stdin.buffer.raw.read(1):
            return
        passed = time.monotonic() - begun
        due = min(int(passed * rate) - done, AT_MOST_AT_ONCE)
        for number in range(done, done + due):
            turn(number)
        done += due
        beside()
        if int(passed) > said:
            said = int(passed)
            print(name, "%.1f" % passed, done, flush=True)


def main(path=__file__):
    if sys.argv[1:] == ["list"]:
        with open(path) as file:
            source = file.read().splitlines()
        for name, (truth, _, what, _) in PROGRAMS.items():
            lines = [str(at) for at, line in enumerate(source, 1) if name in line.partition("# leaks:")[2].split()]
            print(name, truth, ",".join(lines), what, sep="\t")
        return 0
    if len(sys.argv) != 2 or sys.argv[1] not in PROGRAMS:
        print("usage: pyleaks.py list | pyleaks.py NAME", file=sys.stderr)
        return 2
    if sys.argv[1] == "malloc" and os.environ.get("PYTHONMALLOC") != "malloc":
        os.environ["PYTHONMALLOC"] = "malloc"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    run(sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
