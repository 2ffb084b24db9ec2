/* Allocations in a signal handler: the stack above it is the interrupted function's.
 *
 * True leaks (bytes / blocks): leak_in_handler 5 * 90 = 450 / 5, leak_outside 60 / 1.
 * The signals are raised, not sent, so that the allocator is never the one interrupted.
 */
#include "victim.h"

#include <signal.h>

OWN_FRAME static void leak_in_handler(int number)
{
    (void)number;
    keep(malloc(90));
}

OWN_FRAME static void leak_outside(void)
{
    keep(malloc(60));
}

OWN_FRAME static void interrupted(void)
{
    raise(SIGUSR1);
    AFTER_CALL();
}

int main(int argc, char **argv)
{
    signal(SIGUSR1, leak_in_handler);
    victim_ready(argc, argv);
    for (int i = 0; i < 5; i++)
        interrupted();
    leak_outside();
    truth("leak_in_handler", 450, 5);
    truth("leak_outside", 60, 1);
    victim_done();
    return 0;
}
