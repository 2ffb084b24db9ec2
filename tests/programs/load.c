/* A server under load: two hundred sites whose blocks come and go, and one that leaks a hundredth of the allocations.
 *
 * True leaks: leak_slowly keeps every block of 96 bytes; how many depends on how long it ran, and is stated at the end. All other
 * sites (churn_here, called from 200 places) keep what their rings hold, which is freed before the truth is stated.
 *
 * After "go" it waits for words: "fast" (as fast as it can), "few" (the same, but it leaks thirty blocks a second), "slow" (ten rounds a second: so few that to see all calls fits the budget of a
 * process at rest, also where traps are slow), "count" (it answers with the blocks leaked so far, the rounds so far and its processor time in
 * nanoseconds), "halt" (it states its truth).
 */
#include "victim.h"

#include <pthread.h>
#include <stdint.h>
#include <time.h>

#define SITES 200
#define LARGEST_RING 4096

enum pace { SLOW, FAST, FEW, HALT };

static volatile enum pace pace = SLOW;
static volatile unsigned long leaked, rounds, useless;
static void *rings[SITES][LARGEST_RING];
static unsigned positions[SITES];

/* Lifetimes in rounds of the site: none, some, many. */
static unsigned ring_size(int path)
{
    static const unsigned sizes[4] = {0, 16, 256, LARGEST_RING};
    return sizes[path % 4];
}

OWN_FRAME static void *churn_here(int path, unsigned long number)
{
    size_t size = 24 + (size_t)(path * 7 % 400);
    unsigned long *block = keep(malloc(size));
    for (size_t word = 0; word < size / sizeof *block; word++)
        block[word] = number * 0x9e3779b97f4a7c15ul + word;
    return block;
}

/* The number after each call keeps the compiler from merging the calls. */
#define CALL(number)                                       \
    case number:                                           \
        block = churn_here(path, round);                   \
        __asm__ volatile("" : : "i"(number) : "memory");   \
        break;
#define TEN(first)                                                                            \
    CALL(first) CALL(first + 1) CALL(first + 2) CALL(first + 3) CALL(first + 4)               \
    CALL(first + 5) CALL(first + 6) CALL(first + 7) CALL(first + 8) CALL(first + 9)

OWN_FRAME static void churn(unsigned long round)
{
    int path = (int)(round * 7919 % SITES);
    void *block = NULL;
    switch (path) {
        TEN(0) TEN(10) TEN(20) TEN(30) TEN(40) TEN(50) TEN(60) TEN(70) TEN(80) TEN(90)
        TEN(100) TEN(110) TEN(120) TEN(130) TEN(140) TEN(150) TEN(160) TEN(170) TEN(180) TEN(190)
    }
    unsigned size = ring_size(path);
    if (size == 0) {
        free(block);
        return;
    }
    unsigned at = positions[path]++ % size;
    free(rings[path][at]);
    rings[path][at] = block;
}

/* What a server does with a request beside allocating for it: some hundred nanoseconds. */
OWN_FRAME static unsigned long work_a_little(unsigned long seed)
{
    for (int step = 0; step < 200; step++)
        seed = seed * 6364136223846793005ul + 1442695040888963407ul;
    return seed;
}

OWN_FRAME static void leak_slowly(unsigned long number)
{
    unsigned long *block = keep(malloc(96));
    for (int word = 0; word < 12; word++)
        block[word] = number + (unsigned long)word;
    leaked++;
}

/* Thirty times a second. */
static int is_time_for_one(unsigned long round)
{
    static unsigned long long next;
    struct timespec now;
    if (round % 256 != 0)
        return 0;
    clock_gettime(CLOCK_MONOTONIC, &now);
    unsigned long long at = (unsigned long long)now.tv_sec * 30 + (unsigned long long)now.tv_nsec * 30 / 1000000000ull;
    int is_time = at > next;
    next = at;
    return is_time;
}

static void *work(void *nothing)
{
    for (unsigned long round = 0; pace != HALT; round++) {
        churn(round);
        useless += work_a_little(round);
        if (pace == FEW ? is_time_for_one(round) : round % 100 == 0)
            leak_slowly(round);
        rounds = round;
        if (pace == SLOW) {
            struct timespec pause = {0, 100000000};
            nanosleep(&pause, NULL);
        }
    }
    return nothing;
}

static void read_word(char *word, size_t room)
{
    size_t length = 0;
    while (length + 1 < room && read(0, word + length, 1) == 1 && word[length] != '\n')
        length++;
    word[length] = 0;
}

int main(int argc, char **argv)
{
    pthread_t worker;
    victim_ready(argc, argv);
    pace = victim_waits ? SLOW : FAST;
    if (pthread_create(&worker, NULL, work, NULL) != 0)
        return 1;
    while (victim_waits) {
        char word[16];
        read_word(word, sizeof word);
        if (strcmp(word, "fast") == 0) {
            pace = FAST;
        } else if (strcmp(word, "few") == 0) {
            pace = FEW;
        } else if (strcmp(word, "slow") == 0) {
            pace = SLOW;
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
    pace = HALT;
    pthread_join(worker, NULL);
    for (int path = 0; path < SITES; path++)
        for (int at = 0; at < LARGEST_RING; at++)
            free(rings[path][at]);
    truth_with_total("leak_slowly", leaked * 96, leaked, leaked * 96, leaked);
    victim_done();
    return 0;
}
