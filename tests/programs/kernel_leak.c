/* Makes the kernel hold more and more on its behalf, one way at a time: `kernel_leak MODE RATE SECONDS`.
 *
 * True: RATE operations a second, each of which makes the kernel hold what `held` counts, as PER says below; nothing of it is
 * ever given back before the end. It states its truth in one line when SECONDS are over, and ends when its input ends.
 * No leaks, though the kernel holds more: negative (names that do not exist), inodes and buffers (files that are read and closed).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/bpf.h>

static const char *mode;
static char folder[64];
static int watcher = -1;

static void check(int holds)
{
    if (!holds) {
        fprintf(stderr, "kernel_leak: %s: %s\n", mode, strerror(errno));
        exit(110);
    }
}

static void in_folder(char *path, size_t size, const char *name, long number)
{
    check(snprintf(path, size, "%s/%s%ld", folder, name, number) < (int)size);
}

static void pipes(long number)
{
    (void)number;
    int ends[2];
    check(pipe(ends) == 0);
}

static void full_pipes(long number)
{
    (void)number;
    static const char page[4096];
    int ends[2];
    check(pipe2(ends, O_NONBLOCK) == 0);
    while (write(ends[1], page, sizeof page) > 0) {
    }
}

static void unix_sockets(long number)
{
    (void)number;
    int ends[2];
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
}

static void queues(long number)
{
    (void)number;
    static const char data[1000];
    int ends[2];
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    check(write(ends[0], data, sizeof data) == sizeof data);
}

static void tcp_sockets(long number)
{
    (void)number;
    check(socket(AF_INET, SOCK_STREAM, 0) >= 0);
}

static void eventfds(long number)
{
    (void)number;
    check(eventfd(0, 0) >= 0);
}

static void timerfds(long number)
{
    (void)number;
    check(timerfd_create(CLOCK_MONOTONIC, 0) >= 0);
}

static void timers(long number)
{
    (void)number;
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    timer_t timer;
    check(timer_create(CLOCK_MONOTONIC, &none, &timer) == 0);
}

static void memfds(long number)
{
    (void)number;
    int file = memfd_create("frames", 0);
    check(file >= 0 && write(file, "x", 1) == 1);
}

static void epolls(long number)
{
    (void)number;
    struct epoll_event event = {.events = EPOLLIN};
    int file = eventfd(0, 0);
    int poll = epoll_create1(0);
    check(file >= 0 && poll >= 0 && epoll_ctl(poll, EPOLL_CTL_ADD, file, &event) == 0);
}

static void watches(long number)
{
    char path[128];
    in_folder(path, sizeof path, "watched", number);
    int file = open(path, O_CREAT | O_WRONLY, 0600);
    check(file >= 0 && close(file) == 0);
    if (watcher < 0)
        watcher = inotify_init1(0);
    check(inotify_add_watch(watcher, path, IN_ALL_EVENTS) >= 0);
}

static void segments(long number)
{
    (void)number;
    int id = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
    check(id >= 0);
    char *memory = shmat(id, NULL, 0);
    check(memory != (char *)-1);
    memory[0] = 1;
    check(shmctl(id, IPC_RMID, NULL) == 0);
}

static void maps(long number)
{
    (void)number;
    union bpf_attr map;
    memset(&map, 0, sizeof map);
    map.map_type = BPF_MAP_TYPE_HASH;
    map.key_size = 8;
    map.value_size = 64;
    map.max_entries = 64;
    check(syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map) >= 0);
}

static void namespaces(long number)
{
    (void)number;
    check(unshare(CLONE_NEWNS) == 0);
    check(open("/proc/self/ns/mnt", O_RDONLY) >= 0);
}

static void networks(long number)
{
    (void)number;
    check(unshare(CLONE_NEWNET) == 0);
    check(open("/proc/self/ns/net", O_RDONLY) >= 0);
}

static void rings(long number)
{
    (void)number;
    char parameters[120] = {0}; /* struct io_uring_params */
    check(syscall(425 /* io_uring_setup */, 8, parameters) >= 0);
}

static void zombies(long number)
{
    (void)number;
    pid_t child = fork();
    check(child >= 0);
    if (child == 0)
        _exit(0);
}

static void signals(long number)
{
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGRTMIN);
    if (number == 0)
        check(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
    check(sigqueue(getpid(), SIGRTMIN, (union sigval){0}) == 0);
}

static void locks(long number)
{
    static int file = -1;
    if (file < 0) {
        char path[128];
        in_folder(path, sizeof path, "locked", 0);
        file = open(path, O_CREAT | O_RDWR, 0600);
    }
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = number * 2, .l_len = 1};
    check(file >= 0 && fcntl(file, F_OFD_SETLK, &lock) == 0);
}

