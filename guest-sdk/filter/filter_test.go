package filter_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/filter"
	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// filter_test.go runs handlers against the gateway's own side of the ABI.

var client = filtertest.Client{
	IP: "2001:db8::9", RDNS: "out.example.com", User: "alice", Listener: "submission",
	TLS: &policy.TLS{Version: 0x0304, Cipher: 0x1301, ServerName: "mx.example", ALPN: "smtp", Peer: "CN=alice", Verified: true, Fingerprint: "c0ffee"},
}

const eml = "From: a@example.com\nSubject: first\n  half\nX-Tag: 1\nx-tag: 2\nReceived: from x\n\nline one\nline two\n"

// session is all that an event tells of its session, in one line.
func session(e filter.Event) string {
	return fmt.Sprint(e.ConnID(), " ", e.SessionID(), " ", e.Listener(), " ", e.ClientIP(), ":", e.ClientPort(), " ", e.ServerIP(), " ",
		e.RDNS(), " ", e.User(), " ", e.TLS().Active(), " ", e.TLS().Version(), " ", e.TLS().Cipher(), " ", e.TLS().Peer(), " ",
		e.TLS().ServerName(), " ", e.TLS().ALPN(), " ", e.TLS().Verified(), " ", e.TLS().Fingerprint(), " ", e.Time() > 1e18, " ", e.Now(), " ", e.Mono() > 0)
}

const wantSession = "test-1 1 submission 2001:db8::9:40000 192.0.2.1 out.example.com alice true 772 TLS_AES_128_GCM_SHA256 CN=alice mx.example smtp true c0ffee true 5000000000 true"

// TestEveryHandler walks a message through a filter that has all handlers. Every hook
// sees the whole session, whatever its frame holds.
func TestEveryHandler(t *testing.T) {
	var seen []string
	see := func(name string, e filter.Event, rest ...any) {
		if got := session(e); got != wantSession {
			t.Errorf("%s: got  %s\nwant %s", name, got, wantSession)
		}
		seen = append(seen, strings.TrimSpace(name+" "+e.Helo()+" "+fmt.Sprintln(rest...)))
	}
	f := filter.New("all")
	f.OnConnect(func(_ filter.Reply, e *filter.ConnectEvent) { see("connect", e.Event, e.Transaction()) })
	f.OnSecure(func(_ filter.Reply, e *filter.SecureEvent) { see("secure", e.Event) })
	f.OnHelo(func(_ filter.Reply, e *filter.HeloEvent) { see("helo", e.Event) })
	f.OnAuth(func(_ filter.Reply, e *filter.AuthEvent) {
		password, ok := e.Password()
		token, also := e.Token()
		see("auth", e.Event, e.Mechanism(), e.Login(), e.Authz(), password, ok, token, also)
	})
	f.OnMailFrom(func(_ filter.Reply, e *filter.MailEvent) {
		see("mail", e.Event, e.From(), e.Size(), e.Params(), e.Recipients().Len(), e.Transaction())
	})
	f.OnRcptTo(func(_ filter.Reply, e *filter.RcptEvent) {
		see("rcpt", e.Event, e.From(), e.Rcpt(), e.RcptParams(), e.Recipients().All())
	})
	f.OnDataCommand(func(_ filter.Reply, e *filter.DataEvent) { see("data", e.Event, e.Recipients().All()) })
	f.OnHeaders(func(_ filter.Reply, m *filter.HeadersEvent) { see("headers", m.Event, m.Header.Get("Subject")) })
	f.OnData(func(_ filter.Reply, m *filter.Message) { see("message", m.Event, m.Size(), m.Body.Size()) })
	f.OnReset(func(e *filter.Event) { see("reset", *e) })
	f.OnClose(func(e *filter.Event) { see("close", *e) })

	now := func() time.Time { return time.Unix(5, 0) }
	s := filtertest.New(t, filtertest.Options{Filter: f, Client: client, Now: now})
	s.Connect()
	s.Secure()
	s.Helo("client.example")
	s.Auth(policy.Auth{User: "bob", Authz: "carol", Password: "p w", Reveal: true})
	s.Auth(policy.Auth{Mechanism: "XOAUTH2", User: "bob", Token: "t"})
	s.MailFrom("a@example.com")
	s.Transaction().Sender.Size = 17
	s.RcptTo("b@example.org")
	s.RcptTo("c@example.org")
	s.Data()
	s.Headers(eml)
	s.Message(eml)
	s.Reset()
	s.MailFrom("")
	s.Close()
	want := []string{
		"connect  0", "secure", "helo client.example",
		"auth client.example PLAIN bob carol p w true  false",
		"auth client.example XOAUTH2 bob   false  false",
		"mail client.example a@example.com 0 [] 0 1",
		"rcpt client.example a@example.com b@example.org [] [b@example.org]",
		"rcpt client.example a@example.com c@example.org [] [b@example.org c@example.org]",
		"data client.example [b@example.org c@example.org]",
		"headers client.example first  half",
		fmt.Sprintf("message client.example %d 20", len(eml)+strings.Count(eml, "\n")),
		"reset client.example",
		"mail client.example  0 [] 0 2",
		"close client.example",
	}
	if !reflect.DeepEqual(seen, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(seen, "\n"), strings.Join(want, "\n"))
	}
}

