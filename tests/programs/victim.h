/* The protocol between a victim and the tests.
 *
 *   victim            test
 *   ready PID    ->
 *                <-   go
 *   {truth}      ->             one JSON object a line
 *   done         ->
 *                <-   quit
 *
 * With "now" as the first argument nothing is waited for: the victim runs, states its truth and ends, as a command
 * that knows nothing of tests would. Nothing here allocates, so that the truth is all there is to find.
 */
#ifndef VICTIM_H
#define VICTIM_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A function that keeps its own frame: never merged into its caller, never copied. */
#define OWN_FRAME __attribute__((noinline, noclone))

/* Work behind a call, so that the call is never turned into a jump. */
#define AFTER_CALL() __asm__ volatile("" ::: "memory")

static int victim_waits;

/* Lets the block escape, so that its allocation cannot be optimized away, and forgets it. */
static inline void *keep(void *block)
{
    __asm__ volatile("" : "+r"(block) : : "memory");
    return block;
}

static inline void victim_print(const char *format, ...)
{
    char line[4096];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (length < 0 || length >= (int)sizeof line)
        _exit(101);
    for (int sent = 0; sent < length;) {
        ssize_t now = write(1, line + sent, (size_t)(length - sent));
        if (now <= 0)
            _exit(102);
        sent += (int)now;
    }
}

static inline void victim_expect(const char *word)
{
    char line[64];
    size_t length = 0;
    for (;;) {
        if (read(0, line + length, 1) != 1)
            _exit(103); /* The test is gone. */
        if (line[length] == '\n')
            break;
        if (++length == sizeof line)
            _exit(104);
    }
    line[length] = 0;
    if (strcmp(line, word) != 0)
        _exit(105);
}

static inline void victim_ready(int argc, char **argv)
{
    victim_waits = !(argc > 1 && strcmp(argv[1], "now") == 0);
    if (victim_waits) {
        victim_print("ready %d\n", (int)getpid());
        victim_expect("go");
    }
}

/* What survives of the calls that `function` makes to an allocator. */
static inline void truth(const char *function, unsigned long bytes, unsigned long objects)
{
    victim_print("{\"function\":\"%s\",\"bytes\":%lu,\"objects\":%lu}\n", function, bytes, objects);
}

/* The same, and all that it ever allocated. */
static inline void truth_with_total(const char *function, unsigned long bytes, unsigned long objects,
                                    unsigned long alloc_bytes, unsigned long alloc_objects)
{
    victim_print("{\"function\":\"%s\",\"bytes\":%lu,\"objects\":%lu,\"alloc_bytes\":%lu,\"alloc_objects\":%lu}\n",
                 function, bytes, objects, alloc_bytes, alloc_objects);
}

static inline void victim_done(void)
{
    victim_print("done\n");
    if (victim_waits)
        victim_expect("quit");
}

#endif
