/* The demonstration program of `cargo xtask run`: a server's main loop with one leak.
 *
 * True leaks: every request allocates one `struct session` of 240 bytes in
 *     main > serve > handle_request > authenticate > remember_session
 * and nobody frees it: 2,000 requests a second, 480,000 bytes a second.
 * Not leaks: the page cache (256 entries of 1,024 bytes, replaced in turn: it levels off at 262,144 bytes), the
 * history (64 entries of 100 to 163 bytes, replaced in turn), and the reply of each request (freed at once).
 *
 * Runs until its standard input ends, then prints what it leaked since its start: `leaked BLOCKS blocks, BYTES bytes`.
 * Build: cc -g -O1 -fno-omit-frame-pointer -fno-optimize-sibling-calls
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))

enum { CACHE_ENTRIES = 256, PAGE_BYTES = 1024, HISTORY_ENTRIES = 64, REQUESTS_PER_TICK = 20, ROUNDS = 48 };

struct session {
    struct session *previous;
    unsigned long request;
    char user[224];
};

static struct session *last_session;
static char *cache[CACHE_ENTRIES];
static char *history[HISTORY_ENTRIES];
static unsigned long leaked;

static void *must(void *block)
{
    if (!block) {
        fputs("demo: out of memory\n", stderr);
        exit(1);
    }
    return block;
}

NOINLINE static struct session *remember_session(unsigned long request)
{
    struct session *session = must(malloc(sizeof *session));
    snprintf(session->user, sizeof session->user, "user-%lu", request % 1000);
    session->request = request;
    session->previous = last_session; /* still reachable, never looked at again */
    last_session = session;
    leaked++;
    return session;
}

NOINLINE static const char *authenticate(unsigned long request)
{
    struct session *session = remember_session(request);
    return session->user;
}

NOINLINE static char *cached_page(unsigned long request)
{
    unsigned long slot = request % CACHE_ENTRIES;
    free(cache[slot]);
    cache[slot] = must(malloc(PAGE_BYTES));
    memset(cache[slot], (int)(request & 0x7f) | 1, PAGE_BYTES);
    return cache[slot];
}

NOINLINE static void append_history(const char *user, unsigned long request)
{
    unsigned long slot = request % HISTORY_ENTRIES;
    size_t bytes = 100 + request % 64;
    free(history[slot]);
    history[slot] = must(calloc(1, bytes));
    snprintf(history[slot], bytes, "%s asked for %lu", user, request);
}

NOINLINE static char *render_reply(const char *user, const char *page)
{
    size_t bytes = 64;
    char *reply = must(malloc(bytes));
    bytes += strlen(user) + PAGE_BYTES;
    reply = must(realloc(reply, bytes));
    snprintf(reply, bytes, "%s: %.64s", user, page);
    return reply;
}

/* What a request takes of the processor beside its calls of the allocator: some 50 us. */
NOINLINE static unsigned long digest(const char *page)
{
    unsigned long hash = 5381;
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < PAGE_BYTES; i++)
            hash = hash * 33 + (unsigned char)page[i];
    return hash;
}

NOINLINE static unsigned handle_request(unsigned long request)
{
    const char *user = authenticate(request);
    const char *page = cached_page(request);
    char *reply = render_reply(user, page);
    unsigned sum = (unsigned char)reply[0] + (unsigned)digest(page);
    append_history(user, request);
    free(reply);
    return sum;
}

NOINLINE static unsigned serve(void)
{
    /* A fixed rate, whatever the tracing costs: the next tick is reckoned from the last one, not from now. */
    const long tick_ns = 1000000000L / (2000 / REQUESTS_PER_TICK);
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    struct timespec next;
    unsigned long request = 0;
    unsigned sum = 0;
    clock_gettime(CLOCK_MONOTONIC, &next);
    for (;;) {
        for (int i = 0; i < REQUESTS_PER_TICK; i++)
            sum += handle_request(request++);
        if (poll(&input, 1, 0) > 0) {
            char ignored[256];
            if (read(STDIN_FILENO, ignored, sizeof ignored) <= 0)
                return sum;
        }
        next.tv_nsec += tick_ns;
        if (next.tv_nsec >= 1000000000L) {
            next.tv_nsec -= 1000000000L;
            next.tv_sec++;
        }
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
    }
}

int main(void)
{
    printf("serving 2000 requests a second; each leaks one session of %zu bytes\n", sizeof(struct session));
    fflush(stdout);
    unsigned sum = serve();
    printf("leaked %lu blocks, %lu bytes (checksum %u)\n", leaked, leaked * sizeof(struct session), sum);
    return 0;
}