static void keys(long number)
{
    char name[64];
    snprintf(name, sizeof name, "kernel_leak:%ld", number);
    /* -3: the session keyring, keyctl(2). */
    check(syscall(SYS_add_key, "user", name, "payload", 7, -3) >= 0);
}

static void files_in_memory(long number)
{
    char path[128];
    if (number == 0)
        check(mount("kernel_leak", folder, "tmpfs", 0, NULL) == 0);
    in_folder(path, sizeof path, "file", number);
    int file = open(path, O_CREAT | O_WRONLY, 0600);
    check(file >= 0 && write(file, "x", 1) == 1 && close(file) == 0);
}

static void negative(long number)
{
    char path[128];
    in_folder(path, sizeof path, "nothing", number);
    check(access(path, F_OK) != 0);
}

static void inodes(long number)
{
    char path[128];
    in_folder(path, sizeof path, "read", number);
    int file = open(path, O_CREAT | O_RDWR, 0600);
    check(file >= 0 && close(file) == 0);
}

static void buffers(long number)
{
    static const char block[4096];
    char path[128];
    in_folder(path, sizeof path, "written", number);
    int file = open(path, O_CREAT | O_RDWR, 0600);
    check(file >= 0);
    for (int i = 0; i < 4; i++)
        check(write(file, block, sizeof block) == sizeof block);
    check(close(file) == 0);
}

/* What an operation makes the kernel hold: so many of a kind. */
static const struct way {
    const char *name;
    void (*operate)(long);
    const char *kind;
    int per;
} WAYS[] = {
    {"pipe", pipes, "pipe", 2},
    {"pipe-full", full_pipes, "pipe", 2},
    {"unix", unix_sockets, "socket", 2},
    {"queue", queues, "socket", 2},
    {"tcp", tcp_sockets, "socket", 1},
    {"eventfd", eventfds, "eventfd", 1},
    {"timerfd", timerfds, "timerfd", 1},
    {"timer", timers, "timers", 1},
    {"memfd", memfds, "memfd", 1},
    {"epoll", epolls, "eventpoll", 1},
    {"inotify", watches, "watches", 1},
    {"sysv", segments, "shmem_inode_cache", 1},
    {"bpf-map", maps, "bpf-map", 1},
    {"mount-namespace", namespaces, "namespace", 1},
    {"net-namespace", networks, "namespace", 1},
    {"ring", rings, "io_uring", 1},
    {"zombie", zombies, "zombies", 1},
    {"signal", signals, "queued-signals", 1},
    {"lock", locks, "locks", 1},
    {"key", keys, "key_jar", 1},
    {"tmpfs", files_in_memory, "shmem_inode_cache", 1},
    {"negative", negative, "nothing", 1},
    {"inodes", inodes, "nothing", 1},
    {"buffers", buffers, "nothing", 1},
};

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void raise_limits(void)
{
    /* As far as the machine lets us. */
    struct rlimit limit = {1 << 20, 1 << 20};
    setrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max = RLIM_INFINITY;
    setrlimit(RLIMIT_SIGPENDING, &limit);
}

/* Leaves nothing in the file system. */
static void clean_up(long done)
{
    static const char *const names[] = {"watched", "locked", "read", "written"};
    char path[128];
    if (strcmp(mode, "tmpfs") == 0)
        umount2(folder, MNT_DETACH);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        for (long number = 0; number < done; number++) {
            in_folder(path, sizeof path, names[i], number);
            if (unlink(path) != 0)
                break;
        }
    rmdir(folder);
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "kernel_leak: MODE RATE SECONDS\n");
        return 2;
    }
    mode = argv[1];
    double rate = atof(argv[2]), seconds = atof(argv[3]);
    const struct way *way = NULL;
    for (size_t i = 0; i < sizeof WAYS / sizeof WAYS[0]; i++)
        if (strcmp(WAYS[i].name, mode) == 0)
            way = &WAYS[i];
    if (!way || rate <= 0) {
        fprintf(stderr, "kernel_leak: no such way\n");
        return 2;
    }
    raise_limits();
    snprintf(folder, sizeof folder, "/tmp/kernel_leak.%d", (int)getpid());
    check(mkdir(folder, 0700) == 0);
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    double began = now();
    long done = 0;
    while (now() < began + seconds) {
        /* By the clock: a late wake-up is made up for. */
        while (done < (long)((now() - began) * rate))
            way->operate(done++);
        usleep(2000);
    }
    printf("{\"kind\":\"%s\",\"held\":%ld,\"operations\":%ld}\n", way->kind, done * way->per, done);
    fflush(stdout);
    char end;
    while (read(0, &end, 1) > 0) {
    }
    clean_up(done);
    return 0;
}
