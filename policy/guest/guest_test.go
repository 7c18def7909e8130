package guest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

func path(s string) smtp.Path {
	p, err := smtp.ParseAddress(s)
	if err != nil {
		panic(err)
	}
	return p
}

var at = time.Unix(1_700_000_000, 5)

func session() *policy.Session {
	return &policy.Session{
		ID: "c7", Number: 7, Listener: "mx", RDNS: "client.example.net", Helo: "helo.example.net", User: "u1",
		Remote: netip.MustParseAddrPort("192.0.2.1:2525"), Local: netip.MustParseAddrPort("[2001:db8::25]:25"),
		TLS:    &policy.TLS{Version: 0x304, Cipher: 0x1301, ServerName: "mx.example.com", ALPN: "smtp", Peer: "CN=client", Verified: true, Fingerprint: "c0ffee"},
		Tags:   []policy.Tag{{Filter: "f0", Key: "k", Value: "v"}},
		Scores: []policy.Score{{Key: "s0", Milli: 1}},
	}
}

// login is one of which everything is known.
func login() *policy.Auth {
	return &policy.Auth{Mechanism: "PLAIN", User: "u1", Authz: "u2", Password: "s3cret", Token: "t0ken", Reveal: true}
}

const text = "Received: from a\r\n by b\r\nSubject: one\r\nX-A: 1\r\nsubject: two\r\n\r\nline 1\r\nline 2\r\n"

func transaction() *policy.Transaction {
	return &policy.Transaction{
		Seq: 3, Sender: smtp.Sender{Path: path("a@example.net"), Size: 100, Body: "8BITMIME", UTF8: true},
		Rcpts: []policy.Recipient{
			{Recipient: smtp.Recipient{Path: path("b@example.com")}},
			{Recipient: smtp.Recipient{Path: path(`"c d"@example.com`)}},
		},
		Message: policy.NewMessage([]byte(text)),
		Tags:    []policy.Tag{{Filter: "f1", Key: "x", Value: "y"}},
		Scores:  []policy.Score{{Key: "s0", Milli: 2}, {Key: "s1", Milli: -1500}},
	}
}

// outbound is an attempt of which everything is known.
func outbound() *policy.Outbound {
	addr := netip.MustParseAddr("192.0.2.25")
	return &policy.Outbound{
		Target: "example.com", Try: 2, Arrived: at, Expires: at.Add(time.Hour), Way: policy.Way{Source: "pool", TLS: policy.Encrypted},
		Hops: []policy.Hop{{Host: "mx1.example.com", Preference: 10, Addrs: []netip.Addr{addr, netip.MustParseAddr("2001:db8::25")}, Demand: "dane"},
			{Host: "mx2.example.com", Preference: 20, Refused: "no\taddress"}},
		Fates: []policy.Fate{{Reply: smtp.Refuse(451, smtp.Enhanced{4, 2, 0}, "later\tor never"), Host: "mx1.example.com", Addr: addr, Due: at},
			{Reply: smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "no")}},
	}
}

// ask calls f with an Env that may do everything and is at a hook, in a chain as the
// gateway runs it, and returns the transaction as it was left. An error of f drops the edits.
func ask(t testing.TB, hook abi.Hook, o guest.Options, f func(g *guest.Env, e *policy.Event) error) *policy.Transaction {
	t.Helper()
	o.Grants, o.Services = everything(), world().Services()
	return askEnv(t, guest.NewEnv(o), hook, f)
}

func askEnv(t testing.TB, g *guest.Env, hook abi.Hook, f func(g *guest.Env, e *policy.Event) error) *policy.Transaction {
	t.Helper()
	stage := policy.Stage(hook)
	tx := transaction()
	if stage < policy.StageHeaders || stage > policy.StageReset {
		tx.Message = nil
	}
	if stage >= policy.StageRoute {
		tx.Outbound = outbound()
	}
	called := false
	fn := policy.Func("f", policy.StagesOf(stage), func(ctx context.Context, e *policy.Event) (policy.Verdict, error) {
		called = true
		e.Time = at
		g.Begin(ctx, hook, e)
		defer g.End()
		return policy.Verdict{}, f(g, e)
	})
	run := policy.NewChain(policy.Link{Filter: fn}).Open(session(), func(s policy.Step) {
		if err := s.Err; err != nil && !errors.Is(err, errDrop) {
			t.Errorf("hook %d: %v", hook, err)
		}
	})
	arg := tx
	if stage < policy.StageMail || stage == policy.StageClose {
		arg = nil
	}
	if stage == policy.StageAuth {
		run.DecideAuth(t.Context(), login())
	} else {
		run.Decide(t.Context(), stage, arg)
	}
	if !called {
		t.Fatalf("the chain did not ask at %s", stage)
	}
	return tx
}

// everything is all grants, with those of world.
func everything() guest.Grants {
	g := guest.Everything()
	g.Secrets = []string{"s"}
	return g
}

// world has something of everything.
func world() *filtertest.World {
	return &filtertest.World{
		KV: map[string]string{"n": "5", "k": "v"}, Secrets: map[string]string{"s": "hush"},
		DNS: map[string][]guest.DNSRecord{"TXT a.test": {{Text: "t"}}},
		HTTP: func(context.Context, guest.HTTPRequest) (guest.HTTPResponse, error) {
			return guest.HTTPResponse{Status: 200, Body: []byte("ok")}, nil
		},
	}
}

var errDrop = errors.New("the filter failed")

// calls has a call of every import, with arguments that make sense where it may be
// called.
var calls = map[string]func(h guest.Host) int64{
	"subscribe":   func(h guest.Host) int64 { return int64(h.Subscribe(1 << abi.HookMail)) },
	"features":    func(h guest.Host) int64 { return int64(h.Features()) },
	"get":         func(h guest.Host) int64 { return int64(h.Get(int32(abi.FieldConnID), 0, make([]byte, 8))) },
	"config":      func(h guest.Host) int64 { return int64(h.Config(0, make([]byte, 8))) },
	"reply":       func(h guest.Host) int64 { return int64(h.Reply([]byte("no"))) },
	"tag":         func(h guest.Host) int64 { return int64(h.Tag([]byte("k"), []byte("v"))) },
	"score":       func(h guest.Host) int64 { return int64(h.Score([]byte("k"), -1500)) },
	"log":         func(h guest.Host) int64 { return int64(h.Log(1, []byte("line"))) },
	"log_enabled": func(h guest.Host) int64 { return int64(h.LogEnabled(1)) },
	"metric":      func(h guest.Host) int64 { return int64(h.Metric([]byte("hits"), 0)) },
	"metric_add":  func(h guest.Host) int64 { return int64(h.MetricAdd(0, 1)) },
	"now":         func(h guest.Host) int64 { return h.Now() },
	"mono":        func(h guest.Host) int64 { return h.Mono() },
	"random":      func(h guest.Host) int64 { return int64(h.Random(make([]byte, 8))) },
	"sess_get":    func(h guest.Host) int64 { return int64(h.SessGet([]byte("k"), make([]byte, 8))) },
	"sess_set":    func(h guest.Host) int64 { return int64(h.SessSet([]byte("k"), []byte("v"))) },
	"hdr_count":   func(h guest.Host) int64 { return int64(h.HdrCount()) },
	"hdr_get":     func(h guest.Host) int64 { return h.HdrGet(1, make([]byte, 80)) },
	"hdr_find":    func(h guest.Host) int64 { return int64(h.HdrFind([]byte("subject"), 0)) },
	"hdr_raw":     func(h guest.Host) int64 { return int64(h.HdrRaw(0, make([]byte, 80))) },
	"hdr_add":     func(h guest.Host) int64 { return int64(h.HdrAdd(-1, []byte("X-B"), []byte("2"))) },
	"hdr_set":     func(h guest.Host) int64 { return int64(h.HdrSet(1, []byte("x"))) },
	"hdr_del":     func(h guest.Host) int64 { return int64(h.HdrDel(1)) },
	"body_len":    func(h guest.Host) int64 { return h.BodyLen() },
	"body_read":   func(h guest.Host) int64 { return int64(h.BodyRead(0, make([]byte, 8))) },
	"body_splice": func(h guest.Host) int64 { return int64(h.BodySplice(0, 1, []byte("L"))) },
	"body_new":    func(h guest.Host) int64 { return int64(h.BodyNew()) },
	"body_write":  func(h guest.Host) int64 { h.BodyNew(); return int64(h.BodyWrite([]byte("x"))) },
	"body_commit": func(h guest.Host) int64 { h.BodyNew(); return int64(h.BodyCommit()) },
	"part_count":  func(h guest.Host) int64 { return int64(h.PartCount()) },
	"part_info":   func(h guest.Host) int64 { return int64(h.PartInfo(0, make([]byte, 80))) },
	"part_len":    func(h guest.Host) int64 { return h.PartLen(0, 1) },
	"part_read":   func(h guest.Host) int64 { return int64(h.PartRead(0, 1, 0, make([]byte, 80))) },
	"match_set":   func(h guest.Host) int64 { return int64(h.MatchSet(0, []byte("\x01\x00\x00\x00x"))) },
	"match":       func(h guest.Host) int64 { return int64(h.Match(0, -1, 0, make([]byte, 16))) },
	"hash":        func(h guest.Host) int64 { return int64(h.Hash(1, -1, make([]byte, 32))) },
	"env_from":    func(h guest.Host) int64 { return int64(h.EnvFrom([]byte("x@example.org"))) },
	"rcpt_count":  func(h guest.Host) int64 { return int64(h.RcptCount()) },
	"kv_get":      func(h guest.Host) int64 { return int64(h.KvGet([]byte("k"), make([]byte, 8))) },
	"kv_set":      func(h guest.Host) int64 { return int64(h.KvSet([]byte("k"), []byte("v"), 0)) },
	"kv_incr":     func(h guest.Host) int64 { return int64(h.KvIncr([]byte("n"), 1, 0, make([]byte, 8))) },
	"kv_cas":      func(h guest.Host) int64 { return int64(h.KvCas([]byte("k"), []byte("v"), []byte("w"), 0)) },
	"kv_del":      func(h guest.Host) int64 { return int64(h.KvDel([]byte("k"))) },
	"dns":         func(h guest.Host) int64 { return int64(h.Dns(int32(abi.DNSTXT), []byte("a.test"), make([]byte, 80))) },
	"http":        func(h guest.Host) int64 { return int64(h.Http(list("GET", "https://a.test/", ""), make([]byte, 80))) },
	"dsn":         func(h guest.Host) int64 { return int64(h.Dsn(list("a@example.org", "s", "t"))) },
	"submit": func(h guest.Host) int64 {
		return int64(h.Submit(int32(abi.OpHTTP), list("GET", "https://a.test/", "")))
	},
	"wait": func(h guest.Host) int64 {
		return int64(h.Wait(h.Submit(int32(abi.OpDNS), append([]byte{16, 0, 0, 0}, "a.test"...)), 60_000, make([]byte, 80)))
	},
	"secret":   func(h guest.Host) int64 { return int64(h.Secret([]byte("s"), make([]byte, 8))) },
	"rcpt_get": func(h guest.Host) int64 { return int64(h.RcptGet(0, make([]byte, 80))) },
	"rcpt_add": func(h guest.Host) int64 { return int64(h.RcptAdd([]byte("x@example.org"))) },
	"rcpt_set": func(h guest.Host) int64 { return int64(h.RcptSet(0, []byte("x@example.org"))) },
	"rcpt_del": func(h guest.Host) int64 { return int64(h.RcptDel(0)) },

	"out_relay":   func(h guest.Host) int64 { return int64(h.OutRelay([]byte("relay.example"))) },
	"out_source":  func(h guest.Host) int64 { return int64(h.OutSource([]byte("pool"))) },
	"out_tls":     func(h guest.Host) int64 { return int64(h.OutTls(int32(abi.TLSVerify))) },
	"out_connect": func(h guest.Host) int64 { return int64(h.OutConnect([]byte("192.0.2.1:26"))) },

	"rcpt_verdict": func(h guest.Host) int64 {
		return int64(h.RcptVerdict(0, int64(abi.NewVerdict(abi.ActDiscard, 0, 0, 0, 0, false))))
	},
}

