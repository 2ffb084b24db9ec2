/* Six hundred threads that live at the same time: more than the probe has seats for (SEATS in probe-ebpf/common).
 *
 * True leaks (bytes / blocks): leak_in_crowd: 288000 / 6000, ten blocks of 48 bytes a thread. Nothing survives of pass, whose 600 * 30
 * blocks are freed at once.
 * The main thread itself leaks nothing.
 */
#include "victim.h"

#include <pthread.h>

#define THREADS 600
#define LEAKED 10
#define PASSED 30
#define SIZE 48

static pthread_barrier_t all_there;

OWN_FRAME static void leak_in_crowd(void)
{
    memset(keep(malloc(SIZE)), 1, SIZE);
    AFTER_CALL();
}

OWN_FRAME static void pass(void)
{
    void *block = keep(malloc(SIZE));
    memset(block, 2, SIZE);
    free(block);
    AFTER_CALL();
}

static void *worker(void *argument)
{
    (void)argument;
    pthread_barrier_wait(&all_there);
    for (int i = 0; i < LEAKED; i++)
        leak_in_crowd();
    for (int i = 0; i < PASSED; i++)
        pass();
    /* Nobody leaves a seat before everybody has wanted one. */
    pthread_barrier_wait(&all_there);
    return NULL;
}

int main(int argc, char **argv)
{
    static pthread_t threads[THREADS];
    pthread_attr_t attributes;
    pthread_barrier_init(&all_there, NULL, THREADS);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    victim_ready(argc, argv);
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], &attributes, worker, NULL) != 0)
            _exit(110);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    truth("leak_in_crowd", (unsigned long)THREADS * LEAKED * SIZE, (unsigned long)THREADS * LEAKED);
    truth("pass", 0, 0);
    victim_done();
    return 0;
}
