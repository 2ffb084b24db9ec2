/* Allocations that a library makes on the program's account: the allocator's caller is libc itself.
 *
 * True leaks (bytes / blocks): leak_strdup 3 * 24 = 72 / 3, leak_strndup 4 * 6 = 24 / 4; nothing in balanced_qsort.
 */
#define _GNU_SOURCE
#include "victim.h"

OWN_FRAME static void leak_strdup(void)
{
    for (int i = 0; i < 3; i++)
        keep(strdup("twenty-three characters"));
}

OWN_FRAME static void leak_strndup(void)
{
    for (int i = 0; i < 4; i++)
        keep(strndup("twenty-three characters", 5));
}

static int descending(const void *a, const void *b)
{
    return *(const int *)b - *(const int *)a;
}

/* glibc sorts arrays above a kilobyte in a temporary of their size. */
OWN_FRAME static void balanced_qsort(void)
{
    int numbers[1000];
    for (int i = 0; i < 1000; i++)
        numbers[i] = i * 7919 % 1000;
    qsort(numbers, 1000, sizeof numbers[0], descending);
    keep(numbers);
}

int main(int argc, char **argv)
{
    victim_ready(argc, argv);
    leak_strdup();
    leak_strndup();
    balanced_qsort();
    truth("leak_strdup", 72, 3);
    truth("leak_strndup", 24, 4);
    truth("balanced_qsort", 0, 0);
    victim_done();
    return 0;
}
