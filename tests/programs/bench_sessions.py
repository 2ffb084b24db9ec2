"""The sessions of bench_sessions.c in Python; the protocol is that of bench.h."""

import os
import sys
import threading
import time

RECENT = 1000
REMEMBERED_ONE_OF = 10_000
PAYLOAD = 256

done = 0
remembered = []


class Session:
    def __init__(self, number):
        self.name = f"session {number}"
        self.payload = bytes([number % 256]) * PAYLOAD


def make_session(number):
    return Session(number)


def remember(number):
    remembered.append(make_session(number))


def serve():
    global done
    recent = [None] * RECENT
    while True:
        session = make_session(done)
        sum(session.payload)
        recent[done % RECENT] = session
        if done % REMEMBERED_ONE_OF == 0:
            remember(done)
        done += 1


def main():
    threading.Thread(target=serve, daemon=True).start()
    print("ready", os.getpid(), flush=True)
    for _ in sys.stdin:
        print(done, time.monotonic_ns(), time.process_time_ns(), flush=True)


main()
