// Programs of known truth for the verdicts, of C++'s own kind: containers, owners, strings, threads. As behaviours.c, by the same
// commands:
//
//   behaviours_cpp list       a line for each: NAME, a tab, its truth, a tab, what it does
//   behaviours_cpp NAME WAIT  waits so many seconds, then does that until its standard input ends
//
// True leaks: of the behaviours whose truth is `leak`, what is allocated outside of other() is never freed, ever more of it. What is
// allocated within other(), and all of the others, is freed in the end or has a bound that is reached within 40 s.
//
// Build: c++ -g -O1 -fno-omit-frame-pointer -fno-optimize-sibling-calls -pthread

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include <poll.h>
#include <unistd.h>

namespace {

// Seconds since the start.
double now;

double clock_s()
{
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

std::mt19937 chance(7);

double share()
{
    return chance() / 4294967296.0;
}

// So many times a second, on average evenly: how many are due.
struct Pace {
    double last = 0;

    int due(double rate)
    {
        int count = static_cast<int>((now - last) * rate);
        last += count / rate;
        return count;
    }
};

// So that what is allocated is not found to be of no use.
void keep(const void *block)
{
    __asm__ volatile("" : : "r"(block) : "memory");
}

} // namespace

// What is allocated within is freed, or has a bound.
extern "C" __attribute__((noinline, noclone)) void other(const std::function<void()> &run)
{
    run();
    __asm__ volatile("");
}

namespace {

std::string text(size_t least)
{
    return std::string(least + chance() % 40, static_cast<char>('a' + chance() % 26));
}

// ---- leaks ----

struct Node {
    std::shared_ptr<Node> next;
    std::string name;
};

void leak_of_owners_in_a_cycle()
{
    static Pace pace;
    for (int n = pace.due(8); n > 0; n--) {
        auto one = std::make_shared<Node>(), two = std::make_shared<Node>();
        one->next = two;
        two->next = one;
        one->name = text(60);
    }
}

void leak_of_strings_in_a_vector()
{
    static Pace pace;
    static std::vector<std::string> names;
    for (int n = pace.due(20); n > 0; n--)
        names.push_back(text(40));
}

void leak_of_handlers()
{
    static Pace pace;
    static std::list<std::function<void()>> handlers;
    for (int n = pace.due(10); n > 0; n--) {
        std::string context = text(50);
        handlers.push_back([context] { keep(context.data()); });
    }
}

void leak_of_map_entries()
{
    static Pace pace;
    static std::map<long, std::string> seen;
    for (int n = pace.due(15); n > 0; n--)
        seen[static_cast<long>(chance())] = text(30);
}

// The exception takes the way around the delete.
void leak_by_exceptions()
{
    static Pace pace;
    for (int n = pace.due(40); n > 0; n--) {
        try {
            auto *request = new char[200 + chance() % 100];
            keep(request);
            if (share() < 0.1)
                throw std::runtime_error("refused");
            delete[] request;
        } catch (const std::exception &) {
        }
    }
}

// Each leaves a copy behind, and frees some of its own.
void leak_of_request_threads()
{
    static Pace pace;
    for (int n = pace.due(8); n > 0; n--) {
        std::thread worker;
        other([&worker] {
            worker = std::thread([] {
                keep(strdup("a request that nobody frees"));
                other([] {
                    for (size_t size = 20; size < 300; size += 20)
                        keep(std::string(size, 'x').data());
                });
            });
        });
        worker.join();
    }
}

// ---- bounded ----

template <class Key, class Value> class Lru {
public:
    explicit Lru(size_t capacity) : capacity_(capacity) {}

    bool has(const Key &key)
    {
        auto found = places_.find(key);
        if (found == places_.end())
            return false;
        values_.splice(values_.begin(), values_, found->second);
        return true;
    }

    void put(const Key &key, Value value)
    {
        values_.emplace_front(key, std::move(value));
        places_[key] = values_.begin();
        if (places_.size() > capacity_) {
            places_.erase(values_.back().first);
            values_.pop_back();
        }
    }

private:
    size_t capacity_;
    std::list<std::pair<Key, Value>> values_;
    std::unordered_map<Key, typename std::list<std::pair<Key, Value>>::iterator> places_;
};

void ask(Lru<std::string, std::string> &cache, int keys, double rate, Pace &pace)
{
    for (int n = pace.due(rate); n > 0; n--) {
        std::string key = "the name of key " + std::to_string(static_cast<int>(keys * share() * share()));
        if (!cache.has(key))
            cache.put(key, text(150));
    }
}

void lru_of_strings()
{
    static Pace pace;
    static Lru<std::string, std::string> cache(500);
    ask(cache, 4000, 150, pace);
}

void lru_of_many_strings()
{
    static Pace pace;
    static Lru<std::string, std::string> cache(3000);
    ask(cache, 12000, 150, pace);
}

void strings_and_streams()
{
    static Pace pace;
    for (int n = pace.due(30); n > 0; n--) {
        std::ostringstream out;
        for (int word = 0; word < 20; word++)
            out << text(30) << ' ' << word;
        keep(out.str().data());
    }
}

// As many as were ever needed at once: all of them in the first wave of 20 s.
void pool_of_objects()
{
    static std::vector<std::unique_ptr<char[]>> idle, busy;
    auto wanted = static_cast<size_t>(200 + 180 * std::sin(now * 2 * M_PI / 20));
    for (; busy.size() < wanted; idle.pop_back()) {
        if (idle.empty())
            idle.push_back(std::make_unique<char[]>(500));
        busy.push_back(std::move(idle.back()));
    }
    for (; busy.size() > wanted; busy.pop_back())
        idle.push_back(std::move(busy.back()));
}

void sessions_that_expire()
{
    static Pace pace;
    static std::multimap<double, std::string> sessions;
    for (int n = pace.due(40); n > 0; n--)
        sessions.emplace(now + 5 + 10 * share(), text(200));
    while (!sessions.empty() && sessions.begin()->first <= now)
        sessions.erase(sessions.begin());
}

void queue_of_strings()
{
    static Pace pace;
    static std::deque<std::string> queue;
    for (int n = pace.due(100); n > 0; n--)
        queue.push_back(text(60));
    auto length = static_cast<size_t>(300 + 250 * std::sin(now / 3));
    while (queue.size() > length)
        queue.pop_front();
}

void request_threads()
{
    static Pace pace;
    for (int n = pace.due(8); n > 0; n--)
        std::thread([] {
            for (size_t size = 20; size < 400; size += 20)
                keep(std::string(size, 'x').data());
        }).join();
}

struct Behaviour {
    const char *name;
    const char *truth;
    void (*tick)();
    const char *what;
};

#define LEAK(name, what) {"cpp_" #name, "leak", name, what}
#define BOUNDED(name, what) {"cpp_" #name, "bounded", name, what}
const Behaviour behaviours[] = {
    LEAK(leak_of_owners_in_a_cycle, "pairs of shared_ptr that own each other"),
    LEAK(leak_of_strings_in_a_vector, "a vector of strings that is never cleared"),
    LEAK(leak_of_handlers, "a list of functions that hold their contexts"),
    LEAK(leak_of_map_entries, "a map that is only added to"),
    LEAK(leak_by_exceptions, "the request, where an exception takes the way around its delete"),
    LEAK(leak_of_request_threads, "a thread for each of eight requests a second leaves a copy"),
    BOUNDED(lru_of_strings, "500 strings by key, the last used are kept"),
    BOUNDED(lru_of_many_strings, "the same, of 3,000 strings"),
    BOUNDED(strings_and_streams, "temporaries of text"),
    BOUNDED(pool_of_objects, "objects that wait for their next use"),
    BOUNDED(sessions_that_expire, "a map by time; each lives for 5 to 15 s"),
    BOUNDED(queue_of_strings, "a deque of 50 to 550 strings"),
    BOUNDED(request_threads, "a thread for each of eight requests a second"),
};

} // namespace

int main(int count, char **arguments)
{
    if (count == 2 && strcmp(arguments[1], "list") == 0) {
        for (const Behaviour &one : behaviours)
            printf("%s\t%s\t%s\n", one.name, one.truth, one.what);
        return 0;
    }
    const Behaviour *chosen = nullptr;
    for (const Behaviour &one : behaviours)
        if (count == 3 && strcmp(arguments[1], one.name) == 0)
            chosen = &one;
    if (!chosen) {
        fputs("usage: behaviours_cpp list | behaviours_cpp NAME WAIT\n", stderr);
        return 2;
    }
    double begun = clock_s() + strtod(arguments[2], nullptr);
    pollfd input = {0, POLLIN, 0};
    char byte;
    while (poll(&input, 1, 10) == 0 || read(0, &byte, 1) > 0) {
        now = clock_s() - begun;
        if (now >= 0)
            chosen->tick();
    }
    return 0;
}
