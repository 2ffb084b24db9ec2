"""A CPython heap of which the truth is known: instances that a list in an object in this module holds, and pairs of objects that hold
each other and that nobody collects. Prints what the interpreter itself counts, and waits to be killed."""

import gc
import sys
import time


class Metric:
    def __init__(self, number):
        self.name = "metric %d" % number
        self.value = number * 1.5


class Analyzer:
    def __init__(self):
        self.metrics = []

    def run(self, count):
        for number in range(count):
            self.metrics.append(Metric(number))


class Node:
    pass


def lose_pairs(count):
    for _ in range(count):
        one, other = Node(), Node()
        one.other, other.other = other, one


gc.disable()
analyzer = Analyzer()
analyzer.run(50_000)
lose_pairs(10_000)
print("metrics 50000 nodes 20000 blocks %d" % sys.getallocatedblocks(), flush=True)
time.sleep(1000)
