/* Threads that no thread library made: clone() on a stack of the program's own.
 *
 * They share the main thread's thread-local storage, so that each must be over before the main thread goes on.
 * True leaks (bytes / blocks): leak_cloned 7 * 5 * 111 = 3885 / 35, leak_main 66 / 1.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>

#define CLONES 7
#define STACK (256 * 1024)

static char stack[STACK] __attribute__((aligned(4096)));
static atomic_int over;

OWN_FRAME static void leak_cloned(void)
{
    for (int i = 0; i < 5; i++)
        keep(malloc(111));
    AFTER_CALL();
}

OWN_FRAME static void leak_main(void)
{
    keep(malloc(66));
    AFTER_CALL();
}

OWN_FRAME static int worker(void *argument)
{
    (void)argument;
    leak_cloned();
    /* The stack is used again by the next one: nothing may touch it after this. */
    atomic_store(&over, 1);
    for (;;)
        syscall(SYS_exit, 0);
}

int main(int argc, char **argv)
{
    const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    victim_ready(argc, argv);
    for (int i = 0; i < CLONES; i++) {
        atomic_store(&over, 0);
        pid_t thread = clone(worker, stack + STACK, flags, NULL);
        if (thread == -1)
            _exit(110);
        while (!atomic_load(&over))
            sched_yield();
        while (syscall(SYS_tgkill, getpid(), thread, 0) == 0)
            sched_yield();
    }
    leak_main();
    truth("leak_cloned", 3885, 35);
    truth("leak_main", 66, 1);
    victim_done();
    return 0;
}
