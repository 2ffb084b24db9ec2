/* Pairs under a deep stack.
 *
 * usage: bench_deep FRAMES: so many return addresses at malloc. Three of them are the worker's and those of the C
 * library's two functions that start a thread; the others are a function that calls itself.
 */
#include "bench.h"

static int depth;

OWN_FRAME static int descend(struct worker *self, int more)
{
    char room[48];
    memset(room, more, sizeof room);
    __asm__ volatile("" : : "r"(room) : "memory");
    if (more > 1) {
        descend(self, more - 1);
    } else {
        while (active_workers >= 0) {
            take_turn(self);
            free(escape(malloc(64)));
            self->operations++;
        }
    }
    AFTER_CALL();
    return room[7];
}

static void *dive(void *argument)
{
    descend(argument, depth);
    AFTER_CALL();
    return NULL;
}

int main(int argc, char **argv)
{
    depth = (argc > 1 ? atoi(argv[1]) : 10) - 3;
    return depth < 1 ? 2 : bench_run(1, dive);
}
