/* Says of itself that it is a program of Go, and of Go's tables what cannot be. Says "ready" and leaks. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* The build information of Go 1.18 and later: a magic, the size of pointers, flags, and texts with their lengths. */
__attribute__((used, section(".go.buildinfo"), aligned(16)))
static const char build[] = "\xff Go buildinf:\x08\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x08go1.22.1\0";

/* `pcHeader` of Go 1.20: a magic, sizes, and counts and offsets that lead nowhere. */
__attribute__((used, section(".gopclntab"), aligned(32)))
static uint64_t table[4096] = {
	0x08010000fffffff1, UINT64_MAX >> 1, UINT64_MAX, 0x400000, 8, 16, 24, UINT64_MAX - 7, 32,
};

/* `moduledata`, whose pieces are the table, itself, or all of memory. */
__attribute__((used, section(".go.module"), aligned(32)))
static uint64_t module[256];
__attribute__((used, section(".noptrdata"), aligned(32)))
static uint64_t noptrdata[4096];

int main(void)
{
	for (int i = 0; i < 256; i++)
		module[i] = i % 3 == 0 ? (uint64_t)table : i % 3 == 1 ? UINT64_MAX >> i % 48 : (uint64_t)module;
	for (int i = 0; i < 4096; i++)
		noptrdata[i] = i % 2 ? (uint64_t)noptrdata : (uint64_t)module;
	for (int i = 64; i < 4096; i++)
		table[i] = i % 2 ? (uint64_t)i << 32 | i : UINT64_MAX - i;
	puts("ready");
	fflush(stdout);
	for (;;) {
		void *volatile lost = malloc(64);
		(void)lost;
		usleep(1000);
	}
}
