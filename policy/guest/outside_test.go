package guest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// TestURLs: whom a URL speaks to, in every spelling that some program reads otherwise.
func TestURLs(t *testing.T) {
	for url, want := range map[string]string{
		"https://A.Test/x?y#z": "https a.test 443", "http://a.test": "http a.test 80", "https://a.test.:8443/": "https a.test 8443",
		"https://[2001:DB8:0::1]/": "https 2001:db8::1 443", "https://[::ffff:127.0.0.1]/": "https 127.0.0.1 443", "https://127.0.0.1/": "https 127.0.0.1 443",
		"https://u@a.test/": "", "https://u:p@a.test/": "", "https://a.test@b.test/": "", "https://a.test\\@b.test/": "", "https://a.test\r\n/": "", "https://a.test/\tx": "", "https:a.test": "", "//a.test/": "",
		"ftp://a.test/": "", "https:///x": "", "https://a.test:0/": "", "https://a.test:99999/": "", "https://a.test:x/": "", "https://bücher.test/": "", "https://a..test/": "",
		"https://2130706433/": "", "https://0x7f.1/": "", "https://127.1/": "", "https://0177.0.0.1/": "", "https://0x7f000001/": "", "https://[fe80::1%25eth0]/": "", "https://%61.test/": "", "https://a%00.test/": "", "https://a.test%2f@b.test/": "",
		"https://" + strings.Repeat("a.", 200) + "test/": "", "https://a.test/" + strings.Repeat("x", abi.MaxHTTPURL): "",
	} {
		got := ""
		if scheme, host, port, ok := guest.SplitURL(url); ok {
			got = scheme + " " + host + " " + itoa(port)
		}
		if got != want {
			t.Errorf("%.60q: got %q, want %q", url, got, want)
		}
	}
}

func itoa(n uint16) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}

// TestOutsideAnswers has what calls answer that leave the session.
func TestOutsideAnswers(t *testing.T) {
	const inval, perm, limit, unavail = int64(abi.EINVAL), int64(abi.EPERM), int64(abi.ELIMIT), int64(abi.EUNAVAIL)
	get := func(fields ...string) []byte {
		return list(append([]string{"GET", "https://a.test/", ""}, fields...)...)
	}
	buf := make([]byte, 100)
	for _, tt := range []struct {
		name string
		call func(h guest.Host) int64
		want int64
	}{
		{"key too long", func(h guest.Host) int64 { return int64(h.KvGet(big(513), buf)) }, limit},
		{"value too long", func(h guest.Host) int64 { return int64(h.KvSet([]byte("k"), big(64<<10+1), 0)) }, limit},
		{"longest value", func(h guest.Host) int64 { return int64(h.KvSet([]byte("k"), big(64<<10), 1<<62)) }, 0},
		{"too many values at a hook", func(h guest.Host) int64 {
			return last(abi.MaxKV+1, func() int32 { return h.KvGet([]byte("k"), buf) })
		}, limit},
		{"too many look-ups", func(h guest.Host) int64 {
			return last(abi.MaxDNS+1, func() int32 { return h.Dns(16, []byte("a.test"), buf) })
		}, limit},
		{"too many look-ups beside", func(h guest.Host) int64 {
			return last(abi.MaxDNS+1, func() int32 { return h.Submit(1, []byte("\x10\x00\x00\x00a.test")) })
		}, limit},
		{"too many fetches", func(h guest.Host) int64 { return last(abi.MaxHTTP+1, func() int32 { return h.Http(get(), buf) }) }, limit},
		{"too many notifications", func(h guest.Host) int64 {
			return last(abi.MaxDSNs+1, func() int32 { return h.Dsn(list("a@b.test", "s", "t")) })
		}, limit},
		{"type HINFO", func(h guest.Host) int64 { return int64(h.Dns(13, []byte("a.test"), buf)) }, inval},
		{"type that is TXT in 16 bits", func(h guest.Host) int64 { return int64(h.Dns(1<<16+16, []byte("a.test"), buf)) }, inval},
		{"name with a line end", func(h guest.Host) int64 { return int64(h.Dns(16, []byte("a\n.test"), buf)) }, inval},
		{"request too long", func(h guest.Host) int64 { return int64(h.Http(big(abi.MaxHTTPRequest+1), buf)) }, limit},
		{"length beyond the request", func(h guest.Host) int64 { return int64(h.Http([]byte("\xff\xff\xff\xffGET"), buf)) }, inval},
		{"too many fields", func(h guest.Host) int64 { return int64(h.Http(get(make([]string, 130)...), buf)) }, inval},
		{"field in the value", func(h guest.Host) int64 { return int64(h.Http(get("X", "1\r\nY: 2"), buf)) }, inval},
		{"line feed in the name", func(h guest.Host) int64 { return int64(h.Http(get("X\nY", "1"), buf)) }, inval},
		{"colon in the name", func(h guest.Host) int64 { return int64(h.Http(get("X:", "1"), buf)) }, inval},
		{"method with a line", func(h guest.Host) int64 {
			return int64(h.Http(list("GET / HTTP/1.1\r\nX:", "https://a.test/", ""), buf))
		}, inval},
		{"Host", func(h guest.Host) int64 { return int64(h.Http(get("hOST", "b.test"), buf)) }, inval},
		{"Transfer-Encoding", func(h guest.Host) int64 { return int64(h.Http(get("transfer-encoding", "chunked"), buf)) }, inval},
		{"Proxy-Authorization", func(h guest.Host) int64 { return int64(h.Http(get("Proxy-Authorization", "x"), buf)) }, inval},
		{"method that is not granted", func(h guest.Host) int64 { return int64(h.Http(list("DELETE", "https://a.test/", ""), buf)) }, perm},
		{"port that is not granted", func(h guest.Host) int64 { return int64(h.Http(list("GET", "https://a.test:22/", ""), buf)) }, perm},
		{"address that is not granted", func(h guest.Host) int64 { return int64(h.Http(list("GET", "https://127.0.0.1/", ""), buf)) }, perm},
		{"subject of two lines", func(h guest.Host) int64 { return int64(h.Dsn(list("a@b.test", "s\r\nBcc: x@y.test", "t"))) }, inval},
		{"NUL in the text", func(h guest.Host) int64 { return int64(h.Dsn(list("a@b.test", "s", "\x00"))) }, inval},
		{"submit without a type", func(h guest.Host) int64 { return int64(h.Submit(1, []byte("abc"))) }, inval},
	} {
		ask(t, abi.HookMessage, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
			if got := tt.call(g); got != tt.want {
				t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
			}
			return nil
		})
	}
	// Without services, everything that is granted is unavailable.
	askEnv(t, guest.NewEnv(guest.Options{Grants: everything()}), abi.HookMail, func(g *guest.Env, _ *policy.Event) error {
		for name, got := range map[string]int32{
			"kv": g.KvGet([]byte("k"), buf), "dns": g.Dns(16, []byte("a.test"), buf), "http": g.Http(get(), buf),
			"dsn": g.Dsn(list("a@b.test", "s", "t")), "secret": g.Secret([]byte("s"), buf),
		} {
			if int64(got) != unavail {
				t.Errorf("%s without a service: got %d", name, got)
			}
		}
		return nil
	})
	// Parameters of a grant.
	g := guest.Grants{DNS: &guest.DNSGrant{Types: []string{"A"}, MaxPerHook: 1}, HTTP: &guest.HTTPGrant{Hosts: []guest.HostPattern{{Scheme: "https", Host: "b.test"}}}}
	askEnv(t, guest.NewEnv(guest.Options{Grants: g, Services: world().Services()}), abi.HookMail, func(g *guest.Env, _ *policy.Event) error {
		if n := abi.Errno(g.Dns(16, []byte("a.test"), buf)); n != abi.EPERM {
			t.Errorf("TXT where A is granted: got %d", n)
		}
		if a, b := abi.Errno(g.Dns(1, []byte("a.test"), buf)), abi.Errno(g.Dns(1, []byte("a.test"), buf)); a != abi.ENOENT || b != abi.ELIMIT {
			t.Errorf("two look-ups where one is granted: got %d, %d", a, b)
		}
		if n := abi.Errno(g.Http(get(), buf)); n != abi.EPERM {
			t.Errorf("a.test where b.test is granted: got %d", n)
		}
		return nil
	})
}