// at runs a handler for the whole message and returns what came of it.
func at(t *testing.T, handle func(w filter.Reply, m *filter.Message)) filtertest.Delivery {
	t.Helper()
	f := filter.New("test")
	f.OnData(handle)
	return filtertest.Deliver(t, filtertest.Options{Filter: f, Client: client, MayAccept: true},
		filtertest.Envelope{From: "a@example.com", To: []string{"b@example.org", "c@example.org"}}, eml)
}

func TestVerdicts(t *testing.T) {
	tests := []struct {
		name   string
		say    func(w filter.Reply)
		action policy.Action
		reply  string
		failed bool
	}{
		{"nothing", func(filter.Reply) {}, policy.Continue, "", false},
		{"reject", func(w filter.Reply) { w.Reject(554, "5.6.0", "no") }, policy.Reject, "554 5.6.0 no", false},
		{"reject by default", func(w filter.Reply) { w.Reject(0, "", "") }, policy.Reject, "550 5.7.1 refused by policy", false},
		{"two lines", func(w filter.Reply) { w.Reject(550, "", "a\nb") }, policy.Reject, "550 5.7.1 a / b", false},
		{"tempfail", func(w filter.Reply) { w.Tempfail(450, "4.2.1", "later") }, policy.Tempfail, "450 4.2.1 later", false},
		{"disconnect", func(w filter.Reply) { w.Disconnect(0, "", "bye") }, policy.Disconnect, "421 4.7.0 bye", false},
		{"discard", func(w filter.Reply) { w.Discard() }, policy.Discard, "", false},
		{"accept", func(w filter.Reply) { w.Accept() }, policy.Accept, "", false},
		{"skip", func(w filter.Reply) { w.Skip() }, policy.Skip, "", false},
		{"quarantine", func(w filter.Reply) { w.Quarantine("odd") }, policy.Quarantine, "", false},
		{"the last counts", func(w filter.Reply) { w.Quarantine("odd"); w.Reject(550, "", "no") }, policy.Reject, "550 5.7.1 no", false},
		{"taken back", func(w filter.Reply) { w.Reject(550, "", "no"); w.Continue() }, policy.Continue, "", false},
		{"text that cannot be sent", func(w filter.Reply) { w.Reject(550, "", "a\rb") }, policy.Reject, "550 5.7.1 refused by policy", false},
		{"code of another action", func(w filter.Reply) { w.Reject(450, "", "no") }, policy.Tempfail, "451 4.3.0 message cannot be checked now, try again later", true},
		{"bad enhanced code", func(w filter.Reply) { w.Reject(550, "x", "no") }, policy.Tempfail, "451 4.3.0 message cannot be checked now, try again later", true},
	}
	for _, tt := range tests {
		r := at(t, func(w filter.Reply, _ *filter.Message) { tt.say(w) }).Step(policy.StageMessage)
		if r.Verdict.Action != tt.action || r.Reply != tt.reply || (r.Err != nil) != tt.failed {
			t.Errorf("%s: got %s %q, err %v; want %s %q, failed %v", tt.name, r.Verdict.Action, r.Reply, r.Err, tt.action, tt.reply, tt.failed)
		}
	}
	d := at(t, func(w filter.Reply, _ *filter.Message) { w.Quarantine("odd") })
	if d.Verdict.Reason != "odd" || d.Message == "" {
		t.Errorf("quarantine: reason %q, message %q", d.Verdict.Reason, d.Message)
	}
}

