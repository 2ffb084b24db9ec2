/* A parent and its children, of which each has its own leaks. Nothing is said before the end, when all children have ended.
 *
 *   family            the parent: leaks 77 / 1 in leak_of_parent, and has five children:
 *                       two execute it as "family worker": 20000 / 20 in leak_of_worker;
 *                       two as "family shell", through /bin/sh: the same, in a grandchild;
 *                       one goes on as it is, after 2 s (an emulated machine is slow to attach): 4500 / 9 in leak_of_clone, and frees a block that it inherited.
 *   family nap MS     leaks 400 / 4 in leak_of_nap, one at each of four depths, waits, ends.
 */
#include "victim.h"

#include <sys/wait.h>

OWN_FRAME static void *leak_of_parent(void)
{
    return keep(malloc(77));
}

OWN_FRAME static void leak_of_worker(void)
{
    for (int i = 0; i < 20; i++)
        keep(malloc(1000));
}

OWN_FRAME static void leak_of_clone(void)
{
    for (int i = 0; i < 9; i++)
        keep(malloc(500));
}

OWN_FRAME static void leak_of_nap(int depth)
{
    keep(malloc(100));
    if (depth > 1)
        leak_of_nap(depth - 1);
    AFTER_CALL();
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[1], "nap") == 0) {
        leak_of_nap(4);
        usleep((useconds_t)atoi(argv[2]) * 1000);
        leak_of_nap(4);
        return 0;
    }
    if (argc > 1 && strcmp(argv[1], "worker") == 0) {
        leak_of_worker();
        return 0;
    }
    void *inherited = leak_of_parent();
    char script[4200];
    snprintf(script, sizeof script, "%s worker; exit 0", argv[0]);
    for (int child = 0; child < 5; child++) {
        pid_t pid = fork();
        if (pid < 0)
            _exit(110);
        if (pid > 0)
            continue;
        if (child < 2)
            execl(argv[0], argv[0], "worker", (char *)NULL);
        else if (child < 4)
            execl("/bin/sh", "sh", "-c", script, (char *)NULL);
        else {
            sleep(2);
            free(inherited);
            leak_of_clone();
            _exit(0);
        }
        _exit(111);
    }
    int status = 0, failed = 0;
    while (wait(&status) > 0)
        failed |= status;
    victim_print("family done\n");
    return failed != 0;
}