// booted is what a guest chose that has one of each.
func booted(t testing.TB) *guest.Setup {
	t.Helper()
	g := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})
	if id := g.Metric([]byte("hits"), 0); id != 0 {
		t.Fatalf("metric: %d", id)
	}
	if id := g.MatchSet(0, []byte("\x04\x00\x00\x00line")); id != 0 {
		t.Fatalf("match_set: %d", id)
	}
	return g.Setup()
}

// TestPhases calls every import in mg1_init and at every hook. It is EPHASE exactly where
// the table of the ABI says that the import may not be called; elsewhere it works.
func TestPhases(t *testing.T) {
	table := abi.Imports()
	if len(table) != len(calls) {
		t.Errorf("the ABI has %d imports, the test %d", len(table), len(calls))
	}
	for _, imp := range table {
		call, ok := calls[imp.Name]
		if !ok {
			t.Errorf("%s: the test does not call it", imp.Name)
			continue
		}
		check := func(where string, may bool, got int64) {
			switch {
			case !may && got != int64(abi.EPHASE):
				t.Errorf("%s at %s: got %d, want EPHASE", imp.Name, where, got)
			case may && got < 0 && !(imp.Name == "sess_get" && got == int64(abi.ENOENT)):
				t.Errorf("%s at %s: got %v, want it to work", imp.Name, where, abi.Errno(got))
			}
		}
		check("init", imp.When.Has(0), call(guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})))
		for _, h := range abi.HookTable() {
			ask(t, h.Hook, guest.Options{Setup: booted(t)}, func(g *guest.Env, _ *policy.Event) error {
				check(h.Name, imp.When.Has(h.Hook), call(g))
				return nil
			})
		}
	}
	// After the last hook, and between hooks, it is as in mg1_init for what reads no event.
	g := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})
	askEnv(t, g, abi.HookMail, func(*guest.Env, *policy.Event) error { return nil })
	for _, imp := range table {
		if got := calls[imp.Name](g); !imp.When.Has(0) && got != int64(abi.EPHASE) {
			t.Errorf("%s between hooks: got %d, want EPHASE", imp.Name, got)
		}
	}
}

// big is n octets that a guest may give.
func big(n int) []byte { return bytes.Repeat([]byte("x"), n) }

// judge gives recipient i a verdict.
func judge(h guest.Host, i int32, a abi.Action, code int, text string) int64 {
	if text != "" {
		h.Reply([]byte(text))
	}
	return int64(h.RcptVerdict(i, int64(abi.NewVerdict(a, code, 0, 0, 0, text != ""))))
}

// TestChunk: a piece of a body as a guest sees it, the largest in the smallest mailbox for
// it, and that there is none elsewhere.
func TestChunk(t *testing.T) {
	piece := bytes.Repeat([]byte("0123456789abcdef"), abi.MaxChunk/16)
	g := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})
	fn := policy.Func("f", policy.StagesOf(policy.StageChunk), func(_ context.Context, e *policy.Event) (policy.Verdict, error) {
		g.Begin(context.Background(), abi.HookChunk, e)
		defer g.End()
		if n := g.Get(int32(abi.FieldChunk), 0, nil); n != abi.MaxChunk {
			t.Errorf("get: got %d, want %d", n, abi.MaxChunk)
		}
		mailbox := make([]byte, abi.ChunkMailbox)
		frame := mailbox[:g.Frame(mailbox)]
		if flags := binary.LittleEndian.Uint32(frame[abi.OffFlags:]); flags != 0 || !bytes.HasSuffix(frame[:len(frame)-8], piece) {
			t.Errorf("frame of %d octets, flags %d, does not end with piece and offset", len(frame), flags)
		}
		if off := int64(binary.LittleEndian.Uint64(frame[len(frame)-8:])); off != 3<<32 {
			t.Errorf("offset: got %d, want %d", off, int64(3<<32))
		}
		return policy.Verdict{}, nil
	})
	policy.NewChain(policy.Link{Filter: fn}).Open(session(), nil).DecideChunk(t.Context(), transaction(), 3<<32, piece)
	ask(t, abi.HookMessage, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
		for _, f := range []abi.Field{abi.FieldChunk, abi.FieldChunkOffset} {
			if n := g.Get(int32(f), 0, nil); n != int32(abi.ENOENT) {
				t.Errorf("field %d at the message: got %d, want ENOENT", f, n)
			}
		}
		return nil
	})
}

// TestRecipientVerdicts: what a guest says of single recipients, as the gateway has it then.
func TestRecipientVerdicts(t *testing.T) {
	tx := ask(t, abi.HookMessage, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
		judge(g, 0, abi.ActReject, 551, "not here")
		judge(g, 1, abi.ActQuarantine, 0, "odd")
		return nil
	})
	if len(tx.Judged) != 1 || tx.Judged[0].Path.String() != "b@example.com" || tx.Judged[0].Verdict.Reply.Line() != "551 5.7.1 not here" {
		t.Errorf("judged: %+v", tx.Judged)
	}
	if len(tx.Rcpts) != 1 || tx.Rcpts[0].Held != "odd" {
		t.Errorf("left: %+v", tx.Rcpts)
	}
}

