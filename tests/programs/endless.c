/* Runs until it is told to stop or is killed: counts its rounds, leaking a block in each.
 *
 * True leaks: leak_endless 40 bytes a round. After "go" it prints "round N" for every hundredth round and, after each,
 * reads whether the test said "quit"; it never waits for an answer.
 */
#include "victim.h"

#include <poll.h>
#include <time.h>

OWN_FRAME static void leak_endless(void)
{
    keep(malloc(40));
}

int main(int argc, char **argv)
{
    struct timespec pause = {0, 100000};
    victim_ready(argc, argv);
    for (unsigned long round = 1;; round++) {
        leak_endless();
        if (round % 100 == 0) {
            struct pollfd input = {0, POLLIN, 0};
            victim_print("round %lu\n", round);
            if (victim_waits && poll(&input, 1, 0) == 1) {
                truth("leak_endless", 40 * round, round);
                victim_expect("quit");
                return 0;
            }
        }
        nanosleep(&pause, NULL);
    }
}
