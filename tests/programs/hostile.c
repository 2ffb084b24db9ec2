/* What an unprivileged user may prepare for whoever traces his programs. It says "ready" and leaks, 64 bytes each millisecond.
 *   hostile map FILE...      maps files to be executed
 *   hostile load LIBRARY     leaks through its function leak_one
 *   hostile link TARGET      its perf map, in namespaces of its own, is a link */
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
