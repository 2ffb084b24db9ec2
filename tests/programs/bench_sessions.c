/* A server's sessions at full speed, the same program in C, Python and Go (bench_sessions.{c,py,go}): a request makes an object with a name
 * and a payload, reads the payload, and puts it in a table in the place of one from 1,000 requests ago. One in 10,000 is also remembered,
 * for ever. */
#include "bench.h"

#define RECENT 1000
#define REMEMBERED_ONE_OF 10000
#define PAYLOAD 256

struct session {
    char *name;
    unsigned char *payload;
    struct session *next;
};

static struct session *recent[RECENT];
static struct session *remembered;
static volatile unsigned sum;

static void *allocate(size_t size)
{
    void *block = escape(malloc(size));
    if (block == NULL)
        abort();
    return block;
}

OWN_FRAME static struct session *make_session(uint64_t id)
{
    struct session *session = allocate(sizeof *session);
    session->name = allocate(32);
    snprintf(session->name, 32, "session %llu", (unsigned long long)id);
    session->payload = allocate(PAYLOAD);
    memset(session->payload, (int)id, PAYLOAD);
    return session;
}

static void drop(struct session *session)
{
    if (session == NULL)
        return;
    free(session->name);
    free(session->payload);
    free(session);
}

OWN_FRAME static void remember(uint64_t id)
{
    struct session *session = make_session(id);
    session->next = remembered;
    remembered = session;
}

static void *serve(void *argument)
{
    struct worker *self = argument;
    for (;;) {
        take_turn(self);
        uint64_t id = self->operations;
        struct session *session = make_session(id);
        unsigned mine = 0;
        for (int i = 0; i < PAYLOAD; i++)
            mine += session->payload[i];
        sum += mine;
        drop(recent[id % RECENT]);
        recent[id % RECENT] = session;
        if (id % REMEMBERED_ONE_OF == 0)
            remember(id);
        self->operations++;
    }
    return NULL;
}

int main(void)
{
    return bench_run(1, serve);
}
