/* Leaks 4 MiB ten times a second in fill_up() until the limit of its cgroup kills it; after 20 s without a limit it ends. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *volatile sink;

__attribute__((noinline)) static void fill_up(void)
{
    char *block = malloc(100000);
    memset(block, 1, 100000);
    sink = block;
    __asm__ volatile("" ::: "memory");
}

int main(void)
{
    for (int round = 0; round < 200; round++) {
        for (int i = 0; i < 42; i++)
            fill_up();
        usleep(100000);
    }
    return 0;
}