// What an operator allows at one hook, and in one session, beside what there is by default.
func TestOperatorsLimits(t *testing.T) {
	all := everything()
	all.KV, all.HTTP.MaxPerHook = &guest.KVGrant{MaxPerHook: 2}, 1
	var out bytes.Buffer
	o := guest.Options{Grants: all, Services: world().Services(), LogLines: 2, SessionValues: 4, Log: slog.New(slog.NewTextHandler(&out, nil))}
	for range 2 { // they begin anew with each hook
		askEnv(t, guest.NewEnv(o), abi.HookMail, func(g *guest.Env, _ *policy.Event) error {
			for name, f := range map[string]struct {
				most int
				call func() int32
			}{
				"kv":       {2, func() int32 { return g.KvDel([]byte("k")) }},
				"http":     {1, func() int32 { return g.Http(list("GET", "https://a.test/", ""), make([]byte, 100)) }},
				"log":      {2, func() int32 { return g.Log(int32(abi.LevelInfo), []byte("a line")) }},
				"sess_set": {0, func() int32 { return g.SessSet([]byte("key"), []byte("of5")) }},
			} {
				for n := range f.most + 1 {
					if got := abi.Errno(f.call()); (got == abi.ELIMIT) != (n >= f.most) {
						t.Errorf("%s, call %d: got %d, with a limit of %d", name, n+1, got, f.most)
					}
				}
			}
			if got := g.SessSet([]byte("key"), []byte("v")); got != 0 {
				t.Errorf("4 octets for the session: got %d", got)
			}
			return nil
		})
	}
	if got := out.String(); strings.Count(got, "a line") != 4 || strings.Count(got, "dropped=1") != 2 {
		t.Errorf("log:\n%s", got)
	}
}

// slow is a resolver that never answers, and counts who waits.
type slow struct{ ended chan string }

