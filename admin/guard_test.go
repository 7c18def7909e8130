package admin

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestOwnHost(t *testing.T) {
	loop4 := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8025}
	loop6 := &net.TCPAddr{IP: net.IPv6loopback, Port: 8025}
	lan := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 5), Port: 8025}
	sock := &net.UnixAddr{Name: "/run/penstock.sock", Net: "unix"}
	for _, tt := range []struct {
		host  string
		local net.Addr
		want  bool
	}{
		{"localhost", loop4, true},
		{"LOCALHOST:8025", loop4, true},
		{"localhost:99", loop4, true}, // what stands in front may have another port
		{"localhost", lan, false},     // not on the list
		{"admin.example", lan, true},
		{"127.0.0.1:8025", loop4, true},
		{"[::1]:8025", loop6, true},
		{"[::1]", loop4, true},
		{"[::ffff:127.0.0.1]:8025", loop4, true},
		{"10.0.0.5", lan, true},
		{"127.0.0.1", lan, false}, // not what was connected to
		{"10.0.0.5", loop4, false},
		{"evil.example", loop4, false}, // DNS rebinding
		{"localhost.evil.example", loop4, false},
		{"localhost.", loop4, false},
		{"127.0.0.1.evil.example", loop4, false},
		{"2130706433", loop4, false}, // other spellings of 127.0.0.1
		{"0x7f000001", loop4, false},
		{"127.1", loop4, false},
		{"", loop4, false},
		{"localhost:80a", loop4, false},
		{"user@localhost", loop4, false},
		{"[2001:db8::1]", lan, true}, // on the list
		{"[2001:db8::1]:8025", lan, true},
		{"2001:db8::1", lan, false}, // what of it is a port?
		{"[localhost]", loop4, false},
		{"[127.0.0.1]", loop4, false},
		{"::1", loop6, false},
		{"[::1", loop6, false},
		{"Localhost", sock, true},
		{"evil.example", sock, false},
		{"127.0.0.1", sock, false},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = tt.host
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, tt.local))
		if got := ownHost(r, []string{"Admin.example", "2001:db8::1"}); got != tt.want {
			t.Errorf("Host %q at %v: %v, want %v", tt.host, tt.local, got, tt.want)
		}
	}
}

func TestBearer(t *testing.T) {
	for _, tt := range []struct {
		headers []string
		want    string
		ok      bool
	}{
		{nil, "", false},
		{[]string{"Bearer abc"}, "abc", true},
		{[]string{"bearer  abc"}, "abc", true},
		{[]string{"Bearer"}, "", false},
		{[]string{"Bearer "}, "", false},
		{[]string{"Basic YTpi"}, "YTpi", false},
		{[]string{"Bearer abc", "Bearer def"}, "", false}, // which of them?
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header["Authorization"] = tt.headers
		if got, ok := bearer(r); ok != tt.ok || ok && got != tt.want {
			t.Errorf("%q: %q %v", tt.headers, got, ok)
		}
	}
}

// TestFailures: ten at once, then one in six seconds; each address for itself; the memory is
// bounded.
func TestFailures(t *testing.T) {
	now := time.Now()
	f := &failures{now: func() time.Time { return now }, of: map[string]*failed{}}
	fail := func(addr string, n int) (tooMany, first int) {
		for range n {
			many, one := f.note(addr)
			if many {
				tooMany++
			}
			if one {
				first++
			}
		}
		return
	}
	if many, first := fail("a", 15); many != 5 || first != 1 {
		t.Errorf("of 15 at once %d were too many and %d the first, want 5 and 1", many, first)
	}
	if many, _ := fail("b", 1); many != 0 {
		t.Error("another address pays")
	}
	now = now.Add(failRefill)
	if many, first := fail("a", 3); many != 2 || first != 1 {
		t.Errorf("of 3 later %d were too many and %d the first, want 2 and 1", many, first)
	}
	for i := range 3 * maxFailures {
		fail(fmt.Sprint(i), 1)
	}
	if n := len(f.of); n > maxFailures {
		t.Errorf("%d addresses are remembered", n)
	}
}

func TestSite(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:99": "192.0.2.1", "[::ffff:192.0.2.1]:99": "192.0.2.1", "[2001:db8::1%eth0]:1": "2001:db8::/64", "@": "unix", "": "unix",
	} {
		if got := site(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// FuzzOwnHostIsOurs: what is taken for ours is a name of the list or our own address, whatever
// surrounds it.
func FuzzOwnHostIsOurs(f *testing.F) {
	for _, s := range []string{"localhost", "localhost:8025", "[::1]:8025", "127.0.0.1", "evil.example:1", "[localhost]", "::1", "a@localhost", "[::ffff:7f00:1%x]"} {
		f.Add(s)
	}
	local := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8025}
	f.Fuzz(func(t *testing.T, host string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = host
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local))
		if !ownHost(r, []string{"localhost"}) {
			return
		}
		name := host
		if i := strings.LastIndex(host, ":"); i >= 0 && !strings.HasSuffix(host, "]") {
			name = host[:i]
		}
		ip, err := netip.ParseAddr(strings.Trim(name, "[]"))
		if !strings.EqualFold(name, "localhost") && (err != nil || !ip.Unmap().IsLoopback()) {
			t.Errorf("%q is taken for ours", host)
		}
	})
}
