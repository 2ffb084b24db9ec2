// Leaks where the compiler keeps what it does not expect to run: blocks of exceptions' handlers, moved out of their
// functions into the section of cold code, and functions called from landing pads.
//
// True leaks (bytes / blocks): leak_in_catch 280 / 7, leak_in_cleanup 350 / 7, leak_in_rethrow 84 / 7,
// leak_cold 48 / 3. Nothing survives of throw_on.
#include "victim.h"

#include <stdexcept>

#define ROUNDS 7

extern "C" {

OWN_FRAME void throw_on(int round)
{
    char room[48];
    memset(room, round, sizeof room);
    keep(room);
    if (round >= 0)
        throw std::runtime_error("on purpose");
    AFTER_CALL();
}

// The handler itself calls the allocator.
OWN_FRAME int leak_in_catch(int round)
{
    int seen = 0;
    try {
        throw_on(round);
    } catch (const std::exception &) {
        keep(std::malloc(40));
        seen = 1;
    }
    AFTER_CALL();
    return seen;
}

OWN_FRAME void leak_in_cleanup()
{
    keep(std::malloc(50));
    AFTER_CALL();
}

struct Guard {
    int round;
    ~Guard()
    {
        leak_in_cleanup();
        keep(this);
    }
};

// The landing pad calls a function, and unwinding goes on.
OWN_FRAME void cleaned_up(int round)
{
    Guard guard{round};
    keep(&guard);
    throw_on(round);
    AFTER_CALL();
}

OWN_FRAME void leak_in_rethrow(int round)
{
    try {
        throw_on(round);
    } catch (...) {
        keep(std::malloc(12));
        throw;
    }
    AFTER_CALL();
}

// A function that as a whole is cold code.
__attribute__((cold)) OWN_FRAME void leak_cold(int size)
{
    keep(std::malloc(static_cast<size_t>(size)));
    AFTER_CALL();
}
}

int main(int argc, char **argv)
{
    victim_ready(argc, argv);
    for (int round = 0; round < ROUNDS; round++) {
        if (!leak_in_catch(round))
            _exit(110);
        try {
            cleaned_up(round);
        } catch (const std::exception &) {
            AFTER_CALL();
        }
        try {
            leak_in_rethrow(round);
        } catch (const std::exception &) {
            AFTER_CALL();
        }
        if (round % 3 == 0)
            leak_cold(16);
    }
    truth("leak_in_catch", 280, 7);
    truth("leak_in_cleanup", 350, 7);
    truth("leak_in_rethrow", 84, 7);
    truth("leak_cold", 48, 3);
    victim_done();
    return 0;
}
