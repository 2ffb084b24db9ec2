// A heap of which the truth is known: sessions that are lost, with the text that hangs on them; metrics in a list and nodes of a map
// that a global holds; blocks above the threshold for mappings; freed blocks in the caches of a thread that has an arena of its own.
// Prints "lost N held M free F" and waits to be killed.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <list>
#include <map>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

struct Session {
    virtual ~Session() {}
    explicit Session(long number)
        : id(number), name(new std::string("the name of a session, too long for the string itself")) {}
    long id;
    std::string *name;
};

struct Metric {
    virtual ~Metric() {}
    double value = 1;
};

struct Cache {
    std::map<long, long> table;
    std::list<Metric *> metrics;
    std::vector<char *> large;
};

Cache *cache;

static void lose(long count) {
    for (long i = 0; i < count; i++) {
        Session *volatile session = new Session(i);
        (void)session;
    }
}

// Leaves nothing on the stack that looks like a pointer to what was lost.
__attribute__((noinline)) static void overwrite_stack() {
    char waste[65536];
    memset(waste, 0, sizeof waste);
    asm volatile("" : : "r"(waste) : "memory");
}

int main(int count, char **arguments) {
    long number = count > 1 ? atol(arguments[1]) : 50000;
    cache = new Cache;
    for (long i = 0; i < number; i++) {
        cache->table[i] = i;
        cache->metrics.push_back(new Metric);
    }
    for (int i = 0; i < 5; i++) {
        char *block = static_cast<char *>(malloc(1 << 20));
        memset(block, 1, 1 << 20);
        cache->large.push_back(block);
    }
    std::thread worker([number] {
        lose(number);
        // Seven in the thread's cache, the others in a fastbin, for each second block is kept between them.
        std::vector<void *> freed;
        for (int i = 0; i < 200; i++) {
            freed.push_back(malloc(72));
            cache->large.push_back(static_cast<char *>(malloc(72)));
        }
        for (void *block : freed)
            free(block);
        overwrite_stack();
    });
    worker.join();
    lose(number / 10);
    overwrite_stack();
    printf("lost %ld held %ld free 200\n", number + number / 10, number);
    fflush(stdout);
    pause();
}
