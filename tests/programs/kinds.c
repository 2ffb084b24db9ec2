/* Every function of glibc's allocator, each from a function of its own.
 *
 * True leaks (bytes / blocks):
 *   leak_malloc                1000 / 10     leak_malloc_zero            0 / 3
 *   leak_calloc                1050 / 7      leak_realloc_null        1284 / 4
 *   leak_realloc_grow         12288 / 3      leak_realloc_shrink       300 / 3
 *   leak_realloc_move       4194304 / 1      leak_realloc_fail         700 / 1
 *   leak_realloc_inherited    10000 / 5      leak_reallocarray        2310 / 6
 *   leak_reallocarray_grow     8000 / 2      leak_reallocarray_fail    450 / 1
 *   leak_posix_memalign        5000 / 5      leak_posix_memalign_fail  222 / 2
 *   leak_aligned_alloc         2560 / 4      leak_memalign           10000 / 2
 *   leak_memalign_small         130 / 2      leak_valloc              9000 / 3
 *   leak_pvalloc              16384 / 2      leak_after_free_null       41 / 1
 * Nothing survives of:
 *   free_all, realloc_to_zero, free_inherited, fail_huge, free_aligned
 */
#define _GNU_SOURCE
#include "victim.h"

#include <errno.h>
#include <malloc.h>
#include <stdint.h>

#define INHERITED 100
static void *inherited[INHERITED];
static volatile size_t huge = PTRDIFF_MAX;

static void check(int holds, int line)
{
    if (!holds) {
        victim_print("kinds.c:%d: the allocator did something else\n", line);
        _exit(110);
    }
}
#define CHECK(condition) check((condition) != 0, __LINE__)

OWN_FRAME static void prepare(void)
{
    for (int i = 0; i < INHERITED; i++)
        inherited[i] = keep(malloc(333));
}

OWN_FRAME static void leak_malloc(void)
{
    for (int i = 0; i < 10; i++)
        keep(malloc(100));
}

OWN_FRAME static void leak_malloc_zero(void)
{
    for (int i = 0; i < 3; i++)
        CHECK(keep(malloc(0)));
}

OWN_FRAME static void leak_calloc(void)
{
    for (int i = 0; i < 7; i++)
        keep(calloc(3, 50));
}

OWN_FRAME static void leak_realloc_null(void)
{
    for (int i = 0; i < 4; i++)
        keep(realloc(NULL, 321));
}

OWN_FRAME static void leak_realloc_grow(void)
{
    for (int i = 0; i < 3; i++) {
        void *block = keep(malloc(64));
        keep(realloc(block, 4096));
    }
}

OWN_FRAME static void leak_realloc_shrink(void)
{
    for (int i = 0; i < 3; i++) {
        void *block = keep(malloc(10000));
        CHECK(keep(realloc(block, 100)) == block);
    }
}

/* From the heap to a mapping of its own, and from there (mremap) on. */
OWN_FRAME static void leak_realloc_move(void)
{
    void *block = keep(malloc(64));
    void *barrier = keep(malloc(64));
    void *moved = keep(realloc(block, 1 << 20));
    CHECK(moved != block);
    keep(realloc(moved, 4 << 20));
    free(barrier);
}

OWN_FRAME static void leak_realloc_fail(void)
{
    void *block = keep(malloc(700));
    CHECK(!keep(realloc(block, huge)));
}

/* Born before anybody looked. */
OWN_FRAME static void leak_realloc_inherited(void)
{
    for (int i = 0; i < 5; i++)
        keep(realloc(inherited[i], 2000));
}

OWN_FRAME static void free_inherited(void)
{
    for (int i = 5; i < INHERITED; i++)
        free(inherited[i]);
    AFTER_CALL();
}

OWN_FRAME static void leak_reallocarray(void)
{
    for (int i = 0; i < 6; i++)
        keep(reallocarray(NULL, 5, 77));
}

OWN_FRAME static void leak_reallocarray_grow(void)
{
    for (int i = 0; i < 2; i++) {
        void *block = keep(reallocarray(NULL, 4, 10));
        keep(reallocarray(block, 40, 100));
    }
}

OWN_FRAME static void leak_reallocarray_fail(void)
{
    void *block = keep(malloc(450));
    CHECK(!keep(reallocarray(block, huge, 4)));
}

OWN_FRAME static void leak_posix_memalign(void)
{
    for (int i = 0; i < 5; i++) {
        void *block = NULL;
        CHECK(posix_memalign(&block, 64, 1000) == 0);
        keep(block);
    }
}