// TestAnswers has what imports answer to arguments, good and bad. Each case runs at its
// hook in a session of its own.
func TestAnswers(t *testing.T) {
	const msg, rcpt, mail = abi.HookMessage, abi.HookRcpt, abi.HookMail
	const inval, noent, perm, limit, phase = int64(abi.EINVAL), int64(abi.ENOENT), int64(abi.EPERM), int64(abi.ELIMIT), int64(abi.EPHASE)
	type h = guest.Host
	tests := []struct {
		name string
		hook abi.Hook
		call func(h h) int64
		want int64
	}{
		{"get: field -1", mail, func(h h) int64 { return int64(h.Get(-1, 0, nil)) }, inval},
		{"get: field 65536 is not field 0", mail, func(h h) int64 { return int64(h.Get(1<<16, 0, nil)) }, inval},
		{"get: field 0", mail, func(h h) int64 { return int64(h.Get(0, 0, nil)) }, noent},
		{"get: a field to come", mail, func(h h) int64 { return int64(h.Get(999, 0, nil)) }, noent},
		{"get: index -2", mail, func(h h) int64 { return int64(h.Get(3, -2, nil)) }, inval},
		{"get: index 1 of what is no list", mail, func(h h) int64 { return int64(h.Get(3, 1, nil)) }, inval},
		{"get: index -1 of what is no list", mail, func(h h) int64 { return int64(h.Get(3, -1, nil)) }, 16},
		{"get: element behind the list", msg, func(h h) int64 { return int64(h.Get(20, 2, nil)) }, noent},
		{"get: element far behind the list", msg, func(h h) int64 { return int64(h.Get(20, 1<<31-1, nil)) }, noent},
		{"get: element of an empty list", rcpt, func(h h) int64 { return int64(h.Get(11, 0, nil)) }, noent},
		{"get: empty list", rcpt, func(h h) int64 { return int64(h.Get(11, -1, nil)) }, 0},
		{"get: rcpt at mail", mail, func(h h) int64 { return int64(h.Get(10, 0, nil)) }, noent},
		{"get: mail_from at helo", abi.HookHelo, func(h h) int64 { return int64(h.Get(8, 0, nil)) }, noent},

		{"score: no key", mail, func(h h) int64 { return int64(h.Score(nil, 1)) }, inval},
		{"score: longest key", mail, func(h h) int64 { return int64(h.Score(big(abi.MaxScoreKey), 1)) }, 0},
		{"score: too long a key", mail, func(h h) int64 { return int64(h.Score(big(abi.MaxScoreKey+1), 1)) }, inval},
		{"score: key with =", mail, func(h h) int64 { return int64(h.Score([]byte("a=b"), 1)) }, inval},
		{"score: line end", mail, func(h h) int64 { return int64(h.Score([]byte("a\n"), 1)) }, inval},
		{"score: the least", mail, func(h h) int64 { return int64(h.Score([]byte("k"), -abi.MaxScore)) }, 0},
		{"score: too much", mail, func(h h) int64 { return int64(h.Score([]byte("k"), abi.MaxScore+1)) }, inval},
		{"score: no overflow", mail, func(h h) int64 { return int64(h.Score([]byte("k"), -1<<63)) }, inval},
		{"score: too many keys", mail, func(h h) int64 {
			for i := range 64 {
				h.Score(fmt.Appendf(nil, "k%d", i), 1)
			}
			return int64(h.Score([]byte("k64"), 1))
		}, limit},
		{"score: too many additions", mail, func(h h) int64 {
			for range 256 {
				h.Score([]byte("k"), 1)
			}
			return int64(h.Score([]byte("k"), 1))
		}, limit},
		{"scores: what the call added is among them", mail, func(h h) int64 {
			h.Score([]byte("k"), 1500)
			h.Score([]byte("k"), -2000)
			buf := make([]byte, 16)
			if got := string(buf[:h.Get(28, 2, buf)]); got != "k=-500" {
				t.Errorf("got score %q", got)
			}
			return int64(h.Get(28, 3, nil))
		}, noent},
		{"metric_add: no such metric", mail, func(h h) int64 { return int64(h.MetricAdd(0, 1)) }, noent},
		{"metric_add: metric -1", mail, func(h h) int64 { return int64(h.MetricAdd(-1, 1)) }, noent},

		{"config: at the end", mail, func(h h) int64 { return int64(h.Config(2, nil)) }, 0},
		{"config: behind the end", mail, func(h h) int64 { return int64(h.Config(3, nil)) }, inval},
		{"config: before the start", mail, func(h h) int64 { return int64(h.Config(-1, nil)) }, inval},

		{"reply: longest", mail, func(h h) int64 { return int64(h.Reply(big(abi.MaxReply))) }, 0},
		{"reply: too long", mail, func(h h) int64 { return int64(h.Reply(big(abi.MaxReply + 1))) }, limit},
		{"reply: 8 lines", mail, func(h h) int64 { return int64(h.Reply([]byte("1\n2\n3\n4\n5\n6\n7\n8"))) }, 0},
		{"reply: 9 lines", mail, func(h h) int64 { return int64(h.Reply([]byte("1\n2\n3\n4\n5\n6\n7\n8\n9"))) }, limit},
		{"reply: CR", mail, func(h h) int64 { return int64(h.Reply([]byte("a\r\n250 ok"))) }, inval},
		{"reply: NUL", mail, func(h h) int64 { return int64(h.Reply([]byte("a\x00"))) }, inval},
		{"reply: escape", mail, func(h h) int64 { return int64(h.Reply([]byte("a\x1b[31m"))) }, inval},
		{"reply: DEL", mail, func(h h) int64 { return int64(h.Reply([]byte("a\x7f"))) }, inval},
		{"reply: not UTF-8", mail, func(h h) int64 { return int64(h.Reply([]byte("a\xff"))) }, inval},
		{"reply: UTF-8 and tab", mail, func(h h) int64 { return int64(h.Reply([]byte("é\tü"))) }, 0},
		{"reply: empty", mail, func(h h) int64 { return int64(h.Reply(nil)) }, 0},

		{"tag: empty key", mail, func(h h) int64 { return int64(h.Tag(nil, []byte("v"))) }, inval},
		{"tag: empty value", mail, func(h h) int64 { return int64(h.Tag([]byte("k"), nil)) }, 0},
		{"tag: longest", mail, func(h h) int64 { return int64(h.Tag([]byte("k"), big(1023))) }, 0},
		{"tag: too long", mail, func(h h) int64 { return int64(h.Tag([]byte("k"), big(1024))) }, limit},
		{"tag: = in the key would forge another", mail, func(h h) int64 { return int64(h.Tag([]byte("a=b"), []byte("v"))) }, inval},
		{"tag: = in the value", mail, func(h h) int64 { return int64(h.Tag([]byte("a"), []byte("b=c"))) }, 0},
		{"tag: line feed", mail, func(h h) int64 { return int64(h.Tag([]byte("a"), []byte("b\nc"))) }, inval},
		{"tag: not UTF-8", mail, func(h h) int64 { return int64(h.Tag([]byte("a\xff"), nil)) }, inval},
		{"tag: too many", mail, func(h h) int64 { return last(65, func() int32 { return h.Tag([]byte("k"), nil) }) }, limit},

		{"log: level 4", mail, func(h h) int64 { return int64(h.Log(4, nil)) }, inval},
		{"log: level -1", mail, func(h h) int64 { return int64(h.Log(-1, nil)) }, inval},
		{"log_enabled: level 4", mail, func(h h) int64 { return int64(h.LogEnabled(4)) }, inval},
		{"log_enabled: nobody listens", mail, func(h h) int64 { return int64(h.LogEnabled(3)) }, 0},

		{"random: most", mail, func(h h) int64 { return int64(h.Random(make([]byte, abi.MaxRandom))) }, abi.MaxRandom},
		{"random: too much", mail, func(h h) int64 { return int64(h.Random(make([]byte, abi.MaxRandom+1))) }, limit},
		{"random: none", mail, func(h h) int64 { return int64(h.Random(nil)) }, 0},

		{"sess_get: nothing", mail, func(h h) int64 { return int64(h.SessGet([]byte("k"), nil)) }, noent},
		{"sess_get: empty key", mail, func(h h) int64 { return int64(h.SessGet(nil, nil)) }, noent},
		{"sess_set: empty key", mail, func(h h) int64 { return int64(h.SessSet(nil, []byte("v"))) }, inval},
		{"sess_set: largest", mail, func(h h) int64 { return int64(h.SessSet([]byte("k"), big(abi.MaxSession-1))) }, 0},
		{"sess_set: too large", mail, func(h h) int64 { return int64(h.SessSet([]byte("k"), big(abi.MaxSession))) }, limit},
		{"sess_set: key too large", mail, func(h h) int64 { return int64(h.SessSet(big(abi.MaxSession), []byte("v"))) }, limit},
		{"sess_set: in the place of the largest", mail, func(h h) int64 {
			h.SessSet([]byte("k"), big(abi.MaxSession-1))
			return int64(h.SessSet([]byte("k"), big(abi.MaxSession-2)))
		}, 0},
		{"sess_set: beside the largest", mail, func(h h) int64 {
			h.SessSet([]byte("k"), big(abi.MaxSession-1))
			return int64(h.SessSet([]byte("l"), []byte("v")))
		}, limit},
		{"sess_set: where the largest was", mail, func(h h) int64 {
			h.SessSet([]byte("k"), big(abi.MaxSession-1))
			h.SessSet([]byte("k"), nil)
			h.SessSet([]byte("nothing"), nil)
			return int64(h.SessSet([]byte("l"), big(abi.MaxSession-1)))
		}, 0},
		{"sess_get: what was refused is not there", mail, func(h h) int64 {
			h.SessSet([]byte("k"), []byte("old"))
			h.SessSet([]byte("k"), big(abi.MaxSession))
			return int64(h.SessGet([]byte("k"), nil))
		}, 3},

		{"hdr_get: index -1", msg, func(h h) int64 { return h.HdrGet(-1, nil) }, noent},
		{"hdr_get: behind the last", msg, func(h h) int64 { return h.HdrGet(4, nil) }, noent},
		{"hdr_get: folded", msg, func(h h) int64 { return h.HdrGet(0, nil) }, 8<<32 | int64(len(" from a\r\n by b"))},
		{"hdr_find: any case", msg, func(h h) int64 { return int64(h.HdrFind([]byte("SUBJECT"), 0)) }, 1},
		{"hdr_find: the next", msg, func(h h) int64 { return int64(h.HdrFind([]byte("Subject"), 2)) }, 3},
		{"hdr_find: no more", msg, func(h h) int64 { return int64(h.HdrFind([]byte("Subject"), 4)) }, noent},
		{"hdr_find: from far behind", msg, func(h h) int64 { return int64(h.HdrFind([]byte("Subject"), 1<<31-1)) }, noent},
		{"hdr_find: from -1", msg, func(h h) int64 { return int64(h.HdrFind([]byte("Subject"), -1)) }, inval},
		{"hdr_find: no name", msg, func(h h) int64 { return int64(h.HdrFind(nil, 0)) }, noent},
		{"hdr_raw: at the end", msg, func(h h) int64 { return int64(h.HdrRaw(int32(strings.Index(text, "line 1")), nil)) }, 0},
		{"hdr_raw: behind the end", msg, func(h h) int64 { return int64(h.HdrRaw(int32(strings.Index(text, "line 1")+1), nil)) }, inval},
		{"hdr_raw: before the start", msg, func(h h) int64 { return int64(h.HdrRaw(-1, nil)) }, inval},
		{"hdr_add: top", msg, func(h h) int64 { return int64(h.HdrAdd(0, []byte("X-B"), []byte("2"))) }, 0},
		{"hdr_add: bottom", msg, func(h h) int64 { return int64(h.HdrAdd(4, []byte("X-B"), []byte("2"))) }, 0},
		{"hdr_add: behind the bottom", msg, func(h h) int64 { return int64(h.HdrAdd(5, []byte("X-B"), []byte("2"))) }, inval},
		{"hdr_add: -2", msg, func(h h) int64 { return int64(h.HdrAdd(-2, []byte("X-B"), []byte("2"))) }, inval},
		{"hdr_add: trace", msg, func(h h) int64 { return int64(h.HdrAdd(0, []byte("received"), []byte("2"))) }, perm},
		{"hdr_add: no name", msg, func(h h) int64 { return int64(h.HdrAdd(0, nil, []byte("2"))) }, inval},
		{"hdr_add: a name that is none", msg, func(h h) int64 { return int64(h.HdrAdd(0, []byte("X B:"), []byte("2"))) }, inval},
		{"hdr_add: a field within the field", msg, func(h h) int64 { return int64(h.HdrAdd(0, []byte("X"), []byte("1\r\nY: 2"))) }, inval},
		{"hdr_add: NUL", msg, func(h h) int64 { return int64(h.HdrAdd(0, []byte("X"), []byte("\x00"))) }, inval},
		{"hdr_add: too large", msg, func(h h) int64 { return int64(h.HdrAdd(0, []byte("X"), big(128<<10))) }, limit},
		{"hdr_add: too many", msg, func(h h) int64 { return last(257, func() int32 { return h.HdrAdd(0, []byte("X"), nil) }) }, limit},
		{"hdr_set: trace", msg, func(h h) int64 { return int64(h.HdrSet(0, []byte("2"))) }, perm},
		{"hdr_set: none", msg, func(h h) int64 { return int64(h.HdrSet(4, []byte("2"))) }, noent},
		{"hdr_set: -1", msg, func(h h) int64 { return int64(h.HdrSet(-1, []byte("2"))) }, noent},
		{"hdr_set: too large", msg, func(h h) int64 { return int64(h.HdrSet(1, big(128<<10+1))) }, limit},
		{"hdr_del: trace", msg, func(h h) int64 { return int64(h.HdrDel(0)) }, perm},
		{"hdr_del: none", msg, func(h h) int64 { return int64(h.HdrDel(1<<31 - 1)) }, noent},

		{"body_len", msg, func(h h) int64 { return h.BodyLen() }, 16},
		{"body_read: window", msg, func(h h) int64 { return int64(h.BodyRead(14, make([]byte, 10))) }, 2},
		{"body_read: at the end", msg, func(h h) int64 { return int64(h.BodyRead(16, make([]byte, 10))) }, 0},
		{"body_read: far behind", msg, func(h h) int64 { return int64(h.BodyRead(1<<62, make([]byte, 10))) }, 0},
		{"body_read: before the start", msg, func(h h) int64 { return int64(h.BodyRead(-1, make([]byte, 10))) }, inval},
		{"body_read: nothing", msg, func(h h) int64 { return int64(h.BodyRead(0, nil)) }, 0},
		{"body_splice: insert at the end", msg, func(h h) int64 { return int64(h.BodySplice(16, 0, []byte("x"))) }, 0},
		{"body_splice: behind the end", msg, func(h h) int64 { return int64(h.BodySplice(17, 0, []byte("x"))) }, noent},
		{"body_splice: too much", msg, func(h h) int64 { return int64(h.BodySplice(1, 16, nil)) }, noent},
		{"body_splice: overflow", msg, func(h h) int64 { return int64(h.BodySplice(1, 1<<63-1, nil)) }, noent},
		{"body_splice: at -1", msg, func(h h) int64 { return int64(h.BodySplice(-1, 0, nil)) }, inval},
		{"body_splice: del -1", msg, func(h h) int64 { return int64(h.BodySplice(0, -1, nil)) }, inval},
		{"body_splice: largest", msg, func(h h) int64 { return int64(h.BodySplice(0, 16, big(1<<20+32))) }, 0},
		{"body_splice: too large", msg, func(h h) int64 { return int64(h.BodySplice(0, 16, big(1<<20+33))) }, limit},
		{"body_write: without body_new", msg, func(h h) int64 { return int64(h.BodyWrite([]byte("x"))) }, phase},
		{"body_commit: without body_new", msg, func(h h) int64 { return int64(h.BodyCommit()) }, phase},
		{"body_commit: twice", msg, func(h h) int64 { h.BodyNew(); h.BodyCommit(); return int64(h.BodyCommit()) }, phase},
		{"body_write: largest", msg, func(h h) int64 { h.BodyNew(); return int64(h.BodyWrite(big(1<<20 + 32))) }, 1<<20 + 32},
		{"body_write: too large", msg, func(h h) int64 { h.BodyNew(); h.BodyWrite(big(1 << 20)); return int64(h.BodyWrite(big(33))) }, limit},

		{"env_from: null sender", mail, func(h h) int64 { return int64(h.EnvFrom(nil)) }, 0},
		{"env_from: with brackets", mail, func(h h) int64 { return int64(h.EnvFrom([]byte("<a@example.org>"))) }, inval},
		{"env_from: without domain", mail, func(h h) int64 { return int64(h.EnvFrom([]byte("a"))) }, inval},
		{"env_from: a command behind it", mail, func(h h) int64 { return int64(h.EnvFrom([]byte("a@example.org> RET=FULL"))) }, inval},
		{"env_from: a line behind it", mail, func(h h) int64 { return int64(h.EnvFrom([]byte("a@example.org\r\nRSET"))) }, inval},
		{"env_from: too long", mail, func(h h) int64 { return int64(h.EnvFrom(append(big(600), "@example.org"...))) }, inval},
		{"rcpt_count", msg, func(h h) int64 { return int64(h.RcptCount()) }, 2},
		{"rcpt_get", msg, func(h h) int64 { return int64(h.RcptGet(1, nil)) }, int64(len(`"c d"@example.com`))},
		{"rcpt_get: none", msg, func(h h) int64 { return int64(h.RcptGet(2, nil)) }, noent},
		{"rcpt_get: -1", msg, func(h h) int64 { return int64(h.RcptGet(-1, nil)) }, noent},
		{"rcpt_add: null", msg, func(h h) int64 { return int64(h.RcptAdd(nil)) }, inval},
		{"rcpt_add: no address", msg, func(h h) int64 { return int64(h.RcptAdd([]byte("x y"))) }, inval},
		{"rcpt_add: too many", msg, func(h h) int64 { return last(101, func() int32 { return h.RcptAdd([]byte("x@example.org")) }) }, limit},
		{"rcpt_set: none", msg, func(h h) int64 { return int64(h.RcptSet(2, []byte("x@example.org"))) }, noent},
		{"rcpt_set: null", msg, func(h h) int64 { return int64(h.RcptSet(0, nil)) }, inval},
		{"rcpt_verdict: reject", msg, func(h h) int64 { return judge(h, 1, abi.ActReject, 550, "") }, 0},
		{"rcpt_verdict: with a text", msg, func(h h) int64 { return judge(h, 1, abi.ActReject, 0, "no") }, 0},
		{"rcpt_verdict: quarantine with a reason", msg, func(h h) int64 { return judge(h, 1, abi.ActQuarantine, 0, "odd") }, 0},
		{"rcpt_verdict: quarantine with a code", msg, func(h h) int64 { return judge(h, 1, abi.ActQuarantine, 550, "odd") }, inval},
		{"rcpt_verdict: reject with 450", msg, func(h h) int64 { return judge(h, 1, abi.ActReject, 450, "") }, inval},
		{"rcpt_verdict: accept", msg, func(h h) int64 { return judge(h, 1, abi.ActAccept, 0, "") }, inval},
		{"rcpt_verdict: skip", msg, func(h h) int64 { return judge(h, 1, abi.ActSkip, 0, "") }, inval},
		{"rcpt_verdict: action 99", msg, func(h h) int64 { return judge(h, 1, 99, 0, "") }, inval},
		{"rcpt_verdict: a text that was not given", msg, func(h h) int64 { return int64(h.RcptVerdict(0, int64(abi.NewVerdict(2, 0, 0, 0, 0, true)))) }, inval},
		{"rcpt_verdict: unknown bits", msg, func(h h) int64 { return int64(h.RcptVerdict(0, 1<<50)) }, inval},
		{"rcpt_verdict: the error bit", msg, func(h h) int64 { return int64(h.RcptVerdict(0, -1<<63)) }, inval},
		{"rcpt_verdict: behind the last", msg, func(h h) int64 { return judge(h, 2, abi.ActReject, 0, "") }, noent},
		{"rcpt_verdict: -1", msg, func(h h) int64 { return judge(h, -1, abi.ActReject, 0, "") }, noent},

		{"rcpt_del: none", msg, func(h h) int64 { return int64(h.RcptDel(2)) }, noent},
		{"rcpt_del: the candidate", rcpt, func(h h) int64 { return int64(h.RcptDel(1)) }, noent},
		{"rcpt_set: the candidate", rcpt, func(h h) int64 { return int64(h.RcptSet(1, []byte("x@example.org"))) }, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ask(t, tt.hook, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
				if got := tt.call(g); got != tt.want {
					t.Errorf("got %d, want %d", got, tt.want)
				}
				return nil
			})
		})
	}
}

