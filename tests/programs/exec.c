/* One process, two programs: it leaks, then executes itself in another role, which leaks other amounts.
 *
 * True leaks (bytes / blocks): leak_before_exec 1000 / 10, gone with its memory at the exec; leak_after_exec 1000 / 20.
 */
#include "victim.h"

OWN_FRAME static void leak_before_exec(void)
{
    for (int i = 0; i < 10; i++)
        keep(malloc(100));
}

OWN_FRAME static void leak_after_exec(void)
{
    for (int i = 0; i < 20; i++)
        keep(malloc(50));
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[2], "second") == 0) {
        leak_after_exec();
        truth("leak_after_exec", 1000, 20);
        victim_waits = strcmp(argv[1], "now") != 0;
        victim_done();
        return 0;
    }
    victim_ready(argc, argv);
    leak_before_exec();
    char role[] = "second";
    char now[] = "now", wait[] = "wait";
    char *arguments[] = {argv[0], victim_waits ? wait : now, role, NULL};
    execv("/proc/self/exe", arguments);
    _exit(110);
}