// TestChunks: the pieces of a body, until the filter has seen enough, and what it may do there.
func TestChunks(t *testing.T) {
	f := filter.New("test")
	var sizes []int
	sum, whole := 0, ""
	f.OnChunk(func(w filter.Reply, m *filter.ChunkEvent) {
		p := m.Bytes()
		if m.Offset() != int64(sum) || string(p) != whole[sum:sum+len(p)] {
			t.Errorf("piece of %d octets at %d is not that of the body at %d", len(p), m.Offset(), sum)
		}
		sum += len(p)
		sizes = append(sizes, len(p))
		if err := m.Header.Add("X", "y"); !errors.Is(err, abi.EPHASE) || m.Header.Get("Subject") != "hi" || m.Recipients().Len() != 1 {
			t.Errorf("the header is to be read, not changed: %v", err)
		}
		if strings.HasPrefix(string(p), "stop") {
			w.Skip()
		}
		if strings.HasPrefix(string(p), "worm") {
			w.Reject(554, "5.7.0", "a worm")
		}
	})
	f.OnData(func(_ filter.Reply, m *filter.Message) { sizes = append(sizes, -int(m.Body.Size())) })
	large := strings.Repeat("x", 1<<16-2) + "\r\n"
	for _, tt := range []struct {
		body  string
		want  []int
		reply string
	}{
		{"", []int{0}, ""},
		{"hello\r\n", []int{7, -7}, ""},
		{large, []int{1 << 16, -1 << 16}, ""},
		{large + large + "x", []int{1 << 16, 1 << 16, 1, -2<<16 - 1}, ""},
		{large + "stop" + large, []int{1 << 16, 1 << 16, -2<<16 - 4}, ""},
		{large + "worm" + large, []int{1 << 16, 1 << 16}, "554 5.7.0 a worm"},
	} {
		sizes, sum, whole = nil, 0, tt.body
		d := filtertest.Deliver(t, filtertest.Options{Filter: f}, filtertest.Envelope{To: []string{"b@example.org"}}, "Subject: hi\r\n\r\n"+tt.body)
		if !reflect.DeepEqual(sizes, tt.want) || d.Reply != tt.reply {
			t.Errorf("body of %d octets: got %v %q, want %v %q", len(tt.body), sizes, d.Reply, tt.want, tt.reply)
		}
	}
}

