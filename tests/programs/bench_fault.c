/* Fresh pages one after the other: a mapping of 64 MiB is written to once a page, taken away, and made anew.
 *
 * usage: bench_fault. An operation is a page.
 */
#include "bench.h"

#include <sys/mman.h>

#define MAPPING (64UL << 20)
#define PAGE 4096UL

static void *pages(void *argument)
{
    struct worker *self = argument;
    for (;;) {
        char *memory = mmap(NULL, MAPPING, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            _exit(110);
        madvise(memory, MAPPING, MADV_NOHUGEPAGE);
        for (char *page = memory; page < memory + MAPPING; page += PAGE) {
            take_turn(self);
            *(volatile char *)page = 1;
            self->operations++;
        }
        munmap(memory, MAPPING);
    }
    return NULL;
}

int main(void)
{
    return bench_run(1, pages);
}
