/* A heap of a gibibyte in chunks of 64 bytes: a table of chains, whose entries have a value each. One entry of 64 was taken out of its
 * chain and never freed, with its value. The worker looks up entries at random; an operation is a chain.
 *
 * The first argument is the number of blocks, 16 Mi of them if there is none.
 */
#include "bench.h"

#define BUCKETS (1u << 20)
#define LOST_EVERY 64
/* With its header a chunk of 64 bytes. */
#define ASKED 48

struct entry {
    struct entry *next;
    uint64_t *value;
    uint64_t key;
};

static struct entry *table[BUCKETS];

static uint64_t mixed(uint64_t number)
{
    number = (number ^ (number >> 30)) * 0xbf58476d1ce4e5b9ul;
    number = (number ^ (number >> 27)) * 0x94d049bb133111ebul;
    return number ^ (number >> 31);
}

static void fill(uint64_t entries)
{
    for (uint64_t key = 0; key < entries; key++) {
        struct entry *entry = escape(malloc(ASKED));
        struct entry **bucket = &table[mixed(key) % BUCKETS];
        entry->key = key;
        entry->value = escape(malloc(ASKED));
        memset(entry->value, 'v', ASKED);
        entry->next = *bucket;
        if (key % LOST_EVERY != 0)
            *bucket = entry;
    }
}

static void *look_up(void *argument)
{
    struct worker *self = argument;
    uint64_t sum = 0, last = clock_ns(CLOCK_MONOTONIC);
    for (uint64_t turn = 0;; turn++) {
        take_turn(self);
        for (struct entry *entry = table[mixed(turn) % BUCKETS]; entry; entry = entry->next)
            sum += *entry->value;
        self->operations++;
        uint64_t now = clock_ns(CLOCK_MONOTONIC);
        if (now - last > self->gap_ns)
            self->gap_ns = now - last;
        last = now;
    }
    return (void *)(uintptr_t)sum;
}

int main(int argc, char **argv)
{
    fill((argc > 1 ? strtoull(argv[1], NULL, 10) : 1u << 24) / 2);
    return bench_run(1, look_up);
}