/* The out-pointer of a call that fails names a block that lives already. */
OWN_FRAME static void leak_posix_memalign_fail(void)
{
    void *first = keep(malloc(111));
    void *second = keep(malloc(111));
    CHECK(posix_memalign(&first, 3, 999) == EINVAL);
    CHECK(posix_memalign(&second, 64, huge) == ENOMEM);
    keep(first);
    keep(second);
}

OWN_FRAME static void leak_aligned_alloc(void)
{
    for (int i = 0; i < 4; i++)
        keep(aligned_alloc(64, 640));
}

OWN_FRAME static void leak_memalign(void)
{
    for (int i = 0; i < 2; i++)
        keep(memalign(4096, 5000));
}

/* An alignment that malloc has anyway: one allocator function behind another. */
OWN_FRAME static void leak_memalign_small(void)
{
    for (int i = 0; i < 2; i++)
        keep(memalign(8, 65));
}

OWN_FRAME static void leak_valloc(void)
{
    for (int i = 0; i < 3; i++)
        keep(valloc(3000));
}

OWN_FRAME static void leak_pvalloc(void)
{
    for (int i = 0; i < 2; i++)
        keep(pvalloc(8192));
}

OWN_FRAME static void leak_after_free_null(void)
{
    free(keep(NULL));
    keep(malloc(41));
}

OWN_FRAME static void free_all(void)
{
    void *blocks[50];
    for (int i = 0; i < 50; i++)
        blocks[i] = keep(malloc(200 + (size_t)i));
    for (int i = 0; i < 50; i++)
        free(blocks[i]);
    AFTER_CALL();
}

OWN_FRAME static void free_aligned(void)
{
    void *block = NULL;
    CHECK(posix_memalign(&block, 256, 777) == 0);
    free(keep(block));
    free(keep(aligned_alloc(32, 320)));
    free(keep(memalign(1024, 555)));
    free(keep(valloc(66)));
    free(keep(pvalloc(4096)));
    free(keep(calloc(9, 9)));
    free(keep(reallocarray(NULL, 9, 9)));
    AFTER_CALL();
}

OWN_FRAME static void realloc_to_zero(void)
{
    void *block = keep(malloc(500));
    CHECK(!keep(realloc(block, 0)));
}

OWN_FRAME static void fail_huge(void)
{
    CHECK(!keep(malloc(huge)));
    CHECK(!keep(calloc(huge, 4)));
    CHECK(!keep(realloc(NULL, huge)));
    CHECK(!keep(memalign(64, huge)));
    CHECK(!keep(valloc(huge)));
    AFTER_CALL();
}

int main(int argc, char **argv)
{
    prepare();
    victim_ready(argc, argv);
    leak_malloc();
    leak_malloc_zero();
    leak_calloc();
    leak_realloc_null();
    leak_realloc_grow();
    leak_realloc_shrink();
    leak_realloc_move();
    leak_realloc_fail();
    leak_realloc_inherited();
    free_inherited();
    leak_reallocarray();
    leak_reallocarray_grow();
    leak_reallocarray_fail();
    leak_posix_memalign();
    leak_posix_memalign_fail();
    leak_aligned_alloc();
    leak_memalign();
    leak_memalign_small();
    leak_valloc();
    leak_pvalloc();
    leak_after_free_null();
    free_all();
    free_aligned();
    realloc_to_zero();
    fail_huge();

    truth("leak_malloc", 1000, 10);
    truth("leak_malloc_zero", 0, 3);
    truth("leak_calloc", 1050, 7);
    truth("leak_realloc_null", 1284, 4);
    truth("leak_realloc_grow", 12288, 3);
    truth("leak_realloc_shrink", 300, 3);
    truth("leak_realloc_move", 4 << 20, 1);
    truth("leak_realloc_fail", 700, 1);
    truth("leak_realloc_inherited", 10000, 5);
    truth("leak_reallocarray", 2310, 6);
    truth("leak_reallocarray_grow", 8000, 2);
    truth("leak_reallocarray_fail", 450, 1);
    truth("leak_posix_memalign", 5000, 5);
    truth("leak_posix_memalign_fail", 222, 2);
    truth("leak_aligned_alloc", 2560, 4);
    truth("leak_memalign", 10000, 2);
    truth("leak_memalign_small", 130, 2);
    truth("leak_valloc", 9000, 3);
    truth("leak_pvalloc", 16384, 2);
    truth("leak_after_free_null", 41, 1);
    truth("free_all", 0, 0);
    truth("free_aligned", 0, 0);
    truth("realloc_to_zero", 0, 0);
    truth("free_inherited", 0, 0);
    truth("fail_huge", 0, 0);
    victim_done();
    return 0;
}
