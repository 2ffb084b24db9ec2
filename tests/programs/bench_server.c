/* A server under full load: worker threads that never wait allocate at two hundred sites, whose blocks live from no time at
 * all to some seconds, and at one whose blocks are never freed, which is one allocation in a hundred.
 *
 * The first argument is the number of workers. With "zero" as the second all blocks come from calloc and stay as they are;
 * with "work" blocks live for as many operations as a worker usually makes in their time, whatever slows it.
 */
#include "bench.h"

#include <sys/mman.h>

#define SITES 200
/* One allocation in so many leaks. */
#define LEAKS_ONE_OF 100
/* What is written into a block at most and read from it, as a request's text would be, and how often it is read. */
#define MOST_USED 256
#define ROUNDS 5

#define MICROSECOND 1000ull
#define MILLISECOND (1000 * MICROSECOND)

/* How long the blocks of the sites live, and of how many sites. A site's own blocks live half as long to one and a half
 * times as long, each site differently. */
static const struct {
    int sites;
    uint64_t lives_ns;
    /* Sizes go up to twice this: what lives for seconds is a session and no page. */
    size_t size;
    /* Blocks that a worker holds at most of one site; more are freed before their time. A power of two. */
    unsigned most_held;
} kinds[] = {
    {60, 0, 2048, 1},
    {50, 300 * MICROSECOND, 2048, 8192},
    {40, 10 * MILLISECOND, 2048, 8192},
    {30, 150 * MILLISECOND, 2048, 8192},
    {15, 2000 * MILLISECOND, 512, 65536},
    {5, 5000 * MILLISECOND, 512, 65536},
};

struct held {
    void *block;
    uint64_t until_ns;
};

/* Blocks of one site in the order in which they are freed. */
struct queue {
    struct held *held;
    unsigned size;
    unsigned begin;
    unsigned end;
};

static uint64_t lives_ns[SITES];
static size_t sizes[SITES];
static unsigned most_held[SITES];
static int zero;
static int by_work;

/* What an operation takes a worker, about. */
#define OPERATION_NS 1800

/* Blocks that are never freed have all the same size. */
#define LEAK_SIZE 200

OWN_FRAME static void *take(size_t size)
{
    void *block = zero ? calloc(1, size) : malloc(size);
    AFTER_CALL();
    return block;
}

/* Two hundred paths to one allocation: the number after each call keeps the compiler from merging the calls. */
#define CALL(number, next)                               \
    case number:                                         \
        next;                                            \
        __asm__ volatile("" : : "i"(number) : "memory"); \
        break;
#define TEN_CALLS(next)                                                             \
    CALL(0, next) CALL(1, next) CALL(2, next) CALL(3, next) CALL(4, next)           \
    CALL(5, next) CALL(6, next) CALL(7, next) CALL(8, next) CALL(9, next)

#define LEVEL(name, divisor, next)                     \
    OWN_FRAME static void *name(int path, size_t size) \
    {                                                  \
        void *block = NULL;                            \
        switch (path / (divisor) % 10) {               \
            TEN_CALLS(block = next)                    \
        }                                              \
        return block;                                  \
    }
LEVEL(parse, 1, take(size))
LEVEL(handle, 10, parse(path, size))
LEVEL(serve, 100, handle(path, size))

OWN_FRAME static void *leak(void)
{
    void *block = take(LEAK_SIZE);
    AFTER_CALL();
    return block;
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Text that no other block has, and some work with it. */
static uint64_t use(void *block, size_t size, uint64_t *random)
{
    uint64_t word = next_random(random);
    uint64_t sum = 0;
    unsigned char *text = escape(block);
    if (size > MOST_USED)
        size = MOST_USED;
    for (size_t at = 0; !zero && at < size; at++) {
        text[at] = (unsigned char)('a' + (word >> (at % 8 * 8)) % 16);
        word += at;
    }
    for (int round = 0; round < ROUNDS; round++)
        for (size_t at = 0; at < size; at++)
            sum = (sum ^ text[at]) * 0x100000001b3ull;
    return sum;
}

static void free_first(struct queue *queue)
{
    free(queue->held[queue->begin++ % queue->size].block);
}

static void free_due(struct queue *queue, uint64_t now)
{
    while (queue->begin != queue->end && queue->held[queue->begin % queue->size].until_ns <= now)
        free_first(queue);
}

/* Its queues stand outside of the heap, which holds only what the sites allocate, and are there from the first on. */
static struct queue *make_queues(void)
{
    static struct queue queues[MOST_WORKERS][SITES];
    static int used;
    struct queue *mine = queues[__atomic_fetch_add(&used, 1, __ATOMIC_RELAXED)];
    for (int site = 0; site < SITES; site++) {
        mine[site].size = most_held[site];
        mine[site].held = mmap(NULL, most_held[site] * sizeof *mine[site].held, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (mine[site].held == MAP_FAILED)
            abort();
    }
    return mine;
}

OWN_FRAME static void *work(void *argument)
{
    struct worker *self = argument;
    struct queue *queues = make_queues();
    uint64_t random = 0x9e3779b97f4a7c15ull * (uint64_t)(self->index + 1);
    uint64_t sum = 0;
    unsigned turn = 0;
    for (;;) {
        uint64_t now = by_work ? self->operations * OPERATION_NS : clock_ns(CLOCK_MONOTONIC);
        take_turn(self);
        if ((next_random(&random) >> 32) % LEAKS_ONE_OF == 0) {
            sum += use(leak(), LEAK_SIZE, &random);
            self->leaked++;
        } else {
            int site = (int)((next_random(&random) >> 32) % SITES);
            struct queue *queue = &queues[site];
            void *block = serve(site, sizes[site]);
            if (block == NULL)
                abort();
            sum += use(block, sizes[site], &random);
            if (lives_ns[site] == 0) {
                free(escape(block));
            } else {
                if (queue->end - queue->begin == queue->size)
                    free_first(queue);
                queue->held[queue->end++ % queue->size] = (struct held){block, now + lives_ns[site]};
            }
            free_due(queue, now);
        }
        free_due(&queues[turn++ % SITES], now);
        __asm__ volatile("" : : "r"(sum));
        self->operations++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    int site = 0;
    uint64_t random = 88172645463325252ull;
    zero = argc > 2 && strcmp(argv[2], "zero") == 0;
    by_work = argc > 2 && strcmp(argv[2], "work") == 0;
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++)
        for (int i = 0; i < kinds[kind].sites; i++, site++) {
            lives_ns[site] = kinds[kind].lives_ns / 2 + kinds[kind].lives_ns * (uint64_t)i / (uint64_t)kinds[kind].sites;
            most_held[site] = kinds[kind].most_held;
            /* As many of 16 to 31 bytes as of 32 to 63, and so on. */
            do
                sizes[site] = (size_t)16 << next_random(&random) % 8;
            while (sizes[site] > kinds[kind].size);
            sizes[site] += next_random(&random) % sizes[site];
        }
    leaked_size = LEAK_SIZE;
    return bench_run(argc > 1 ? atoi(argv[1]) : 1, work);
}
