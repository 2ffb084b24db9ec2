/* Allocator calls that never return: a timer's signal handler jumps out of malloc when it finds itself at its first
 * instructions, where nothing has been done yet and so nothing breaks.
 *
 * True leaks: leak_after_jump, 30 bytes for each of the jumps (20, or fewer where the timer never hits; it says how
 * many). Nothing survives of interrupted_pair.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>

#define JUMPS 20
#define SECONDS 3

/* Debian's and Ubuntu's malloc only save registers in so many bytes. */
#define FIRST_INSTRUCTIONS 8

static sigjmp_buf escape;
static volatile sig_atomic_t inside;
static char *entry;

static void on_alarm(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    const mcontext_t *machine = &((ucontext_t *)context)->uc_mcontext;
#if defined(__x86_64__)
    char *at = (char *)machine->gregs[REG_RIP];
#elif defined(__aarch64__)
    char *at = (char *)machine->pc;
#endif
    if (inside && at >= entry && at < entry + FIRST_INSTRUCTIONS)
        siglongjmp(escape, 1);
}

OWN_FRAME static void interrupted_pair(void)
{
    inside = 1;
    void *block = keep(malloc(64));
    inside = 0;
    free(block);
    AFTER_CALL();
}

OWN_FRAME static void leak_after_jump(void)
{
    keep(malloc(30));
}

static time_t seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

int main(int argc, char **argv)
{
    entry = dlsym(RTLD_DEFAULT, "malloc");
    if (!entry)
        _exit(110);
    victim_ready(argc, argv);

    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_RESTART};
    action.sa_sigaction = on_alarm;
    sigaction(SIGALRM, &action, NULL);
    struct itimerval timer = {{0, 1000}, {0, 1000}};
    setitimer(ITIMER_REAL, &timer, NULL);

    volatile unsigned long jumps = 0;
    time_t end = seconds() + SECONDS;
    while (jumps < JUMPS && seconds() < end) {
        if (sigsetjmp(escape, 1) == 0) {
            for (int i = 0; i < 1000; i++)
                interrupted_pair();
        } else {
            inside = 0;
            leak_after_jump();
            jumps++;
        }
    }
    timer = (struct itimerval){{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &timer, NULL);
    truth("leak_after_jump", 30 * jumps, jumps);
    truth("interrupted_pair", 0, 0);
    victim_done();
    return 0;
}
