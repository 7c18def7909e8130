package guest_test

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/mail/parts"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

const mixed = "Subject: x\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n" +
	"--x\r\nContent-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n<b>=C3=BC</b>\r\n" +
	"--x\r\nContent-Type: application/zip; name=b.txt\r\nContent-Disposition: attachment; filename=a.zip\r\nContent-ID: <i@d>\r\nContent-Transfer-Encoding: base64\r\n\r\naGVsbG8=\r\n" +
	"--x--\r\n"

// askMessage is ask at the message hook, about a message of the test's.
func askMessage(t testing.TB, raw string, o guest.Options, f func(g *guest.Env, e *policy.Event)) {
	t.Helper()
	tx := transaction()
	tx.Message = policy.NewMessage([]byte(raw))
	o.Grants, o.Services = everything(), world().Services()
	g := guest.NewEnv(o)
	fn := policy.Func("f", policy.StagesOf(policy.StageMessage), func(_ context.Context, e *policy.Event) (policy.Verdict, error) {
		g.Begin(context.Background(), abi.HookMessage, e)
		defer g.End()
		f(g, e)
		return policy.Verdict{}, nil
	})
	policy.NewChain(policy.Link{Filter: fn}).Open(session(), nil).Decide(t.Context(), policy.StageMessage, tx)
}

// The numbers of the flags are those of the ABI, and so are the limits.
func TestPartsAreTheABIs(t *testing.T) {
	for i, pair := range [][2]uint32{
		{uint32(parts.Broken), uint32(abi.PartBroken)}, {uint32(parts.Ambiguous), uint32(abi.PartAmbiguous)},
		{uint32(parts.Deep), uint32(abi.PartDeep)}, {uint32(parts.Opaque), uint32(abi.PartOpaque)},
		{uint32(parts.Truncated), uint32(abi.PartTruncated)}, {uint32(parts.LongHeader), uint32(abi.PartLongHeader)},
		{uint32(parts.UnknownEncoding), uint32(abi.PartUnknownEncoding)},
		{parts.MaxParts, abi.MaxParts}, {parts.MaxDepth, abi.MaxPartDepth},
	} {
		if pair[0] != pair[1] {
			t.Errorf("number %d: %d in package parts, %d in package abi", i, pair[0], pair[1])
		}
	}
}

// record reads what part_info gives.
func record(g *guest.Env, i int32) (numbers []int64, texts []string) {
	b := make([]byte, 500)
	n := g.PartInfo(i, b)
	if n < 0 {
		return nil, nil
	}
	le := binary.LittleEndian
	head := le.Uint32(b)
	numbers = []int64{int64(head), int64(le.Uint32(b[abi.PartOffFlags:])), int64(le.Uint32(b[abi.PartOffDepth:])), int64(int32(le.Uint32(b[abi.PartOffParent:]))),
		int64(le.Uint64(b[abi.PartOffHeader:])), int64(le.Uint64(b[abi.PartOffOff:])), int64(le.Uint64(b[abi.PartOffSize:]))}
	for b = b[head:n]; len(b) > 0; {
		size := le.Uint32(b)
		texts = append(texts, string(b[4:4+size]))
		b = b[4+size:]
	}
	return numbers, texts
}

