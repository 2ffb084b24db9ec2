/* What else an unprivileged user may prepare for whoever reads his processes. It says "ready" and waits, or goes on lying.
 *   liar reserve     room for 64 TiB that is never used
 *   liar zeros       a terabyte that is one page of zeros
 *   liar mapped      one MiB, mapped ten thousand times
 *   liar pieces      as many mappings as there may be
 *   liar arena       glibc's arena and chunks say what is not so
 *   liar chunks      chunks whose sizes and lists lead in circles
 *   liar pools FILE  pools and types of CPython that lead in circles; FILE is mapped as its code
 *   liar vtables     blocks whose tables of methods are described by themselves
 *   liar chain       a million blocks, each held by the one before
 *   liar threads     thousands of threads with names that are no text
 *   liar names FOLDER  files with names of control characters, very long ones, deleted ones
 *   liar fifo        its perf map is a FIFO
 *   liar rewrite FILE  a library that it maps is written over all the time, and moved
 *   liar exec        it becomes itself again and again
 *   liar hidden      it lets nobody read it
 *   liar gone FILE   it runs from FILE, which is deleted and replaced by a FIFO */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint64_t word;

static void *volatile keep;

static void must(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

/* Without a call of the allocator, which may be broken by now. */
static void ready(void)
{
	must(write(1, "ready\n", 6) == 6, "write");
}

static void *map(size_t bytes, int how, int flags)
{
	void *at = mmap(0, bytes, how, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
	must(at != MAP_FAILED, "mmap");
	return at;
}

static void wait_for_ever(void)
{
	ready();
	for (;;)
		pause();
}

static void reserve(void)
{
	map((size_t)64 << 40, PROT_READ | PROT_WRITE, 0);
	wait_for_ever();
}

static void zeros(void)
{
	size_t all = (size_t)1 << 40, step = (size_t)2 << 20;
	volatile char *at = map(all, PROT_READ | PROT_WRITE, 0);
	madvise((void *)at, all, MADV_HUGEPAGE);
	for (size_t place = 0; place < all; place += step)
		(void)at[place];
	wait_for_ever();
}

static void mapped(void)
{
	size_t bytes = 1 << 20;
	int file = memfd_create("shared", 0);
	must(file >= 0 && ftruncate(file, bytes) == 0, "memfd");
	for (int i = 0; i < 10000; i++) {
		volatile char *at = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
		must(at != MAP_FAILED, "mmap");
	}
	wait_for_ever();
}

static void pieces(void)
{
	char *at = map((size_t)60000 * 8192, PROT_READ | PROT_WRITE, 0);
	for (int i = 0; i < 30000; i++) {
		at[(size_t)i * 8192] = 1;
		must(mprotect(at + (size_t)i * 8192 + 4096, 4096, PROT_NONE) == 0, "mprotect");
	}
	wait_for_ever();
}

/* The arena lies where the lists of free chunks lead to. */
static void arena(void)
{
	word *volatile *first = malloc(2000);
	void *volatile behind = malloc(2000);
	free((void *)first);
	word *list = *first;
	(void)behind;
	/* `top`, `bins`, `next`, `system_mem`. */
	for (int i = 0; i < 270; i++)
		list[i] = i % 3 == 0 ? (word)(list + i) : i % 3 == 1 ? (word)first : ~(word)0 << (i & 63);
	wait_for_ever();
}

static void chunks(void)
{
	enum { COUNT = 20000 };
	word **blocks = malloc(COUNT * sizeof *blocks);
	for (int i = 0; i < COUNT; i++)
		blocks[i] = malloc(24 + i % 2000);
	for (int i = 0; i < COUNT; i += 3)
		free(blocks[i]);
	for (int i = 1; i < COUNT; i += 7) {
		word *chunk = blocks[i] - 1;
		switch (i % 5) {
		case 0: chunk[0] = 0; break;
		case 1: chunk[0] = ~(word)0; break;
		case 2: chunk[0] = 16 | 1; break;
		case 3: chunk[0] = ((word)1 << 46) | 2; break;
		default: chunk[0] += 32; break;
		}
		blocks[i][0] = (word)chunk;
		blocks[i][1] = (word)blocks[i];
	}
	/* Free ones, that lead to themselves. */
	for (int i = 0; i < COUNT; i += 9) {
		blocks[i][0] = (word)(blocks[i] - 2);
		blocks[i][1] = (word)(blocks[i] - 2);
	}
	wait_for_ever();
}

/* `struct pool_header` and `PyTypeObject`, as far as they are looked at. */
static void pools(const char *file)
{
	enum { POOLS = 512, POOL = 16384 };
	int code = open(file, O_RDONLY);
	must(code >= 0 && mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, code, 0) != MAP_FAILED, file);
	char *all = map((size_t)(POOLS + 64) * POOL, PROT_READ | PROT_WRITE, 0);
	all += POOL - (word)all % POOL;
	for (int i = 0; i < POOLS; i++) {
		char *pool = all + (size_t)i * POOL;
		word *head = (word *)pool;
		unsigned size = 16 * (1 + i % 32);
		head[0] = POOL / size;
		head[1] = (word)(pool + 48);
		head[4] = (word)(i % 32) << 32;
		head[5] = (word)(48 + size) | (word)(POOL - size) << 32;
		for (unsigned at = 48; at + size <= POOL; at += size) {
			word *object = (word *)(pool + at);
			object[0] = i % 4 ? (word)object : 1;
			/* Types that are objects of themselves, of each other, or lie at the end of memory. */
			object[1] = i % 3 ? (word)(all + (size_t)((i * 7) % POOLS) * POOL + 48) : (word)object;
			for (unsigned word_at = 2; word_at < size / 8; word_at++)
				object[word_at] = word_at % 2 ? ~(word)0 >> 1 : (word)object;
		}
	}
	wait_for_ever();
}

static void vtables(void)
{
	enum { COUNT = 50000 };
	word *tables = map(1 << 20, PROT_READ | PROT_WRITE, 0);
	memset(tables, 'A', 1 << 20);
	for (int i = 0; i < 1000; i++) {
		word *table = tables + i * 8;
		/* Offset, type, functions; the type is the table, its name all that follows. */
		table[0] = 0;
		table[1] = (word)table;
		table[2] = (word)vtables;
		table[3] = (word)(tables + 9000);
	}
	word **kept = malloc(COUNT * sizeof *kept);
	for (int i = 0; i < COUNT; i++) {
		kept[i] = malloc(40);
		kept[i][0] = (word)(tables + i % 1000 * 8 + 2);
		kept[i][1] = (word)kept[i];
	}
	wait_for_ever();
}

static void chain(void)
{
	static word *first;
	word *last = 0;
	for (int i = 0; i < 1000000; i++) {
		word *next = malloc(24 + i % 7 * 16);
		next[0] = (word)last;
		next[1] = (word)next;
		last = next;
	}
	first = last;
	/* Its end leads to its beginning. */
	for (last = first; last[0]; last = (word *)last[0])
		;
	last[0] = (word)first;
	wait_for_ever();
}

static void *sleep_long(void *unused)
{
	prctl(PR_SET_NAME, "\033[2J\n\xff\xfe\r\t)(");
	for (;;)
		pause();
	return unused;
}

static void threads(void)
{
	pthread_attr_t small;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 16384);
	prctl(PR_SET_NAME, "x) R 1 1 (\n\xff");
	for (int i = 0; i < 3000; i++) {
		pthread_t thread;
		if (pthread_create(&thread, &small, sleep_long, 0) != 0)
			break;
	}
	wait_for_ever();
}

