/* A server whose blocks change all the time, and that loses none: four workers with blocks that only their stacks hold, and a list from
 * whose end they take entries to its front, some of them with another value.
 */
#include "victim.h"

#include <pthread.h>
#include <sys/prctl.h>
#include <signal.h>

#define ENTRIES 100000
#define WORKERS 4

struct entry {
    struct entry *next, *before;
    char *value;
};

static struct entry list = {&list, &list, NULL};
static int entries;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static char *value_of(unsigned number)
{
    char *value = keep(malloc(20 + number % 50));
    memset(value, 'v', 20);
    return value;
}

static void to_front(struct entry *entry)
{
    entry->next = list.next;
    entry->before = &list;
    list.next->before = entry;
    list.next = entry;
}

static void *work(void *argument)
{
    unsigned seed = (unsigned)(size_t)argument;
    for (;;) {
        char *request = keep(malloc(200 + (size_t)rand_r(&seed) % 100));
        memset(request, (int)seed, 200);
        pthread_mutex_lock(&lock);
        if (entries < ENTRIES) {
            struct entry *entry = keep(malloc(sizeof *entry));
            entry->value = value_of(seed);
            entries++;
            to_front(entry);
        } else {
            struct entry *entry = list.before;
            entry->before->next = entry->next;
            entry->next->before = entry->before;
            if (rand_r(&seed) % 4 == 0) {
                free(entry->value);
                entry->value = value_of(seed);
            }
            to_front(entry);
        }
        pthread_mutex_unlock(&lock);
        if (entries == ENTRIES && rand_r(&seed) % 8 == 0)
            usleep(100);
        free(request);
    }
    return argument;
}

int main(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (size_t number = 1; number <= WORKERS; number++) {
        pthread_t thread;
        pthread_create(&thread, NULL, work, (void *)number);
    }
    for (;;)
        pause();
}
