/* The least that leaks, for every way of linking a program.
 *
 * True leaks (bytes / blocks): leak_basic 4 * 2500 = 10000 / 4, leak_calloc 800 / 1; nothing in balanced.
 */
#include "victim.h"

OWN_FRAME static void leak_basic(void)
{
    for (int i = 0; i < 4; i++)
        keep(malloc(2500));
}

OWN_FRAME static void leak_calloc(void)
{
    keep(calloc(100, 8));
}

OWN_FRAME static void balanced(void)
{
    for (int i = 0; i < 100; i++)
        free(keep(malloc(77)));
    AFTER_CALL();
}

int main(int argc, char **argv)
{
    victim_ready(argc, argv);
    leak_basic();
    leak_calloc();
    balanced();
    truth("leak_basic", 10000, 4);
    truth("leak_calloc", 800, 1);
    truth("balanced", 0, 0);
    victim_done();
    return 0;
}
