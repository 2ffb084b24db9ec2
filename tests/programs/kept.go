// A program in Go that does not import runtime/pprof, so that its runtime keeps no heap profile. It serves requests whose memory comes and
// goes, and keeps of some: records of small blocks, and big channels; beside them a cache of 2,000 pieces that are replaced again and again.
// In the protocol of victim.h; with `go N` it works for N seconds, otherwise for 50.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

type record struct {
	name  string
	parts [12]*int
	next  *record
}

type device struct {
	id    int
	queue chan [9]uint64
}

var records *record
var devices = map[int]*device{}
var cache [2000][]byte
var sink []byte

//go:noinline
func keepRecord() { records = &record{next: records} }

//go:noinline
func keepDevice(id int) *device {
	return &device{id: id, queue: make(chan [9]uint64, 1000)}
}

//go:noinline
func fillCache(turn int) { cache[turn%len(cache)] = make([]byte, 112) }

//go:noinline
func dropped(size int) { sink = make([]byte, size) }

//go:noinline
func droppedRecord() *record { return &record{} }

func request(turn int) {
	for part := 0; part < 40; part++ {
		dropped(64 + 48*(part%8))
		droppedRecord()
	}
	fillCache(turn)
	fillCache(turn + 1000)
	if turn%20 == 0 {
		dropped(70000)
	}
	if turn%2 == 0 {
		keepRecord()
	}
	if turn%40 == 0 {
		devices[turn] = keepDevice(turn)
	}
}

func expect(input *bufio.Reader) string {
	line, err := input.ReadString('\n')
	if err != nil {
		os.Exit(105)
	}
	return strings.TrimSpace(line)
}

func main() {
	input := bufio.NewReader(os.Stdin)
	fmt.Printf("ready %d\n", os.Getpid())
	words := strings.Fields(expect(input))
	seconds := 50
	if len(words) == 2 {
		seconds, _ = strconv.Atoi(words[1])
	}
	turn := 0
	for begun := time.Now(); time.Since(begun) < time.Duration(seconds)*time.Second; turn++ {
		request(turn)
		time.Sleep(500 * time.Microsecond)
	}
	runtime.GC()
	runtime.GC()
	recordCount := 0
	for it := records; it != nil; it = it.next {
		recordCount++
	}
	fmt.Printf("{\"function\":\"main.keepRecord\",\"bytes\":%d,\"objects\":%d}\n", 128*recordCount, recordCount)
	fmt.Printf("{\"function\":\"main.keepDevice\",\"bytes\":%d,\"objects\":%d}\n", (73728+16)*len(devices), 2*len(devices))
	fmt.Println("done")
	expect(input)
}
