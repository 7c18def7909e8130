package main

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// talk_test.go: a client that says what it is told to, sense or nonsense.

// talk is one end of a dialogue.
type talk struct {
	t  *testing.T
	nc net.Conn
	r  *bufio.Reader
}

// newTalk begins a dialogue, which has to be over before the test's patience is.
func newTalk(t *testing.T, nc net.Conn) *talk {
	t.Helper()
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &talk{t, nc, bufio.NewReader(io.LimitReader(nc, 1<<20))}
}

// say sends a line.
func (c *talk) say(line string) {
	c.t.Helper()
	if _, err := io.WriteString(c.nc, line+"\r\n"); err != nil {
		c.t.Fatalf("say %q: %v", line, err)
	}
}

// expect reads a reply, which must begin so, and returns it.
func (c *talk) expect(prefix string) string {
	c.t.Helper()
	var reply strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		reply.WriteString(line)
		if err != nil {
			c.t.Fatalf("got %q and %v, want %q", reply.String(), err, prefix)
		}
		if len(line) < 4 || line[3] != '-' {
			break
		}
	}
	if !strings.HasPrefix(reply.String(), prefix) {
		c.t.Errorf("got %q, want %q", reply.String(), prefix)
	}
	return reply.String()
}

// ended checks that the other side closes, having said no more.
func (c *talk) ended() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	if ne, ok := err.(net.Error); len(rest) > 0 || ok && ne.Timeout() {
		c.t.Errorf("got %q and %v, want the end", rest, err)
	}
}
