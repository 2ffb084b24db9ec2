// Keeps blocks and frees others, which stay in the caches of threads that wait: the C library counts them as in use.
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS = 3, SMALL = 1000, LARGE = 100, MAPPED = 10, FREED = 5 };

static void *kept[THREADS][SMALL + LARGE + MAPPED];
static pthread_barrier_t done;

// Every second one of the first is freed, so that they do not become one.
static void free_some(void **blocks) {
    for (int i = 0; i < FREED; i++) {
        free(blocks[2 * i]);
        blocks[2 * i] = NULL;
    }
}

static void allocate(void **blocks, int count, size_t bytes) {
    for (int i = 0; i < count; i++) {
        blocks[i] = malloc(bytes);
        memset(blocks[i], 0, bytes);
    }
}

static void work(void **blocks) {
    allocate(blocks, SMALL, 200);
    allocate(blocks + SMALL, LARGE, 3000);
    allocate(blocks + SMALL + LARGE, MAPPED, 200 << 10);
}

static void *run(void *blocks) {
    work(blocks);
    // Freed first, a mapping would make those that follow none.
    pthread_barrier_wait(&done);
    free_some(blocks);
    free_some((void **)blocks + SMALL);
    free_some((void **)blocks + SMALL + LARGE);
    pthread_barrier_wait(&done);
    pause();
    return NULL;
}

int main(void) {
    pthread_barrier_init(&done, NULL, THREADS);
    for (int i = 1; i < THREADS; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, run, kept[i]) != 0)
            return 1;
    }
    work(kept[0]);
    pthread_barrier_wait(&done);
    size_t mapped = malloc_usable_size(kept[0][SMALL + LARGE + 1]);
    free_some(kept[0]);
    free_some(kept[0] + SMALL);
    free_some(kept[0] + SMALL + LARGE);
    pthread_barrier_wait(&done);
    printf("small %d large %d mapped %d mapped_bytes %zu\n", THREADS * (SMALL - FREED), THREADS * (LARGE - FREED),
           THREADS * (MAPPED - FREED), mapped);
    fflush(stdout);
    pause();
    return 0;
}
