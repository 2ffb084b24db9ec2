/* The chunks of its heap say that the next one lies in a file of FUSE, which it serves itself, and answers nothing. It mounts that, as
 * fusermount(1) does for users, and then is `nobody`. Needs root to begin with, and a folder. It says "ready" and leaks. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NOBODY = 65534, PAGE = 4096, PAGES = 16 };
static int fuse;

static void must(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static void reply(const struct fuse_in_header *to, int error, const void *what, size_t length)
{
	char bytes[512];
	struct fuse_out_header head = {sizeof head + length, -error, to->unique};
	memcpy(bytes, &head, sizeof head);
	if (length)
		memcpy(bytes + sizeof head, what, length);
	(void)!write(fuse, bytes, head.len);
}

static struct fuse_attr about(uint64_t node)
{
	struct fuse_attr attr = {.ino = node, .nlink = 1, .size = PAGE * PAGES, .blksize = PAGE};
	attr.mode = node == 1 ? S_IFDIR | 0755 : S_IFREG | 0644;
	return attr;
}

/* All is answered but reads. */
static void *serve(void *unused)
{
	static char bytes[1 << 20];
	for (;;) {
		ssize_t length = read(fuse, bytes, sizeof bytes);
		if (length < 0 && (errno == EINTR || errno == ENOENT))
			continue;
		if (length < 0)
			return unused;
		struct fuse_in_header *asked = (void *)bytes;
		switch (asked->opcode) {
		case FUSE_INIT: {
			struct fuse_init_out out = {.major = 7, .minor = 31, .max_readahead = PAGE, .max_write = PAGE};
			reply(asked, 0, &out, sizeof out);
			break;
		}
		case FUSE_LOOKUP: {
			struct fuse_entry_out out = {.nodeid = 2, .entry_valid = 1000, .attr_valid = 1000, .attr = about(2)};
			reply(asked, 0, &out, sizeof out);
			break;
		}
		case FUSE_GETATTR: {
			struct fuse_attr_out out = {.attr_valid = 1000, .attr = about(asked->nodeid)};
			reply(asked, 0, &out, sizeof out);
			break;
		}
		case FUSE_OPEN: {
			struct fuse_open_out out = {.fh = 1};
			reply(asked, 0, &out, sizeof out);
			break;
		}
		case FUSE_READ:
		case FUSE_INTERRUPT:
		case FUSE_FORGET:
			break;
		default:
			reply(asked, ENOSYS, 0, 0);
		}
	}
}

int main(int count, char **words)
{
	char text[256];
	pthread_t thread;
	must(count == 2, "a folder");
	fuse = open("/dev/fuse", O_RDWR);
	must(fuse >= 0, "/dev/fuse");
	must(unshare(CLONE_NEWNS) == 0 && mount("none", "/", 0, MS_REC | MS_PRIVATE, 0) == 0, "unshare");
	snprintf(text, sizeof text, "fd=%d,rootmode=40000,user_id=%d,group_id=%d", fuse, NOBODY, NOBODY);
	must(mount("stuck", words[1], "fuse", MS_NOSUID | MS_NODEV, text) == 0, "mount");
	must(setgid(NOBODY) == 0 && setuid(NOBODY) == 0, "nobody");
	must(pthread_create(&thread, 0, serve, 0) == 0, "a thread");
	snprintf(text, sizeof text, "%s/file", words[1]);
	int file = open(text, O_RDONLY);
	must(file >= 0, text);
	char *served = mmap(0, PAGE * PAGES, PROT_READ, MAP_PRIVATE, file, 0);
	must(served != MAP_FAILED, "mmap");
	/* Or its own end would wait for an answer. */
	close(file);
	puts("ready");
	fflush(stdout);
	for (long i = 1;; i++) {
		unsigned long *volatile block = malloc(0x88);
		block[-1] = (unsigned long)(served + PAGE + 16 - (char *)block) | 1;
		block[0] = i * 0x123456789;
		usleep(500);
	}
}
