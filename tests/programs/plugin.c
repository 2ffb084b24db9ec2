/* The library that dlopen.c loads late. True leaks: leak_plugin 13 * 300 = 3900 bytes / 13 blocks,
 * leak_plugin_later 5 * 90 = 450 bytes / 5 blocks. */
#include <stdlib.h>

static void *volatile plugin_kept;

__attribute__((noinline, noclone)) void leak_plugin(void)
{
    for (int i = 0; i < 13; i++)
        plugin_kept = malloc(300);
}

__attribute__((noinline, noclone)) void leak_plugin_later(void)
{
    for (int i = 0; i < 5; i++)
        plugin_kept = malloc(90);
}
