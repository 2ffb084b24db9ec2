/* Four threads on one arena, so that an address that realloc gives up is another thread's block a moment later.
 *
 * True leaks: what stands in the slots at the end, counted by the function that made the block last: race_malloc,
 * race_calloc, race_realloc. The program counts it itself; the sums depend on nothing but the generators' seeds.
 * Nothing survives of race_temporary.
 */
#include "victim.h"

#include <malloc.h>
#include <pthread.h>
#include <stdint.h>

#define THREADS 4
#define SLOTS 256
#define ROUNDS 30000

enum maker { NOBODY, MALLOC, CALLOC, REALLOC, MAKERS };

struct slot {
    void *block;
    size_t size;
    enum maker maker;
};

static struct slot slots[THREADS][SLOTS];

OWN_FRAME static void *race_malloc(size_t size)
{
    return keep(malloc(size));
}

OWN_FRAME static void *race_calloc(size_t size)
{
    return keep(calloc(1, size));
}

OWN_FRAME static void *race_realloc(void *block, size_t size)
{
    void *moved = realloc(block, size);
    AFTER_CALL();
    return moved;
}

OWN_FRAME static void race_temporary(size_t size)
{
    free(keep(malloc(size)));
    AFTER_CALL();
}

static void *worker(void *argument)
{
    struct slot *mine = argument;
    uint32_t random = 777u + (uint32_t)(mine - slots[0]);
    for (int round = 0; round < ROUNDS; round++) {
        random = random * 1664525u + 1013904223u;
        struct slot *slot = &mine[(random >> 24) % SLOTS];
        /* Above 1,032 bytes glibc's per-thread cache is not used; a few blocks get mappings of their own. */
        size_t size = 1 + (random >> 9) % 5000;
        if (round % 500 == 0)
            size += 200000;
        switch ((random >> 4) % 8) {
        case 0:
            free(slot->block);
            *slot = (struct slot){race_malloc(size), size, MALLOC};
            break;
        case 1:
            free(slot->block);
            *slot = (struct slot){race_calloc(size), size, CALLOC};
            break;
        case 2:
            free(slot->block);
            *slot = (struct slot){NULL, 0, NOBODY};
            break;
        case 3:
            race_temporary(size);
            break;
        default:
            *slot = (struct slot){race_realloc(slot->block, size), size, REALLOC};
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    static const char *const names[MAKERS] = {"race_temporary", "race_malloc", "race_calloc", "race_realloc"};
    unsigned long bytes[MAKERS] = {0}, objects[MAKERS] = {0};
    pthread_t threads[THREADS];

    mallopt(M_ARENA_MAX, 1);
    victim_ready(argc, argv);
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, worker, slots[i]) != 0)
            _exit(110);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < THREADS; i++)
        for (int j = 0; j < SLOTS; j++)
            if (slots[i][j].maker != NOBODY) {
                bytes[slots[i][j].maker] += slots[i][j].size;
                objects[slots[i][j].maker]++;
            }
    for (int i = 0; i < MAKERS; i++)
        truth(names[i], bytes[i], objects[i]);
    victim_done();
    return 0;
}
