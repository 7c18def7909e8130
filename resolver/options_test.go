package resolver

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestParseServer(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Server
		err  string
	}{
		{"192.0.2.1", Server{Network: "udp", Address: "192.0.2.1:53"}, ""},
		{"192.0.2.1:5353", Server{Network: "udp", Address: "192.0.2.1:5353"}, ""},
		{"2001:db8::1", Server{Network: "udp", Address: "[2001:db8::1]:53"}, ""},
		{"[2001:db8::1]", Server{Network: "udp", Address: "[2001:db8::1]:53"}, ""},
		{"[fe80::1%lo]:53", Server{Network: "udp", Address: "[fe80::1%lo]:53"}, ""},
		{"udp://192.0.2.1", Server{Network: "udp", Address: "192.0.2.1:53"}, ""},
		{"tcp://192.0.2.1", Server{Network: "tcp", Address: "192.0.2.1:53"}, ""},
		{"tls://192.0.2.1#dns.example", Server{Network: "tls", Address: "192.0.2.1:853", ServerName: "dns.example"}, ""},
		{"tls://[2001:db8::1]:8853", Server{Network: "tls", Address: "[2001:db8::1]:8853"}, ""},
		{"tls://192.0.2.1#sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", Server{Network: "tls", Address: "192.0.2.1:853", Pins: []Pin{sha256.Sum256(nil)}}, ""},
		{"https://192.0.2.1", Server{Network: "https", Address: "192.0.2.1:443"}, ""},
		{"https://[2001:db8::1]:8443/q#dns.example,sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", Server{Network: "https", Address: "[2001:db8::1]:8443", Path: "/q", ServerName: "dns.example", Pins: []Pin{sha256.Sum256(nil)}}, ""},
		{"tls://192.0.2.1#a.example,b.example", Server{}, "not one name"},
		{"tls://192.0.2.1#sha256:abcd", Server{}, "not the base64"},
		{"tls://192.0.2.1/q", Server{}, "not an IP address"},
		{"unix:/run/dns", Server{Network: "unix", Address: "/run/dns"}, ""},
		{"dns.example", Server{}, "not an IP address"},
		{"dns.example:53", Server{}, "not an IP address"},
		{"192.0.2.1:0", Server{}, "not an IP address"},
		{"192.0.2.1#dns.example", Server{}, "not an IP address"},
		{"quic://192.0.2.1", Server{}, "none of"},
		{"unix:", Server{}, "empty"},
		{"", Server{}, "not an IP address"},
	} {
		got, err := ParseServer(tt.in)
		switch {
		case tt.err == "" && (err != nil || !reflect.DeepEqual(got, tt.want)):
			t.Errorf("%q: got %+v, %v; want %+v", tt.in, got, err, tt.want)
		case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%q: got %v, want an error with %q", tt.in, err, tt.err)
		}
	}
}

// TestValidate wants all problems at once.
func TestValidate(t *testing.T) {
	o := Options{Timeout: -1, Tries: -1, Budget: -1, Inflight: -1, CacheBytes: -1, Servers: []Server{
		{Address: "127.0.0.1:53"},
		{Address: "192.0.2.1:53", Trust: TrustYes},
		{Address: "192.0.2.2:53", Trust: "maybe"},
		{Address: "192.0.2.3:53", ServerName: "dns.example"},
		{Address: "192.0.2.4:53", CAs: x509.NewCertPool(), Network: "tls"},
		{Network: "sctp"},
		{Network: "tls", Address: "192.0.2.1:53", Path: "/x"},
	}}
	err := o.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"timeout: must not", "tries: must not", "budget: must not", "inflight: must not", "bytes of the cache: must not",
		"7 servers are more than 4", "cannot be trusted over a network without tls", `trust "maybe"`,
		"are for tls and https alone", "a path is for https alone", `network "sctp"`, "counts from some servers and not from others",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v; want %q in it", err, want)
		}
	}
	if _, err := New(o); err == nil {
		t.Error("New took them")
	}
	for _, o := range []Options{
		{},
		{Servers: []Server{{Address: "127.0.0.1:53"}, {Address: "[::1]:53"}, {Network: "unix", Address: "/run/dns"}, {Network: "tls", Address: "192.0.2.1:853", Trust: TrustYes}}},
		{Servers: []Server{{Address: "127.0.0.1:53", Trust: TrustNo}, {Address: "192.0.2.1:53"}}},
	} {
		if err := o.Validate(); err != nil {
			t.Errorf("%+v: got %v", o, err)
		}
	}
}

// TestAuto: who is asked if nobody is named.
func TestAuto(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# nameserver 192.0.2.66\nsearch example.net\nnameserver 192.0.2.1\nnameserver   fe80::1%lo trailing\nnameserver\nnameserver dns.example\nnameserver 127.0.0.53\nnameserver 192.0.2.4\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	fromConf := []string{"192.0.2.1:53", "[fe80::1%lo]:53", "127.0.0.53:53"}
	const root = ". NS a.root-servers.example."
	silent := func(*dns.Msg, asked, *dns.Msg) *dns.Msg { return nil }
	for _, tt := range []struct {
		why   string
		react reaction
		local bool
	}{
		{"a resolver on the loopback", nil, true},
		{"one that refuses", code(dns.RcodeRefused, 0), false},
		{"one that does no recursion", func(_ *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
			reply.RecursionAvailable = false
			return reply
		}, false},
		// Whoever keeps a resolver from the root must not have us do without DNSSEC.
		{"one that cannot reach the root", code(dns.RcodeServerFailure, 0), true},
		{"one that waits for the root", silent, true},
	} {
		f := newFake(t, root)
		f.set(tt.react)
		var log bytes.Buffer
		r := start(t, Options{ResolvConf: conf, local: f.addr, Log: slog.New(slog.NewTextHandler(&log, nil))})
		want := fromConf
		if tt.local {
			want = []string{f.addr}
		}
		if got := r.Servers(); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", tt.why, got, want)
		}
		if warned := strings.Contains(log.String(), "authenticated"); r.Trusted() != tt.local || warned == tt.local {
			t.Errorf("%s: trusted %v, log %q", tt.why, r.Trusted(), log.String())
		}
	}
	pc, l := listen(t)
	pc.Close()
	l.Close()
	for name, text := range map[string]string{"empty": "search x", "missing": ""} {
		path := filepath.Join(t.TempDir(), name)
		if text != "" {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := New(Options{ResolvConf: path, local: pc.LocalAddr().String()}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want an error that names the file", name, err)
		}
	}
}
