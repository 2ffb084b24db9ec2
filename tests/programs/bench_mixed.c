/* A live set of N blocks of mixed sizes; an operation frees a random one and allocates another in its place.
 *
 * usage: bench_mixed BLOCKS. Sizes from 16 to 1,039 bytes, 140 on average, from eight call sites. The live set stands
 * when the program is ready, and "fill" renews it in order.
 */
#include "bench.h"

static void **blocks;
static size_t count;

#define SITE(number)                                      \
    OWN_FRAME static void *allocate_##number(size_t size) \
    {                                                     \
        void *block = malloc(size);                       \
        __asm__ volatile("" : : "i"(number) : "memory");  \
        return block;                                     \
    }
SITE(0)
SITE(1)
SITE(2)
SITE(3)
SITE(4)
SITE(5)
SITE(6)
SITE(7)

static void *(*const sites[8])(size_t) = {allocate_0, allocate_1, allocate_2, allocate_3,
                                          allocate_4, allocate_5, allocate_6, allocate_7};

/* xorshift64 (Marsaglia 2003). */
static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static inline void renew(uint64_t slot, uint64_t random)
{
    size_t size = 16 + (random >> 8) % ((random & 7) == 0 ? 1024 : 112);
    free(blocks[slot]);
    blocks[slot] = sites[random >> 4 & 7](size);
    *(volatile char *)blocks[slot] = 1;
}

static void *mix(void *argument)
{
    struct worker *self = argument;
    uint64_t random = 0x9e3779b97f4a7c15u;
    for (;;) {
        take_turn(self);
        if (must_fill(self)) {
            for (size_t slot = 0; slot < count; slot++)
                renew(slot, next_random(&random));
            filled(self);
        }
        uint64_t value = next_random(&random);
        renew((value >> 32) * count >> 32, value);
        self->operations++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    uint64_t random = 88172645463325252u;
    count = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000000;
    blocks = calloc(count, sizeof *blocks);
    if (count == 0 || blocks == NULL)
        return 2;
    for (size_t slot = 0; slot < count; slot++)
        renew(slot, next_random(&random));
    return bench_run(1, mix);
}
