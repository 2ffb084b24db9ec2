/* Ten thousand call stacks: four functions, each of which calls the next from ten places. "fill" allocates a hundred blocks
 * of 48 bytes from each stack and keeps them; between fills nothing happens.
 */
#include "bench.h"

#define SITES 10000
#define BLOCKS_EACH 100

static void *kept[SITES * BLOCKS_EACH];
static size_t kept_count;

/* The number after each call keeps the compiler from merging the calls. */
#define CALL(number, next)                               \
    case number:                                         \
        next;                                            \
        __asm__ volatile("" : : "i"(number) : "memory"); \
        break;
#define TEN_CALLS(next)                                                             \
    CALL(0, next) CALL(1, next) CALL(2, next) CALL(3, next) CALL(4, next)           \
    CALL(5, next) CALL(6, next) CALL(7, next) CALL(8, next) CALL(9, next)

OWN_FRAME static void fourth(int path)
{
    void *block = NULL;
    switch (path % 10) {
        TEN_CALLS(block = malloc(48))
    }
    kept[kept_count++] = block;
}

#define LEVEL(name, divisor, next)                \
    OWN_FRAME static void name(int path)          \
    {                                             \
        switch (path / (divisor) % 10) {          \
            TEN_CALLS(next(path))                 \
        }                                         \
    }
LEVEL(third, 10, fourth)
LEVEL(second, 100, third)
LEVEL(first, 1000, second)

static void *allocate(void *argument)
{
    struct worker *self = argument;
    for (;;) {
        struct timespec pause = {0, 1000000};
        take_turn(self);
        if (must_fill(self)) {
            while (kept_count > 0)
                free(kept[--kept_count]);
            for (int round = 0; round < BLOCKS_EACH; round++)
                for (int path = 0; path < SITES; path++) {
                    first(path);
                    self->operations++;
                }
            filled(self);
        }
        nanosleep(&pause, NULL);
    }
    return NULL;
}

int main(void)
{
    return bench_run(1, allocate);
}
