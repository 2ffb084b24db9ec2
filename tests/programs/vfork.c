/* Children of vfork work in their parent's memory: what they allocate there stays when they end, and what they free is freed.
 *
 * Children come first that do nothing but end: from then on a tracer knows that there are such, and has a second to prepare.
 * True leaks (bytes / blocks): leak_by_child 24000 / 40. handed_over gives 40 blocks to children, which free them. Children that run another
 * program at once (true) have what they allocate for themselves.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <sys/wait.h>

#define CHILDREN 40

static void *gift;

OWN_FRAME static void leak_by_child(void)
{
    keep(malloc(600));
    AFTER_CALL();
}

OWN_FRAME static void handed_over(void)
{
    gift = keep(malloc(400));
    AFTER_CALL();
}

static void join(pid_t child)
{
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        _exit(110);
}

int main(int argc, char **argv)
{
    victim_ready(argc, argv);
    for (int i = 0; i < 2; i++) {
        pid_t child = vfork();
        if (child == 0)
            _exit(0);
        join(child);
    }
    usleep(3000000);
    for (int i = 0; i < CHILDREN; i++) {
        handed_over();
        pid_t child = vfork();
        if (child == 0) {
            leak_by_child();
            free(gift);
            _exit(0);
        }
        join(child);
        child = vfork();
        if (child == 0) {
            execl("/bin/true", "true", (char *)NULL);
            _exit(1);
        }
        join(child);
    }
    truth("leak_by_child", 24000, 40);
    victim_done();
    return 0;
}
