// A program in Go whose C part leaks, in the protocol of victim.h.
//
// True leaks (bytes / blocks): leak_in_c 5500 / 11, leak_from_goroutine 1281 / 7. Nothing survives of balanced_in_c.
package main

/*
#cgo CFLAGS: -g -O2 -fomit-frame-pointer
#include <stdlib.h>

static void *volatile kept;

__attribute__((noinline, noclone)) void leak_in_c(size_t size)
{
	kept = malloc(size);
	__asm__ volatile("" ::: "memory");
}

__attribute__((noinline, noclone)) void leak_from_goroutine(size_t size)
{
	kept = malloc(size);
	__asm__ volatile("" ::: "memory");
}

__attribute__((noinline, noclone)) void balanced_in_c(size_t size)
{
	kept = malloc(size);
	free(kept);
	__asm__ volatile("" ::: "memory");
}
*/
import "C"

import (
	"bufio"
	"fmt"
	"os"
)

//go:noinline
func callLeak() {
	for i := 0; i < 11; i++ {
		C.leak_in_c(500)
	}
}

//go:noinline
func callFromGoroutine() {
	C.leak_from_goroutine(183)
}

//go:noinline
func callBalanced() {
	for i := 0; i < 100; i++ {
		C.balanced_in_c(64)
	}
}

func expect(input *bufio.Reader, word string) {
	line, err := input.ReadString('\n')
	if err != nil || line != word+"\n" {
		os.Exit(105)
	}
}

func truth(function string, bytes, objects int) {
	fmt.Printf("{\"function\":\"%s\",\"bytes\":%d,\"objects\":%d}\n", function, bytes, objects)
}

func main() {
	waits := !(len(os.Args) > 1 && os.Args[1] == "now")
	input := bufio.NewReader(os.Stdin)
	if waits {
		fmt.Printf("ready %d\n", os.Getpid())
		expect(input, "go")
	}
	callLeak()
	over := make(chan bool)
	for i := 0; i < 7; i++ {
		go func() {
			callFromGoroutine()
			over <- true
		}()
	}
	for i := 0; i < 7; i++ {
		<-over
	}
	callBalanced()
	truth("leak_in_c", 5500, 11)
	truth("leak_from_goroutine", 1281, 7)
	truth("balanced_in_c", 0, 0)
	fmt.Println("done")
	if waits {
		expect(input, "quit")
	}
}
