/* Allocates under many different stacks and says, by glibc's own backtrace(), what each stack was.
 *
 * True leaks: one block of 48 bytes for each of WALKS walks, all in `leaf`. A line for each distinct stack: the names
 * of the program's own functions from `leaf` up to `main`, the number of frames up to the end, and what leaked there.
 * To be linked with -rdynamic, for the names.
 */
#define _GNU_SOURCE
#include "victim.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <stdint.h>

#ifndef WALKS
#define WALKS 3000
#endif
#ifndef DEEPEST
#define DEEPEST 12
#endif
#define STACKS 16384
#define DEPTH 64

struct stack {
    void *frames[DEPTH];
    int depth;
    unsigned count;
};

static struct stack stacks[STACKS];
static uint32_t random_state = 4242;

static uint32_t next_random(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 16;
}

OWN_FRAME static void record(void)
{
    void *frames[DEPTH];
    int depth = backtrace(frames, DEPTH) - 1;
    uint64_t hash = 0;
    for (int i = 2; i <= depth; i++)
        hash = (hash ^ (uint64_t)(uintptr_t)frames[i]) * 0x9e3779b97f4a7c15u;
    for (unsigned i = 0; i < STACKS; i++) {
        struct stack *stack = &stacks[((hash >> 40) + i) % STACKS];
        if (stack->count && stack->depth == depth &&
            memcmp(stack->frames + 1, frames + 2, sizeof(void *) * (size_t)(depth - 1)) == 0) {
            stack->count++;
            return;
        }
        if (!stack->count) {
            /* The first is the address in `leaf` behind this call; it differs from the one behind malloc. */
            memcpy(stack->frames, frames + 1, sizeof(void *) * (size_t)depth);
            stack->depth = depth;
            stack->count = 1;
            return;
        }
    }
    _exit(110);
}

/* The branches differ in how much stack they use and whether they need a frame pointer (a variable array does). */
OWN_FRAME int leaf(void);
OWN_FRAME int branch_plain(int depth);
OWN_FRAME int branch_large(int depth);
OWN_FRAME int branch_variable(int depth);
OWN_FRAME int branch_registers(int depth);

OWN_FRAME int descend(int depth)
{
    if (depth == 0)
        return leaf();
    switch (next_random() % 4) {
    case 0:
        return branch_plain(depth - 1) + 1;
    case 1:
        return branch_large(depth - 1) + 2;
    case 2:
        return branch_variable(depth - 1) + 3;
    default:
        return branch_registers(depth - 1) + 4;
    }
}

int leaf(void)
{
    record();
    keep(malloc(48));
    AFTER_CALL();
    return 1;
}

int branch_plain(int depth)
{
    int result = descend(depth);
    AFTER_CALL();
    return result;
}

int branch_large(int depth)
{
    char room[3000];
    memset(room, depth, sizeof room);
    int result = descend(depth);
    __asm__ volatile("" : : "r"(room) : "memory");
    return result + room[depth];
}

int branch_variable(int depth)
{
    size_t size = 16 + next_random() % 200;
    char room[size];
    memset(room, depth, size);
    int result = descend(depth);
    __asm__ volatile("" : : "r"(room) : "memory");
    return result + room[0];
}

int branch_registers(int depth)
{
    int a = (int)next_random(), b = (int)next_random(), c = (int)next_random(), d = (int)next_random();
    int result = descend(depth);
    AFTER_CALL();
    return result + a * b + c * d + (a ^ d);
}

static void print_stack(const struct stack *stack)
{
    char names[3072];
    size_t used = 0;
    for (int i = 0; i < stack->depth; i++) {
        Dl_info info;
        char *address = stack->frames[i];
        if (!dladdr(address - 1, &info) || !info.dli_sname)
            _exit(111);
        int length = snprintf(names + used, sizeof names - used, "%s\"%s\"", i ? "," : "", info.dli_sname);
        if (length < 0 || used + (size_t)length >= sizeof names)
            _exit(112);
        used += (size_t)length;
        if (strcmp(info.dli_sname, "main") == 0)
            break;
    }
    victim_print("{\"function\":\"leaf\",\"bytes\":%u,\"objects\":%u,\"frames\":%d,\"stack\":[%s]}\n",
                 48 * stack->count, stack->count, stack->depth, names);
}

int main(int argc, char **argv)
{
    void *warm[4];
    backtrace(warm, 4); /* Loads libgcc_s, once. */
    victim_ready(argc, argv);
    for (int i = 0; i < WALKS; i++)
        descend((int)(next_random() % DEEPEST));
    for (int i = 0; i < STACKS; i++)
        if (stacks[i].count)
            print_stack(&stacks[i]);
    victim_done();
    return 0;
}
