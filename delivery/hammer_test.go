package delivery

import (
	"context"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// counted counts how many connections are open, on our side.
type counted struct {
	*net.TCPConn
	open   *atomic.Int64
	closed atomic.Bool
}

func (c *counted) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.open.Add(-1)
	}
	return c.TCPConn.Close()
}

// moody is a backend that breaks off every now and then.
func moody(lmtp bool) *fake {
	sometimes := func(n int, what string) string {
		if rand.IntN(n) == 0 {
			return what
		}
		return ""
	}
	return &fake{
		lmtp: lmtp, ehlo: append([]string{"CHUNKING"}, pipelining...),
		answer: func(line string) string {
			switch {
			case strings.HasPrefix(line, "RCPT"):
				return or(sometimes(50, "drop"), sometimes(10, "550 5.1.1 no"))
			case strings.HasPrefix(line, "MAIL"):
				return or(sometimes(50, "421 4.3.2 closing"), sometimes(50, "drop"))
			}
			return ""
		},
		end: func(string) string { return or(sometimes(50, "drop"), sometimes(20, "451 4.2.0 later")) },
	}
}

// TestHammer lets a hundred senders at moody backends, with a cap far below their
// number, senders that give up, and settings that change. At no time there are more
// connections than allowed, nothing is said to be taken that was not, and in the end
// nothing is left.
func TestHammer(t *testing.T) {
	const senders, rounds, limit = 100, 30, 20
	for _, changing := range []bool{false, true} {
		first, second, third := moody(false), moody(true), moody(false)
		o := BackendOptions{Groups: [][]Endpoint{{first.listen(t), second.listen(t)}, {third.listen(t)}}}
		o.Connections, o.MaxUses = limit, 5
		var open, most, taken, said atomic.Int64
		for _, f := range []*fake{first, second, third} {
			end := f.end
			f.end = func(rcpt string) string {
				reply := end(rcpt)
				if reply == "" {
					taken.Add(1)
				}
				return reply
			}
		}
		tr, err := New(Options{LocalName: "gateway.test", Backends: map[string]BackendOptions{"b": o},
			Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				n := open.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				nc, err := dialer(ctx, network, address)
				if err != nil {
					open.Add(-1)
					return nil, err
				}
				return &counted{TCPConn: nc.(*net.TCPConn), open: &open}, nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for i := range senders {
			all.Go(func() {
				for round := range rounds {
					said.Add(oneOfMany(t, tr, i == 0 && round%5 == 0))
				}
			})
		}
		if changing {
			all.Go(func() {
				for i := range 20 {
					o.MaxUses = 3 + i%2
					if err := tr.Update(map[string]BackendOptions{"b": o}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		s := stats(t, tr)
		check(t, "busy", s.Busy, 0)
		check(t, "waiting", s.Waiting, 0)
		if err := tr.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		check(t, "open after the shutdown", open.Load(), 0)
		if !changing && most.Load() > limit {
			t.Errorf("%d connections at once, want at most %d", most.Load(), limit)
		}
		// What was taken and not said breaks off between the two; the other way round
		// is lost mail.
		if said.Load() > taken.Load() || said.Load() < taken.Load()/2 {
			t.Errorf("%d recipients were taken, %d said to be", taken.Load(), said.Load())
		}
		t.Logf("taken %d, said %d, most %d, %s", taken.Load(), said.Load(), most.Load(), figures(s))
	}
}

// oneOfMany does one transaction, which may fail in any way, and returns for how many
// recipients it was told that the message was taken; once for all with SMTP.
func oneOfMany(t *testing.T, tr *Transport, impatient bool) int64 {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if impatient {
		defer time.AfterFunc(time.Duration(rand.IntN(2000))*time.Microsecond, cancel).Stop()
	}
	tx, err := tr.Begin(ctx, "b", from(t))
	if err != nil {
		return 0
	}
	defer tx.Abort()
	accepted := 0
	for _, to := range []string{"a@example.org", "b@example.org"} {
		if tx.Rcpt(ctx, rcpt(t, to)) == nil {
			accepted++
		}
	}
	if rand.IntN(10) == 0 {
		return 0
	}
	lmtp := tx.(*transaction).c != nil && tx.(*transaction).c.ep.LMTP
	replies, err := tx.Data(ctx, letter)
	if err != nil {
		return 0
	}
	if len(replies) != accepted {
		t.Errorf("%d replies for %d recipients", len(replies), accepted)
	}
	if !lmtp {
		replies = replies[:1]
	}
	n := int64(0)
	for _, r := range replies {
		if r.Code == 250 {
			n++
		}
	}
	return n
}
