/* Memory behind files and descriptors, and shared memory, that a program maps and never unmaps.
 *
 * True leaks (bytes / mappings): leak_file 4 * 20480 = 81920 / 4, leak_memfd 3 * 262144 = 786432 / 3, leak_sysv 2 * 65536 = 131072 / 2,
 * leak_shared 12288 / 1. Nothing survives of: opened_and_closed (8 files mapped and unmapped), detached (3 segments).
 * hold_memfd keeps 6 descriptors of memory of 1048576 bytes each that it does not map: 6291456 bytes, in no site.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>

static void check(int holds, int line)
{
    if (!holds) {
        victim_print("segments.c:%d: the kernel did something else\n", line);
        _exit(110);
    }
}
#define CHECK(condition) check((condition) != 0, __LINE__)

static int file;

static void *map(int descriptor, size_t length, int flags)
{
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, descriptor, 0);
    CHECK(memory != MAP_FAILED);
    return keep(memory);
}

static int memory_of(size_t length)
{
    int descriptor = memfd_create("segment", 0);
    CHECK(descriptor >= 0 && ftruncate(descriptor, (off_t)length) == 0);
    return descriptor;
}

OWN_FRAME static void leak_file(void)
{
    for (int i = 0; i < 4; i++)
        map(file, 20480, i % 2 ? MAP_PRIVATE : MAP_SHARED);
    AFTER_CALL();
}

OWN_FRAME static void opened_and_closed(void)
{
    for (int i = 0; i < 8; i++)
        CHECK(munmap(map(file, 20480, MAP_PRIVATE), 20480) == 0);
}

OWN_FRAME static void leak_memfd(void)
{
    for (int i = 0; i < 3; i++) {
        int descriptor = memory_of(262144);
        memset(map(descriptor, 262144, MAP_SHARED), 1, 262144);
        CHECK(close(descriptor) == 0);
    }
}

static void *attach(void)
{
    int segment = shmget(IPC_PRIVATE, 65536, 0600);
    CHECK(segment >= 0);
    void *memory = shmat(segment, NULL, 0);
    /* It goes with the last process that has it attached. */
    CHECK(shmctl(segment, IPC_RMID, NULL) == 0 && memory != (void *)-1);
    return keep(memory);
}

OWN_FRAME static void leak_sysv(void)
{
    for (int i = 0; i < 2; i++)
        attach();
    AFTER_CALL();
}

OWN_FRAME static void detached(void)
{
    for (int i = 0; i < 3; i++)
        CHECK(shmdt(attach()) == 0);
}

OWN_FRAME static void leak_shared(void)
{
    map(-1, 12288, MAP_SHARED | MAP_ANONYMOUS);
    AFTER_CALL();
}

OWN_FRAME static void hold_memfd(void)
{
    for (int i = 0; i < 6; i++) {
        int descriptor = memory_of(1048576);
        void *memory = map(descriptor, 1048576, MAP_SHARED);
        memset(memory, 1, 1048576);
        CHECK(munmap(memory, 1048576) == 0);
    }
}

int main(int argc, char **argv)
{
    char name[] = "/var/tmp/segmentsXXXXXX";
    file = mkstemp(name);
    CHECK(file >= 0 && unlink(name) == 0 && ftruncate(file, 20480) == 0);
    keep(malloc(100));
    victim_ready(argc, argv);
    leak_file();
    opened_and_closed();
    leak_memfd();
    leak_sysv();
    detached();
    leak_shared();
    hold_memfd();
    truth("leak_file", 81920, 4);
    truth("opened_and_closed", 0, 0);
    truth("leak_memfd", 786432, 3);
    truth("leak_sysv", 131072, 2);
    truth("detached", 0, 0);
    truth("leak_shared", 12288, 1);
    truth("hold_memfd", 0, 0);
    victim_done();
    return 0;
}
