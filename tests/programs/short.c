/* A command that is over at once: it leaks before main and in it, says a word, and ends with 7.
 *
 * True leaks (bytes / blocks): leak_before_main 55 / 5, leak_short 2091 / 17.
 */
#include "victim.h"

OWN_FRAME __attribute__((constructor)) static void leak_before_main(void)
{
    for (int i = 0; i < 5; i++)
        keep(malloc(11));
}

OWN_FRAME static void leak_short(void)
{
    for (int i = 0; i < 17; i++)
        keep(malloc(123));
}

int main(int argc, char **argv)
{
    leak_short();
    victim_print("short says hello\n");
    for (int i = 1; i < argc; i++)
        victim_print("argument %s\n", argv[i]);
    return 0;
}