static void map_named(const char *name, const char *content, size_t length)
{
	int file = open(name, O_RDWR | O_CREAT, 0755);
	must(file >= 0 && write(file, content, length) == (ssize_t)length, name);
	must(mmap(0, 8192, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) != MAP_FAILED, name);
	close(file);
}

static void names(const char *folder)
{
	char part[256], head[8192];
	int self = open("/proc/self/exe", O_RDONLY);
	must(self >= 0 && read(self, head, sizeof head) == sizeof head, "itself");
	must(chdir(folder) == 0, folder);
	map_named("\033]0;owned\a.so", head, sizeof head);
	map_named("two\nlines (deleted)", head, sizeof head);
	map_named("\xff\xfe\x80 no text", head, sizeof head);
	map_named("[heap]", head, sizeof head);
	map_named("<b>&amp;\\134012", head, sizeof head);
	map_named("gone.so", head, sizeof head);
	must(unlink("gone.so") == 0, "unlink");
	memset(part, 'n', 255);
	part[255] = 0;
	for (int i = 0; i < 20; i++)
		must(mkdir(part, 0755) == 0 && chdir(part) == 0, "mkdir");
	map_named(part, head, sizeof head);
	wait_for_ever();
}

static void fifo(void)
{
	char name[64];
	snprintf(name, sizeof name, "/tmp/perf-%d.map", getpid());
	must(mkfifo(name, 0666) == 0, name);
	map(1 << 16, PROT_READ | PROT_WRITE | PROT_EXEC, 0);
	ready();
	for (;;) {
		free(malloc(100));
		keep = malloc(10);
		usleep(1000);
	}
}

