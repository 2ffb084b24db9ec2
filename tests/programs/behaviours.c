/* Programs of known truth for the verdicts: one behaviour each, named by the first argument.
 *
 *   behaviours list       a line for each: NAME, a tab, its truth, a tab, what it does
 *   behaviours NAME WAIT  waits so many seconds, then does that until its standard input ends
 *
 * True leaks: of the behaviours whose truth is `leak`, blocks allocated by grow() are never freed, ever more of them. Blocks
 * allocated by other(), and all of those whose truth is `bounded`, are freed in the end or never number more than a bound that
 * is reached within 40 s.
 *
 * Build: cc -g -O1 -fno-omit-frame-pointer -fno-optimize-sibling-calls -pthread -lm
 */
#define _GNU_SOURCE
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define OWN_FRAME __attribute__((noinline, noclone))
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

/* Runs the next statement so many times a second, on average evenly. */
#define EACH(rate)                              \
    static double JOIN(last_, __LINE__);        \
    for (int n_ = due(&JOIN(last_, __LINE__), (rate)); n_ > 0; n_--)

/* Seconds since the start. */
static double now;

static double clock_s(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static int due(double *last, double rate)
{
    int count = (int)((now - *last) * rate);
    *last += count / rate;
    return count;
}

static double share(void)
{
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(state >> 11) / (double)(1ull << 53);
}

static double exponential(double mean)
{
    return -mean * log(1.0 - share());
}

static void *must(void *block)
{
    if (!block)
        abort();
    *(volatile char *)block = 1;
    __asm__ volatile("" : "+r"(block) : : "memory");
    return block;
}

OWN_FRAME static void *grow(size_t size)
{
    return must(malloc(size));
}

OWN_FRAME static void *other(size_t size)
{
    /* So that the two are not found to be the same and joined. */
    __asm__ volatile("# other");
    return must(malloc(size));
}

/* Blocks to be freed at a time: a binary heap, in static memory. */
enum { LATER = 1 << 18 };
static struct later {
    double at;
    void *block;
} later[LATER];
static int later_count;

static void free_at(double at, void *block)
{
    int place = later_count++;
    if (place >= LATER)
        abort();
    for (; place > 0 && later[(place - 1) / 2].at > at; place = (place - 1) / 2)
        later[place] = later[(place - 1) / 2];
    later[place] = (struct later){at, block};
}

static void free_what_is_due(void)
{
    while (later_count > 0 && later[0].at <= now) {
        free(later[0].block);
        struct later last = later[--later_count];
        int place = 0;
        for (;;) {
            int child = 2 * place + 1;
            if (child >= later_count)
                break;
            if (child + 1 < later_count && later[child + 1].at < later[child].at)
                child++;
            if (later[child].at >= last.at)
                break;
            later[place] = later[child];
            place = child;
        }
        later[place] = last;
    }
}

/* The oldest of so many slots makes way for a block. */
static void *slots[1 << 16];
static void replace_oldest(void *block, unsigned capacity)
{
    static unsigned long number;
    void **slot = &slots[number++ % capacity];
    free(*slot);
    *slot = block;
}

static double next_multiple(double period)
{
    return (floor(now / period) + 1) * period;
}

/* ---- leaks ---- */

static void leak_fast(void) { EACH(1500) grow(126); }
static void leak_one_a_second(void) { EACH(1) grow(64); }
static void leak_one_in_3s(void) { EACH(1.0 / 3) grow(2000); }
static void leak_one_in_5s(void) { EACH(0.2) grow(32); }
static void leak_a_mebibyte_in_3s(void) { EACH(1.0 / 3) grow(1 << 20); }
static void leak_few_bytes_under_churn(void)
{
    EACH(1000)
    {
        int leaks = share() < 0.003;
        void *block = grow(leaks ? 8 : 8000);
        if (!leaks)
            free(block);
    }
}
static void leak_one_percent(void)
{
    EACH(500)
    {
        void *block = grow(48);
        if (share() >= 0.01)
            free_at(now + exponential(0.05), block);
    }
}
static void leak_half_of_2s(void)
{
    EACH(40)
    {
        void *block = grow(512);
        if (share() >= 0.5)
            free_at(now + 2 * share(), block);
    }
}
static void leak_error_path(void)
{
    EACH(60)
    {
        char *request = grow(300), *reply = other(900);
        int failed = share() < 0.05;
        free(reply);
        if (!failed)
            free(request);
    }
}
static void *leaking_thread(void *unused)
{
    for (;;) {
        grow(200);
        usleep(50000);
    }
    return unused;
}
static void leak_in_threads(void)
{
    static int started;
    pthread_t thread;
    for (; started < 4; started++)
        pthread_create(&thread, NULL, leaking_thread, NULL);
}
static void *short_thread(void *unused)
{
    grow(150);
    return unused;
}
static void leak_of_short_threads(void)
{
    EACH(5)
    {
        pthread_t thread;
        if (pthread_create(&thread, NULL, short_thread, NULL) == 0)
            pthread_join(thread, NULL);
    }
}
OWN_FRAME static void *grow_again(void *block, size_t size) { return must(realloc(block, size)); }
static void leak_of_resized(void)
{
    EACH(10)
    {
        void *block = other(16);
        for (size_t size = 64; size <= 1024; size *= 4)
            block = grow_again(block, size);
    }
}
static void leak_zeroed(void) { EACH(10) must(calloc(3, 40)); }
static void leak_aligned(void)
{
    EACH(10)
    {
        void *block;
        if (posix_memalign(&block, 64, 640) == 0)
            must(block);
    }
}
static void leak_copies(void) { EACH(10) must(strdup("a name that nobody frees")); }
static void leak_reachable_list(void)
{
    static void **head;
    EACH(25)
    {
        void **node = grow(72);
        *node = head;
        head = node;
    }
}
static void leak_cycles(void)
{
    EACH(8)
    {
        void **one = grow(64), **two = grow(64);
        *one = two;
        *two = one;
    }
}
static void leak_map_without_bound(void)
{
    static void **table;
    static size_t room, used;
    EACH(200)
    {
        if (used == room) {
            room = room ? 2 * room : 64;
            table = must(realloc(table, room * sizeof *table));
        }
        table[used++] = grow(90);
    }
}
static void leak_in_bursts(void)
{
    EACH(0.25) for (int block = 0; block < 50; block++) grow(100);
}
static void leak_after_start_up(void)
{
    static int started;
    int more = started ? 0 : 20000;
    started = 1;
    EACH(4) more++;
    for (; more > 0; more--)
        grow(100);
}
static void leak_beside_lru(void)
{
    static unsigned number;
    EACH(110)
    {
        void *block = grow(100);
        if (++number % 11)
            replace_oldest(block, 300);
    }
}
static void leak_beside_flush(void)
{
    static unsigned number;
    EACH(102)
    {
        void *block = grow(100);
        if (++number % 17)
            free_at(next_multiple(4), block);
    }
}
static void leak_at_random(void)
{
    static double next;
    for (; next <= now; next += exponential(0.4))
        grow(80);
}
static void leak_of_many_sizes(void) { EACH(20) grow((size_t)16 << (int)(share() * 9)); }
static void leak_of_growing_buffer(void)
{
    static void *buffer;
    static size_t size;
    EACH(2) buffer = grow_again(buffer, size += 4096);
}
OWN_FRAME static void path_one(void) { grow(30); __asm__ volatile(""); }
OWN_FRAME static void path_two(void) { grow(60); __asm__ volatile(""); }
OWN_FRAME static void path_three(void) { grow(90); __asm__ volatile(""); }
static void leak_on_three_paths(void)
{
    EACH(9) switch ((int)(share() * 3)) {
    case 0: path_one(); break;
    case 1: path_two(); break;
    default: path_three();
    }
}
static void leak_with_varying_load(void)
{
    EACH(60) if (share() < 0.6 + 0.3 * sin(now / 3)) grow(77);
}
static void leak_between_pauses(void) { EACH(20) if (fmod(now, 8) < 4) grow(99); }
static void leak_with_rising_load(void) { EACH(40) if (share() < 0.3 + now / 200) grow(50); }

/* ---- bounded ---- */

static void churn_at_once(void) { EACH(1500) free(other(64)); }
static void churn_of_5s(void) { EACH(100) free_at(now + exponential(5), other(64)); }
static void churn_of_20s(void) { EACH(50) free_at(now + exponential(20), other(64)); }
static void churn_of_100s(void) { EACH(50) free_at(now + exponential(100), other(64)); }
static void churn_with_rising_load(void) { EACH(200) if (share() < now / 120) free_at(now + 4, other(64)); }
static void churn_in_waves(void)
{
    EACH(100) if (share() < 0.5 + 0.5 * sin(now / 8)) free_at(now + exponential(4), other(64));
}
static void start_up_once(void)
{
    static int started;
    for (; started < 3000; started++)
        other(100);
}
static void start_up_in_phases(void)
{
    static int phase;
    for (; phase < 4 && now >= 7 * phase; phase++)
        for (int block = 0; block < 500; block++)
            other(100);
}
static void start_up_of_10s(void) { if (now < 10) { EACH(300) other(100); } }
static void cache_filled_in_20s(void) { if (now < 20) { EACH(50) other(200); } }
static void cache_filled_in_38s(void) { if (now < 38) { EACH(50) other(200); } }
static void cache_of_keys(unsigned keys, double rate, double *last)
{
    for (int count = due(last, rate); count > 0; count--) {
        unsigned key = (unsigned)(pow(share(), 3) * keys);
        if (!slots[key])
            slots[key] = other(200);
    }
}
static void cache_of_500_keys(void) { static double last; cache_of_keys(500, 30, &last); }
static void cache_of_3000_keys(void) { static double last; cache_of_keys(3000, 60, &last); }
static void cache_of_20000_keys(void) { static double last; cache_of_keys(20000, 200, &last); }
static void lru_of_2s(void) { EACH(100) replace_oldest(other(200), 200); }
static void lru_of_15s(void) { EACH(100) replace_oldest(other(200), 1500); }
static void lru_of_30s(void) { EACH(100) replace_oldest(other(200), 3000); }
static void evicted_at_random(void)
{
    EACH(100)
    {
        void **slot = &slots[(int)(share() * 1500)];
        free(*slot);
        *slot = other(200);
    }
}
static void time_to_live_20s(void) { EACH(50) free_at(now + 20, other(300)); }
static void time_to_live_35s(void) { EACH(50) free_at(now + 35, other(300)); }
static void pool_of_the_most_needed(void)
{
    static double need = 30;
    static int made;
    EACH(50)
    {
        need += 0.05 * (60 - need) + 12 * (share() - 0.5);
        for (; made < need; made++)
            other(512);
    }
}
static void arena_reset(void)
{
    /* Chunks that a request takes as needed, and that stay for the next one. */
    static int chunks;
    EACH(20) for (int needed = (int)(20 * share()); chunks < needed; chunks++) other(65536);
}
static void arena_freed(void)
{
    EACH(4) for (int chunk = 0; chunk < 6; chunk++) free_at(now + 0.2, other(65536));
}
static void fragmentation(void)
{
    /* Many sizes; every seventh lives longer than its neighbours. */
    static unsigned number;
    EACH(300) free_at(now + (++number % 7 ? 0.5 : 9), other(16 + (size_t)(share() * 4000)));
}
static void freed_by_the_thousand(void)
{
    static unsigned used;
    EACH(150)
    {
        slots[used++] = other(80);
        if (used == 1000)
            while (used > 0)
                free(slots[--used]);
    }
}
static void flushed_every_3s(void) { EACH(100) free_at(next_multiple(3), other(120)); }
static void flushed_every_17s(void) { EACH(100) free_at(next_multiple(17), other(120)); }
static void flushed_every_29s(void) { EACH(100) free_at(next_multiple(29), other(120)); }
static void flushed_in_part(void)
{
    static unsigned number;
    EACH(100) free_at(next_multiple(++number % 10 ? 6 : 24), other(120));
}
static void log_buffer_resized(void)
{
    static void *buffer;
    static size_t size;
    EACH(10)
    {
        if (size == 60 * 512) {
            free(buffer);
            buffer = NULL;
            size = 0;
        }
        buffer = must(realloc(buffer, size += 512));
    }
}
static void staircase_to_a_bound(void)
{
    static int step;
    for (; step < 6 && now >= 6 * step; step++)
        for (int block = 0; block < 300; block++)
            other(100);
}
static void table_doubled_to_a_bound(void)
{
    static void *table;
    static size_t used, room = 64;
    if (used < 6000) {
        EACH(200) if (++used == room) table = must(realloc(table, 16 * (room *= 2)));
    }
}
static void ring_of_blocks(void) { EACH(300) replace_oldest(other(1000), 64); }
static void queue_that_backs_up(void)
{
    EACH(60) free_at(now + 1 + 6 * (1 + sin(now / 9)), other(100));
}
static void configuration_reloaded(void)
{
    EACH(1.0 / 7) for (int entry = 0; entry < 300; entry++) free_at(now + 7.1, other(60));
}
static void names_interned(void)
{
    /* A name is met for the first time ever more rarely. */
    EACH(100)
    {
        void **slot = &slots[(int)(share() * 700)];
        if (!*slot)
            *slot = other(40);
    }
}
static void *working_thread(void *unused)
{
    void *buffer = other(5000);
    usleep(300000);
    free(buffer);
    return unused;
}
static void threads_come_and_go(void)
{
    EACH(8)
    {
        pthread_t thread;
        if (pthread_create(&thread, NULL, working_thread, NULL) == 0)
            pthread_detach(thread);
    }
}
static void collected_every_12s(void)
{
    /* Most die young; what does not waits for the collector. */
    EACH(200) free_at(share() < 0.9 ? now + 0.3 : next_multiple(12), other(90));
}
static void connections_kept(void)
{
    /* Clients come in the first 15 s and stay; each allocates for its requests. */
    static int connections;
    for (; connections < 150 && now > connections * 0.1; connections++)
        other(4000);
    EACH(300) free_at(now + 0.05, other(700));
}

static const struct behaviour {
    const char *name;
    const char *truth;
    void (*tick)(void);
    const char *what;
} behaviours[] = {
#define LEAK(name, what) {#name, "leak", name, what}
#define BOUNDED(name, what) {#name, "bounded", name, what}
    LEAK(leak_fast, "1,500 blocks of 126 bytes a second"),
    LEAK(leak_one_a_second, "one block a second"),
    LEAK(leak_one_in_3s, "one block every three seconds"),
    LEAK(leak_one_in_5s, "one block of 32 bytes every five seconds"),
    LEAK(leak_a_mebibyte_in_3s, "a mebibyte every three seconds"),
    LEAK(leak_few_bytes_under_churn, "8 bytes, three times a second, between 1,000 temporaries of 8,000 bytes at the same site"),
    LEAK(leak_one_percent, "one of a hundred blocks of a site; the others live for 50 ms"),
    LEAK(leak_half_of_2s, "half of a site's blocks; the others live for up to 2 s"),
    LEAK(leak_error_path, "the request, in one of twenty calls"),
    LEAK(leak_in_threads, "four threads, 20 blocks a second each"),
    LEAK(leak_of_short_threads, "a thread that ends leaves a block, five times a second"),
    LEAK(leak_of_resized, "blocks that were resized three times"),
    LEAK(leak_zeroed, "calloc"),
    LEAK(leak_aligned, "posix_memalign"),
    LEAK(leak_copies, "strdup"),
    LEAK(leak_reachable_list, "a list that is never shortened"),
    LEAK(leak_cycles, "pairs that refer to each other"),
    LEAK(leak_map_without_bound, "a map that is only added to, with its table doubled"),
    LEAK(leak_in_bursts, "50 blocks every four seconds"),
    LEAK(leak_after_start_up, "20,000 blocks at first, then four a second at the same site"),
    LEAK(leak_beside_lru, "one of eleven blocks of a site; the others are a list of the 300 last used"),
    LEAK(leak_beside_flush, "six blocks a second at a site whose others are freed every 4 s"),
    LEAK(leak_at_random, "2.5 blocks a second, at random times"),
    LEAK(leak_of_many_sizes, "16 bytes to 4 KiB"),
    LEAK(leak_of_growing_buffer, "one block, 4 KiB larger twice a second"),
    LEAK(leak_on_three_paths, "three call paths, three blocks a second each"),
    LEAK(leak_with_varying_load, "between 18 and 54 blocks a second"),
    LEAK(leak_between_pauses, "20 blocks a second for 4 s of every 8 s"),
    LEAK(leak_with_rising_load, "ever more blocks a second"),
    BOUNDED(churn_at_once, "freed at once"),
    BOUNDED(churn_of_5s, "lives of 5 s in the mean"),
    BOUNDED(churn_of_20s, "lives of 20 s in the mean"),
    BOUNDED(churn_of_100s, "lives of 100 s in the mean"),
    BOUNDED(churn_with_rising_load, "lives of 4 s, ever more of them"),
    BOUNDED(churn_in_waves, "lives of 4 s in the mean, a load in waves of 50 s"),
    BOUNDED(start_up_once, "3,000 blocks at the start"),
    BOUNDED(start_up_in_phases, "four times 500 blocks, 7 s apart"),
    BOUNDED(start_up_of_10s, "3,000 blocks in the first 10 s"),
    BOUNDED(cache_filled_in_20s, "a cache that is full after 20 s"),
    BOUNDED(cache_filled_in_38s, "a cache that is full after 38 s"),
    BOUNDED(cache_of_500_keys, "a cache of 500 keys, some asked for much more often than others"),
    BOUNDED(cache_of_3000_keys, "the same, of 3,000 keys"),
    BOUNDED(cache_of_20000_keys, "the same, of 20,000 keys"),
    BOUNDED(lru_of_2s, "the last used are kept; turned over in 2 s"),
    BOUNDED(lru_of_15s, "turned over in 15 s"),
    BOUNDED(lru_of_30s, "turned over in 30 s"),
    BOUNDED(evicted_at_random, "1,500 slots, one replaced at random 100 times a second"),
    BOUNDED(time_to_live_20s, "each block lives for 20 s"),
    BOUNDED(time_to_live_35s, "each block lives for 35 s"),
    BOUNDED(pool_of_the_most_needed, "a pool as large as was ever needed"),
    BOUNDED(arena_reset, "chunks that stay for the next request"),
    BOUNDED(arena_freed, "chunks that are freed with the request"),
    BOUNDED(fragmentation, "many sizes, and every seventh block lives 18 times as long as the others"),
    BOUNDED(freed_by_the_thousand, "kept until there are a thousand"),
    BOUNDED(flushed_every_3s, "kept until a flush every 3 s"),
    BOUNDED(flushed_every_17s, "every 17 s"),
    BOUNDED(flushed_every_29s, "every 29 s"),
    BOUNDED(flushed_in_part, "nine of ten every 6 s, the others every 24 s"),
    BOUNDED(log_buffer_resized, "a buffer that grows by 512 bytes up to 30 KiB, again and again"),
    BOUNDED(staircase_to_a_bound, "six steps of 300 blocks, 6 s apart"),
    BOUNDED(table_doubled_to_a_bound, "a table that is doubled up to 8,192 entries"),
    BOUNDED(ring_of_blocks, "64 blocks, replaced in turn"),
    BOUNDED(queue_that_backs_up, "blocks wait for 1 to 13 s"),
    BOUNDED(configuration_reloaded, "300 blocks replaced every 7 s"),
    BOUNDED(names_interned, "700 names, met at random"),
    BOUNDED(threads_come_and_go, "eight threads a second, with a buffer each"),
    BOUNDED(collected_every_12s, "one of ten waits for a collection every 12 s"),
    BOUNDED(connections_kept, "150 connections that come in the first 15 s, and churn"),
};

int main(int count, char **arguments)
{
    size_t all = sizeof behaviours / sizeof *behaviours;
    if (count == 2 && strcmp(arguments[1], "list") == 0) {
        for (size_t place = 0; place < all; place++)
            printf("%s\t%s\t%s\n", behaviours[place].name, behaviours[place].truth, behaviours[place].what);
        return 0;
    }
    const struct behaviour *chosen = NULL;
    for (size_t place = 0; count == 3 && place < all; place++)
        if (strcmp(arguments[1], behaviours[place].name) == 0)
            chosen = &behaviours[place];
    if (!chosen) {
        fputs("usage: behaviours list | behaviours NAME WAIT\n", stderr);
        return 2;
    }
    double begun = clock_s() + strtod(arguments[2], NULL);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    char byte;
    while (poll(&input, 1, 10) == 0 || read(0, &byte, 1) > 0) {
        now = clock_s() - begun;
        if (now < 0)
            continue;
        chosen->tick();
        free_what_is_due();
    }
    return 0;
}
