/* Fresh memory by where it is first touched. The mappings are made before anybody looks.
 *
 * True pages that stay (bytes / pages of 4096):
 *   touch_kept    16777216 / 4096, written to one by one      touch_again   1048576 / 256
 *   read_file      8388608 / 2048, by read(2) of a file       copy_file     4194304 / 1024
 * Nothing stays of touch_given_back (8 MiB) and touch_anew (1 MiB, where touch_again touches next). touch_shared writes 4 MiB of
 * memory that is shared, which is nobody's own; copy_file writes to a private mapping of a file that was read before.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <fcntl.h>
#include <sys/mman.h>

#define PAGE 4096UL
#define MIB (1024 * 1024UL)

static void check(int holds, int line)
{
    if (!holds) {
        victim_print("pages.c:%d: the kernel did something else\n", line);
        _exit(110);
    }
}
#define CHECK(condition) check((condition) != 0, __LINE__)

/* Each writes something else, or the compiler makes one function of all that do the same. */
static void touch(volatile char *memory, size_t length, char value)
{
    for (size_t at = 0; at < length; at += PAGE)
        memory[at] = value;
}

OWN_FRAME static void touch_kept(char *memory, size_t length)
{
    touch(memory, length, 1);
}

OWN_FRAME static void touch_given_back(char *memory, size_t length)
{
    touch(memory, length, 2);
    CHECK(madvise(memory, length, MADV_DONTNEED) == 0);
}

OWN_FRAME static void touch_anew(char *memory, size_t length)
{
    touch(memory, length, 3);
    CHECK(madvise(memory, length, MADV_DONTNEED) == 0);
}

OWN_FRAME static void touch_again(char *memory, size_t length)
{
    touch(memory, length, 4);
}

OWN_FRAME static void touch_shared(char *memory, size_t length)
{
    touch(memory, length, 5);
}

OWN_FRAME static void read_file(int file, char *memory, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t now = read(file, memory + done, length - done);
        CHECK(now > 0);
        done += (size_t)now;
    }
    AFTER_CALL();
}

OWN_FRAME static void copy_file(char *memory, size_t length)
{
    touch(memory, length, 6);
}

static char *map(size_t length, int flags, int file)
{
    char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, file, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

int main(int argc, char **argv)
{
    char name[] = "/tmp/leakscope-pages-XXXXXX";
    int file = mkstemp(name);
    CHECK(file >= 0 && unlink(name) == 0 && ftruncate(file, 8 * MIB) == 0);
    char *memory = map(64 * MIB, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    char *copied = map(4 * MIB, MAP_PRIVATE, file);
    char *shared = map(4 * MIB, MAP_SHARED | MAP_ANONYMOUS, -1);
    /* Small pages, whatever the machine's rule; a page of a file is read before it is written to. */
    CHECK(madvise(memory, 64 * MIB, MADV_NOHUGEPAGE) == 0);
    unsigned sum = 0;
    for (size_t at = 0; at < 4 * MIB; at += PAGE)
        sum += (unsigned char)((volatile char *)copied)[at];
    CHECK(sum == 0);

    victim_ready(argc, argv);
    touch_kept(memory, 16 * MIB);
    touch_given_back(memory + 16 * MIB, 8 * MIB);
    read_file(file, memory + 24 * MIB, 8 * MIB);
    touch_anew(memory + 32 * MIB, MIB);
    touch_again(memory + 32 * MIB, MIB);
    touch_shared(shared, 4 * MIB);
    copy_file(copied, 4 * MIB);

    truth_with_total("touch_kept", 16 * MIB, 4096, 16 * MIB, 4096);
    truth_with_total("touch_given_back", 0, 0, 8 * MIB, 2048);
    truth_with_total("read_file", 8 * MIB, 2048, 8 * MIB, 2048);
    truth_with_total("touch_anew", 0, 0, MIB, 256);
    truth_with_total("touch_again", MIB, 256, MIB, 256);
    truth_with_total("touch_shared", 0, 0, 0, 0);
    truth_with_total("copy_file", 4 * MIB, 1024, 4 * MIB, 1024);
    victim_done();
    return 0;
}
