"""CPython with a native extension that leaks: the protocol of victim.h, spoken by an interpreter.

True leaks (bytes / blocks): leak_in_extension 250 * 40 + 8 * 5000 = 50000 / 258; nothing in balanced_in_extension.
The first argument is the folder with leakext.so.
"""

import os
import sys

sys.path.insert(0, sys.argv[1])
import leakext  # noqa: E402

print("ready", os.getpid(), flush=True)
assert sys.stdin.readline() == "go\n"


def request(number):
    leakext.leak(1, 40)
    leakext.balanced(3)
    return [str(number)] * 10


waste = [request(number) for number in range(250)]
leakext.leak(8, 5000)
del waste
print('{"function":"leak_in_extension","bytes":50000,"objects":258}')
print('{"function":"balanced_in_extension","bytes":0,"objects":0}')
print("done", flush=True)
assert sys.stdin.readline() == "quit\n"
