/* Memory that a program maps by itself, beside that of its allocator.
 *
 * True leaks (bytes / mappings):
 *   leak_mmap        5 * 30000 = 150000 / 5        leak_part      16 pages - 4 = 49152 / 1
 *   leak_mremap      40960 / 1 of 8192 mapped      leak_remap     grown by 81920 to 90112 in two steps: 81920 / 1 or 2
 *   leak_shared      12288 / 1                     leak_brk       100000 / 1
 *   leak_stack       65536 less a guard page = 61440 / 1, its kind a thread's stack
 *   leak_opened      32768 of 131072 reserved / 1  leak_malloc    300 * 100000 on the heap / 300
 * Nothing survives of: mapped_and_unmapped, replaced, never_mapped.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <pthread.h>
#include <sys/mman.h>

#define PAGE 4096UL

static void check(int holds, int line)
{
    if (!holds) {
        victim_print("mappings.c:%d: the kernel did something else\n", line);
        _exit(110);
    }
}
#define CHECK(condition) check((condition) != 0, __LINE__)

static char *map(size_t length, int flags)
{
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
    CHECK(memory != MAP_FAILED);
    return keep(memory);
}

OWN_FRAME static void leak_mmap(void)
{
    for (int i = 0; i < 5; i++)
        keep(map(30000, MAP_PRIVATE));
}

OWN_FRAME static void leak_part(void)
{
    char *memory = map(16 * PAGE, MAP_PRIVATE);
    CHECK(munmap(memory + 3 * PAGE, 2 * PAGE) == 0);
    CHECK(munmap(memory + 14 * PAGE, 2 * PAGE) == 0);
    CHECK(munmap(memory + 1, PAGE) == -1);
}

OWN_FRAME static char *leak_mremap(void)
{
    char *memory = keep(map(2 * PAGE, MAP_PRIVATE));
    AFTER_CALL();
    return memory;
}

OWN_FRAME static char *leak_remap(char *memory, size_t from, size_t to)
{
    char *moved = mremap(memory, from, to, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED);
    return keep(moved);
}

OWN_FRAME static void leak_shared(void)
{
    keep(map(3 * PAGE, MAP_SHARED));
}

OWN_FRAME static void leak_brk(void)
{
    CHECK(sbrk(100000) != (void *)-1);
    AFTER_CALL();
}

OWN_FRAME static void leak_opened(void)
{
    char *memory = mmap(NULL, 32 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    CHECK(mprotect(memory + PAGE, 8 * PAGE, PROT_READ | PROT_WRITE) == 0);
}

static void *forever(void *nothing)
{
    pause();
    return nothing;
}

OWN_FRAME static void leak_stack(void)
{
    pthread_t thread;
    pthread_attr_t attributes;
    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setstacksize(&attributes, 65536) == 0);
    CHECK(pthread_create(&thread, &attributes, forever, NULL) == 0);
}

OWN_FRAME static void leak_malloc(void)
{
    for (int i = 0; i < 300; i++)
        keep(malloc(i % 2 ? 100 * 1000 : 200 * 1000));
}

OWN_FRAME static void mapped_and_unmapped(void)
{
    for (int i = 0; i < 50; i++)
        CHECK(munmap(map(7777, MAP_PRIVATE), 7777) == 0);
}

OWN_FRAME static void replaced(char **memory)
{
    *memory = map(4 * PAGE, MAP_PRIVATE);
}

OWN_FRAME static void leak_replacing(char *memory)
{
    CHECK(mmap(memory, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
               -1, 0) == memory);
}

OWN_FRAME static void never_mapped(void)
{
    CHECK(mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
}

int main(int argc, char **argv)
{
    /* So that the allocator's own first steps are over. */
    keep(malloc(100));
    victim_ready(argc, argv);
    leak_mmap();
    leak_part();
    char *memory = leak_mremap();
    memory = leak_remap(memory, 2 * PAGE, 10 * PAGE);
    leak_remap(memory, 10 * PAGE, 22 * PAGE);
    leak_shared();
    leak_brk();
    leak_opened();
    leak_stack();
    leak_malloc();
    mapped_and_unmapped();
    replaced(&memory);
    leak_replacing(memory);
    never_mapped();

    truth("leak_mmap", 150000, 5);
    truth("leak_part", 12 * PAGE, 1);
    truth("leak_mremap", 2 * PAGE, 1);
    truth("leak_remap", 20 * PAGE, 2);
    truth("leak_shared", 3 * PAGE, 1);
    truth("leak_brk", 100000, 1);
    truth("leak_opened", 8 * PAGE, 1);
    truth("leak_stack", 65536, 1);
    truth("mapped_and_unmapped", 0, 0);
    truth("replaced", 0, 0);
    truth("leak_replacing", 4 * PAGE, 1);
    truth("never_mapped", 0, 0);
    truth("leak_malloc", 150 * 100000UL + 150 * 200000UL, 300);
    victim_done();
    return 0;
}
