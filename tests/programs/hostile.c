/* What an unprivileged user may prepare for whoever traces his programs. It says "ready" and leaks, 64 bytes each millisecond.
 *   hostile map FILE...      maps files to be executed
 *   hostile load LIBRARY     leaks through its function leak_one
 *   hostile link TARGET      its perf map, in namespaces of its own, is a link
 *   hostile files N          maps N files to be executed, none of which has a name any more
 *   hostile pages N          has N pages of code, each apart from the others */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

static void must(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static void say(const char *file, const char *text)
{
	int fd = open(file, O_WRONLY);
	must(fd >= 0 && write(fd, text, strlen(text)) > 0, file);
	close(fd);
}

static void map_files(int count)
{
	char head[4096], line[64];
	int self = open("/proc/self/exe", O_RDONLY);
	must(self >= 0 && read(self, head, sizeof head) == sizeof head, "itself");
	for (int i = 0; i < count; i++) {
		snprintf(line, sizeof line, "/tmp/hostile-%d", getpid());
		int file = open(line, O_RDWR | O_CREAT | O_EXCL, 0700);
		must(file >= 0 && write(file, head, sizeof head) == sizeof head, line);
		must(mmap(0, sizeof head, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) != MAP_FAILED, "mmap");
		unlink(line);
		close(file);
	}
	close(self);
}

static void make_pages(int count)
{
	char *pages = mmap(0, (size_t)count * 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	must(pages != MAP_FAILED, "mmap");
	for (int i = 0; i < count; i++)
		must(mprotect(pages + (size_t)i * 8192, 4096, PROT_READ | PROT_EXEC) == 0, "mprotect");
}

static void *leak_here(int size)
{
	return malloc(size);
}

int main(int count, char **words)
{
	void *(*volatile leak)(int) = leak_here;
	must(count > 2, "words");
	if (strcmp(words[1], "map") == 0) {
		for (int i = 2; i < count; i++) {
			int fd = open(words[i], O_RDONLY);
			must(fd >= 0, words[i]);
			must(mmap(0, 8192, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) != MAP_FAILED, "mmap");
			close(fd);
		}
	} else if (strcmp(words[1], "load") == 0) {
		void *library = dlopen(words[2], RTLD_NOW);
		must(library != 0, words[2]);
		leak = (void *(*)(int))dlsym(library, "leak_one");
		must(leak != 0, "leak_one");
	} else if (strcmp(words[1], "files") == 0) {
		map_files(atoi(words[2]));
	} else if (strcmp(words[1], "pages") == 0) {
		make_pages(atoi(words[2]));
	} else {
		char line[128];
		int user = getuid(), group = getgid();
		must(unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0, "unshare");
		say("/proc/self/setgroups", "deny");
		snprintf(line, sizeof line, "0 %d 1", user);
		say("/proc/self/uid_map", line);
		snprintf(line, sizeof line, "0 %d 1", group);
		say("/proc/self/gid_map", line);
		must(mount("none", "/tmp", "tmpfs", 0, "mode=755") == 0, "mount");
		snprintf(line, sizeof line, "/tmp/perf-%d.map", getpid());
		must(symlink(words[2], line) == 0, "symlink");
	}
	puts("ready");
	fflush(stdout);
	for (;;) {
		leak(64);
		usleep(1000);
	}
}
