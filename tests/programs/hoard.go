// A program in Go, without C, whose own heap grows: it keeps what it allocates in remember, some 400 kB a second, and drops what it allocates
// in forget. Runs until it is killed.
package main

import "time"

var kept [][]byte
var dropped []byte

//go:noinline
func remember() { kept = append(kept, make([]byte, 4000)) }

//go:noinline
func forget() { dropped = make([]byte, 4000) }

func main() {
	for {
		remember()
		forget()
		time.Sleep(10 * time.Millisecond)
	}
}
