"""Caches and queues whose objects change all the time, as fast as it goes. Nothing is lost."""

import collections
import json
import random


class Node:
    def __init__(self, key):
        self.key = key
        self.data = [key] * random.randint(1, 20)


cache = collections.OrderedDict()
queue = collections.deque()
table = {}
turn = 0
while True:
    turn += 1
    node = Node("key %d" % random.randint(0, 100_000))
    cache[node.key] = node
    cache.move_to_end(node.key)
    if len(cache) > 50_000:
        cache.popitem(last=False)
    queue.append((node, {"turn": turn}))
    if len(queue) > 10_000:
        queue.popleft()
    table[random.randint(0, 5000)] = json.loads(json.dumps({"a": [1, 2, {"b": node.key}], "c": turn}))