// last calls f n times and returns the last answer; those before must be good.
func last(n int, f func() int32) int64 {
	for range n - 1 {
		if got := f(); got < 0 {
			return int64(got) * 1000 // refused too early
		}
	}
	return int64(f())
}

// A source that fails (random octets, the spool) is EUNAVAIL, not a wrong answer.
func TestUnavailable(t *testing.T) {
	o := guest.Options{Grants: everything(), Services: world().Services(), Rand: iotest.ErrReader(io.ErrUnexpectedEOF)}
	ask(t, abi.HookMessage, o, func(g *guest.Env, e *policy.Event) error {
		if got := g.Random(make([]byte, 8)); got != int32(abi.EUNAVAIL) {
			t.Errorf("random without a source: got %d, want EUNAVAIL", got)
		}
		return nil
	})
	tx := transaction()
	tx.Message.Body = policy.FileBody(strings.NewReader("short"), 0, 100)
	fn := policy.Func("f", policy.AllStages, func(_ context.Context, e *policy.Event) (policy.Verdict, error) {
		g := guest.NewEnv(o)
		g.Begin(context.Background(), abi.HookMessage, e)
		defer g.End()
		if got := g.BodyRead(0, make([]byte, 50)); got != int32(abi.EUNAVAIL) {
			t.Errorf("body of a spool that is too short: got %d, want EUNAVAIL", got)
		}
		return policy.Verdict{}, nil
	})
	policy.NewChain(policy.Link{Filter: fn}).Open(session(), nil).Decide(t.Context(), policy.StageMessage, tx)
}