func TestParts(t *testing.T) {
	var charged int64
	charge := func(n int64) bool { charged += n; return true }
	askMessage(t, mixed, guest.Options{Charge: charge}, func(g *guest.Env, _ *policy.Event) {
		if n := g.PartCount(); n != 3 {
			t.Fatalf("%d parts", n)
		}
		scanned := charged
		body := mixed[strings.Index(mixed, "--x\r\n"):]
		zip := int64(strings.Index(body, "aGVs"))
		header := int64(strings.Index(body, "Content-Type: application"))
		numbers, texts := record(g, 2)
		if got, want := numbers, []int64{40, 0, 1, 0, header, zip, 8}; !slices.Equal(got, want) {
			t.Errorf("record: got %v, want %v", got, want)
		}
		if got, want := texts, []string{"application/zip", "", "attachment", "base64", "i@d", "a.zip", "b.txt"}; !slices.Equal(got, want) {
			t.Errorf("record: got %q, want %q", got, want)
		}
		if numbers, _ := record(g, 0); !slices.Equal(numbers, []int64{40, 0, 0, -1, -1, 0, int64(len(body))}) {
			t.Errorf("record of the message: %v", numbers)
		}
		for _, tt := range []struct {
			part, form int32
			want       string
		}{
			{1, 0, "<b>=C3=BC</b>"}, {1, 1, "<b>ü</b>"}, {2, 1, "hello"}, {2, 0, "aGVsbG8="}, {2, 1, "hello"}, {0, 0, body}, {0, 1, body},
			{1, 2, "Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"},
			{0, 2, "Subject: x\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n"},
		} {
			buf := make([]byte, 1000)
			n := g.PartRead(tt.part, tt.form, 0, buf)
			if n < 0 || string(buf[:n]) != tt.want {
				t.Errorf("part %d, form %d: got %d, %q, want %q", tt.part, tt.form, n, buf[:max(n, 0)], tt.want)
			}
			if n := g.PartLen(tt.part, tt.form); n != int64(len(tt.want)) {
				t.Errorf("part %d, form %d: length %d, want %d", tt.part, tt.form, n, len(tt.want))
			}
			if n := g.PartRead(tt.part, tt.form, 2, buf[:3]); n != 3 || string(buf[:3]) != tt.want[2:5] {
				t.Errorf("part %d, form %d, at 2: got %d, %q", tt.part, tt.form, n, buf[:3])
			}
			if n := g.PartRead(tt.part, tt.form, int64(len(tt.want)), buf); n != 0 {
				t.Errorf("part %d, form %d, at its end: got %d", tt.part, tt.form, n)
			}
		}
		for name, got := range map[string]int64{
			"part -1":       int64(g.PartInfo(-1, nil)) - int64(abi.ENOENT),
			"part 3":        int64(g.PartRead(3, 0, 0, make([]byte, 1))) - int64(abi.ENOENT),
			"length of 3":   g.PartLen(3, 0) - int64(abi.ENOENT),
			"form 3":        int64(g.PartRead(1, 3, 0, make([]byte, 1))) - int64(abi.EINVAL),
			"form -1":       g.PartLen(1, -1) - int64(abi.EINVAL),
			"offset -1":     int64(g.PartRead(1, 1, -1, make([]byte, 1))) - int64(abi.EINVAL),
			"far behind it": int64(g.PartRead(1, 1, 1<<62, make([]byte, 1))),
		} {
			if got != 0 {
				t.Errorf("%s: off by %d", name, got)
			}
		}
		// A new field is a new view of the message with the same parts: they are not looked for
		// again. A new body is.
		charged = 0
		g.HdrAdd(-1, []byte("X-A"), []byte("b"))
		if g.PartCount() != 3 || charged >= scanned {
			t.Errorf("after a new field: %d parts, charged %d, before %d", g.PartCount(), charged, scanned)
		}
		g.BodySplice(0, int64(header), []byte("--x\r\n"))
		if n := g.PartCount(); n != 2 {
			t.Errorf("after a splice: %d parts", n)
		}
		g.HdrSet(1, []byte("text/plain"))
		if n := g.PartCount(); n != 1 {
			t.Errorf("after another type: %d parts", n)
		}
	})
}

// A guest that has used up its time gets no more work done.
func TestCharge(t *testing.T) {
	big := mixed[:strings.Index(mixed, "--x\r\n")] + strings.Repeat("xine\r\n", 100_000)
	left := int64(300 << 10)
	charge := func(n int64) bool {
		if n > 1<<20 {
			t.Errorf("asked for %d octets at once", n)
		}
		if n > left {
			return false
		}
		left -= n
		return true
	}
	askMessage(t, big, guest.Options{Charge: charge, Setup: booted(t)}, func(g *guest.Env, _ *policy.Event) {
		for name, call := range map[string]func() int64{
			"body_read":  func() int64 { return int64(g.BodyRead(0, make([]byte, 1<<20))) },
			"hash":       func() int64 { return int64(g.Hash(1, abi.ScanBody, nil)) },
			"match":      func() int64 { return int64(g.Match(0, abi.ScanBody, 0, nil)) },
			"hdr_find":   func() int64 { left = 0; return int64(g.HdrFind([]byte("x"), 0)) },
			"part_count": func() int64 { return int64(g.PartCount()) },
			"part_read":  func() int64 { return int64(g.PartRead(0, 0, 0, make([]byte, 1<<20))) },
			"part_len":   func() int64 { return g.PartLen(0, 1) },
		} {
			if got := call(); got != int64(abi.ETIME) {
				t.Errorf("%s: got %d, want ETIME", name, got)
			}
		}
	})
}
