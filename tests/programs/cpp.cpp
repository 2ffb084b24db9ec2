// C++: operator new in its forms, containers, and exceptions thrown through frames.
//
// True leaks (bytes / blocks):
//   leak_new 128 / 8            leak_new_array 1200 / 3     leak_new_aligned 256 / 2     leak_new_nothrow 90 / 2
//   leak_vector 4000 / 1        leak_string 202 / 2         leak_before_throw 330 / 10
// Nothing survives of balanced_new, balanced_containers, throw_deep.
// Each stands below a function of the same name with the prefix `outer_`, for stacks whose nearest frame is lost
// because libstdc++ keeps no frame pointers.
#include "victim.h"

#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

struct Pair {
    long first, second;
};
struct alignas(64) Line {
    char bytes[128];
};

extern "C" {

OWN_FRAME void leak_new()
{
    for (int i = 0; i < 8; i++)
        keep(new Pair{i, i});
}

OWN_FRAME void leak_new_array()
{
    for (int i = 0; i < 3; i++)
        keep(new int[100]);
}

OWN_FRAME void leak_new_aligned()
{
    for (int i = 0; i < 2; i++)
        keep(new Line);
}

OWN_FRAME void leak_new_nothrow()
{
    for (int i = 0; i < 2; i++)
        keep(new (std::nothrow) char[45]);
}

OWN_FRAME void leak_vector()
{
    alignas(std::vector<int>) char room[sizeof(std::vector<int>)];
    auto *vector = new (room) std::vector<int>(); // Its destructor never runs.
    vector->reserve(1000);
    keep(vector->data());
}

OWN_FRAME void leak_string()
{
    for (int i = 0; i < 2; i++) {
        alignas(std::string) char room[sizeof(std::string)];
        auto *string = new (room) std::string(100, 'x'); // 100 characters and the zero.
        keep(string->data());
    }
}

OWN_FRAME void leak_before_throw(int round)
{
    keep(std::malloc(33));
    if (round >= 0)
        throw std::runtime_error("thrown on purpose, with a text that is too long for the string's own room");
}

OWN_FRAME void balanced_new()
{
    for (int i = 0; i < 1000; i++) {
        delete static_cast<Pair *>(keep(new Pair{i, i}));
        delete[] static_cast<int *>(keep(new int[50]));
        delete static_cast<Line *>(keep(new Line));
    }
}

OWN_FRAME void balanced_containers()
{
    std::map<int, std::string> map;
    std::vector<std::unique_ptr<Pair>> pairs;
    for (int i = 0; i < 500; i++) {
        map[i] = std::string(static_cast<size_t>(i % 90), 'y');
        pairs.push_back(std::make_unique<Pair>());
        if (i % 3 == 0)
            map.erase(i / 2);
    }
    keep(&map);
}

OWN_FRAME int throw_deep(int depth, int round)
{
    std::string local(60, 'z');
    keep(local.data());
    if (depth == 0)
        leak_before_throw(round);
    else
        throw_deep(depth - 1, round);
    AFTER_CALL();
    return static_cast<int>(local.size());
}

#define OUTER(name)             \
    OWN_FRAME void outer_##name() \
    {                           \
        name();                 \
        AFTER_CALL();           \
    }
OUTER(leak_new)
OUTER(leak_new_array)
OUTER(leak_new_aligned)
OUTER(leak_new_nothrow)
OUTER(leak_vector)
OUTER(leak_string)
OUTER(balanced_new)
OUTER(balanced_containers)

OWN_FRAME void outer_throw()
{
    for (int round = 0; round < 10; round++) {
        try {
            throw_deep(5, round);
        } catch (const std::exception &) {
            AFTER_CALL();
        }
    }
}
}

int main(int argc, char **argv)
{
    victim_ready(argc, argv);
    outer_leak_new();
    outer_leak_new_array();
    outer_leak_new_aligned();
    outer_leak_new_nothrow();
    outer_leak_vector();
    outer_leak_string();
    outer_balanced_new();
    outer_balanced_containers();
    outer_throw();
    truth("leak_new", 128, 8);
    truth("leak_new_array", 1200, 3);
    truth("leak_new_aligned", 256, 2);
    truth("leak_new_nothrow", 90, 2);
    truth("leak_vector", 4000, 1);
    truth("leak_string", 202, 2);
    truth("leak_before_throw", 330, 10);
    truth("balanced_new", 0, 0);
    truth("balanced_containers", 0, 0);
    victim_done();
    return 0;
}
