/* A command that has lost blocks by the time it ends, in the way that its first argument names:
 *
 *   return exit _exit quick   as it says, with status 7
 *   exec                      becomes `true`
 *   abort kill                by a signal
 *   last                      the first thread ends before the last, which returns
 *   fork                      a child ends by exit too, after its parent's memory became its own
 *   vfork                     a child ends by _exit in its parent's memory, before the parent goes on
 *   clean                     returns, and has lost nothing
 *
 * True losses (bytes / blocks): lose_direct 300 / 3; lose_list 64 / 4, one of them direct; lose_ring 72 / 3; lose_large 1000000 / 1;
 * lose_in_thread 500 / 5. Held until the end: by a variable, by another block's middle, by thread storage, by the stack and by the
 * registers of a thread that waits in the kernel.
 */
#include "victim.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

struct node {
    struct node *next;
    char rest[8];
};

static struct node *volatile held_list;
static char *volatile held_middle;
static __thread char *volatile held_by_thread;
static pthread_barrier_t begun;

OWN_FRAME static void lose_direct(void)
{
    for (volatile int i = 0; i < 3; i++)
        keep(malloc(100));
}

OWN_FRAME static struct node *make_list(int length)
{
    struct node *head = NULL;
    for (int i = 0; i < length; i++) {
        struct node *node = keep(malloc(sizeof *node));
        node->next = head;
        head = node;
    }
    return head;
}

OWN_FRAME static void lose_list(void)
{
    keep(make_list(4));
    AFTER_CALL();
}

OWN_FRAME static void lose_ring(void)
{
    struct node *nodes[3];
    for (int i = 0; i < 3; i++)
        nodes[i] = keep(malloc(24));
    for (int i = 0; i < 3; i++)
        nodes[i]->next = nodes[(i + 1) % 3];
    memset(nodes, 0, sizeof nodes);
    keep(nodes);
}

OWN_FRAME static void lose_large(void)
{
    memset(keep(malloc(1000000)), 1, 1000000);
}

OWN_FRAME static void hold(void)
{
    held_list = make_list(10);
    held_middle = (char *)keep(calloc(4, 64)) + 100;
    held_by_thread = keep(malloc(48));
    free(keep(malloc(33)));
}

OWN_FRAME static void lose_in_thread(void)
{
    for (int i = 0; i < 5; i++)
        keep(malloc(100));
}

static void *ends(void *argument)
{
    lose_in_thread();
    return argument;
}

/* Waits in the kernel with a block that only a register which calls preserve leads to, and another that only its stack does. */
static void *waits(void *argument)
{
    char *volatile on_stack = keep(malloc(56));
    char *in_register = keep(malloc(40));
    pthread_barrier_wait(&begun);
    for (;;) {
#if defined(__x86_64__)
        /* pause(2), which returns the number of an error. */
        long number = 34;
        register char *preserved __asm__("rbx") = in_register;
        __asm__ volatile("syscall" : "+a"(number), "+r"(preserved) : : "rcx", "r11", "memory");
        in_register = preserved;
#else
        pause();
        keep(in_register);
#endif
    }
    keep(on_stack);
    return argument;
}

/* What calls leave below is overwritten: it would hold what was lost. */
OWN_FRAME static void sweep(void)
{
    char room[16384];
    memset(room, 0, sizeof room);
    keep(room);
}

static void *last(void *argument)
{
    struct timespec moment = {.tv_nsec = 50 * 1000 * 1000};
    nanosleep(&moment, NULL);
    return argument;
}

int main(int argc, char **argv)
{
    const char *way = argc > 1 ? argv[1] : "return";
    pthread_t thread;
    if (strcmp(way, "clean") != 0) {
        lose_direct();
        lose_list();
        lose_ring();
        lose_large();
        pthread_create(&thread, NULL, ends, NULL);
        pthread_join(thread, NULL);
    }
    hold();
    pthread_barrier_init(&begun, NULL, 2);
    if (strcmp(way, "last") != 0) {
        pthread_create(&thread, NULL, waits, NULL);
        pthread_detach(thread);
        pthread_barrier_wait(&begun);
    }
    sweep();
    if (strcmp(way, "exit") == 0)
        exit(7);
    if (strcmp(way, "_exit") == 0)
        _exit(7);
    if (strcmp(way, "quick") == 0)
        quick_exit(7);
    if (strcmp(way, "abort") == 0)
        abort();
    if (strcmp(way, "kill") == 0)
        kill(getpid(), SIGKILL);
    if (strcmp(way, "exec") == 0)
        execlp("true", "true", NULL);
    if (strcmp(way, "last") == 0) {
        pthread_create(&thread, NULL, last, NULL);
        pthread_exit(NULL);
    }
    if (strcmp(way, "fork") == 0) {
        pid_t child = fork();
        if (child == 0) {
            lose_in_thread();
            sweep();
            exit(0);
        }
        waitpid(child, NULL, 0);
    }
    if (strcmp(way, "vfork") == 0) {
        pid_t child = vfork();
        if (child == 0)
            _exit(3);
        waitpid(child, NULL, 0);
    }
    return 7;
}