func (s slow) LookUp(ctx context.Context, _ uint16, name string) (guest.DNSAnswer, error) {
	<-ctx.Done()
	s.ended <- name
	return guest.DNSAnswer{}, errors.New("gave up")
}

// What runs beside the guest ends with its hook, and a wait with its time.
func TestFlightsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := slow{make(chan string, 10)}
		g := guest.NewEnv(guest.Options{Grants: everything(), Services: guest.Services{DNS: s}})
		askEnv(t, g, abi.HookMail, func(g *guest.Env, _ *policy.Event) error {
			start := time.Now()
			h := g.Submit(1, []byte("\x10\x00\x00\x00a.test"))
			g.Submit(1, []byte("\x10\x00\x00\x00b.test"))
			if n := abi.Errno(g.Wait(h, 0, nil)); n != abi.ETIME || time.Since(start) != 0 {
				t.Errorf("poll: got %d after %v", n, time.Since(start))
			}
			if n := abi.Errno(g.Wait(h, 250, nil)); n != abi.ETIME || time.Since(start) != 250*time.Millisecond {
				t.Errorf("wait: got %d after %v", n, time.Since(start))
			}
			return nil
		})
		if len(s.ended) != 2 {
			t.Errorf("%d look-ups have ended with their hook, want 2", len(s.ended))
		}
		askEnv(t, g, abi.HookMail, func(g *guest.Env, _ *policy.Event) error {
			if n := abi.Errno(g.Wait(1, 0, nil)); n != abi.ENOENT {
				t.Errorf("what an earlier hook began: got %d", n)
			}
			return nil
		})
	})
}

// Reading an answer is work, however often it is done: with room for all but an octet it may
// be read without end.
func TestAnswersAreCharged(t *testing.T) {
	w := world()
	w.HTTP = func(context.Context, guest.HTTPRequest) (guest.HTTPResponse, error) {
		return guest.HTTPResponse{Status: 200, Body: big(5000)}, nil
	}
	charged := int64(0)
	o := guest.Options{Grants: everything(), Services: w.Services(), Charge: func(n int64) bool { charged += n; return true }}
	askEnv(t, guest.NewEnv(o), abi.HookMail, func(g *guest.Env, _ *policy.Event) error {
		req := list("GET", "https://a.test/", "")
		buf := make([]byte, g.Http(req, nil)-1)
		h := g.Submit(2, req)
		for name, read := range map[string]func() int32{
			"kept": func() int32 { return g.Http(req, buf) },
			"wait": func() int32 { return g.Wait(h, 1000, buf) },
		} {
			for range 3 {
				charged = 0
				if n := read(); int(n) != len(buf)+1 || charged < int64(len(buf)) {
					t.Errorf("%s: got %d, and %d octets were charged, want %d", name, n, charged, len(buf))
				}
			}
		}
		return nil
	})
}

// A host that has another address than was granted is seen when it is connected to, and told
// of like what is seen before.
func TestRefusedAddress(t *testing.T) {
	var out bytes.Buffer
	w := world()
	w.HTTP = func(context.Context, guest.HTTPRequest) (guest.HTTPResponse, error) {
		return guest.HTTPResponse{}, guest.ErrRefused
	}
	for _, beside := range []bool{false, true} {
		out.Reset()
		o := guest.Options{Grants: everything(), Services: w.Services(), Log: slog.New(slog.NewTextHandler(&out, nil))}
		askEnv(t, guest.NewEnv(o), abi.HookMail, func(g *guest.Env, _ *policy.Event) error {
			for range 2 {
				var n abi.Errno
				if req := list("GET", "https://a.test/", ""); beside {
					n = abi.Errno(g.Wait(g.Submit(2, req), 1000, nil))
				} else {
					n = abi.Errno(g.Http(req, nil))
				}
				if n != abi.EPERM {
					t.Errorf("got %d", n)
				}
			}
			return nil
		})
		if n := strings.Count(out.String(), "grant=http"); n != 1 {
			t.Errorf("beside %v: told %d times:\n%s", beside, n, &out)
		}
	}
}

// What does not fit is not asked for again.
func TestKeptAnswers(t *testing.T) {
	asked := 0
	w := world()
	w.HTTP = func(context.Context, guest.HTTPRequest) (guest.HTTPResponse, error) {
		asked++
		return guest.HTTPResponse{Status: 200, Body: big(5000), Header: []guest.HTTPField{{Name: "A", Value: "b"}}}, nil
	}
	askEnv(t, guest.NewEnv(guest.Options{Grants: everything(), Services: w.Services()}), abi.HookMail, func(g *guest.Env, _ *policy.Event) error {
		req := list("GET", "https://a.test/", "")
		n := g.Http(req, nil)
		buf := make([]byte, n)
		if m := g.Http(req, buf); m != n || asked != 1 || binary.LittleEndian.Uint32(buf) != 200 || !strings.HasSuffix(string(buf), string(list("A", "b"))) {
			t.Errorf("got %d of %d octets, asked %d times", m, n, asked)
		}
		if g.Http(req, buf); asked != 2 {
			t.Errorf("what was read is asked for anew: %d times", asked)
		}
		return nil
	})
}
