/* System calls that allocate in the kernel, again and again.
 *
 * usage: bench_kernel open|pipe|unix|tcp|file|fork. An operation opens and closes a file; makes and closes a pipe; sends a byte through
 * a pair of Unix sockets; sends one there and back through a TCP connection; writes 64 KiB to a new file and removes it; forks a child
 * that ends, of which the parent's part counts.
 */
#include "bench.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

static int ends[2];
static char path[64];

static void check(int holds)
{
    if (!holds)
        _exit(110);
}

static void nothing(void)
{
}

static void opens(void)
{
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    check(file >= 0 && close(file) == 0);
}

static void pipes(void)
{
    int pair[2];
    check(pipe(pair) == 0 && close(pair[0]) == 0 && close(pair[1]) == 0);
}

static void connect_unix(void)
{
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
}

static void sends(void)
{
    char byte = 1;
    check(write(ends[0], &byte, 1) == 1 && read(ends[1], &byte, 1) == 1);
}

static void connect_tcp(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    check(listener >= 0 && bind(listener, (struct sockaddr *)&address, length) == 0 && listen(listener, 1) == 0);
    check(getsockname(listener, (struct sockaddr *)&address, &length) == 0);
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    check(ends[0] >= 0 && connect(ends[0], (struct sockaddr *)&address, length) == 0);
    ends[1] = accept(listener, NULL, NULL);
    check(ends[1] >= 0 && close(listener) == 0);
    for (int i = 0; i < 2; i++)
        check(setsockopt(ends[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0);
}

static void there_and_back(void)
{
    char byte = 1;
    check(write(ends[0], &byte, 1) == 1 && read(ends[1], &byte, 1) == 1);
    check(write(ends[1], &byte, 1) == 1 && read(ends[0], &byte, 1) == 1);
}

static void files(void)
{
    static const char block[65536];
    int file = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    check(file >= 0 && write(file, block, sizeof block) == sizeof block && close(file) == 0 && unlink(path) == 0);
}

static void forks(void)
{
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    check(child > 0 && waitpid(child, NULL, 0) == child);
}

static const struct way {
    const char *name;
    void (*prepare)(void);
    void (*operate)(void);
} WAYS[] = {
    {"open", nothing, opens},          {"pipe", nothing, pipes}, {"unix", connect_unix, sends},
    {"tcp", connect_tcp, there_and_back}, {"file", nothing, files}, {"fork", nothing, forks},
};
static const struct way *way;

static void *operate(void *argument)
{
    struct worker *self = argument;
    for (;;) {
        take_turn(self);
        way->operate();
        self->operations++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof WAYS / sizeof WAYS[0]; i++)
        if (argc == 2 && strcmp(WAYS[i].name, argv[1]) == 0)
            way = &WAYS[i];
    if (!way)
        return 2;
    snprintf(path, sizeof path, "/tmp/bench_kernel.%d", (int)getpid());
    way->prepare();
    return bench_run(1, operate);
}
