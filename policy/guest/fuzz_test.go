package guest_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// program reads numbers and strings for calls from fuzzed octets.
type program struct{ b []byte }

func (p *program) byte() byte {
	if len(p.b) == 0 {
		return 0
	}
	c := p.b[0]
	p.b = p.b[1:]
	return c
}

// number is small mostly, and odd at times.
func (p *program) number() int64 {
	switch c := p.byte(); c {
	case 255:
		return 1<<63 - 1
	case 254:
		return -1 << 63
	case 253:
		return 1<<31 - 1
	case 252:
		return 1 << 20
	default:
		return int64(c) - 8
	}
}

func (p *program) text() []byte {
	n := int(p.byte())
	switch {
	case n == 255:
		return bytes.Repeat([]byte("y"), 200<<10)
	case n > 240:
		return []byte("w@example.org")
	case n > 230:
		return []byte("Subject")
	}
	n = min(n, len(p.b))
	s := p.b[:n]
	p.b = p.b[n:]
	return s
}

func (p *program) buf() []byte { return make([]byte, int(p.byte())*4) }

// operations are all calls of a Host, with arguments of the program.
var operations = []func(h guest.Host, p *program) int64{
	func(h guest.Host, p *program) int64 { return int64(h.Subscribe(uint64(p.number()))) },
	func(h guest.Host, p *program) int64 {
		return int64(h.Get(int32(p.number()), int32(p.number()), p.buf()))
	},
	func(h guest.Host, p *program) int64 { return int64(h.Config(int32(p.number()), p.buf())) },
	func(h guest.Host, p *program) int64 { return int64(h.Reply(p.text())) },
	func(h guest.Host, p *program) int64 { return int64(h.Tag(p.text(), p.text())) },
	func(h guest.Host, p *program) int64 { return int64(h.Log(int32(p.number()), p.text())) },
	func(h guest.Host, p *program) int64 { return int64(h.LogEnabled(int32(p.number()))) },
	func(h guest.Host, p *program) int64 { return int64(h.Random(p.buf())) },
	func(h guest.Host, p *program) int64 { return int64(h.SessGet(p.text(), p.buf())) },
	func(h guest.Host, p *program) int64 { return int64(h.SessSet(p.text(), p.text())) },
	func(h guest.Host, p *program) int64 { return h.HdrGet(int32(p.number()), p.buf()) },
	func(h guest.Host, p *program) int64 { return int64(h.HdrFind(p.text(), int32(p.number()))) },
	func(h guest.Host, p *program) int64 { return int64(h.HdrRaw(int32(p.number()), p.buf())) },
	func(h guest.Host, p *program) int64 { return int64(h.HdrAdd(int32(p.number()), p.text(), p.text())) },
	func(h guest.Host, p *program) int64 { return int64(h.HdrSet(int32(p.number()), p.text())) },
	func(h guest.Host, p *program) int64 { return int64(h.HdrDel(int32(p.number()))) },
	func(h guest.Host, p *program) int64 { return int64(h.BodyRead(p.number(), p.buf())) },
	func(h guest.Host, p *program) int64 { return int64(h.BodySplice(p.number(), p.number(), p.text())) },
	func(h guest.Host, _ *program) int64 { return int64(h.BodyNew()) },
	func(h guest.Host, p *program) int64 { return int64(h.BodyWrite(p.text())) },
	func(h guest.Host, _ *program) int64 { return int64(h.BodyCommit()) },
	func(h guest.Host, p *program) int64 { return int64(h.EnvFrom(p.text())) },
	func(h guest.Host, p *program) int64 { return int64(h.RcptGet(int32(p.number()), p.buf())) },
	func(h guest.Host, p *program) int64 { return int64(h.RcptAdd(p.text())) },
	func(h guest.Host, p *program) int64 { return int64(h.RcptSet(int32(p.number()), p.text())) },
	func(h guest.Host, p *program) int64 { return int64(h.RcptDel(int32(p.number()))) },
	func(h guest.Host, p *program) int64 { return int64(h.KvGet(p.text(), p.buf())) },
	func(h guest.Host, p *program) int64 { return int64(h.KvSet(p.text(), p.text(), p.number())) },
	func(h guest.Host, p *program) int64 {
		return int64(h.KvIncr(p.text(), p.number(), p.number(), p.buf()))
	},
	func(h guest.Host, p *program) int64 { return int64(h.KvCas(p.text(), p.text(), p.text(), p.number())) },
	func(h guest.Host, p *program) int64 { return int64(h.KvDel(p.text())) },
	func(h guest.Host, p *program) int64 { return int64(h.Dns(int32(p.number()), p.text(), p.buf())) },
	func(h guest.Host, p *program) int64 { return int64(h.Http(p.text(), p.buf())) },
	func(h guest.Host, p *program) int64 { return int64(h.Dsn(p.text())) },
	func(h guest.Host, p *program) int64 { return int64(h.Submit(int32(p.number()), p.text())) },
	func(h guest.Host, p *program) int64 {
		return int64(h.Wait(int32(p.number()), int32(p.number()), p.buf()))
	},
	func(h guest.Host, p *program) int64 { return int64(h.Secret(p.text(), p.buf())) },
	func(h guest.Host, p *program) int64 {
		return int64(h.Frame(make([]byte, abi.MinMailbox+int(p.byte()))))
	},
	func(h guest.Host, p *program) int64 { h.Stderr(p.text()); return 0 },
	func(h guest.Host, p *program) int64 { return int64(h.RcptVerdict(int32(p.number()), p.number())) },
	func(h guest.Host, p *program) int64 { return int64(h.Score(p.text(), p.number())) },
	func(h guest.Host, p *program) int64 { return int64(h.Metric(p.text(), int32(p.number()))) },
	func(h guest.Host, p *program) int64 { return int64(h.MetricAdd(int32(p.number()), p.number())) },
	func(h guest.Host, p *program) int64 { return int64(h.MatchSet(int32(p.number()), p.text())) },
	func(h guest.Host, p *program) int64 {
		return int64(h.Match(int32(p.number()), int32(p.number()), p.number(), p.buf()))
	},
	func(h guest.Host, p *program) int64 {
		return int64(h.Hash(int32(p.number()), int32(p.number()), p.buf()))
	},
	func(h guest.Host, _ *program) int64 { return int64(h.PartCount()) },
	func(h guest.Host, p *program) int64 { return int64(h.PartInfo(int32(p.number()), p.buf())) },
	func(h guest.Host, p *program) int64 { return h.PartLen(int32(p.number()), int32(p.number())) },
	func(h guest.Host, p *program) int64 {
		return int64(h.PartRead(int32(p.number()), int32(p.number()), p.number(), p.buf()))
	},
	func(h guest.Host, p *program) int64 { return int64(h.OutRelay(p.text())) },
	func(h guest.Host, p *program) int64 { return int64(h.OutSource(p.text())) },
	func(h guest.Host, p *program) int64 { return int64(h.OutTls(int32(p.number()))) },
	func(h guest.Host, p *program) int64 { return int64(h.OutConnect(p.text())) },
}

