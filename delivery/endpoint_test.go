package delivery

import (
	"strings"
	"testing"
)

func TestEndpoint(t *testing.T) {
	tcp := func(address string) Endpoint { return Endpoint{Network: "tcp", Address: address} }
	socket := func(path string) Endpoint { return Endpoint{Network: "unix", Address: path} }
	for _, c := range []struct {
		in   Endpoint
		want string // empty: an error
		host string
	}{
		{tcp("mail.example.net:2525"), "smtp://mail.example.net:2525", "mail.example.net"},
		{tcp("mail.example.net.:25"), "smtp://mail.example.net.:25", "mail.example.net"}, // no certificate has the dot
		{tcp("my_backend:25"), "smtp://my_backend:25", "my_backend"},                     // as container networks have them
		{tcp("[::1]:25"), "smtp://[::1]:25", "::1"},
		{tcp("[fe80::1%eth0]:26"), "smtp://[fe80::1%eth0]:26", "fe80::1%eth0"},
		{Endpoint{Network: "tcp", Address: "10.0.0.5:465", ImplicitTLS: true}, "smtps://10.0.0.5:465", "10.0.0.5"},
		{Endpoint{Network: "tcp", Address: "10.0.0.5:24", LMTP: true}, "lmtp://10.0.0.5:24", "10.0.0.5"},
		{Endpoint{Network: "tcp", Address: "a:24", LMTP: true, ImplicitTLS: true}, "lmtps://a:24", "a"},
		{Endpoint{Network: "unix", Address: "/run/lmtp", LMTP: true}, "lmtp+unix:///run/lmtp", ""},
		{socket("/a b"), "smtp+unix:///a b", ""}, // a path is taken as it is

		{Endpoint{}, "", ""},             // no network
		{socket("run/lmtp"), "", ""},     // relative
		{socket("/a\x00b"), "", ""},      // no path has NUL
		{socket("@abstract"), "", ""},    // not a path
		{tcp("mail"), "", ""},            // no port
		{tcp("::1"), "", ""},             // no brackets: where does the port begin?
		{tcp("[::1"), "", ""},            // no end
		{tcp("[mail]:25"), "", ""},       // brackets are for addresses
		{tcp("mail:0"), "", ""},          // not a port
		{tcp("mail:65536"), "", ""},      // not a port
		{tcp("mail:025"), "", ""},        // two spellings of one endpoint
		{tcp("mail:+25"), "", ""},        // the same
		{tcp("mail:smtp"), "", ""},       // names of ports differ between machines
		{tcp(":25"), "", ""},             // no host
		{tcp("a..b:25"), "", ""},         // empty label
		{tcp("user@mail:25"), "", ""},    // credentials have no place here
		{tcp("mail:25/path"), "", ""},    // nor paths
		{tcp("mail example:25"), "", ""}, // two names
		{tcp("mail\r\nQUIT:25"), "", ""}, // a line end in a name
		{Endpoint{Network: "unix", Address: "/s", ImplicitTLS: true}, "", ""}, // TLS to oneself
	} {
		err := c.in.validate()
		if (err == nil) != (c.want != "") {
			t.Errorf("validate %+v: %v, want it to be %q", c.in, err, c.want)
		} else if err == nil && (c.in.String() != c.want || c.in.host() != c.host) {
			t.Errorf("%+v: written %q with host %q, want %q, %q", c.in, c.in, c.in.host(), c.want, c.host)
		}
	}
}

// What validate takes is written without line ends, and two endpoints never alike.
func FuzzEndpointValidate(f *testing.F) {
	for _, s := range []string{"mail:25", "[::1]:465", "/run/x", "a:24"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, address string) {
		written := make(map[string]Endpoint)
		for i := range 8 {
			e := Endpoint{Network: "tcp", Address: address, LMTP: i&1 != 0, ImplicitTLS: i&2 != 0}
			if i&4 != 0 {
				e.Network = "unix"
			}
			if e.validate() != nil {
				continue
			}
			if other, ok := written[e.String()]; ok {
				t.Errorf("%+v and %+v are both written %q", e, other, e)
			}
			written[e.String()] = e
			if e.Network == "tcp" && strings.ContainsAny(e.host()+e.String(), "\r\n ") {
				t.Errorf("%q: host %q", e, e.host())
			}
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