// TestReadsRule holds every import that fills a buffer to the rule: it returns the full
// length and writes no more than there is room for.
func TestReadsRule(t *testing.T) {
	reads := map[string]func(h guest.Host, buf []byte) int64{
		"get":      func(h guest.Host, b []byte) int64 { return int64(h.Get(int32(abi.FieldRDNS), 0, b)) },
		"get list": func(h guest.Host, b []byte) int64 { return int64(h.Get(int32(abi.FieldRcpts), -1, b)) },
		"config":   func(h guest.Host, b []byte) int64 { return int64(h.Config(0, b)) },
		"sess_get": func(h guest.Host, b []byte) int64 {
			h.SessSet([]byte("k"), []byte("value"))
			return int64(h.SessGet([]byte("k"), b))
		},
		"hdr_get":  func(h guest.Host, b []byte) int64 { v := h.HdrGet(1, b); return v>>32 + v&0xffffffff },
		"hdr_raw":  func(h guest.Host, b []byte) int64 { return int64(h.HdrRaw(3, b)) },
		"rcpt_get": func(h guest.Host, b []byte) int64 { return int64(h.RcptGet(1, b)) },
	}
	for name, read := range reads {
		ask(t, abi.HookMessage, guest.Options{Config: []byte(`{"a": 1}`)}, func(g *guest.Env, _ *policy.Event) error {
			full := read(g, nil)
			whole := make([]byte, full)
			read(g, whole)
			for room := range int(full) + 3 {
				buf := bytes.Repeat([]byte("#"), int(full)+10)
				if got := read(g, buf[:room:room]); got != full {
					t.Errorf("%s with room for %d: got %d, want %d", name, room, got, full)
				}
				n := min(room, int(full))
				if !bytes.Equal(buf[:n], whole[:n]) || strings.Trim(string(buf[n:]), "#") != "" {
					t.Errorf("%s with room for %d: wrote %q, want %q and nothing behind", name, room, buf, whole[:n])
				}
			}
			return nil
		})
	}
}

// TestFields reads every field at a hook where all of them are there.
func TestFields(t *testing.T) {
	list := func(elements ...string) string {
		var b []byte
		for _, e := range elements {
			b = append(binary.LittleEndian.AppendUint32(b, uint32(len(e))), e...)
		}
		return string(b)
	}
	number := func(n int64) string { return string(binary.LittleEndian.AppendUint64(nil, uint64(n))) }
	want := map[abi.Field]string{
		abi.FieldClientIP: "\xc0\x00\x02\x01", abi.FieldRDNS: "client.example.net", abi.FieldHelo: "helo.example.net",
		abi.FieldTLSVersion: number(0x304), abi.FieldTLSCipher: "TLS_AES_128_GCM_SHA256", abi.FieldTLSPeer: "CN=client",
		abi.FieldTLSVerified: number(1), abi.FieldTLSFingerprint: "c0ffee",
		abi.FieldAuthUser: "u1", abi.FieldMailFrom: "a@example.net", abi.FieldMailParams: list("SIZE=100", "BODY=8BITMIME", "SMTPUTF8"),
		abi.FieldRcpt: `"c d"@example.com`, abi.FieldRcptParams: "", abi.FieldSize: number(100), abi.FieldListener: "mx",
		abi.FieldTags: list("f0.k=v", "f1.x=y"), abi.FieldConnID: "c7", abi.FieldClientPort: number(2525),
		abi.FieldServerIP: string(netip.MustParseAddr("2001:db8::25").AsSlice()), abi.FieldTLSName: "mx.example.com",
		abi.FieldTLSALPN: "smtp", abi.FieldRcpts: list("b@example.com", `"c d"@example.com`),
		abi.FieldScores: list("s0=3", "s1=-1500"),
	}
	ask(t, abi.HookRcpt, guest.Options{}, func(g *guest.Env, e *policy.Event) error {
		for _, f := range abi.FieldTable() {
			w, ok := want[f.Field]
			if f.Field >= abi.FieldAuthMechanism && f.Field <= abi.FieldAuthToken || f.Field == abi.FieldChunk || f.Field == abi.FieldChunkOffset || f.Field >= abi.FieldQueueID {
				continue // TestAuthFields, TestChunk, TestOutboundFields
			}
			if !ok {
				t.Errorf("%s: the test does not know it", f.Name)
			}
			buf := make([]byte, 200)
			if n := g.Get(int32(f.Field), -1, buf); n < 0 || string(buf[:n]) != w {
				t.Errorf("%s: got %d, %q, want %q", f.Name, n, buf[:max(n, 0)], w)
			}
		}
		buf := make([]byte, 80)
		for i, w := range []string{"b@example.com", `"c d"@example.com`} {
			if n := g.Get(int32(abi.FieldRcpts), int32(i), buf); n < 0 || string(buf[:n]) != w {
				t.Errorf("rcpts[%d]: got %d, %q, want %q", i, n, buf[:max(n, 0)], w)
			}
		}
		// A change is seen at once.
		g.EnvFrom(nil)
		g.RcptAdd([]byte("n@example.org"))
		g.Tag([]byte("t"), []byte("1"))
		if n := g.Get(int32(abi.FieldMailFrom), 0, buf); n != 0 {
			t.Errorf("the null sender: got %d octets", n)
		}
		if n := g.Get(int32(abi.FieldRcpts), 1, buf); string(buf[:n]) != "n@example.org" {
			t.Errorf("an added recipient stands before the candidate: got %q", buf[:n])
		}
		return nil
	})
	ask(t, abi.HookMessage, guest.Options{}, func(g *guest.Env, e *policy.Event) error {
		buf := make([]byte, 8)
		if g.Get(int32(abi.FieldSize), 0, buf); string(buf) != number(int64(len(text))) {
			t.Errorf("size at message: got %x, want %d", buf, len(text))
		}
		g.BodySplice(0, 0, []byte("12345"))
		if g.Get(int32(abi.FieldSize), 0, buf); string(buf) != number(int64(len(text)+5)) {
			t.Errorf("size of the edited message: got %x, want %d", buf, len(text)+5)
		}
		return nil
	})
}

