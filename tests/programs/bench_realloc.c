/* Buffers that grow: from 16 bytes by half to 64 KiB, then again from the beginning. An operation is one realloc. */
#include "bench.h"

static void *grow(void *argument)
{
    struct worker *self = argument;
    for (;;) {
        char *buffer = NULL;
        for (size_t size = 16; size <= 65536; size += size / 2) {
            take_turn(self);
            buffer = escape(realloc(buffer, size));
            buffer[size - 1] = 1;
            self->operations++;
        }
        free(buffer);
    }
    return NULL;
}

int main(void)
{
    return bench_run(1, grow);
}
