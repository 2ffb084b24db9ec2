// What a trace is to find in a heap. Waits for a line, and then: frees nine of ten blocks, so that the heap is full of holes; loses
// sessions; holds metrics in a list of a global. Prints "lost N held M free BYTES pieces P" and waits to be killed.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <list>
#include <malloc.h>
#include <unistd.h>
#include <vector>

struct Session {
    virtual ~Session() {}
    long words[6] = {1, 2, 3, 4, 5, 6};
};

struct Metric {
    virtual ~Metric() {}
    double value = 1;
};

struct Cache {
    std::list<Metric *> metrics;
    std::vector<char *> kept;
};

Cache *cache;

__attribute__((noinline)) static void lose_session() {
    Session *session = new Session;
    asm volatile("" : : "r"(session) : "memory");
}

__attribute__((noinline)) static void hold_metric() {
    cache->metrics.push_back(new Metric);
}

// Leaves nothing on the stack that looks like a pointer to what was lost.
__attribute__((noinline)) static void overwrite_stack() {
    char waste[65536];
    memset(waste, 0, sizeof waste);
    asm volatile("" : : "r"(waste) : "memory");
}

int main() {
    const int number = 4000, blocks = 30000;
    cache = new Cache;
    printf("ready 1\n");
    fflush(stdout);
    char line[16];
    if (!fgets(line, sizeof line, stdin))
        return 1;
    // Too large for the caches of threads and for fastbins: neighbours become one piece.
    std::vector<char *> all;
    unsigned long freed = 0, pieces = 0;
    for (int i = 0; i < blocks; i++) {
        size_t size = 1100 + i * 37 % 1900;
        char *block = static_cast<char *>(malloc(size));
        memset(block, 1, size);
        all.push_back(block);
    }
    for (int i = 0; i < blocks; i++) {
        if (i % 10 == 0) {
            cache->kept.push_back(all[i]);
            pieces++;
            continue;
        }
        freed += malloc_usable_size(all[i]) + 8;
        free(all[i]);
    }
    // It would lead to whatever takes the freed blocks' places.
    memset(all.data(), 0, all.size() * sizeof all[0]);
    for (int i = 0; i < number; i++) {
        lose_session();
        hold_metric();
    }
    overwrite_stack();
    printf("lost %d held %d free %lu pieces %lu\n", number, number, freed, pieces);
    fflush(stdout);
    pause();
}