// TestAuthFields reads the fields of a login. The secrets are in no frame, and are there only
// where filters decide; at other hooks there is nothing of a login.
func TestAuthFields(t *testing.T) {
	fields := []abi.Field{abi.FieldAuthMechanism, abi.FieldAuthLogin, abi.FieldAuthAuthz, abi.FieldAuthPassword, abi.FieldAuthToken}
	for _, tt := range []struct {
		name string
		auth *policy.Auth
		want [5]string // "-" where there is none
	}{
		{"everything", login(), [5]string{"PLAIN", "u1", "u2", "s3cret", "t0ken"}},
		{"not revealed", &policy.Auth{Mechanism: "PLAIN", User: "u1", Password: "s3cret", Token: "t0ken"}, [5]string{"PLAIN", "u1", "-", "-", "-"}},
		{"an empty password is none", &policy.Auth{Mechanism: "PLAIN", User: "u1", Reveal: true}, [5]string{"PLAIN", "u1", "-", "-", "-"}},
		{"not a text", &policy.Auth{Mechanism: "PLAIN", User: "u\xff", Password: "p\x00\n", Reveal: true}, [5]string{"PLAIN", "u\xff", "-", "p\x00\n", "-"}},
		{"longer than a mailbox", &policy.Auth{Mechanism: "PLAIN", User: string(big(5000)), Reveal: true}, [5]string{"PLAIN", string(big(5000)), "-", "-", "-"}},
	} {
		g := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})
		fn := policy.Func("f", policy.AllStages, func(_ context.Context, e *policy.Event) (policy.Verdict, error) {
			g.Begin(context.Background(), abi.Hook(e.Stage), e)
			defer g.End()
			frame := make([]byte, abi.MinMailbox)
			frame = frame[:g.Frame(frame)]
			if bytes.Contains(frame, []byte("s3cret")) || bytes.Contains(frame, []byte("t0ken")) {
				t.Errorf("%s: a secret is in the frame of %s", tt.name, e.Stage)
			}
			for i, f := range fields {
				got := "-"
				if n := g.Get(int32(f), 0, nil); n >= 0 {
					buf := make([]byte, n)
					g.Get(int32(f), 0, buf)
					got = string(buf)
				}
				want := "-"
				if e.Stage == policy.StageAuth {
					want = tt.want[i]
				}
				if got != want {
					t.Errorf("%s: field %d at %s: got %.20q, want %.20q", tt.name, f, e.Stage, got, want)
				}
			}
			return policy.Verdict{}, nil
		})
		run := policy.NewChain(policy.Link{Filter: fn}).Open(session(), nil)
		run.Decide(t.Context(), policy.StageHelo, nil)
		run.DecideAuth(t.Context(), tt.auth)
		run.Decide(t.Context(), policy.StageMail, transaction())
	}
}

// TestParams: the parameters of MAIL and RCPT, each alone and all of them.
func TestParams(t *testing.T) {
	list := func(g *guest.Env, f abi.Field) string {
		var all []string
		for i := int32(0); ; i++ {
			buf := make([]byte, 200)
			n := g.Get(int32(f), i, buf)
			if n < 0 {
				return strings.Join(all, "|")
			}
			all = append(all, string(buf[:n]))
		}
	}
	for _, tt := range []struct {
		from       smtp.Sender
		to         smtp.Recipient
		mail, rcpt string
	}{
		{smtp.Sender{}, smtp.Recipient{}, "", ""},
		{smtp.Sender{Body: smtp.BodyBinary}, smtp.Recipient{Notify: smtp.NotifyNever}, "BODY=BINARYMIME", "NOTIFY=NEVER"},
		{smtp.Sender{Auth: "<>", RequireTLS: true}, smtp.Recipient{Original: smtp.OriginalRecipient{Type: "rfc822", Address: "a+b=c@example.com"}},
			"REQUIRETLS|AUTH=<>", "ORCPT=rfc822;a+b=c@example.com"},
		{smtp.Sender{Size: 7, Body: smtp.BodyEightBit, UTF8: true, RequireTLS: true, Return: smtp.ReturnHeaders, EnvID: "a b=+", Auth: "c d@example.com"},
			smtp.Recipient{Notify: smtp.NotifySuccess | smtp.NotifyDelay, Original: smtp.OriginalRecipient{Type: "x400", Address: "o"}},
			"SIZE=7|BODY=8BITMIME|SMTPUTF8|REQUIRETLS|RET=HDRS|ENVID=a b=+|AUTH=c d@example.com", "NOTIFY=SUCCESS,DELAY|ORCPT=x400;o"},
		{smtp.Sender{Priority: -3, By: smtp.DeliverBy{Seconds: 120, Mode: smtp.ByReturn, Trace: true}, HoldFor: time.Minute}, smtp.Recipient{},
			"MT-PRIORITY=-3|BY=120;RT|HOLDFOR=60", ""},
		{smtp.Sender{By: smtp.DeliverBy{Mode: smtp.ByNotify}, HoldUntil: time.Unix(0, 0)}, smtp.Recipient{}, "BY=0;N|HOLDUNTIL=1970-01-01T00:00:00Z", ""},
	} {
		g := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})
		fn := policy.Func("f", policy.AllStages, func(_ context.Context, e *policy.Event) (policy.Verdict, error) {
			g.Begin(context.Background(), abi.Hook(e.Stage), e)
			defer g.End()
			if mail, rcpt := list(g, abi.FieldMailParams), list(g, abi.FieldRcptParams); mail != tt.mail || rcpt != tt.rcpt {
				t.Errorf("got %q and %q, want %q and %q", mail, rcpt, tt.mail, tt.rcpt)
			}
			return policy.Verdict{}, nil
		})
		tx := &policy.Transaction{Sender: tt.from, Rcpts: []policy.Recipient{{Recipient: tt.to}}}
		policy.NewChain(policy.Link{Filter: fn}).Open(session(), nil).Decide(t.Context(), policy.StageRcpt, tx)
	}
}

// TestMissingFields has a session of which nothing is known: a local socket in clear.
func TestMissingFields(t *testing.T) {
	g := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})
	s := &policy.Session{ID: "c1"}
	for _, hook := range abi.HookTable() {
		fn := policy.Func("f", policy.AllStages, func(_ context.Context, e *policy.Event) (policy.Verdict, error) {
			g.Begin(context.Background(), hook.Hook, e)
			defer g.End()
			for _, f := range abi.FieldTable() {
				got := g.Get(int32(f.Field), 0, nil)
				there := f.Field == abi.FieldListener || f.Field == abi.FieldConnID
				if there != (got >= 0) {
					t.Errorf("%s at %s: got %d", f.Name, hook.Name, got)
				}
			}
			if n := g.Frame(make([]byte, abi.MinMailbox)); n < abi.FrameHead {
				t.Errorf("frame at %s: %d octets", hook.Name, n)
			}
			return policy.Verdict{}, nil
		})
		policy.NewChain(policy.Link{Filter: fn}).Open(s, nil).Decide(t.Context(), policy.Stage(hook.Hook), nil)
	}
}

// decoded is a frame that was read as the ABI draws it.
type decoded struct {
	hook, fields         uint16
	length, flags        uint32
	session, transaction uint64
	time, budget         int64
	order                []abi.Field
	values               map[abi.Field]string
	kinds                map[abi.Field]abi.Kind
}

func decode(t *testing.T, b []byte) decoded {
	t.Helper()
	le := binary.LittleEndian
	if string(b[:4]) != "MG1\x00" {
		t.Fatalf("magic %q", b[:4])
	}
	d := decoded{hook: le.Uint16(b[4:]), fields: le.Uint16(b[6:]), length: le.Uint32(b[8:]), flags: le.Uint32(b[12:]),
		session: le.Uint64(b[16:]), transaction: le.Uint64(b[24:]), time: int64(le.Uint64(b[32:])), budget: int64(le.Uint64(b[40:])),
		values: make(map[abi.Field]string), kinds: make(map[abi.Field]abi.Kind)}
	for i := range int(d.fields) {
		e := b[48+12*i:]
		id, off, n := abi.Field(le.Uint16(e)), le.Uint32(e[4:]), le.Uint32(e[8:])
		d.order = append(d.order, id)
		d.kinds[id] = abi.Kind(le.Uint16(e[2:]))
		d.values[id] = string(b[off : off+n])
		if off+n > d.length || off < 48+12*uint32(d.fields) {
			t.Errorf("field %d at %d, %d octets, in a frame of %d", id, off, n, d.length)
		}
	}
	return d
}

// TestFrame reads the frame of every hook: head, fields in the order of the ABI's table,
// each with the kind of the table and with the value that get has.
func TestFrame(t *testing.T) {
	kinds := make(map[abi.Field]abi.Kind)
	for _, f := range abi.FieldTable() {
		kinds[f.Field] = f.Kind
	}
	for _, hook := range abi.HookTable() {
		ask(t, hook.Hook, guest.Options{}, func(g *guest.Env, e *policy.Event) error {
			buf := bytes.Repeat([]byte("#"), abi.MinMailbox)
			n := g.Frame(buf)
			d := decode(t, buf[:n])
			seq := uint64(3)
			if e.Tx == nil {
				seq = 0
			}
			if d.hook != uint16(hook.Hook) || int(d.length) != n || d.flags != 0 || d.session != 7 || d.transaction != seq || d.time != at.UnixNano() || d.budget != 0 {
				t.Errorf("%s: head %+v of %d octets", hook.Name, d, n)
			}
			var want []abi.Field
			for _, f := range hook.Fields {
				buf := make([]byte, 200)
				n := g.Get(int32(f), -1, buf)
				if n < 0 {
					continue
				}
				want = append(want, f)
				if d.values[f] != string(buf[:n]) || d.kinds[f] != kinds[f] {
					t.Errorf("%s: field %d is %q of kind %d, want %q of %d", hook.Name, f, d.values[f], d.kinds[f], buf[:n], kinds[f])
				}
			}
			if fmt.Sprint(d.order) != fmt.Sprint(want) {
				t.Errorf("%s: fields %v, want %v", hook.Name, d.order, want)
			}
			if strings.Trim(string(buf[n:]), "#") != "" {
				t.Errorf("%s: something was written behind the frame", hook.Name)
			}
			return nil
		})
	}
}

