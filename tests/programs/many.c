/* Many live blocks, made at a steady pace: about 10,000 a second.
 *
 * True leaks (bytes / blocks): leak_many 7965000 / 30000, of 16 to 515 bytes each. Half as many blocks again are allocated by
 * freed_later and freed in the end.
 */
#include "victim.h"

#include <time.h>

#define BLOCKS 30000

static void *later[BLOCKS / 2];

OWN_FRAME static void leak_many(size_t size)
{
    keep(malloc(size));
}

OWN_FRAME static void *freed_later(size_t size)
{
    void *block = keep(malloc(size));
    AFTER_CALL();
    return block;
}

int main(int argc, char **argv)
{
    struct timespec pause = {0, 10000000};
    unsigned long bytes = 0;
    victim_ready(argc, argv);
    for (unsigned i = 0; i < BLOCKS; i++) {
        size_t size = 16 + (i * 37u) % 500;
        leak_many(size);
        bytes += size;
        if (i % 2 == 0)
            later[i / 2] = freed_later(64);
        if (i % 100 == 99)
            nanosleep(&pause, NULL);
    }
    for (unsigned i = 0; i < BLOCKS / 2; i++)
        free(later[i]);
    truth("leak_many", bytes, BLOCKS);
    truth("freed_later", 0, 0);
    victim_done();
    return 0;
}
