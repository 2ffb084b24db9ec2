/* An allocator that maps for itself at every turn: threads whose first call frees, aligns or allocates make it set up an arena each.
 *
 * True leaks: leak_mapped maps 20000 bytes a round, 24 rounds: 480000 / 24; leak_block 24 * 3000 = 72000 / 24 on the heap.
 * Nothing else survives, and no other memory is the program's own mapping but the threads' stacks.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <malloc.h>
#include <pthread.h>
#include <sys/mman.h>

#define ROUNDS 8
#define FIRST_CALLS 3

static pthread_barrier_t together;

OWN_FRAME static void leak_mapped(void)
{
    void *memory = mmap(NULL, 20000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        _exit(110);
    keep(memory);
}

OWN_FRAME static void leak_block(void)
{
    keep(malloc(3000));
    AFTER_CALL();
}

OWN_FRAME static void free_first(void *block)
{
    free(block);
    AFTER_CALL();
}

OWN_FRAME static void align_first(void)
{
    free(keep(memalign(64, 5000)));
    AFTER_CALL();
}

OWN_FRAME static void allocate_first(void)
{
    free(keep(calloc(50, 100)));
    AFTER_CALL();
}

struct task {
    int first;
    void *block;
};

static void *work(void *argument)
{
    struct task *task = argument;
    /* Side by side, so that no arena is free for another. */
    pthread_barrier_wait(&together);
    if (task->first == 0)
        free_first(task->block);
    else if (task->first == 1)
        align_first();
    else
        allocate_first();
    leak_block();
    leak_mapped();
    pthread_barrier_wait(&together);
    return NULL;
}

int main(int argc, char **argv)
{
    static struct task tasks[ROUNDS * FIRST_CALLS];
    static pthread_t threads[ROUNDS * FIRST_CALLS];
    pthread_barrier_init(&together, NULL, ROUNDS * FIRST_CALLS);
    for (int i = 0; i < ROUNDS * FIRST_CALLS; i++) {
        tasks[i].first = i % FIRST_CALLS;
        tasks[i].block = i % FIRST_CALLS == 0 ? keep(malloc(100)) : NULL;
    }
    victim_ready(argc, argv);
    for (int i = 0; i < ROUNDS * FIRST_CALLS; i++)
        if (pthread_create(&threads[i], NULL, work, &tasks[i]) != 0)
            _exit(111);
    for (int i = 0; i < ROUNDS * FIRST_CALLS; i++)
        pthread_join(threads[i], NULL);

    truth("leak_mapped", ROUNDS * FIRST_CALLS * 20000UL, ROUNDS * FIRST_CALLS);
    truth("leak_block", ROUNDS * FIRST_CALLS * 3000UL, ROUNDS * FIRST_CALLS);
    victim_done();
    return 0;
}
