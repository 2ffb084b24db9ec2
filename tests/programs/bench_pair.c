/* The tightest loop of pairs there is: malloc and free of 64 bytes, on each of N threads.
 *
 * usage: bench_pair THREADS [gaps]. The stack at malloc: malloc, the worker, and the C library's two functions that start
 * a thread: three return addresses. With "gaps" a worker also measures the longest time that an operation took.
 */
#include "bench.h"

static void *pairs(void *argument)
{
    struct worker *self = argument;
    for (;;) {
        take_turn(self);
        free(escape(malloc(64)));
        self->operations++;
    }
    return NULL;
}

static void *timed_pairs(void *argument)
{
    struct worker *self = argument;
    uint64_t last = clock_ns(CLOCK_MONOTONIC);
    for (;;) {
        take_turn(self);
        free(escape(malloc(64)));
        self->operations++;
        uint64_t now = clock_ns(CLOCK_MONOTONIC);
        if (now - last > self->gap_ns)
            self->gap_ns = now - last;
        last = now;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    int timed = argc > 2 && strcmp(argv[2], "gaps") == 0;
    return bench_run(argc > 1 ? atoi(argv[1]) : 1, timed ? timed_pairs : pairs);
}
