/* Takes another name after it has started, as many servers do, and then allocates.
 *
 * True leaks (bytes / blocks): leak_renamed 40 * 100 = 4000 / 40, after it was named "other-name".
 */
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

static void *volatile sink;

__attribute__((noinline)) static void leak_renamed(void)
{
    char *block = malloc(100);
    block[0] = 1;
    sink = block;
    __asm__ volatile("" ::: "memory");
}

int main(void)
{
    sleep(1);
    prctl(PR_SET_NAME, "other-name");
    sleep(4);
    for (int i = 0; i < 40; i++)
        leak_renamed();
    sleep(30);
    return 0;
}