// TestRecipients: verdicts about single recipients, and what is left of the message.
func TestRecipients(t *testing.T) {
	f := filter.New("test")
	f.OnData(func(_ filter.Reply, m *filter.Message) {
		for r := range m.Recipients().Each() {
			var err error
			switch r.Local() {
			case "reject":
				err = r.Reject(551, "5.1.6", "moved")
			case "bell":
				err = r.Reject(0, "", "a\x07")
			case "later":
				err = r.Tempfail(0, "", "")
			case "drop":
				err = r.Discard()
			case "hold":
				err = r.Quarantine("odd")
			case "mercy":
				err = errors.Join(r.Discard(), r.Continue())
			}
			if err != nil {
				t.Errorf("%s: %v", r, err)
			}
		}
	})
	f.OnRcptTo(func(_ filter.Reply, m *filter.RcptEvent) {
		for r := range m.Recipients().Each() {
			if err := r.Discard(); !errors.Is(err, abi.EPHASE) {
				t.Errorf("at RCPT: %v, want EPHASE", err)
			}
		}
	})
	for _, tt := range []struct{ to, left, judged, reply string }{
		{"a b", "a b", "", ""},
		{"a reject later drop hold mercy", "a mercy", "reject:reject:551 5.1.6 moved later:tempfail:451 4.7.1 deferred by policy, try again later drop:discard: hold:quarantine:", ""},
		{"bell a", "a", "bell:reject:550 5.7.1 refused by policy", ""},
		{"reject", "", "reject:reject:551 5.1.6 moved", "551 5.1.6 moved"},
	} {
		e := filtertest.Envelope{}
		for _, r := range strings.Fields(tt.to) {
			e.To = append(e.To, r+"@example.org")
		}
		d := filtertest.Deliver(t, filtertest.Options{Filter: f}, e, eml)
		judged := ""
		for _, j := range d.Judged {
			judged += " " + strings.TrimSuffix(j.To, "@example.org") + ":" + j.Verdict.Action.String() + ":" + j.Reply
		}
		left := strings.ReplaceAll(strings.Join(d.To, " "), "@example.org", "")
		if left != tt.left || strings.TrimSpace(judged) != tt.judged || d.Reply != tt.reply || (d.Message != "") != (tt.left != "") {
			t.Errorf("to %s:\ngot  %q, %q, %q\nwant %q, %q, %q", tt.to, left, judged, d.Reply, tt.left, tt.judged, tt.reply)
		}
	}
}

// TestPanic: the call fails, its edits are dropped, the log tells where, and the session
// goes on.
func TestPanic(t *testing.T) {
	for _, p := range []any{"no such thing", errors.New("no such thing"), reflect.ValueOf("no such thing"), 7} {
		d := at(t, func(_ filter.Reply, m *filter.Message) {
			_ = m.Header.Add("X-Half", "done")
			panic(p)
		})
		r := d.Step(policy.StageMessage)
		log := strings.Join(r.Log, "\n")
		if r.Err == nil || r.Verdict.Action != policy.Tempfail || len(r.Edits) != 0 {
			t.Errorf("%v: got %s, edits %q, err %v; want tempfail, none, an error", p, r.Verdict.Action, r.Edits, r.Err)
		}
		if !strings.Contains(log, "ERROR panic: ") || !strings.Contains(log, "filter_test.go:") {
			t.Errorf("%v: the log does not tell what and where:\n%s", p, log)
		}
		if strings.Contains(log, "(*Filter).hook") || len(r.Log) > 5 {
			t.Errorf("%v: the log has more than the handler's part:\n%s", p, log)
		}
	}
}

func TestHeader(t *testing.T) {
	var read []string
	d := at(t, func(_ filter.Reply, m *filter.Message) {
		h := m.Header
		read = append(read, h.Get("subject"), h.Get("none"), fmt.Sprint(h.Values("X-TAG")), fmt.Sprint(h.Len(), h.Has("from"), h.Find("x-tag", 3)))
		name, value := h.At(1)
		read = append(read, name+":"+value)
		name, value = h.At(99)
		read = append(read, name+value)
		for _, err := range []error{
			h.Add("X-Bottom", "é"), h.Insert(0, "X-Top", "1"), h.Set("X-Tag", "one"), h.Set("X-New", "n"),
			h.SetAt(h.Find("From", 0), "b@example.com"), h.Delete("Subject"), h.Delete("None"),
		} {
			if err != nil {
				t.Error(err)
			}
		}
		if err := h.Delete("Received"); !errors.Is(err, abi.EPERM) {
			t.Errorf("delete Received: got %v, want EPERM", err)
		}
		if err := h.Add("X-Bad", "a\r\nBcc: x"); !errors.Is(err, abi.EINVAL) {
			t.Errorf("a value with a line break: got %v, want EINVAL", err)
		}
		raw, err := io.ReadAll(h.Raw())
		read = append(read, string(raw))
		if err != nil {
			t.Error(err)
		}
	})
	const want = "X-Top: 1\r\nFrom: b@example.com\r\nX-Tag: one\r\nReceived: from x\r\nX-Bottom: =?utf-8?q?=C3=A9?=\r\nX-New: n\r\n\r\n"
	wantRead := []string{"first  half", "", "[1 2]", "5 true 3", "Subject: first\r\n  half", "", want}
	if !reflect.DeepEqual(read, wantRead) {
		t.Errorf("read %q\nwant %q", read, wantRead)
	}
	if want := want + "line one\r\nline two\r\n"; d.Message != want {
		t.Errorf("message: got %q\nwant %q", d.Message, want)
	}
	if first := d.Step(policy.StageMessage).Edits[0]; first != "added X-Bottom: é" {
		t.Errorf("first edit: got %q", first)
	}
}

