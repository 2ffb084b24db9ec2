// A program in Go that keeps a map of device entries, each with a channel of 72 KiB, and leaves goroutines behind that nobody wakes; beside
// them a cache of 64 pieces of 32 KiB that is filled again and again. In the protocol of victim.h; it looks up the truth in its own heap
// profile (runtime.MemProfile), as runtime/pprof scales it, after a collection at which all of it is known.
package main

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
)

type message struct{ payload [9]uint64 }

type entry struct {
	name  string
	queue chan message
}

var devices = map[int]*entry{}
var cache [64][]byte

//go:noinline
func newEntry(id int) *entry {
	return &entry{name: fmt.Sprint("device ", id), queue: make(chan message, 1000)}
}

//go:noinline
func activate(id int) { devices[id] = newEntry(id) }

//go:noinline
func fillCache(turn int) { cache[turn%len(cache)] = make([]byte, 32<<10) }

func refill(turn int) { fillCache(turn) }

//go:noinline
func waitForever(never chan bool) { <-never }

func expect(input *bufio.Reader, word string) {
	line, err := input.ReadString('\n')
	if err != nil || line != word+"\n" {
		os.Exit(105)
	}
}

func truth(function string, bytes, objects int64) {
	fmt.Printf("{\"function\":\"%s\",\"bytes\":%d,\"objects\":%d}\n", function, bytes, objects)
}

// What the profile says of the blocks that a function of this program allocated.
func inuse(function string) (bytes, objects int64) {
	records := make([]runtime.MemProfileRecord, 10000)
	count, _ := runtime.MemProfile(records, true)
	for _, record := range records[:count] {
		frames := runtime.CallersFrames(record.Stack())
		for {
			frame, more := frames.Next()
			if !strings.HasPrefix(frame.Function, "runtime.") {
				if frame.Function == function && record.InUseObjects() > 0 {
					size := float64(record.InUseBytes()) / float64(record.InUseObjects())
					scale := 1 / (1 - math.Exp(-size/float64(runtime.MemProfileRate)))
					bytes += int64(float64(record.InUseBytes()) * scale)
					objects += int64(float64(record.InUseObjects()) * scale)
				}
				break
			}
			if !more {
				break
			}
		}
	}
	return bytes, objects
}

func main() {
	input := bufio.NewReader(os.Stdin)
	fmt.Printf("ready %d\n", os.Getpid())
	expect(input, "go")
	never := make(chan bool)
	for turn := 0; turn < 1000; turn++ {
		activate(turn)
		refill(turn)
		if turn%5 == 0 {
			go waitForever(never)
		}
	}
	runtime.GC()
	runtime.GC()
	for _, function := range []string{"main.newEntry", "main.fillCache"} {
		bytes, objects := inuse(function)
		truth(function, bytes, objects)
	}
	truth("main.waitForever", 0, 200)
	fmt.Println("done")
	expect(input, "quit")
}