static void rewrite(const char *file)
{
	char head[4096], other[4096];
	snprintf(other, sizeof other, "%s.other", file);
	int fd = open(file, O_RDWR);
	must(fd >= 0 && read(fd, head, sizeof head) == sizeof head, file);
	must(mmap(0, 65536, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0) != MAP_FAILED, "mmap");
	struct stat about;
	fstat(fd, &about);
	ready();
	for (unsigned i = 1;; i++) {
		head[(i * 7919) % sizeof head] ^= (char)i;
		(void)!pwrite(fd, head, sizeof head, (off_t)(i % 3) * 4096);
		(void)!ftruncate(fd, i % 5 ? about.st_size : 100);
		rename(file, other);
		(void)!symlink(i % 2 ? "/proc/kmsg" : "/dev/zero", file);
		unlink(file);
		rename(other, file);
		keep = malloc(i % 64);
	}
}

static void become(char **words)
{
	/* Whoever read the word reads no more. */
	if (strcmp(words[0], "again") != 0)
		ready();
	words[0] = "again";
	usleep(200000);
	for (int i = 0; i < 100; i++)
		keep = malloc(100);
	execv("/proc/self/exe", words);
	must(0, "exec");
}

static void hidden(void)
{
	must(prctl(PR_SET_DUMPABLE, 0) == 0, "prctl");
	ready();
	for (;;) {
		keep = malloc(10);
		usleep(1000);
	}
}

static void gone(const char *file, char **words)
{
	if (strcmp(words[0], "again") != 0) {
		char bytes[1 << 16];
		ssize_t length;
		int from = open("/proc/self/exe", O_RDONLY), to = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0755);
		must(from >= 0 && to >= 0, file);
		while ((length = read(from, bytes, sizeof bytes)) > 0)
			must(write(to, bytes, (size_t)length) == length, file);
		close(to);
		char *again[] = {"again", words[1], words[2], 0};
		execv(file, again);
		must(0, "exec");
	}
	must(unlink(file) == 0 && mkfifo(file, 0666) == 0, file);
	ready();
	for (;;) {
		keep = malloc(10);
		usleep(1000);
	}
}

int main(int count, char **words)
{
	const char *what = count > 1 ? words[1] : "", *file = count > 2 ? words[2] : "";
	/* A heap in which something is looked for. */
	for (int i = 0; i < 1000; i++) {
		void **block = malloc(48 + i % 64);
		block[0] = keep;
		keep = block;
	}
	if (strcmp(what, "reserve") == 0)
		reserve();
	if (strcmp(what, "zeros") == 0)
		zeros();
	if (strcmp(what, "mapped") == 0)
		mapped();
	if (strcmp(what, "pieces") == 0)
		pieces();
	if (strcmp(what, "arena") == 0)
		arena();
	if (strcmp(what, "chunks") == 0)
		chunks();
	if (strcmp(what, "pools") == 0)
		pools(file);
	if (strcmp(what, "vtables") == 0)
		vtables();
	if (strcmp(what, "chain") == 0)
		chain();
	if (strcmp(what, "threads") == 0)
		threads();
	if (strcmp(what, "names") == 0)
		names(file);
	if (strcmp(what, "fifo") == 0)
		fifo();
	if (strcmp(what, "rewrite") == 0)
		rewrite(file);
	if (strcmp(what, "exec") == 0)
		become(words);
	if (strcmp(what, "hidden") == 0)
		hidden();
	if (strcmp(what, "gone") == 0)
		gone(file, words);
	fputs("liar WHAT\n", stderr);
	return 2;
}
