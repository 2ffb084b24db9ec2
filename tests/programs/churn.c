/* A fast loop of pairs with a small leak in it.
 *
 * True leaks (bytes / blocks): leak_rarely 100 * 24 = 2400 / 100.
 * churn_pair allocates and frees 100,000 blocks of 64 bytes; churn_ring 100,000 of 200 bytes that live for 32 rounds.
 */
#include "victim.h"

#define ROUNDS 100000
#define RING 32

static void *ring[RING];

OWN_FRAME static void churn_pair(void)
{
    free(keep(malloc(64)));
    AFTER_CALL();
}

OWN_FRAME static void churn_ring(unsigned round)
{
    free(ring[round % RING]);
    ring[round % RING] = keep(malloc(200));
}

OWN_FRAME static void leak_rarely(void)
{
    keep(malloc(24));
}

int main(int argc, char **argv)
{
    victim_ready(argc, argv);
    for (unsigned round = 0; round < ROUNDS; round++) {
        churn_pair();
        churn_ring(round);
        if (round % 1000 == 0)
            leak_rarely();
    }
    for (int i = 0; i < RING; i++)
        free(ring[i]);
    truth_with_total("churn_pair", 0, 0, 64ul * ROUNDS, ROUNDS);
    truth_with_total("churn_ring", 0, 0, 200ul * ROUNDS, ROUNDS);
    truth_with_total("leak_rarely", 2400, 100, 2400, 100);
    victim_done();
    return 0;
}
