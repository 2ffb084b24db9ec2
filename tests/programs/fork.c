/* Children free what they inherited and leak on their own account: nothing of that concerns the parent.
 *
 * True leaks of the parent (bytes / blocks): leak_in_parent 25600 / 100, leak_after_fork 999 / 3.
 * Each of three children frees the parent's hundred blocks in its own memory, and leaks 70 / 7 in leak_in_child.
 */
#include "victim.h"

#include <sys/wait.h>

#define BLOCKS 100
static void *blocks[BLOCKS];

OWN_FRAME static void leak_in_parent(void)
{
    for (int i = 0; i < BLOCKS; i++)
        blocks[i] = keep(malloc(256));
}

OWN_FRAME static void leak_after_fork(void)
{
    for (int i = 0; i < 3; i++)
        keep(malloc(333));
}

OWN_FRAME static void leak_in_child(void)
{
    for (int i = 0; i < 7; i++)
        keep(malloc(10));
}

OWN_FRAME static void child(void)
{
    for (int i = 0; i < BLOCKS; i++)
        free(blocks[i]);
    leak_in_child();
    _exit(0);
}

int main(int argc, char **argv)
{
    victim_ready(argc, argv);
    leak_in_parent();
    for (int i = 0; i < 3; i++) {
        pid_t pid = fork();
        if (pid < 0)
            _exit(110);
        if (pid == 0)
            child();
        int status = 0;
        if (waitpid(pid, &status, 0) != pid || status != 0)
            _exit(111);
    }
    leak_after_fork();
    truth("leak_in_parent", 25600, 100);
    truth("leak_after_fork", 999, 3);
    victim_done();
    return 0;
}
