"""Leaks and healthy programs with threads that live shortly, and pools of them; otherwise as `pyleaks.py`, which says how it is called."""

import collections
import concurrent.futures
import functools
import sys
import threading
import time

sys.dont_write_bytecode = True

import pyleaks  # noqa: E402

pyleaks.PROGRAMS.clear()


class Visit:
    def __init__(self, who):
        self.who = who  # leaks: pool
        self.when = time.time()  # leaks: pool


def in_a_thread(serve):
    def turn(number):
        thread = threading.Thread(target=serve, args=(number,))
        thread.start()
        thread.join()

    return turn


@pyleaks.program("leak", 60, "requests, each served by a thread of its own, that are written down")
def requests():
    log = []

    def serve(number):
        pyleaks.beside()
        log.append({"path": "/page/%d" % number, "at": time.time()})  # leaks: requests

    return in_a_thread(serve)


@pyleaks.program("healthy", 60, "the same, of which the last are remembered")
def last_requests():
    log = collections.deque(maxlen=100)

    def serve(number):
        pyleaks.beside()
        log.append({"path": "/page/%d" % number, "at": time.time()})

    return in_a_thread(serve)


@pyleaks.program("leak", 120, "visits that a pool of threads adds to a dictionary, beside a cache")
def pool():
    seen = {}
    workers = concurrent.futures.ThreadPoolExecutor(4)

    @functools.lru_cache(maxsize=100)
    def page(number):
        return "<html>%d" % number + "x" * 50

    def visit(number):
        page(number % 1000)
        seen["visit/%d" % number] = Visit("user %d" % (number % 100))  # leaks: pool

    def turn(number):
        workers.submit(visit, number).result()

    return turn


if __name__ == "__main__":
    sys.exit(pyleaks.main(__file__))