func TestLongHeaderField(t *testing.T) {
	long := strings.Repeat("word ", 2000)
	f := filter.New("test")
	got := ""
	f.OnHeaders(func(_ filter.Reply, m *filter.HeadersEvent) { got = m.Header.Get("Long") })
	filtertest.Deliver(t, filtertest.Options{Filter: f}, filtertest.Envelope{To: []string{"b@example.org"}}, "Long: "+long+"\n\n")
	if got != strings.TrimSpace(long) {
		t.Errorf("got %d octets, want %d", len(got), len(strings.TrimSpace(long)))
	}
}

func TestEnvelope(t *testing.T) {
	d := at(t, func(_ filter.Reply, m *filter.Message) {
		r := m.Recipients()
		for _, err := range []error{m.SetFrom("x@example.com"), r.Add("d@example.org"), r.Set(0, "e@example.org"), r.Delete(1)} {
			if err != nil {
				t.Error(err)
			}
		}
		if got := fmt.Sprint(m.From(), r.All(), r.At(7)); got != "x@example.com [e@example.org d@example.org] " {
			t.Errorf("what the filter sees of its own edits: %q", got)
		}
		if err := r.Add("not an address"); !errors.Is(err, abi.EINVAL) {
			t.Errorf("bad address: got %v, want EINVAL", err)
		}
		if err := r.Delete(9); !errors.Is(err, abi.ENOENT) {
			t.Errorf("no such recipient: got %v, want ENOENT", err)
		}
	})
	if d.From != "x@example.com" || !reflect.DeepEqual(d.To, []string{"e@example.org", "d@example.org"}) {
		t.Errorf("got %s to %q", d.From, d.To)
	}
}

// TestSession: values last from event to event of a session, and not beyond.
func TestSession(t *testing.T) {
	f := filter.New("test")
	got := ""
	f.OnConnect(func(_ filter.Reply, e *filter.ConnectEvent) {
		got += "<" + e.Session().Get("k") + ">"
		if err := e.Session().Set("k", strings.Repeat("v", 300)); err != nil {
			t.Error(err)
		}
		if err := e.Session().Set("large", strings.Repeat("v", abi.MaxSession)); !errors.Is(err, abi.ELIMIT) {
			t.Errorf("16 KiB more: got %v, want ELIMIT", err)
		}
	})
	f.OnHelo(func(_ filter.Reply, e *filter.HeloEvent) {
		got += fmt.Sprint(len(e.Session().Get("k")))
		if err := e.Session().Set("k", ""); err != nil || e.Session().Bytes("k") != nil {
			t.Errorf("deleted value: %q, %v", e.Session().Bytes("k"), err)
		}
	})
	for range 2 {
		s := filtertest.New(t, filtertest.Options{Filter: f})
		s.Connect()
		s.Helo("x.example")
		s.Close()
	}
	if got != "<>300<>300" {
		t.Errorf("got %s", got)
	}
}

