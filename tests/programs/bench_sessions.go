// The sessions of bench_sessions.c in Go; the protocol is that of bench.h.
package main

import (
	"bufio"
	"fmt"
	"os"
	_ "runtime/pprof"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	recentSessions  = 1000
	rememberedOneOf = 10_000
	payload         = 256
)

type session struct {
	name    string
	payload []byte
}

var (
	done       atomic.Uint64
	sum        atomic.Uint64
	remembered []*session
)

//go:noinline
func makeSession(id uint64) *session {
	made := &session{name: fmt.Sprint("session ", id), payload: make([]byte, payload)}
	for i := range made.payload {
		made.payload[i] = byte(id)
	}
	return made
}

//go:noinline
func remember(id uint64) { remembered = append(remembered, makeSession(id)) }

func serve() {
	var recent [recentSessions]*session
	for {
		id := done.Load()
		made := makeSession(id)
		mine := uint64(0)
		for _, value := range made.payload {
			mine += uint64(value)
		}
		sum.Add(mine)
		recent[id%recentSessions] = made
		if id%rememberedOneOf == 0 {
			remember(id)
		}
		done.Add(1)
	}
}

// Processor time of the whole process, the collector's threads included (clock_gettime(2), CLOCK_PROCESS_CPUTIME_ID).
func processTime() int64 {
	var now syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 2, uintptr(unsafe.Pointer(&now)), 0)
	return now.Nano()
}

func main() {
	begun := time.Now()
	go serve()
	fmt.Println("ready", os.Getpid())
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		fmt.Println(done.Load(), time.Since(begun).Nanoseconds(), processTime())
	}
}