// consistent checks that all ways to look at the current view agree.
func consistent(t *testing.T, g *guest.Env, hook abi.Hook, e *policy.Event) {
	t.Helper()
	if abi.WithRcpts.Has(hook) {
		if n := g.RcptCount(); int(n) != len(e.Edits.Recipients()) {
			t.Errorf("rcpt_count %d, %d recipients", n, len(e.Edits.Recipients()))
		}
	}
	if !abi.WithHeader.Has(hook) {
		return
	}
	n := int(g.HdrRaw(0, nil))
	raw := make([]byte, n)
	if g.HdrRaw(0, raw); int64(n) != e.Edits.Message().Header.Size() || !bytes.HasSuffix(raw, []byte("\r\n\r\n")) {
		t.Errorf("hdr_raw has %d octets, the header %d: %q", n, e.Edits.Message().Header.Size(), raw)
	}
	for line := range strings.SplitSeq(string(raw), "\r\n") {
		if strings.ContainsAny(line, "\r\n\x00") {
			t.Errorf("a bare CR, LF or NUL in %q", line)
		}
	}
	// Reading the section anew finds the same fields: no edit made one out of another.
	count := int(g.HdrCount())
	if h := policy.NewMessage(raw).Header; h.Len() != count {
		t.Errorf("hdr_count %d, but %d fields in %q", count, h.Len(), raw)
	}
	if g.HdrFind([]byte("Received"), 0) < 0 {
		t.Error("the Received field is gone")
	}
	if hook != abi.HookMessage {
		return
	}
	size, read := g.BodyLen(), int64(0)
	for buf := make([]byte, 64<<10); ; {
		n := g.BodyRead(read, buf)
		if n <= 0 {
			break
		}
		read += int64(n)
	}
	if read != size {
		t.Errorf("body_len %d, body_read gave %d octets", size, read)
	}
}

// FuzzHost makes any calls in any order at any hook: none panics, each answers with a
// length or a known error number, and all views agree after each.
func FuzzHost(f *testing.F) {
	f.Add(byte(10), []byte{13, 8, 3, 'X', '-', 'A', 2, 'h', 'i', 14, 10, 3, 'a', 'b', 'c', 15, 9})
	f.Add(byte(10), []byte{17, 8, 12, 4, 'a', 'b', 'c', 'd', 18, 19, 3, 'x', 'y', 'z', 19, 255, 20, 16, 8, 9})
	f.Add(byte(6), []byte{23, 241, 23, 250, 24, 8, 241, 25, 9, 25, 8, 22, 9, 9, 26, 200})
	f.Add(byte(5), []byte{21, 0, 21, 241, 1, 16, 8, 50, 3, 3, 'a', '\n', 'b', 4, 1, 'k', 1, 'v', 9, 1, 'k', 255})
	f.Add(byte(12), []byte{1, 23, 7, 20, 8, 1, 'k', 9, 9, 1, 'k', 2, 'v', 'w'})
	f.Add(byte(12), []byte{56, 3, 'a', '.', 'b', 57, 1, 'p', 58, 4, 1, 36, 255})
	f.Add(byte(13), []byte{59, 9, '1', '0', '.', '0', '.', '0', '.', '1', ':', 1, 37, 255})
	hooks := abi.HookTable()
	f.Fuzz(func(t *testing.T, where byte, b []byte) {
		hook := hooks[int(where)%len(hooks)].Hook
		if len(b) > 1<<10 {
			b = b[:1<<10]
		}
		p := &program{b}
		ask(t, hook, guest.Options{Setup: booted(t)}, func(g *guest.Env, e *policy.Event) error {
			for len(p.b) > 0 {
				op := int(p.byte()) % len(operations)
				got := operations[op](g, p)
				if got < int64(abi.EPHASE) {
					t.Errorf("operation %d: got %d, which is no error number", op, got)
				}
				consistent(t, g, hook, e)
			}
			_, _ = g.Verdict(abi.Verdict(where) << 40)
			return nil
		})
	})
}
