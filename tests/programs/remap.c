/* Maps and unmaps as fast as it can: 20000 pairs of 8192 bytes, between them one leak.
 *
 * True leak: leak_one 12288 / 1.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <sys/mman.h>

static void *map(size_t length)
{
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        _exit(110);
    return keep(memory);
}

OWN_FRAME static void leak_one(void)
{
    map(12288);
    AFTER_CALL();
}

OWN_FRAME static void map_and_unmap(int count)
{
    for (int i = 0; i < count; i++)
        munmap(map(8192), 8192);
}

int main(int argc, char **argv)
{
    victim_ready(argc, argv);
    leak_one();
    map_and_unmap(20000);
    truth("leak_one", 12288, 1);
    victim_done();
    return 0;
}
