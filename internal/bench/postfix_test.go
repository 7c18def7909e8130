//go:build linux

package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/peers"
)

// postfix_test.go: Postfix as a peer: its SMTP server passes each message to the sink
// before it answers (smtpd_proxy_filter), which is the nearest that it has to a direct
// relay.

func startPostfix(tb testing.TB, sink string, cert *peers.Certificate) *system {
	p := peers.Postfix(tb, peers.PostfixOptions{Hostname: hostname, SMTPDProxyTo: sink, Certificate: cert})
	group := masterOf(tb, os.Getpid())
	return &system{addr: p.Addr, usage: func(testing.TB) usage { return groupUsage(group) }}
}

// process is what we want to know of a process.
type process struct {
	pid, parent, group int
	name               string
	user, kernel       time.Duration // with its children that have ended
}

// tick is the unit of /proc/*/stat on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// processes reads /proc. Processes that end meanwhile are left out.
func processes() []process {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	var list []process
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil {
			if p, ok := parseStat(text); ok {
				list = append(list, p)
			}
		}
	}
	return list
}

// parseStat reads "pid (name) state ppid pgrp ...". The name may hold anything.
func parseStat(text []byte) (p process, ok bool) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 1 || end < open {
		return p, false
	}
	fields := bytes.Fields(text[end+1:])
	if len(fields) < 15 {
		return p, false
	}
	number := func(b []byte) int {
		n, _ := strconv.Atoi(string(bytes.TrimSpace(b)))
		return n
	}
	p.pid, p.name = number(text[:open]), string(text[open+1:end])
	p.parent, p.group = number(fields[1]), number(fields[2])
	p.user = time.Duration(number(fields[11])+number(fields[13])) * tick
	p.kernel = time.Duration(number(fields[12])+number(fields[14])) * tick
	return p, true
}

// masterOf finds the process group of the Postfix that parent has started.
func masterOf(tb testing.TB, parent int) int {
	tb.Helper()
	for _, p := range processes() {
		if p.parent == parent && p.name == "master" {
			return p.group
		}
	}
	tb.Fatal("there is no Postfix among our children")
	return 0
}

// groupUsage adds up a process group. Those that have ended are with their parent.
func groupUsage(group int) usage {
	var u usage
	for _, p := range processes() {
		if p.group == group {
			u.User += p.user
			u.Kernel += p.kernel
		}
	}
	return u
}

func TestParseStat(t *testing.T) {
	rest := " S 1 7 7 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 99"
	for _, c := range []struct {
		text string
		ok   bool
		want process
		why  string
	}{
		{"12 (smtpd)" + rest, true, process{12, 1, 7, "smtpd", 1030 * time.Millisecond, 240 * time.Millisecond}, "with what its children used"},
		{"12 (a) b (c)" + rest, true, process{12, 1, 7, "a) b (c", 1030 * time.Millisecond, 240 * time.Millisecond}, "names may hold anything"},
		{"12 (smtpd) S 1 7", false, process{}, "too short"},
		{"", false, process{}, "nothing"},
	} {
		got, ok := parseStat([]byte(c.text))
		if ok != c.ok || ok && fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("parseStat(%q) = %v, %v, want %v, %v: %s", c.text, got, ok, c.want, c.ok, c.why)
		}
	}
}