// TestFrameGolden has the octets of one frame, as the ABI draws them.
func TestFrameGolden(t *testing.T) {
	want := "4d473100" + "0100" + "0600" + "aa000000" + "00000000" + // magic, connect, 6 fields, 170 octets, no flags
		"0700000000000000" + "0000000000000000" + // session 7, no transaction
		"05002a36fe9c9717" + "0000000000000000" + // time, no budget
		"0100" + "0400" + "78000000" + "04000000" + // client_ip, an address, at 120
		"1000" + "0200" + "7c000000" + "08000000" + // client_port, a number, at 124
		"1100" + "0400" + "84000000" + "10000000" + // server_ip, at 132
		"0200" + "0100" + "94000000" + "12000000" + // rdns, octets, at 148
		"0d00" + "0100" + "a6000000" + "02000000" + // listener, at 166
		"0f00" + "0100" + "a8000000" + "02000000" + // conn_id, at 168
		"c0000201" + "dd09000000000000" + "20010db8000000000000000000000025" +
		"636c69656e742e6578616d706c652e6e6574" + "6d78" + "6337"
	ask(t, abi.HookConnect, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
		buf := make([]byte, abi.MinMailbox)
		if got := fmt.Sprintf("%x", buf[:g.Frame(buf)]); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		return nil
	})
}

// TestEditsAreSeen edits at the message hook, reads its own edits, and looks at what the
// chain kept.
func TestEditsAreSeen(t *testing.T) {
	edit := func(g *guest.Env) {
		for _, n := range []int32{
			g.HdrDel(1), g.HdrSet(1, []byte("changed")), g.HdrAdd(0, []byte("X-Top"), []byte("été")), g.HdrAdd(-1, []byte("X-End"), []byte("1")),
			g.BodySplice(0, 4, []byte("LINE")), g.BodySplice(16, 0, []byte("-- \r\nfooter\r\n")),
			g.EnvFrom([]byte("s@example.org")), g.RcptDel(0), g.RcptAdd([]byte("n@example.org")), g.RcptSet(0, []byte("o@example.org")),
		} {
			if n < 0 {
				t.Errorf("an edit: got %v", abi.Errno(n))
			}
		}
	}
	want := "X-Top: =?utf-8?q?=C3=A9t=C3=A9?=\r\nReceived: from a\r\n by b\r\nX-A: changed\r\nsubject: two\r\nX-End: 1\r\n\r\nLINE 1\r\nline 2\r\n-- \r\nfooter\r\n"
	tx := ask(t, abi.HookMessage, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
		edit(g)
		got := make([]byte, 1000)
		n := g.HdrRaw(0, got)
		n += g.BodyRead(0, got[n:n+7]) // over the edge of a piece
		for {
			m := g.BodyRead(int64(n)-int64(strings.Index(want, "LINE")), got[n:n+5])
			if m == 0 {
				break
			}
			n += m
		}
		if string(got[:n]) != want {
			t.Errorf("its own view: got %q, want %q", got[:n], want)
		}
		return nil
	})
	var out bytes.Buffer
	if _, err := tx.Message.WriteTo(&out); err != nil || out.String() != want {
		t.Errorf("what the chain has: got %q, %v, want %q", out.String(), err, want)
	}
	if got := fmt.Sprint(tx.Sender.Path, tx.Rcpts[0].Path, tx.Rcpts[1].Path, len(tx.Rcpts)); got != "s@example.org o@example.org n@example.org 2" {
		t.Errorf("envelope: got %s", got)
	}
	// Of a filter that fails, nothing stays.
	tx = ask(t, abi.HookMessage, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
		edit(g)
		return errDrop
	})
	out.Reset()
	if _, err := tx.Message.WriteTo(&out); err != nil || out.String() != text || tx.Sender.Path != path("a@example.net") || len(tx.Rcpts) != 2 {
		t.Errorf("after a failure: got %q, %v, %v", out.String(), tx.Sender, tx.Rcpts)
	}
}

// A new body is not seen before it is committed, begins anew with body_new, and may be
// written from the old one.
func TestNewBody(t *testing.T) {
	ask(t, abi.HookMessage, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
		g.BodyNew()
		g.BodyWrite([]byte("forgotten"))
		g.BodyNew()
		buf := make([]byte, 3)
		for off := int64(0); ; {
			n := g.BodyRead(off, buf)
			if n == 0 {
				break
			}
			g.BodyWrite(bytes.ToUpper(buf[:n]))
			off += int64(n)
		}
		if g.BodyLen() != 16 {
			t.Errorf("before the commit: %d octets, want 16", g.BodyLen())
		}
		g.BodyCommit()
		got := make([]byte, 100)
		if n := g.BodyRead(0, got); string(got[:n]) != "LINE 1\r\nLINE 2\r\n" {
			t.Errorf("after the commit: %q", got[:n])
		}
		g.BodyNew()
		g.BodyCommit()
		if g.BodyLen() != 0 {
			t.Errorf("an empty new body: %d octets", g.BodyLen())
		}
		return nil
	})
}

// What a guest hands over is copied: it may write over it at once.
func TestNothingIsShared(t *testing.T) {
	tx := ask(t, abi.HookMessage, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
		use := func(s string, f func([]byte) int32) {
			b := []byte(s)
			if n := f(b); n < 0 {
				t.Errorf("%q: %v", s, abi.Errno(n))
			}
			for i := range b {
				b[i] = '!'
			}
		}
		use("abc", func(b []byte) int32 { return g.HdrAdd(0, []byte("X-Z"), b) })
		use("X-Y", func(b []byte) int32 { return g.HdrAdd(0, b, []byte("1")) })
		use("body", func(b []byte) int32 { return g.BodySplice(0, 16, b) })
		use("n@example.org", g.RcptAdd)
		use("value", func(b []byte) int32 { return g.SessSet([]byte("k"), b) })
		use("tag", func(b []byte) int32 { return g.Tag([]byte("k"), b) })
		use("answer", g.Reply)
		v, err := g.Verdict(abi.NewVerdict(abi.ActReject, 550, 5, 7, 1, true))
		if err != nil || v.Reply.Text != "answer" {
			t.Errorf("reply: got %v, %v", v.Reply, err)
		}
		buf := make([]byte, 10)
		if n := g.SessGet([]byte("k"), buf); string(buf[:n]) != "value" {
			t.Errorf("session value: got %q", buf[:n])
		}
		return nil
	})
	var out bytes.Buffer
	if _, err := tx.Message.WriteTo(&out); err != nil || strings.Contains(out.String(), "!") || fmt.Sprint(tx.Rcpts, tx.Tags) != strings.ReplaceAll(fmt.Sprint(tx.Rcpts, tx.Tags), "!", "") {
		t.Errorf("got %q, %v, %v; want none of the octets that the guest wrote later", out.String(), tx.Rcpts, tx.Tags)
	}
}

// TestVerdict unpacks what mg1_hook returned.
func TestVerdict(t *testing.T) {
	ask(t, abi.HookMessage, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
		_, err := g.Verdict(abi.NewVerdict(abi.ActReject, 550, 5, 7, 1, true))
		if err == nil {
			t.Error("a text that was not given: got no error")
		}
		g.Reply([]byte("first"))
		g.Reply([]byte("second"))
		g.Tag([]byte("reason"), []byte("r1"))
		g.Tag([]byte("reason"), []byte("r2"))
		for _, tt := range []struct {
			v    abi.Verdict
			want string
		}{
			{0, "continue <nil> "},
			{abi.NewVerdict(abi.ActReject, 0, 0, 0, 0, false), "reject <nil> "},
			{abi.NewVerdict(abi.ActReject, 0, 0, 0, 0, true), "reject 0 second "},
			{abi.NewVerdict(abi.ActReject, 550, 5, 7, 1, true), "reject 550 5.7.1 second "},
			{abi.NewVerdict(abi.ActTempfail, 451, 4, 999, 1023, false), "tempfail 451 4.999.1023 "},
			{abi.NewVerdict(abi.ActQuarantine, 0, 0, 0, 0, false), "quarantine <nil> r2"},
			{abi.Failed(7), "error guest: it says that it failed, code 7"},
			{abi.Failed(0) | 0x7fff<<32, "error guest: it says that it failed, code 0"},
			{1 << 49, "error guest: its verdict 0x2000000000000 has unknown bits"},
			{abi.Verdict(200), "action(200) <nil> "},
		} {
			v, err := g.Verdict(tt.v)
			line := "<nil>"
			if v.Reply != nil {
				line = v.Reply.Line()
			}
			got := fmt.Sprintf("%s %s %s", v.Action, line, v.Reason)
			if err != nil {
				got = "error " + err.Error()
			}
			if got != tt.want {
				t.Errorf("%#x: got %q, want %q", uint64(tt.v), got, tt.want)
			}
		}
		return nil
	})
	// The text of one hook is not that of the next.
	g := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})
	askEnv(t, g, abi.HookMail, func(g *guest.Env, _ *policy.Event) error { g.Reply([]byte("x")); g.BodyNew(); return nil })
	askEnv(t, g, abi.HookMessage, func(g *guest.Env, _ *policy.Event) error {
		if _, err := g.Verdict(abi.NewVerdict(abi.ActReject, 550, 5, 7, 1, true)); err == nil {
			t.Error("the text of the hook before: got no error")
		}
		return nil
	})
}

