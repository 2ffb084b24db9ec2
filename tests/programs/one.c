/* The simplest leak: one block of 100 bytes, which main still knew when it returned. It ends by itself and speaks no protocol. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void)
{
    char *text = malloc(100);
    if (text == NULL)
        return 1;
    strcpy(text, "hello");
    return puts(text) < 0;
}
