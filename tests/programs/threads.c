/* Eight threads that allocate for each other: each block is freed by whoever takes it out of a mailbox.
 *
 * True leaks (bytes / blocks): leak_thread_N, N = 0..7: 20 * (64 + 16 N) / 20.
 * Nothing survives of hand_over, whose 8 * 20,000 blocks are freed by any thread.
 */
#include "victim.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define THREADS 8
#define ROUNDS 20000
#define LEAK_EVERY 1000
#define MAILBOXES 64

static _Atomic(void *) mailboxes[MAILBOXES];

#define LEAK(n)                                        \
    OWN_FRAME static void leak_thread_##n(void)        \
    {                                                  \
        void *block = malloc(64 + 16 * (size_t)(n));   \
        memset(block, n, 64);                          \
        AFTER_CALL();                                  \
    }
LEAK(0) LEAK(1) LEAK(2) LEAK(3) LEAK(4) LEAK(5) LEAK(6) LEAK(7)

static void (*const leaks[THREADS])(void) = {
    leak_thread_0, leak_thread_1, leak_thread_2, leak_thread_3,
    leak_thread_4, leak_thread_5, leak_thread_6, leak_thread_7,
};

OWN_FRAME static void hand_over(unsigned mailbox, size_t size)
{
    void *block = malloc(size);
    memset(block, 1, size);
    free(atomic_exchange(&mailboxes[mailbox % MAILBOXES], block));
    AFTER_CALL();
}

static void *worker(void *argument)
{
    int number = (int)(intptr_t)argument;
    uint32_t random = 12345u + (uint32_t)number;
    for (int round = 0; round < ROUNDS; round++) {
        random = random * 1664525u + 1013904223u;
        hand_over(random >> 20, 16 + (random >> 8) % 500);
        if (round % LEAK_EVERY == 0)
            leaks[number]();
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    victim_ready(argc, argv);
    for (intptr_t i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, worker, (void *)i) != 0)
            _exit(110);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < MAILBOXES; i++)
        free(atomic_exchange(&mailboxes[i], NULL));

    for (int i = 0; i < THREADS; i++) {
        char name[32];
        snprintf(name, sizeof name, "leak_thread_%d", i);
        truth(name, 20 * (64 + 16 * (unsigned long)i), ROUNDS / LEAK_EVERY);
    }
    truth("hand_over", 0, 0);
    victim_done();
    return 0;
}
