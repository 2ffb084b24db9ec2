/* Loads a library after the tracer has looked at its mappings, and leaks from there.
 *
 * True leaks (bytes / blocks): leak_plugin (in libplugin.so, beside this program) 3900 / 13, leak_host 60 / 2,
 * leak_plugin_later (in the library, two seconds after it was loaded) 450 / 5.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <dlfcn.h>
#include <limits.h>

/* The library's file, in this program's folder. */
#ifndef PLUGIN
#define PLUGIN "libplugin.so"
#endif

OWN_FRAME static void leak_host(void)
{
    for (int i = 0; i < 2; i++)
        keep(malloc(30));
}

int main(int argc, char **argv)
{
    char path[PATH_MAX + 32];
    ssize_t length = readlink("/proc/self/exe", path, PATH_MAX);
    if (length <= 0)
        _exit(110);
    path[length] = 0;
    strcpy(strrchr(path, '/'), "/" PLUGIN);
    victim_ready(argc, argv);
    void *library = dlopen(path, RTLD_NOW);
    if (!library)
        _exit(111);
    void (*leak_plugin)(void) = (void (*)(void))dlsym(library, "leak_plugin");
    if (!leak_plugin)
        _exit(112);
    void (*leak_plugin_later)(void) = (void (*)(void))dlsym(library, "leak_plugin_later");
    if (!leak_plugin_later)
        _exit(113);
    leak_plugin();
    leak_host();
    sleep(2); /* By now any tracer has seen what is mapped. */
    leak_plugin_later();
    truth("leak_plugin", 3900, 13);
    truth("leak_host", 60, 2);
    truth("leak_plugin_later", 450, 5);
    victim_done();
    return 0;
}
