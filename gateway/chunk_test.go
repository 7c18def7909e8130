package gateway

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/policy"
)

// chunk_test.go: filters that see a body while the client still sends it.

// watcher is a filter that notes the pieces of bodies, and says what say says about each.
type watcher struct {
	say func(e *policy.Event) policy.Verdict

	mu   sync.Mutex // guards what follows
	seen []string   // "offset+length hash", or "message length" for a whole one
}

func (w *watcher) link() policy.Link {
	return policy.Link{MayAccept: true, Filter: policy.Func("watcher", policy.StagesOf(policy.StageChunk, policy.StageMessage),
		func(_ context.Context, e *policy.Event) (policy.Verdict, error) { return w.note(e), nil })}
}

// note notes an event.
func (w *watcher) note(e *policy.Event) policy.Verdict {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.Chunk == nil {
		w.seen = append(w.seen, fmt.Sprint("message ", e.Tx.Message.Body.Size()))
		return policy.Verdict{}
	}
	h := fnv.New32()
	h.Write(e.Chunk.Data)
	w.seen = append(w.seen, fmt.Sprintf("%d+%d %x", e.Chunk.Offset, len(e.Chunk.Data), h.Sum32()))
	if w.say == nil {
		return policy.Verdict{}
	}
	return w.say(e)
}

// told returns what was seen, and forgets it.
func (w *watcher) told() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.seen
	w.seen = nil
	return s
}

// lines makes a body of about n octets that has something of everything: dots at the front of
// lines, and lines that end at and around the edges of pieces.
func lines(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		b.WriteString(strings.Repeat(".", i%3) + strings.Repeat(string(rune('a'+i%26)), i%77) + "\r\n")
	}
	return b.String()
}

// pieces is what a watcher should see of a body.
func pieces(body string) (want []string) {
	for off := 0; off < len(body); off += policy.MaxChunk {
		p := body[off:min(off+policy.MaxChunk, len(body))]
		h := fnv.New32()
		h.Write([]byte(p))
		want = append(want, fmt.Sprintf("%d+%d %x", off, len(p), h.Sum32()))
	}
	return append(want, fmt.Sprint("message ", len(body)))
}

// TestChunks: the pieces are the same however the octets come, and their concatenation is the
// body, in memory and in a file, with DATA and BDAT.
func TestChunks(t *testing.T) {
	w := &watcher{}
	r := (&rig{links: []policy.Link{w.link()}}).start(t)
	p := r.hello(t)
	const header = "Subject: x\r\n\r\n"
	for _, body := range []string{"", "x\r\n", lines(policy.MaxChunk - 1), lines(700 << 10)} {
		want := pieces(body)
		if body == "" {
			want = []string{"message 0"}
		}
		raw := strings.ReplaceAll(header+body, "\r\n.", "\r\n..") + ".\r\n"
		for _, cut := range []int{1, 1000, 1 << 20} {
			if cut == 1 && len(raw) > 1000 {
				cut = 313
			}
			p.begin("a@example.com")
			p.talk("DATA => 354")
			for at := 0; at < len(raw); at += cut {
				p.send(raw[at:min(at+cut, len(raw))])
			}
			p.talk(" => 250")
			is(t, fmt.Sprintf("DATA of %d octets, cut every %d", len(raw), cut), w.told(), want)
		}
		p.begin("a@example.com")
		rest := header + body
		for _, n := range []int{5, 1, 70_000, 0, 200_000} {
			n = min(n, len(rest))
			p.send(fmt.Sprintf("BDAT %d\r\n%s", n, rest[:n]))
			p.talk(" => 250 2.0.0 chunk")
			rest = rest[n:]
		}
		p.send(fmt.Sprintf("BDAT %d LAST\r\n%s", len(rest), rest))
		p.talk(" => 250")
		is(t, fmt.Sprintf("BDAT of %d octets", len(raw)), w.told(), want)
	}
	p.talk("QUIT => 221")
}