// Subscribe adds up, refuses what is no hook, and counts in mg1_init alone.
func TestSubscribe(t *testing.T) {
	g := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})
	for _, bad := range []uint64{1, 1 << 18, 1 << 63, 1<<5 | 1<<18} {
		if got := g.Subscribe(bad); got != int32(abi.EINVAL) {
			t.Errorf("mask %#x: got %d, want EINVAL", bad, got)
		}
	}
	g.Subscribe(1 << abi.HookMail)
	g.Subscribe(1 << abi.HookClose)
	if got, want := g.Hooks(), policy.StagesOf(policy.StageMail, policy.StageClose); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestLog holds the limits of log lines: 32 at a hook, 2 KiB each, and what was dropped
// is counted.
func TestLog(t *testing.T) {
	var out bytes.Buffer
	o := guest.Options{Name: "guard", Log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo}))}
	ask(t, abi.HookMail, o, func(g *guest.Env, _ *policy.Event) error {
		if g.LogEnabled(int32(abi.LevelDebug)) != 0 || g.LogEnabled(int32(abi.LevelInfo)) != 1 {
			t.Error("log_enabled does not follow the log's level")
		}
		if got := g.Log(0, []byte("debug")); got != 0 {
			t.Errorf("a line below the level: got %d, want 0", got)
		}
		for i := range abi.MaxLogLines + 5 {
			want := int32(0)
			if i >= abi.MaxLogLines {
				want = int32(abi.ELIMIT)
			}
			if got := g.Log(3, big(3000)); got != want {
				t.Errorf("line %d: got %d, want %d", i, got, want)
			}
		}
		return nil
	})
	got := out.String()
	if n := strings.Count(got, "filter says"); n != abi.MaxLogLines {
		t.Errorf("%d lines, want %d", n, abi.MaxLogLines)
	}
	for _, want := range []string{"filter=guard", "stage=mail", "conn=c7", "level=ERROR", "dropped=5"} {
		if !strings.Contains(got, want) {
			t.Errorf("the log lacks %q", want)
		}
	}
	if strings.Contains(got, strings.Repeat("x", abi.MaxLogLine+1)) || strings.Contains(got, "debug") {
		t.Error("a line is too long, or of a level that is off")
	}
}

// A filter's lines have a level of their own, above or below that of the log; what is said of
// the filter has not.
func TestLogLevel(t *testing.T) {
	for _, tt := range []struct {
		level slog.Leveler
		want  string // the levels that are logged
		init  string // the same in mg1_init, where a complaint is kept whatever is logged
	}{
		{nil, "WARN ERROR", "WARN ERROR"},
		{slog.LevelDebug, "DEBUG INFO WARN ERROR", "DEBUG INFO WARN ERROR"},
		{slog.LevelError, "ERROR", "ERROR"},
		{guest.NoLines, "", ""},
	} {
		var out bytes.Buffer
		o := guest.Options{Name: "guard", LogLevel: tt.level, Log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}))}
		logged := func() string {
			var levels []string
			for line := range strings.Lines(out.String()) {
				if _, rest, ok := strings.Cut(line, "level="); ok && strings.Contains(line, "filter says") {
					levels = append(levels, strings.Fields(rest)[0])
				}
			}
			out.Reset()
			return strings.Join(levels, " ")
		}
		say := func(g *guest.Env) {
			for level := range int32(4) {
				if got := g.Log(level, []byte("a line")); got != 0 {
					t.Errorf("%v: a line of level %d: got %d, want 0", tt.level, level, got)
				}
			}
		}
		ask(t, abi.HookMail, o, func(g *guest.Env, _ *policy.Event) error {
			say(g)
			return nil
		})
		if got := logged(); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.level, got, tt.want)
		}
		g := guest.NewEnv(o)
		say(g)
		if got := logged(); got != tt.init {
			t.Errorf("%v, at the start: got %q, want %q", tt.level, got, tt.init)
		}
		if got, want := g.Complaint(), "a line\na line"; got != want {
			t.Errorf("%v: complaint %q, want %q", tt.level, got, want)
		}
	}
}

// Standard error keeps its beginning and its end.
func TestStderr(t *testing.T) {
	g := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})
	g.Stderr([]byte("panic: "))
	g.Stderr([]byte("at the disco\n"))
	if got := g.StderrTail(); got != "panic: at the disco\n" || g.StderrTail() != "" {
		t.Errorf("got %q", got)
	}
	g.Stderr([]byte("fatal error\n"))
	for i := range 10_000 {
		fmt.Fprintf(writer{g}, "line %d\n", i)
	}
	g.Stderr(big(1 << 20))
	g.Stderr([]byte("\nthe end\xff"))
	got := g.StderrTail()
	if !strings.HasPrefix(got, "fatal error\nline 0\n") || !strings.HasSuffix(got, "\nthe end\uFFFD") || !strings.Contains(got, "\n…\n") || len(got) > 4200 {
		t.Errorf("got %d octets, %.60q … %q", len(got), got, got[max(0, len(got)-20):])
	}
}

type writer struct{ h guest.Host }

func (w writer) Write(p []byte) (int, error) { w.h.Stderr(p); return len(p), nil }

// The clock is the Options' clock; mono never stands at zero and never goes back.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})
		start, mono := g.Now(), g.Mono()
		<-time.After(3 * time.Second)
		if got := g.Now() - start; got != 3e9 || g.Mono()-mono != 3e9 || mono <= 0 {
			t.Errorf("after 3 s: now %d, mono %d from %d", got, g.Mono(), mono)
		}
		clone := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services(), Start: time.Now().Add(-time.Hour)})
		if got := clone.Mono(); got < int64(time.Hour) {
			t.Errorf("mono of what started an hour ago: %d", got)
		}
	})
	fixed := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services(), Now: func() time.Time { return at }, Rand: strings.NewReader("abcdefgh")})
	b := make([]byte, 8)
	if fixed.Now() != at.UnixNano() || fixed.Random(b) != 8 || string(b) != "abcdefgh" {
		t.Errorf("clock and random octets of the Options: got %d, %q", fixed.Now(), b)
	}
}

// counted is a Metrics that keeps sums.
type counted map[string]int64

func (c counted) Add(filter, metric string, n int64) { c[filter+"."+metric] += n }

// A metric is named once, in mg1_init; copies of the guest count with the number it got.
func TestMetrics(t *testing.T) {
	g := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})
	for _, tt := range []struct {
		name string
		kind int32
		want int32
	}{
		{"hits", 0, 0}, {"misses_2", 0, 1}, {"hits", 0, 0},
		{"", 0, int32(abi.EINVAL)}, {"Hits", 0, int32(abi.EINVAL)}, {"2hits", 0, int32(abi.EINVAL)}, {"_x", 0, int32(abi.EINVAL)},
		{"hi-ts", 0, int32(abi.EINVAL)}, {"hits", 1, int32(abi.EINVAL)},
		{strings.Repeat("x", abi.MaxMetricName), 0, 2}, {strings.Repeat("x", abi.MaxMetricName+1), 0, int32(abi.EINVAL)},
	} {
		if got := g.Metric([]byte(tt.name), tt.kind); got != tt.want {
			t.Errorf("metric %q of kind %d: got %d, want %d", tt.name, tt.kind, got, tt.want)
		}
	}
	setup := g.Setup()
	for i := 3; i < abi.MaxMetrics; i++ {
		g.Metric(fmt.Appendf(nil, "m%d", i), 0)
	}
	if got := g.Metric([]byte("one_more"), 0); got != int32(abi.ELIMIT) {
		t.Errorf("one metric too many: got %d", got)
	}
	sums := counted{}
	ask(t, abi.HookMail, guest.Options{Name: "f", Setup: setup, Metrics: sums}, func(g *guest.Env, _ *policy.Event) error {
		for _, tt := range []struct{ id, n, want int32 }{{1, 2, 0}, {1, 3, 0}, {0, 0, 0}, {1, -1, int32(abi.EINVAL)}, {3, 1, int32(abi.ENOENT)}} {
			if got := g.MetricAdd(tt.id, int64(tt.n)); got != tt.want {
				t.Errorf("metric_add(%d, %d): got %d, want %d", tt.id, tt.n, got, tt.want)
			}
		}
		return nil
	})
	if len(sums) != 1 || sums["f.misses_2"] != 5 {
		t.Errorf("got %v", sums)
	}
}
