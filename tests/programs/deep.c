/* Stacks of known depth: `recurse` stands 10, 40, 100 and 200 times above the function that leaks.
 *
 * True leaks (bytes / blocks): leak_depth_10 1010 / 1, leak_depth_40 2080 / 2, leak_depth_100 3300 / 3,
 * leak_depth_200 4800 / 4.
 */
#include "victim.h"

#define LEAK(depth, size, count)                     \
    OWN_FRAME static void leak_depth_##depth(void)   \
    {                                                \
        for (int i = 0; i < (count); i++)            \
            keep(malloc(size));                      \
    }
LEAK(10, 1010, 1)
LEAK(40, 1040, 2)
LEAK(100, 1100, 3)
LEAK(200, 1200, 4)

OWN_FRAME static int recurse(int depth, void (*leak)(void))
{
    char room[48];
    memset(room, depth, sizeof room);
    __asm__ volatile("" : : "r"(room) : "memory");
    if (depth == 1)
        leak();
    else
        recurse(depth - 1, leak);
    AFTER_CALL();
    return room[7];
}

static void deep_truth(const char *function, int depth, unsigned long bytes, unsigned long objects)
{
    victim_print("{\"function\":\"%s\",\"bytes\":%lu,\"objects\":%lu,\"recursions\":%d}\n", function, bytes, objects,
                 depth);
}

int main(int argc, char **argv)
{
    victim_ready(argc, argv);
    recurse(10, leak_depth_10);
    recurse(40, leak_depth_40);
    recurse(100, leak_depth_100);
    recurse(200, leak_depth_200);
    deep_truth("leak_depth_10", 10, 1010, 1);
    deep_truth("leak_depth_40", 40, 2080, 2);
    deep_truth("leak_depth_100", 100, 3300, 3);
    deep_truth("leak_depth_200", 200, 4800, 4);
    victim_done();
    return 0;
}
