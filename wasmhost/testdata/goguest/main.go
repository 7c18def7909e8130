// The guest of wasmhost's tests: a filter built by the Go compiler, which does at MAIL
// what its configuration says.
package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"io"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/penstock/penstock/guest-sdk/filter"
)

var count int

func newFilter() *filter.Filter {
	f := filter.New("goguest")
	mode := ""
	f.Configure(func(c filter.Config) error {
		mode = c.String("mode")
		return nil
	})
	f.OnMailFrom(func(w filter.Reply, e *filter.MailEvent) {
		switch mode {
		case "count":
			count++
			w.Tempfail(450, "4.7.1", "call "+strconv.Itoa(count))
		case "panic":
			var m map[string]int
			m["x"]++
		case "exit":
			println("a last word")
			syscall.Exit(3)
		case "die":
			go func() { panic("in a goroutine, where nobody recovers") }()
			time.Sleep(time.Millisecond)
		case "loop":
			for {
			}
		case "deadlock":
			select {}
		case "recurse":
			w.Tempfail(450, "4.7.1", strconv.Itoa(recurse(1)))
		case "goroutines":
			w.Tempfail(450, "4.7.1", "sum "+strconv.Itoa(sumInGoroutines()))
		case "sleep":
			start := time.Now()
			time.Sleep(20 * time.Millisecond)
			w.Tempfail(450, "4.7.1", "slept long enough: "+strconv.FormatBool(time.Since(start) >= 20*time.Millisecond))
		case "random":
			var b [16]byte
			n, _ := rand.Read(b[:])
			w.Tempfail(450, "4.7.1", strconv.Itoa(n)+" "+hex.EncodeToString(b[:]))
		case "memory":
			w.Tempfail(450, "4.7.1", strconv.Itoa(len(eat())))
		case "file":
			_, err := syscall.Open("/etc/passwd", syscall.O_RDONLY, 0)
			w.Tempfail(450, "4.7.1", err.Error())
		}
	})
	f.OnData(func(w filter.Reply, m *filter.Message) {
		if mode != "edit" {
			return
		}
		body, err := io.ReadAll(m.Body)
		if err == nil {
			err = m.Body.Replace(bytes.ToUpper(body))
		}
		if err == nil {
			err = m.Header.Add("X-Size", strconv.Itoa(len(body)))
		}
		if err != nil {
			w.Tempfail(450, "4.7.1", err.Error())
		}
	})
	return f
}

func recurse(n int) int { return recurse(n+1) + n }

func sumInGoroutines() int {
	results := make(chan int)
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() { results <- i })
	}
	go func() { wg.Wait(); close(results) }()
	sum := 0
	for n := range results {
		sum += n
	}
	return sum
}

func eat() (all [][]byte) {
	for {
		b := make([]byte, 1<<20)
		for i := range b {
			b[i] = 1
		}
		all = append(all, b)
	}
}

func init() { newFilter().Serve() }

func main() {}
