/* The stack grows, by pushes and by other writes.
 *
 * True pages that stay (bytes / pages of 4096), but for those of the stack that were touched before, 64 KiB at most:
 *   grow_by_push    1048576 / 256, one push to each
 *   grow_by_write   1048576 / 256, below those
 */
#include "victim.h"

#define PAGE 4096UL
#define PUSHED (256 * PAGE)
#define WRITTEN (512 * PAGE)

OWN_FRAME static void grow_by_push(void)
{
    /* The frame is found by rbp meanwhile. */
    __asm__ volatile("mov %%rsp, %%rbx\n\t"
                     "mov %0, %%rcx\n"
                     "1:\n\t"
                     "lea -4096(%%rsp), %%rsp\n\t"
                     "push %%rcx\n\t"
                     "pop %%rcx\n\t"
                     "dec %%rcx\n\t"
                     "jnz 1b\n\t"
                     "mov %%rbx, %%rsp"
                     :
                     : "i"(PUSHED / PAGE)
                     : "rbx", "rcx", "memory");
}

OWN_FRAME static void grow_by_write(void)
{
    volatile char block[WRITTEN];
    for (unsigned long at = WRITTEN; at > 0; at -= PAGE)
        block[at - 1] = 1;
    keep((void *)block);
}

int main(int argc, char **argv)
{
    victim_ready(argc, argv);
    grow_by_push();
    grow_by_write();
    truth("grow_by_push", 1048576, 256);
    truth("grow_by_write", WRITTEN - PUSHED, (WRITTEN - PUSHED) / PAGE);
    victim_done();
    return 0;
}
