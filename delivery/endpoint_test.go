package delivery

import (
	"strings"
	"testing"
)

func TestParseEndpoint(t *testing.T) {
	tcp := func(address string) Endpoint { return Endpoint{Network: "tcp", Address: address} }
	for _, c := range []struct {
		in   string
		want Endpoint // zero: an error
	}{
		{"smtp://mail.example.net:2525", tcp("mail.example.net:2525")},
		{"smtp://mail.example.net", tcp("mail.example.net:25")}, // default port
		{"SMTP://mail", tcp("mail:25")},                         // schemes have no case; names need no dot
		{"smtp://my_backend", tcp("my_backend:25")},             // as container networks have them
		{"smtps://10.0.0.5", Endpoint{Network: "tcp", Address: "10.0.0.5:465", ImplicitTLS: true}},
		{"smtp://[::1]", tcp("[::1]:25")},
		{"smtp://[fe80::1%eth0]:26", tcp("[fe80::1%eth0]:26")},
		{"lmtp://10.0.0.5:24", Endpoint{Network: "tcp", Address: "10.0.0.5:24", LMTP: true}},
		{"lmtp+unix:///run/lmtp", Endpoint{Network: "unix", Address: "/run/lmtp", LMTP: true}},
		{"smtp+unix:///a b", Endpoint{Network: "unix", Address: "/a b"}}, // a path is taken as it is

		{"lmtp://10.0.0.5", Endpoint{}},        // no default port: RFC 2033, Section 5
		{"10.0.0.5:25", Endpoint{}},            // no scheme: is it LMTP?
		{"http://10.0.0.5:25", Endpoint{}},     // not mail
		{"smtp+unix://run/lmtp", Endpoint{}},   // relative
		{"smtp+unix:///a\x00b", Endpoint{}},    // no path has NUL
		{"smtp://::1", Endpoint{}},             // no brackets: where does the port begin?
		{"smtp://[::1", Endpoint{}},            // no end
		{"smtp://[mail]:25", Endpoint{}},       // brackets are for addresses
		{"smtp://mail:0", Endpoint{}},          // not a port
		{"smtp://mail:65536", Endpoint{}},      // not a port
		{"smtp://mail:025", Endpoint{}},        // two spellings of one endpoint
		{"smtp://mail:+25", Endpoint{}},        // the same
		{"smtp://mail:smtp", Endpoint{}},       // names of ports differ between machines
		{"smtp://", Endpoint{}},                // no host
		{"smtp://a..b", Endpoint{}},            // empty label
		{"smtp://user@mail", Endpoint{}},       // credentials have no place here
		{"smtp://mail:25/path", Endpoint{}},    // nor paths
		{"smtp://mail example", Endpoint{}},    // two names
		{"smtp://mail\r\nQUIT:25", Endpoint{}}, // a line end in a name
	} {
		got, err := ParseEndpoint(c.in)
		if got != c.want || (err == nil) != (c.want != Endpoint{}) {
			t.Errorf("ParseEndpoint(%q) = %+v, %v, want %+v", c.in, got, err, c.want)
		}
	}
}

func FuzzEndpointRoundTrip(f *testing.F) {
	for _, s := range []string{"smtp://mail:25", "smtps://[::1]:465", "lmtp+unix:///run/x", "lmtp://a:24"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		e, err := ParseEndpoint(in)
		if err != nil {
			return
		}
		again, err := ParseEndpoint(e.String())
		if err != nil || again != e {
			t.Errorf("%q: %+v is written %q and read %+v, %v", in, e, e, again, err)
		}
		if strings.ContainsAny(e.host(), "\r\n ") {
			t.Errorf("%q: host %q", in, e.host())
		}
	})
}

// Validate names every problem, in a fixed order.
func TestValidateNamesAll(t *testing.T) {
	o := Options{LocalName: "not a name", Backends: map[string]BackendOptions{
		"":  one(Endpoint{Network: "tcp", Address: "a:25"}),
		"a": {},
		"b": {
			Groups: [][]Endpoint{{}, {
				{Network: "udp", Address: "a:25"}, {Network: "tcp", Address: "a"},
				{Network: "tcp", Address: "a:465", ImplicitTLS: true},
				{Network: "tcp", Address: "a:25"}, {Network: "tcp", Address: "a:25"},
			}},
			TLS: "off", Connections: -1, IdleTimeout: -1,
		},
		"c": {Groups: [][]Endpoint{{{Network: "unix", Address: "/s"}}}, TLS: TLSVerify},
		"d": {Groups: [][]Endpoint{{{Network: "unix", Address: "/s"}}}, TLS: "maybe"},
		"e": {Groups: [][]Endpoint{{{Network: "unix", Address: "/s", LMTP: true}}}, TLS: TLSVerify, ServerName: "s"},
	}}
	_, err := New(o)
	if err == nil {
		t.Fatal("New took options without any sense")
	}
	got := strings.Split(err.Error(), "\n")
	want := []string{
		"delivery: options: local name: ",
		"backend: has no name",
		"backend a: addresses: none",
		"backend b: addresses: group 1 is empty",
		`backend b: address udp://a:25: network "udp" is neither tcp nor unix`,
		"backend b: address smtp://a: want host:port",
		"backend b: address smtps://a:465: implicit TLS contradicts tls: off",
		"backend b: address smtp://a:25: given twice",
		"backend b: connections: must not be negative",
		"backend b: idle timeout: must not be negative",
		"backend c: address smtp+unix:///s: tls: verify needs a server name for a socket",
		`backend d: tls: "maybe" is none of off, opportunistic, required, verify`,
	}
	for i := range max(len(got), len(want)) {
		g, w := "", "nothing"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if !strings.HasPrefix(g, w) {
			t.Errorf("problem %d:\n got %s\nwant %s", i+1, g, w)
		}
	}
}
