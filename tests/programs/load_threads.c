/* A server whose threads have arenas of their own: in each of four threads forty sites whose blocks come and go, and one that leaks one of two
 * thousand blocks.
 *
 * True leaks: leak_slowly keeps every block of 200 bytes; how many depends on how long it ran, and is stated at the end. All other sites (churn_here) keep
 * what their rings hold, which is freed before the truth is stated.
 *
 * After "go" it waits for words: "fast" (as fast as it can), "count" (it answers with the blocks leaked so far, the rounds so far and its processor
 * time in nanoseconds), "halt" (it states its truth).
 */
#include "victim.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define THREADS 4
#define SITES 40
#define LARGEST_RING 1024

static atomic_int is_going, is_halted;
static atomic_ulong leaked, rounds;
static void *rings[THREADS][SITES][LARGEST_RING];

OWN_FRAME static void *churn_here(unsigned site, unsigned long number)
{
    size_t size = 24 + (size_t)(site * 13 % 400);
    unsigned long *block = keep(malloc(size));
    for (size_t word = 0; word < size / sizeof *block; word++)
        block[word] = number * 0x9e3779b97f4a7c15ul + word;
    return block;
}

OWN_FRAME static void leak_slowly(unsigned long number)
{
    unsigned long *block = keep(malloc(200));
    for (int word = 0; word < 25; word++)
        block[word] = number + (unsigned long)word;
    leaked++;
}

static void *work(void *argument)
{
    void *(*mine)[LARGEST_RING] = argument;
    unsigned positions[SITES] = {0};
    while (!is_going && !is_halted)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    for (unsigned long round = 0; !is_halted; round++) {
        unsigned site = (unsigned)(round % SITES);
        void *block = churn_here(site, round);
        unsigned at = positions[site]++ % LARGEST_RING;
        free(mine[site][at]);
        mine[site][at] = block;
        if (round % 2000 == 0)
            leak_slowly(round);
        if (round % 1000 == 0)
            rounds += 1000;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t workers[THREADS];
    victim_ready(argc, argv);
    is_going = !victim_waits;
    for (int worker = 0; worker < THREADS; worker++)
        if (pthread_create(&workers[worker], NULL, work, rings[worker]) != 0)
            return 1;
    while (victim_waits) {
        char word[16];
        size_t length = 0;
        while (length + 1 < sizeof word && read(0, word + length, 1) == 1 && word[length] != '\n')
            length++;
        word[length] = 0;
        if (strcmp(word, "fast") == 0) {
            is_going = 1;
        } else if (strcmp(word, "count") == 0) {
            struct timespec cpu;
            clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
            victim_print("%lu %lu %lu\n", leaked, rounds,
                         (unsigned long)cpu.tv_sec * 1000000000ul + (unsigned long)cpu.tv_nsec);
        } else {
            break;
        }
    }
    if (!victim_waits)
        sleep(2);
    is_halted = 1;
    for (int worker = 0; worker < THREADS; worker++)
        pthread_join(workers[worker], NULL);
    for (int worker = 0; worker < THREADS; worker++)
        for (int site = 0; site < SITES; site++)
            for (int at = 0; at < LARGEST_RING; at++)
                free(rings[worker][site][at]);
    unsigned long blocks = leaked;
    truth_with_total("leak_slowly", blocks * 200, blocks, blocks * 200, blocks);
    victim_done();
    return 0;
}