// TestChunkVerdicts: what a verdict about the second of four pieces does to the message, and
// that the client hears of it when it has sent all.
func TestChunkVerdicts(t *testing.T) {
	body := lines(3<<16 + 100)
	for _, c := range []struct {
		verdict policy.Verdict
		reply   string
		pieces  int // seen
		whole   bool
		gets    bool // the backend
		next    string
	}{
		{policy.Verdict{}, "250 2.0.0", 4, true, true, "250"},
		{policy.Verdict{Action: policy.Skip}, "250 2.0.0", 2, true, true, "250"},
		{policy.Verdict{Action: policy.Reject}, "550 5.7.1", 2, false, false, "250"},
		{policy.Verdict{Action: policy.Tempfail}, "451 4.7.1", 2, false, false, "250"},
		{policy.Verdict{Action: policy.Discard}, "250 2.6.0 message accepted", 4, true, false, "250"},
		{policy.Verdict{Action: policy.Quarantine}, "451 4.3.0 message cannot be held", 4, true, false, "250"},
		{policy.Verdict{Action: policy.Disconnect}, "421 4.7.0", 2, false, false, "closed"},
	} {
		for _, bdat := range []bool{false, true} {
			w := &watcher{say: func(e *policy.Event) policy.Verdict {
				if e.Chunk.Offset == policy.MaxChunk {
					return c.verdict
				}
				return policy.Verdict{}
			}}
			r := (&rig{links: []policy.Link{w.link()}}).start(t)
			p := r.hello(t)
			p.begin("a@example.com")
			var got string
			if bdat {
				text := "Subject: x\r\n\r\n" + body
				p.send(fmt.Sprintf("BDAT %d LAST\r\n%s", len(text), text))
				got = p.reply()
			} else {
				got = p.data("Subject: x\r\n\r\n" + body)
			}
			if !strings.HasPrefix(got, c.reply) {
				t.Errorf("%s, BDAT %v: got %q, want %q", c.verdict.Action, bdat, got, c.reply)
			}
			want := pieces(body)[:c.pieces]
			if c.whole {
				want = append(want, fmt.Sprint("message ", len(body)))
			}
			is(t, c.verdict.Action.String(), w.told(), want)
			if gets := r.far.last() != nil; gets != c.gets {
				t.Errorf("%s: the backend has it: %v, want %v", c.verdict.Action, gets, c.gets)
			}
			if c.next == "closed" {
				p.talk(" => closed")
				continue
			}
			// The session is in order, and the next message is seen anew.
			w.say = nil
			p.begin("a@example.com")
			p.data(testMessage)
			is(t, "the next message", w.told(), pieces("The sesame is opened.\r\n"))
		}
	}
}

// TestChunkOfPart: with BDAT a refusal is told at the end of the chunk at hand, and what comes
// behind is refused unread.
func TestChunkOfPart(t *testing.T) {
	w := &watcher{say: func(*policy.Event) policy.Verdict { return policy.Verdict{Action: policy.Reject} }}
	p := (&rig{links: []policy.Link{w.link()}}).start(t).hello(t)
	p.begin("a@example.com")
	text := "Subject: x\r\n\r\n" + lines(1<<16)
	p.send(fmt.Sprintf("BDAT %d\r\n%s", len(text), text))
	p.talk(" => 550 5.7.1", "BDAT 0 LAST => 503", "RSET => 250")
	is(t, "seen", w.told(), pieces(lines(1 << 16))[:1])
}

// TestSlowWatcher: the time that a filter takes over pieces is not the backend's, which is given
// back and asked again.
func TestSlowWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &watcher{say: func(*policy.Event) policy.Verdict {
			time.Sleep(3 * time.Second)
			return policy.Verdict{}
		}}
		r := &rig{links: []policy.Link{w.link()}}
		r.build(t)
		p, wait := r.piped(t)
		p.talk(" => 220", "EHLO client.test => 250")
		p.begin("a@example.com")
		begin := []string{"begin a <from@client.test>", "rcpt <a@example.com>"}
		if got := p.data("Subject: x\r\n\r\n" + lines(3<<16)); !strings.HasPrefix(got, "250") {
			t.Errorf("got %q", got)
		}
		is(t, "far side", r.far.told(), append(withAbort(begin), append(begin, "data <a@example.com>")...))
		wait()
		r.stop(t)
	})
}
