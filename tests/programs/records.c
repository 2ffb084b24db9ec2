// A heap of C of which the truth is known: records in a hash table that a static variable holds, chains that are lost with what hangs on
// them, rings, blocks above the threshold for mappings; text. Prints the truth and waits to be killed.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// 88 bytes: a block of its own size, as all here.
struct record {
    struct record *next;
    char key[80];
};

struct link {
    struct link *next;
    char *text;
    long words[13];
};

struct ring {
    struct ring *other;
    long words[17];
};

static struct record *table[1021];
char *large[40];

__attribute__((noinline)) static void hold(long count) {
    for (long i = 0; i < count; i++) {
        struct record *record = malloc(sizeof *record);
        snprintf(record->key, sizeof record->key, "key number %ld of the table", i);
        struct record **bucket = &table[i % 1021];
        record->next = *bucket;
        *bucket = record;
    }
    for (int i = 0; i < 40; i++) {
        large[i] = malloc(200000);
        memset(large[i], 1, 200000);
    }
}

// Chains of ten: the first is lost directly, nine and ten texts hang on it.
__attribute__((noinline)) static void lose_chains(long count) {
    for (long i = 0; i < count; i++) {
        struct link *first = NULL;
        for (int j = 0; j < 10; j++) {
            struct link *link = calloc(1, sizeof *link);
            link->text = malloc(168);
            memset(link->text, 'x', 168);
            link->next = first;
            first = link;
        }
        asm volatile("" : : "r"(first) : "memory");
    }
}

__attribute__((noinline)) static void lose_rings(long count) {
    for (long i = 0; i < count; i++) {
        struct ring *one = calloc(1, sizeof *one), *other = calloc(1, sizeof *other);
        one->other = other;
        other->other = one;
        asm volatile("" : : "r"(one), "r"(other) : "memory");
    }
}

__attribute__((noinline)) static void lose_large(int count) {
    for (int i = 0; i < count; i++) {
        char *block = malloc(300000);
        memset(block, 1, 300000);
        asm volatile("" : : "r"(block) : "memory");
    }
}

// Leaves nothing on the stack that looks like a pointer to what was lost.
__attribute__((noinline)) static void overwrite_stack(void) {
    char waste[65536];
    memset(waste, 0, sizeof waste);
    asm volatile("" : : "r"(waste) : "memory");
}

int main(void) {
    const long records = 20000, chains = 1000, rings = 3000, lost = 20;
    hold(records);
    lose_chains(chains);
    lose_rings(rings);
    lose_large(lost);
    overwrite_stack();
    printf("records %ld chains %ld links %ld rings %ld held_large 40 lost_large %ld\n", records, chains, chains * 10, rings, lost);
    fflush(stdout);
    pause();
}