func TestTagsLogRandom(t *testing.T) {
	d := at(t, func(_ filter.Reply, m *filter.Message) {
		if err := m.Tag("score", "7"); err != nil {
			t.Error(err)
		}
		if err := m.Tag("", "x"); err == nil {
			t.Error("a tag without a key: want an error")
		}
		if m.LogEnabled(filter.LevelDebug) {
			m.Log(filter.LevelInfo, "hello", "who", "a b", "odd")
		}
		p := make([]byte, 3*abi.MaxRandom)
		if err := m.Random(p); err != nil || strings.Count(string(p), "\x00") > len(p)/64 {
			t.Errorf("random: %v", err)
		}
	})
	r := d.Step(policy.StageMessage)
	if !reflect.DeepEqual(r.Tags, []string{"score=7"}) || !reflect.DeepEqual(r.Log, []string{`INFO hello who="a b" odd=`}) {
		t.Errorf("got tags %q, log %q", r.Tags, r.Log)
	}
}

// TestConfigure has what package filter tells an operator about a configuration.
func TestConfigure(t *testing.T) {
	type all struct {
		S          string
		L          []string
		I, D, Z    int64
		B          bool
		Sub        string
		List, Keys []string
	}
	read := func(c filter.Config) (a all) {
		c.Only("s", "l", "i", "b", "d", "z", "sub", "list")
		a = all{S: c.String("s", "def"), L: c.Strings("l", "x"), I: c.Int("i", 3), D: c.Duration("d", 5), Z: c.Size("z", 6), B: c.Bool("b", true)}
		sub := c.Sub("sub")
		sub.Only("s")
		a.Sub, a.Keys = sub.String("s"), c.Keys()
		for _, e := range c.List("list") {
			a.List = append(a.List, e.String("s"))
			if e.Int("i") < 0 {
				e.Fail("i", "want more")
			}
		}
		return a
	}
	tests := []struct {
		config string
		want   all
		err    string
	}{
		{``, all{S: "def", L: []string{"x"}, I: 3, D: 5, Z: 6, B: true}, ""},
		{`null`, all{S: "def", L: []string{"x"}, I: 3, D: 5, Z: 6, B: true}, ""},
		{`{"s": null}`, all{S: "def", L: []string{"x"}, I: 3, D: 5, Z: 6, B: true, Keys: []string{"s"}}, ""},
		{`{"s": "", "l": [], "i": -4, "b": false, "d": "1d2h3m4s5ms6us7ns", "z": "64 KiB", "sub": {"s": "deep"}, "list": [{"s": "1"}, {"s": "2"}]}`,
			all{L: []string{}, I: -4, D: int64(26*time.Hour + 3*time.Minute + 4*time.Second + 5006007), Z: 65536, Sub: "deep",
				List: []string{"1", "2"}, Keys: []string{"s", "l", "i", "b", "d", "z", "sub", "list"}}, ""},
		{`{"z": 500}`, all{S: "def", L: []string{"x"}, I: 3, D: 5, Z: 500, B: true, Keys: []string{"z"}}, ""},
		{`{"z": "25mb", "d": "0"}`, all{S: "def", L: []string{"x"}, I: 3, Z: 25e6, B: true, Keys: []string{"z", "d"}}, ""},
		{`{"S": 1}`, all{}, "S: unknown key"},
		{`{"s": 1}`, all{}, "s: is a number, want a string"},
		{`{"l": "x"}`, all{}, "l: is a string, want a list"},
		{`{"l": ["x", 1]}`, all{}, "l[1]: is a number, want a string"},
		{`{"i": 1.5}`, all{}, "i: 1.5 is not a whole number of 64 bits"},
		{`{"i": 9223372036854775808}`, all{}, "not a whole number of 64 bits"},
		{`{"b": "true"}`, all{}, "b: is a string, want true or false"},
		{`{"d": 5}`, all{}, "d: is a number, want a string"},
		{`{"d": "5"}`, all{}, `d: "5" is not a duration`}, // seconds or minutes?
		{`{"d": ""}`, all{}, "is not a duration"},
		{`{"d": "-1s"}`, all{}, "is not a duration"},
		{`{"d": "200000d"}`, all{}, "is not a duration"}, // more than 63 bits of nanoseconds
		{`{"z": "5K"}`, all{}, `z: "5K" is not a size`},
		{`{"z": -5}`, all{}, "is not a size"},
		{`{"z": "9000000TiB"}`, all{}, "is not a size"},
		{`{"z": true}`, all{}, "z: is true or false, want a size"},
		{`{"sub": []}`, all{}, "sub: is a list, want an object"},
		{`{"sub": {"x": 1}}`, all{}, "sub.x: unknown key"},
		{`{"list": [{}, 1]}`, all{}, "list[1]: is a number, want an object"},
		{`{"list": [{"i": -1}]}`, all{}, "list[0].i: want more"},
		{`{"s": 1, "i": "x"}`, all{}, "s: is a number, want a string; i: is a string"}, // all faults at once
		{`[]`, all{}, "is a list, want an object"},
		{`{`, all{}, "want a key at octet 1"},
	}
	for _, tt := range tests {
		var got all
		f := filter.New("test")
		f.Configure(func(c filter.Config) error { got = read(c); return nil })
		_, err := filtertest.Load(f, guest.Options{Config: []byte(tt.config)})
		if tt.err == "" && (err != nil || !reflect.DeepEqual(got, tt.want)) {
			t.Errorf("%s:\ngot  %+v, %v\nwant %+v", tt.config, got, err, tt.want)
		}
		if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%s: got %v, want an error with %q", tt.config, err, tt.err)
		}
	}
}

