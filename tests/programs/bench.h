/* What the benchmark's programs share: worker threads that loop, and the benchmark's questions over stdin.
 *
 *   program           benchmark
 *   ready PID     ->
 *                 <-  ?             how far it has come
 *   OPERATIONS WALL_NS CPU_NS ->
 *                 <-  gap           the longest time between two operations of a worker since this was last asked
 *   NS            ->                (0 where the program does not measure it)
 *                 <-  active N      only the first N workers go on
 *   active N      ->
 *                 <-  fill          each active worker renews all that it holds
 *   filled        ->
 *                 <-  leaked        what was never freed, and when it was counted
 *   BLOCKS BYTES WALL_NS ->
 *                 <-  (end of file) it ends
 *
 * Operations are those of all workers since the start; WALL_NS is CLOCK_MONOTONIC, CPU_NS the CPU time of the whole
 * process. The main thread only answers and never allocates.
 */
#ifndef BENCH_H
#define BENCH_H

#include "victim.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <time.h>

#define MOST_WORKERS 64
/* It ends by itself after this many seconds, whatever happens. */
#define LONGEST_LIFE 3600

/* A worker's own cache lines. */
struct worker {
    volatile uint64_t operations;
    volatile uint64_t gap_ns;
    /* Number of the last "fill" that it has done. */
    volatile unsigned filled;
    /* Blocks that it never frees, each of `leaked_size` bytes. */
    volatile uint64_t leaked;
    int index;
} __attribute__((aligned(128)));

static struct worker workers[MOST_WORKERS];
static volatile int active_workers __attribute__((aligned(128)));
static volatile unsigned fills_asked;
static size_t leaked_size;

static inline uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Waits while the worker is not among the active ones. Costs two loads otherwise. */
static inline void take_turn(struct worker *self)
{
    while (__builtin_expect(self->index >= active_workers, 0)) {
        struct timespec pause = {0, 1000000};
        nanosleep(&pause, NULL);
    }
}

/* Whether the worker is to renew all that it holds; it says filled() when it has. */
static inline int must_fill(const struct worker *self)
{
    return __builtin_expect(self->filled != fills_asked, 0);
}

static inline void filled(struct worker *self)
{
    self->filled = fills_asked;
}

/* Lets a block escape, so that its allocation cannot be optimized away. keep() of victim.h does it through one variable
 * for all threads: there another thread's block may come back. */
static inline void *escape(void *block)
{
    __asm__ volatile("" : "+r"(block) : : "memory");
    return block;
}

static int read_line(char *line, size_t size)
{
    for (size_t length = 0; length < size; length++) {
        if (read(0, line + length, 1) != 1)
            return 0;
        if (line[length] == '\n') {
            line[length] = 0;
            return 1;
        }
    }
    return 0;
}

/* Starts `count` workers and answers until the end of the input. */
static int bench_run(int count, void *(*work)(void *))
{
    char line[64];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(LONGEST_LIFE);
    if (count < 1 || count > MOST_WORKERS)
        return 2;
    active_workers = count;
    for (int i = 0; i < count; i++) {
        pthread_t thread;
        workers[i].index = i;
        if (pthread_create(&thread, NULL, work, &workers[i]) != 0)
            return 3;
    }
    victim_print("ready %d\n", (int)getpid());
    while (read_line(line, sizeof line)) {
        if (strcmp(line, "?") == 0) {
            uint64_t operations = 0;
            for (int i = 0; i < count; i++)
                operations += workers[i].operations;
            victim_print("%llu %llu %llu\n", (unsigned long long)operations,
                         (unsigned long long)clock_ns(CLOCK_MONOTONIC),
                         (unsigned long long)clock_ns(CLOCK_PROCESS_CPUTIME_ID));
        } else if (strcmp(line, "gap") == 0) {
            uint64_t gap = 0;
            for (int i = 0; i < count; i++) {
                if (workers[i].gap_ns > gap)
                    gap = workers[i].gap_ns;
                workers[i].gap_ns = 0;
            }
            victim_print("%llu\n", (unsigned long long)gap);
        } else if (strncmp(line, "active ", 7) == 0) {
            active_workers = atoi(line + 7);
            victim_print("active %d\n", active_workers);
        } else if (strcmp(line, "fill") == 0) {
            fills_asked++;
            for (int i = 0; i < count && i < active_workers; i++) {
                struct timespec pause = {0, 1000000};
                while (workers[i].filled != fills_asked)
                    nanosleep(&pause, NULL);
            }
            victim_print("filled\n");
        } else if (strcmp(line, "leaked") == 0) {
            uint64_t blocks = 0;
            for (int i = 0; i < count; i++)
                blocks += workers[i].leaked;
            victim_print("%llu %llu %llu\n", (unsigned long long)blocks,
                         (unsigned long long)(blocks * leaked_size),
                         (unsigned long long)clock_ns(CLOCK_MONOTONIC));
        } else {
            return 4;
        }
    }
    return 0;
}

#endif
