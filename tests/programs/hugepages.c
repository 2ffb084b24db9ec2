/* Fresh memory in huge pages. Where the kernel gave small ones, nothing is stated but that reading what it gave keeps no page.
 *
 * True pages that stay (bytes / pages of 4096):
 *   touch_huge    12582912 / 3072, by six faults
 * Of give_back, that touches 8 MiB by four faults, the half stays: 4194304 / 1024, two huge pages of which no byte was given back.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <fcntl.h>
#include <sys/mman.h>

#define PAGE 4096UL
#define MIB (1024 * 1024UL)
#define HUGE (2 * MIB)

OWN_FRAME static void touch_huge(volatile char *memory, size_t length)
{
    /* Not at the beginning of each: a fault anywhere brings all of it. */
    for (size_t at = 5 * PAGE; at < length; at += PAGE)
        memory[at] = 1;
}

OWN_FRAME static int give_back(volatile char *memory, size_t length)
{
    for (size_t at = 0; at < length; at += PAGE)
        memory[at] = 1;
    return madvise((char *)memory, length / 2, MADV_DONTNEED);
}

/* Huge pages that this process has, bytes (AnonHugePages of /proc/self/smaps_rollup). Allocates nothing. */
static unsigned long huge_bytes(void)
{
    static char text[4096];
    int file = open("/proc/self/smaps_rollup", O_RDONLY);
    if (file < 0)
        return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    text[length > 0 ? length : 0] = 0;
    const char *line = strstr(text, "AnonHugePages:");
    return line ? strtoul(line + strlen("AnonHugePages:"), NULL, 10) * 1024 : 0;
}

int main(int argc, char **argv)
{
    char *memory = mmap(NULL, 32 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 110;
    char *huge = (char *)(((unsigned long)memory + HUGE - 1) / HUGE * HUGE);
    /* A kernel without huge pages refuses. */
    (void)madvise(huge, 28 * MIB, MADV_HUGEPAGE);

    victim_ready(argc, argv);
    touch_huge(huge, 12 * MIB);
    unsigned long first = huge_bytes();
    int failed = give_back(huge + 16 * MIB, 8 * MIB);
    if (failed)
        return 111;
    truth("huge_bytes", 0, 0);
    if (first == 12 * MIB && huge_bytes() == 16 * MIB) {
        truth_with_total("touch_huge", 12582912, 3072, 12582912, 3072);
        truth_with_total("give_back", 4194304, 1024, 8388608, 2048);
    }
    victim_done();
    return 0;
}