func TestUnmarshal(t *testing.T) {
	var got []map[string]any
	f := filter.New("test")
	f.Configure(func(c filter.Config) error {
		got = make([]map[string]any, 3)
		return errors.Join(c.Unmarshal(json.Unmarshal, &got[0]), c.Sub("a").Unmarshal(json.Unmarshal, &got[1]),
			c.Sub("none").Unmarshal(json.Unmarshal, &got[2]))
	})
	_, err := filtertest.Load(f, guest.Options{Config: []byte(` {"a": {"b": 1}} `)})
	want := []map[string]any{{"a": map[string]any{"b": 1.0}}, {"b": 1.0}, {}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

// TestSubscription: the hooks are those that have handlers, and a filter without
// Configure takes no configuration.
func TestSubscription(t *testing.T) {
	f := filter.New("test")
	f.OnRcptTo(func(filter.Reply, *filter.RcptEvent) {})
	f.OnClose(func(*filter.Event) {})
	p, err := filtertest.Load(f, guest.Options{})
	if err != nil || p.Stages() != policy.StagesOf(policy.StageRcpt, policy.StageClose) || p.Name() != "test" {
		t.Errorf("got %v at %s, %v", p.Name(), p.Stages(), err)
	}
	if _, err := filtertest.Load(f, guest.Options{Config: []byte(`{"x": 1}`)}); err == nil || !strings.Contains(err.Error(), "x: unknown key") {
		t.Errorf("a configuration nobody reads: got %v, want an error", err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a second handler for a hook: want a panic")
		}
	}()
	f.OnRcptTo(func(filter.Reply, *filter.RcptEvent) {})
}

func TestServeTwicePanics(t *testing.T) {
	filter.New("one").Serve()
	defer func() {
		if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "Serve of two, but one") {
			t.Errorf("got %v, want a panic that names both", p)
		}
	}()
	filter.New("two").Serve()
}

func TestParams(t *testing.T) {
	p := filter.Params{"SIZE=100", "SMTPUTF8"}
	for _, tt := range []struct {
		key, value string
		ok         bool
	}{{"size", "100", true}, {"SMTPUTF8", "", true}, {"BODY", "", false}} {
		if v, ok := p.Get(tt.key); v != tt.value || ok != tt.ok {
			t.Errorf("%s: got %q, %v; want %q, %v", tt.key, v, ok, tt.value, tt.ok)
		}
	}
}
