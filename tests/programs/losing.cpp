/* A command in C++ that has lost blocks by the time it ends, in the way that its first argument names:
 *
 *   containers   what standard containers hold, behind heads that nothing leads to
 *   cycle        objects that hold each other by shared_ptr
 *   indirect     trees of which only the root is lost directly
 *   threads      lost blocks while threads run at its end, which hold others
 *   signal       it ends by exit in a signal handler, while its stack holds blocks
 *   clean        nothing is lost
 *   abort        ends by a signal
 *
 * True losses (blocks): containers 349, cycle 47, indirect 100, threads and signal 7.
 */
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <list>
#include <map>
#include <memory>
#include <pthread.h>
#include <string>
#include <unistd.h>
#include <unordered_map>
#include <vector>

#define OWN_FRAME __attribute__((noinline, noclone))

template <typename T> OWN_FRAME T *keep(T *block)
{
    __asm__ volatile("" : "+r"(block) : : "memory");
    return block;
}

struct Node {
    std::shared_ptr<Node> other;
    std::string name = "a name that is too long for the string itself";
};

struct Tree {
    Tree *left, *right;
    char rest[24];
};

static std::map<int, std::string> *held_map;
static std::vector<std::shared_ptr<Node>> held_nodes;
static pthread_barrier_t begun;

OWN_FRAME static void lose_containers()
{
    auto *map = new std::map<int, std::string>;
    for (int i = 0; i < 50; i++)
        (*map)[i] = "value number " + std::to_string(i) + " of a map";
    keep(map);
    auto *list = new std::list<std::vector<int>>;
    for (int i = 1; i < 20; i++)
        list->emplace_back(i * 10, i);
    keep(list);
    auto *table = new std::unordered_map<std::string, int>;
    for (int i = 0; i < 100; i++)
        (*table)["some key of a table " + std::to_string(i)] = i;
    keep(table);
}

OWN_FRAME static void lose_cycle()
{
    for (int i = 0; i < 10; i++) {
        auto one = std::make_shared<Node>(), other = std::make_shared<Node>();
        one->other = other;
        other->other = one;
    }
}

OWN_FRAME static Tree *grow(int depth)
{
    Tree *tree = keep(new Tree());
    if (depth > 0) {
        tree->left = grow(depth - 1);
        tree->right = grow(depth - 1);
    }
    return tree;
}

OWN_FRAME static void lose_indirect()
{
    for (int i = 0; i < 3; i++)
        keep(grow(4));
}

OWN_FRAME static void lose_plain()
{
    for (int i = 0; i < 7; i++)
        keep(static_cast<char *>(malloc(100 + i)));
}

OWN_FRAME static void hold()
{
    held_map = new std::map<int, std::string>;
    for (int i = 0; i < 50; i++)
        (*held_map)[i] = "a value that is held until the end";
    for (int i = 0; i < 20; i++)
        held_nodes.push_back(std::make_shared<Node>());
}

static void *runs(void *)
{
    void *volatile on_stack = malloc(77);
    pthread_barrier_wait(&begun);
    for (;;)
        __asm__ volatile("" : : "r"(on_stack) : "memory");
}

static void *waits(void *)
{
    void *volatile on_stack = malloc(88);
    pthread_barrier_wait(&begun);
    for (;;)
        pause();
    return on_stack;
}

static void ends(int)
{
    exit(7);
}

/* What calls leave below is overwritten: it would hold what was lost. */
OWN_FRAME static void sweep()
{
    char room[32768];
    memset(room, 0, sizeof room);
    keep(&room[0]);
}

int main(int argc, char **argv)
{
    std::string way = argc > 1 ? argv[1] : "clean";
    hold();
    if (way == "containers")
        lose_containers();
    if (way == "cycle")
        lose_cycle();
    if (way == "indirect")
        lose_indirect();
    if (way != "clean")
        lose_plain();
    if (way == "threads") {
        pthread_barrier_init(&begun, nullptr, 3);
        pthread_t thread;
        pthread_create(&thread, nullptr, runs, nullptr);
        pthread_create(&thread, nullptr, waits, nullptr);
        pthread_barrier_wait(&begun);
    }
    sweep();
    if (way == "signal") {
        void *volatile on_stack = malloc(66);
        signal(SIGUSR1, ends);
        raise(SIGUSR1);
        keep(static_cast<char *>(on_stack));
    }
    if (way == "abort")
        abort();
    return 7;
}
