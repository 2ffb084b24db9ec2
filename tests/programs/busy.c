/* Makes system calls as fast as it can until it is told to load a library, and allocates from there when it is told to.
 *
 *   victim            test
 *   ready PID    ->
 *                <-   go
 *   busy         ->
 *                <-   load
 *   loaded       ->
 *                <-   leak
 *   {truth}, done     as ever
 *
 * True leaks (bytes / blocks or mappings): leak_mapped 3 * 12288 = 36864 / 3 mapped before it is busy, leak_plugin (in
 * libplugin-omit.so, beside this program) 3900 / 13.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <dlfcn.h>
#include <limits.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>

OWN_FRAME static void leak_mapped(void)
{
    for (int i = 0; i < 3; i++) {
        void *memory = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            _exit(110);
        keep(memory);
    }
}

int main(int argc, char **argv)
{
    struct pollfd input = {0, POLLIN, 0};
    char path[PATH_MAX + 32];
    ssize_t length = readlink("/proc/self/exe", path, PATH_MAX);
    if (length <= 0)
        _exit(111);
    path[length] = 0;
    strcpy(strrchr(path, '/'), "/libplugin-omit.so");
    victim_ready(argc, argv);
    leak_mapped();
    if (victim_waits) {
        victim_print("busy\n");
        while (poll(&input, 1, 0) != 1)
            for (int i = 0; i < 1000; i++)
                syscall(SYS_getppid);
        victim_expect("load");
    }
    void *library = dlopen(path, RTLD_NOW);
    if (!library)
        _exit(112);
    void (*leak_plugin)(void) = (void (*)(void))dlsym(library, "leak_plugin");
    if (!leak_plugin)
        _exit(113);
    if (victim_waits) {
        victim_print("loaded\n");
        victim_expect("leak");
    }
    leak_plugin();
    AFTER_CALL();
    truth("leak_mapped", 36864, 3);
    truth("leak_plugin", 3900, 13);
    victim_done();
    return 0;
}
