package delivery

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/delivery/dane"
	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/internal/testnet"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/resolver"
)

// roads are the connections of a test: an address either has a host behind it or fails in
// its own way.
type roads struct {
	mu    sync.Mutex
	fails map[string]error // by address without the port; one that is errHang does not answer
	went  []string
	ends  []net.Conn
}

var errHang = errors.New("hang")

func (r *roads) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(address)
	r.mu.Lock()
	r.went = append(r.went, host)
	err := r.fails[host]
	r.mu.Unlock()
	switch err {
	case nil:
		near, far := net.Pipe()
		r.mu.Lock()
		r.ends = append(r.ends, far)
		r.mu.Unlock()
		return near, nil
	case errHang:
		<-ctx.Done()
		err = ctx.Err()
	}
	return nil, &net.OpError{Op: "dial", Net: network, Err: err}
}

// document lets mail go to addresses of documentation, and knows none of this machine.
func document(t testing.TB) *mx.Guard {
	t.Helper()
	g, err := mx.NewGuard(mx.GuardOptions{
		Allow:   []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
		Machine: func() ([]netip.Addr, error) { return nil, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// policyOf is the MTA-STS policy of all domains.
type policyOf mtasts.Policy

func (p policyOf) Lookup(context.Context, string) mtasts.Result {
	policy := mtasts.Policy(p)
	return mtasts.Result{Policy: &policy, ID: "1", Expires: time.Now().Add(time.Hour)}
}

func (p policyOf) Renew(ctx context.Context, domain string) mtasts.Result {
	return p.Lookup(ctx, domain)
}

// howItWent writes what was tried, and what came of it.
func howItWent(c *Connection, err error) string {
	var b strings.Builder
	var tried []Tried
	if e, ok := errors.AsType[*DialError](err); ok {
		tried = e.Tried
	} else if c != nil {
		tried = c.Tried
	}
	for _, t := range tried {
		e, ok := errors.AsType[*mx.Error](t.Err)
		if !ok {
			return fmt.Sprintf("%v is no *mx.Error", t.Err)
		}
		at := "-"
		if t.Addr.IsValid() {
			at = t.Addr.Addr().String()
		}
		fmt.Fprintf(&b, "%s %s %s %s; ", t.Host.Name, at, e.Category, e.Reply.Enh)
	}
	switch {
	case c != nil:
		fmt.Fprintf(&b, "%s %s", c.Hostname(), c.Addr)
	case err != nil:
		fmt.Fprintf(&b, "! %d %s", smtp.ReplyOf(err).Code, smtp.ReplyOf(err).Enh)
	}
	return b.String()
}

// TestDialOrder tells which addresses are tried, in which order, and what becomes of those that
// are of no use.
func TestDialOrder(t *testing.T) {
	parity.Row(t, "MX-02", "MX-05", "MX-14", "MX-26", "MX-27", "MX-29", "MX-30", "MX-61", "MX-68", "MX-69", "MX-70", "MX-71", "MX-72", "MX-73")
	const zone = `
		example.com MX 10 mx1.example.net
		example.com MX 20 mx2.example.net
		mx1.example.net A 192.0.2.1
		mx1.example.net AAAA 2001:db8::1
		mx2.example.net A 192.0.2.2
		twice.example MX 10 mx1.example.net
		twice.example MX 20 mx4.example.net
		mx4.example.net A 192.0.2.1
		mx4.example.net A 192.0.2.4
		null.example MX 0 .
		bare.example A 192.0.2.7
		signed.example MX 10 fail.dane.example
		signed.example MX 20 mx2.example.net
		forged.example MX 10 fail.dane.example
		fail.dane.example A 192.0.2.5
		_25._tcp.fail.dane.example BOGUS
	`
	many := ""
	for i := range 25 {
		many += fmt.Sprintf("many.example MX %d m%d.example.net\nm%d.example.net A 192.0.2.%d\n", i, i, i, 100+i)
	}
	refused := error(syscall.ECONNREFUSED)
	plain := func(*DialOptions) {}
	permanent := &mx.Error{Category: mx.SMTP, Reply: smtp.Refuse(550, smtp.Enhanced{5, 7, 1}, "no")}
	for _, tt := range []struct {
		name, target string
		fails        map[string]error
		set          func(o *DialOptions)
		want         string
	}{
		{"the first", "user@example.com", nil, plain, "mx1.example.net 192.0.2.1:25"},
		{"no MX", "bare.example", nil, plain, "bare.example 192.0.2.7:25"},
		{"literal", "[192.0.2.8]", nil, plain, "192.0.2.8 192.0.2.8:25"},
		{"null MX", "null.example", nil, plain, "! 556 5.1.10"},
		{"the other family", "example.com", map[string]error{"192.0.2.1": refused}, plain,
			"mx1.example.net 192.0.2.1 network 4.4.1; mx1.example.net [2001:db8::1]:25"},
		{"the next host, each address once", "twice.example", map[string]error{"192.0.2.1": refused, "2001:db8::1": refused}, plain,
			"mx1.example.net 192.0.2.1 network 4.4.1; mx1.example.net 2001:db8::1 network 4.4.1; mx4.example.net 192.0.2.4:25"},
		{"nobody", "bare.example", map[string]error{"192.0.2.7": refused}, plain, "bare.example 192.0.2.7 network 4.4.1; ! 451 4.4.1"},
		{"the first error", "example.com", map[string]error{"192.0.2.1": errHang, "2001:db8::1": refused, "192.0.2.2": syscall.EHOSTUNREACH}, plain,
			"mx1.example.net 192.0.2.1 network 4.4.1; mx1.example.net 2001:db8::1 network 4.4.1; mx2.example.net 192.0.2.2 network 4.4.1; ! 451 4.4.1"},
		{"IPv6 first among equals", "example.com", map[string]error{"2001:db8::1": refused}, func(o *DialOptions) { o.PreferIPv6 = true },
			"mx1.example.net 2001:db8::1 network 4.4.1; mx1.example.net 192.0.2.1:25"},
		{"skip", "example.com", nil, skipping(nil, "192.0.2.1", "2001:db8::1"), "mx2.example.net 192.0.2.2:25"},
		{"skip all", "bare.example", nil, skipping(nil, "192.0.2.7"), "! 451 4.4.1"},
		{"skip all, with an error", "bare.example", nil, skipping(permanent, "192.0.2.7"), "! 550 5.7.1"},
		{"skip, and the rest fails", "example.com", map[string]error{"192.0.2.2": refused}, skipping(permanent, "192.0.2.1", "2001:db8::1"),
			"mx2.example.net 192.0.2.2 network 4.4.1; ! 451 4.4.1"},
		{"no more than twenty", "many.example", refusals(100, 25), plain,
			strings.Join(lines(20, "m%d.example.net 192.0.2.%d network 4.4.1; "), "") + "! 451 4.4.1"},
		{"given", "example.com", nil, func(o *DialOptions) {
			o.Need.Given = []mx.Given{{Host: "relay.example", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}}
		}, "relay.example 192.0.2.9:25"},
		{"another port", "example.com", nil, func(o *DialOptions) { o.Plan.Port = 2525 }, "mx1.example.net 192.0.2.1:2525"},
		{"a policy that names another host", "example.com", nil, withPolicy(mtasts.Enforce, "mx2.example.net"),
			"mx1.example.net - policy 4.7.5; mx2.example.net 192.0.2.2:25"},
		{"a policy that names none of them", "example.com", nil, withPolicy(mtasts.Enforce, "*.example.org"),
			"mx1.example.net - policy 4.7.5; mx2.example.net - policy 4.7.5; ! 451 4.7.5"},
		{"a policy that is tested", "example.com", nil, withPolicy(mtasts.Testing, "*.example.org"), "mx1.example.net 192.0.2.1:25"},
		{"a policy that we test", "example.com", nil, func(o *DialOptions) {
			withPolicy(mtasts.Enforce, "*.example.org")(o)
			o.Plan.STSMode = STSTesting
		}, "mx1.example.net 192.0.2.1:25"},
		{"TLSA records that are not known", "signed.example", nil, plain, "fail.dane.example - dane 4.7.5; mx2.example.net 192.0.2.2:25"},
		{"TLSA records that are not known, and no other host", "forged.example", nil, plain, "fail.dane.example - dane 4.7.5; ! 451 4.7.5"},
		{"TLSA records that nobody asks for", "forged.example", nil, func(o *DialOptions) { o.Plan.DANE = DANEOff }, "fail.dane.example 192.0.2.5:25"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := testnet.NewDNS(zone + many)
				d.Sign("dane.example", "signed.example", "forged.example")
				r := &roads{fails: tt.fails}
				var told []Tried
				o := DialOptions{Dial: r.dial, Failed: func(x Tried) { told = append(told, x) }}
				o.Before = func(_ context.Context, a *Attempt) error {
					if a.Host.Refused != nil {
						t.Errorf("the hook was asked about %s: %v", a.Host.Name, a.Host.Refused)
					}
					return nil
				}
				o.Plan.MX.DNS, o.Plan.MX.Guard = d, document(t)
				tt.set(&o)
				c, err := Dial(t.Context(), tt.target, o)
				if got := howItWent(c, err); got != tt.want {
					t.Errorf("got  %s\nwant %s\n%v", got, tt.want, err)
				}
				if c != nil {
					c.Conn.Close()
				}
				e, _ := errors.AsType[*DialError](err)
				if e != nil && len(told) != len(e.Tried) || c != nil && len(told) != len(c.Tried) {
					t.Errorf("was told of %d failures", len(told))
				}
			})
		})
	}
}

func refusals(from, n int) map[string]error {
	m := make(map[string]error)
	for i := range n {
		m[fmt.Sprintf("192.0.2.%d", from+i)] = syscall.ECONNREFUSED
	}
	return m
}

func lines(n int, format string) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf(format, i, 100+i))
	}
	return list
}

func skipping(last error, list ...string) func(*DialOptions) {
	return func(o *DialOptions) {
		o.LastError = last
		for _, s := range list {
			o.Skip = append(o.Skip, netip.MustParseAddr(s))
		}
	}
}

func withPolicy(mode mtasts.Mode, patterns ...string) func(*DialOptions) {
	return func(o *DialOptions) {
		o.Plan.STS = policyOf{ID: "1", Mode: mode, MX: patterns, MaxAge: time.Hour, Expires: time.Now().Add(time.Hour)}
	}
}

// TestDialTimes: one address that does not answer costs its time, all together cost the limit,
// and a caller that gives up ends it.
func TestDialTimes(t *testing.T) {
	parity.Row(t, "MX-05", "MX-69")
	synctest.Test(t, func(t *testing.T) {
		d := testnet.NewDNS("example.com MX 10 mx.example.net")
		r := &roads{fails: make(map[string]error)}
		for i := range 8 {
			addr := fmt.Sprintf("192.0.2.%d", i+1)
			d.Add("mx.example.net A " + addr)
			r.fails[addr] = errHang
		}
		o := DialOptions{Dial: r.dial, Timeout: 100 * time.Second}
		o.Plan.MX.DNS, o.Plan.MX.Guard = d, document(t)
		start := time.Now()
		_, err := Dial(t.Context(), "example.com", o)
		if took := time.Since(start); took != 100*time.Second || len(r.went) != 4 {
			t.Errorf("took %s and tried %v", took, r.went)
		}
		e, ok := errors.AsType[*mx.Error](err)
		if !ok || !e.Timeout() || e.Category != mx.Network || e.Host != "mx.example.net" || !strings.Contains(e.Reply.Text, "no answer in time") {
			t.Errorf("got %v", err)
		}
		if de, _ := errors.AsType[*DialError](err); len(de.Tried) != 4 || de.Tried[0].Took != 30*time.Second || !de.Temporary() || !strings.Contains(de.Error(), "3 attempts more") {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if _, err := Dial(ctx, "example.com", o); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("got %v after %s", err, time.Since(start))
		}
	})
}

// TestDialBefore: the hook may send a connection elsewhere or make it itself, and no address
// that it names gets past the guard.
func TestDialBefore(t *testing.T) {
	parity.Row(t, "MX-28", "MX-44", "MX-75")
	d := testnet.NewDNS("example.com MX 10 mx1.example.net\nexample.com MX 20 mx2.example.net\nmx1.example.net A 192.0.2.1\nmx2.example.net A 192.0.2.2")
	stop := errors.New("stop")
	v6 := netip.MustParseAddr("2001:db8::10")
	for _, tt := range []struct {
		name   string
		before func(a *Attempt) error
		want   string
		went   string
	}{
		{"nothing", func(*Attempt) error { return nil }, "mx1.example.net 192.0.2.1:25", "192.0.2.1"},
		{"elsewhere", to("192.0.2.50:2525"), "mx1.example.net 192.0.2.50:2525", "192.0.2.50"},
		{"to a local address", func(a *Attempt) error {
			if a.Host.Name == "mx1.example.net" {
				return to("127.0.0.1:25")(a)
			}
			return nil
		}, "mx1.example.net 127.0.0.1 policy 4.4.4; mx2.example.net 192.0.2.2:25", "192.0.2.2"},
		{"to a local address in disguise", to("[64:ff9b::a9fe:a9fe]:25"),
			"mx1.example.net 64:ff9b::a9fe:a9fe policy 4.4.4; mx2.example.net 64:ff9b::a9fe:a9fe policy 4.4.4; ! 451 4.4.4", ""},
		{"an error", func(*Attempt) error { return stop }, "stop", ""},
		{"an error at the second", func(a *Attempt) error {
			if a.Host.Name == "mx1.example.net" {
				return to("127.0.0.1:25")(a)
			}
			return stop
		}, "stop", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := new(roads)
			o := DialOptions{Dial: r.dial, Source: Source{Helo: "out.example", IPv6: v6, HeloIPv6: "v6.example"}}
			o.Plan.MX.DNS, o.Plan.MX.Guard = d, document(t)
			o.Before = func(_ context.Context, a *Attempt) error { return tt.before(a) }
			c, err := Dial(t.Context(), "example.com", o)
			got := howItWent(c, err)
			if errors.Is(err, stop) {
				if got = "stop"; err != stop {
					t.Errorf("the hook's error came back as %v", err)
				}
			}
			if got != tt.want || strings.Join(r.went, " ") != tt.went {
				t.Errorf("got %s by way of %v, want %s by way of %s", got, r.went, tt.want, tt.went)
			}
			if c != nil {
				c.Conn.Close()
			}
		})
	}
	t.Run("its own connection", func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		o := DialOptions{Before: func(_ context.Context, a *Attempt) error { a.Conn = near; return nil }}
		o.Plan.MX.DNS, o.Plan.MX.Guard = d, document(t)
		c, err := Dial(t.Context(), "example.com", o)
		if err != nil || c.Conn != near || c.Hostname() != "mx1.example.net" || c.Local.IsValid() {
			t.Fatalf("got %+v, %v", c, err)
		}
		c.Conn.Close()
	})
	t.Run("its own connection, and an error", func(t *testing.T) {
		near, far := net.Pipe()
		o := DialOptions{Before: func(_ context.Context, a *Attempt) error { a.Conn = near; return stop }}
		o.Plan.MX.DNS, o.Plan.MX.Guard = d, document(t)
		if _, err := Dial(t.Context(), "example.com", o); err != stop {
			t.Errorf("got %v", err)
		}
		if _, err := far.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the connection is open: %v", err)
		}
	})
	t.Run("another family", func(t *testing.T) {
		r := new(roads)
		var seen Attempt
		o := DialOptions{Dial: r.dial, Source: Source{Helo: "out.example", IPv6: v6, HeloIPv6: "v6.example"}}
		o.Plan.MX.DNS, o.Plan.MX.Guard = d, document(t)
		o.Before = func(_ context.Context, a *Attempt) error { seen = *a; return to("[2001:db8::5]:25")(a) }
		c, err := Dial(t.Context(), "example.com", o)
		if err != nil || seen.Helo != "out.example" || seen.Local.IsValid() || c.Helo != "v6.example" {
			t.Fatalf("got %+v, %v; the hook saw %+v", c, err, seen)
		}
		c.Conn.Close()
	})
}

func to(addr string) func(*Attempt) error {
	return func(a *Attempt) error {
		a.Addr = netip.MustParseAddrPort(addr)
		return nil
	}
}

// greeter takes connections, greets, and tells who came.
func greeter(t *testing.T) (addr netip.AddrPort, from <-chan netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	came := make(chan netip.AddrPort, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			came <- c.RemoteAddr().(*net.TCPAddr).AddrPort()
			io.WriteString(c, "220 mx.example.net ESMTP\r\n")
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().(*net.TCPAddr).AddrPort(), came
}

// TestDial connects over TCP, and tells what it knows.
func TestDial(t *testing.T) {
	parity.Row(t, "MX-01", "MX-04", "MX-06", "MX-08", "MX-15", "MX-19", "MX-33", "MX-34", "MX-35", "MX-37", "MX-46", "MX-47", "MX-48", "MX-49", "MX-50", "MX-51", "MX-52", "MX-53", "MX-55", "MX-56", "MX-57", "MX-58", "MX-60")
	addr, from := greeter(t)
	d := testnet.NewDNS(fmt.Sprintf(`
		example.com MX 10 mx.example.net
		mx.example.net A 127.0.0.1
		_%d._tcp.mx.example.net TLSA 3 1 1 %s
		_%d._tcp.mx.example.net TLSA 0 1 1 %s
		plain.example A 127.0.0.1
	`, addr.Port(), strings.Repeat("ab", 32), addr.Port(), strings.Repeat("cd", 32)))
	d.Sign("example.com", "example.net")
	guard, err := mx.NewGuard(mx.GuardOptions{AllowLocal: true})
	if err != nil {
		t.Fatal(err)
	}
	planner, err := NewPlanner(PlanOptions{
		MX: mx.Options{DNS: d, Guard: guard}, Port: addr.Port(),
		STS: policyOf{ID: "1", Mode: mtasts.Enforce, MX: []string{"*.example.net", "plain.example"}, Expires: time.Now().Add(time.Hour)},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer planner.Close()
	o := DialOptions{Planner: planner, Source: Source{IPv4: netip.MustParseAddr("127.0.0.5"), Helo: "out.example"}}
	c, err := Dial(t.Context(), "User@Example.com", o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Conn.Close()
	if came := <-from; came.Addr() != o.Source.IPv4 || came != c.Local {
		t.Errorf("came from %s, and says %s", came, c.Local)
	}
	if c.Hostname() != "mx.example.net" || c.Addr != addr || c.Helo != "out.example" || !c.MX() || c.Host.Preference != 10 || len(c.Tried) != 0 {
		t.Errorf("got %+v", c)
	}
	if !c.DANE() || len(c.TLSA()) != 2 || len(c.Host.DANE.Usable) != 1 || !c.RequireTLS() || c.Host.Demand != DemandDANE || c.Host.SNI != "mx.example.net" {
		t.Errorf("got %+v", c.Host)
	}
	if !strings.Contains(c.Host.Why, "2 TLSA records") || len(c.Host.DANE.Asked) != 1 || !c.Host.DANE.Asked[0].Authentic || !c.Plan.Route.Authentic {
		t.Errorf("the reasons are %q and %+v", c.Host.Why, c.Host.DANE.Asked)
	}
	if c.Host.STS == nil || !c.Host.Named || !c.Host.Enforced {
		t.Errorf("got %+v", c.Host)
	}
	if greeting, err := io.ReadAll(c.Conn); err != nil || string(greeting) != "220 mx.example.net ESMTP\r\n" {
		t.Errorf("read %q, %v", greeting, err)
	}

	c, err = Dial(t.Context(), "plain.example", DialOptions{Planner: planner})
	if err != nil {
		t.Fatal(err)
	}
	c.Conn.Close()
	if c.MX() || c.DANE() || c.TLSA() != nil || c.Host.Demand != DemandPKIX || !c.RequireTLS() {
		t.Errorf("got %+v", c.Host)
	}
	if c, err = Dial(t.Context(), "[127.0.0.1]", DialOptions{Planner: planner}); err != nil {
		t.Fatal(err)
	}
	c.Conn.Close()
	if c.MX() || c.RequireTLS() || c.Hostname() != "127.0.0.1" {
		t.Errorf("got %+v", c.Host)
	}

	// Without a word of ours, nothing on this machine is connected to: not by the plan, nor by a
	// guard that is stricter than the plan's.
	o = DialOptions{Plan: PlanOptions{MX: mx.Options{DNS: d}, Port: addr.Port()}}
	if _, err := Dial(t.Context(), "example.com", o); smtp.ReplyOf(err).Enh != (smtp.Enhanced{5, 4, 4}) {
		t.Errorf("got %v", err)
	}
	if _, err := Dial(t.Context(), "example.com", DialOptions{Planner: planner, Guard: document(t)}); !mx.Refused(err) || !mx.Temporary(err) {
		t.Errorf("got %v", err)
	}
	// A source that this machine does not have.
	o = DialOptions{Planner: planner, Source: Source{IPv4: netip.MustParseAddr("192.0.2.77")}}
	if _, err := Dial(t.Context(), "example.com", o); smtp.ReplyOf(err).Enh != (smtp.Enhanced{4, 3, 5}) || !strings.Contains(err.Error(), "192.0.2.77") {
		t.Errorf("got %v", err)
	}
}

// TestDialClosed: a port where nobody is.
func TestDialClosed(t *testing.T) {
	parity.Row(t, "MX-68", "MX-76", "MX-77")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	l.Close()
	guard, err := mx.NewGuard(mx.GuardOptions{AllowLocal: true})
	if err != nil {
		t.Fatal(err)
	}
	d := testnet.NewDNS("example.com MX 10 mx.example.net\nmx.example.net A 127.0.0.1")
	_, err = Dial(t.Context(), "example.com", DialOptions{Plan: PlanOptions{MX: mx.Options{DNS: d, Guard: guard}, Port: port}})
	if r := smtp.ReplyOf(err); r.Code != 451 || r.Enh != (smtp.Enhanced{4, 4, 1}) || r.Text != "mx.example.net: connection refused" || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, %v", r, err)
	}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{syscall.EHOSTUNREACH, "no route to the host"}, {syscall.ENETUNREACH, "no route to its network"}, {syscall.ECONNRESET, "connection reset"},
		{syscall.ETIMEDOUT, "no answer in time"}, {os.ErrDeadlineExceeded, "no answer in time"}, {context.DeadlineExceeded, "no answer in time"},
		{context.Canceled, "given up"}, {syscall.EMFILE, "too many connections on our side"}, {io.EOF, "connection failed"},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, "connection refused"},
		{&net.DNSError{IsTimeout: true}, "no answer in time"},
	} {
		if got := networkWords(tt.err); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.err, got, tt.want)
		}
	}
}

// TestDialTarget: what is no target costs no look-up.
func TestDialTarget(t *testing.T) {
	parity.Row(t, "MX-03", "MX-18", "MX-62", "MX-63", "MX-67")
	d := testnet.NewDNS("broken.example FAIL")
	for target, want := range map[string]string{
		"": "! 550 5.1.2", "user@": "! 550 5.1.2", "[example.com]": "! 553 5.1.3", "127.1": "! 550 5.1.2", "\xff.example": "! 550 5.6.7",
		"nowhere.example": "! 550 5.1.2", "broken.example": "! 451 4.4.3",
	} {
		o := DialOptions{Plan: PlanOptions{MX: mx.Options{DNS: d}}}
		if c, err := Dial(t.Context(), target, o); howItWent(c, err) != want {
			t.Errorf("%q: got %s, want %s", target, howItWent(c, err), want)
		}
	}
	if asked := d.Asked(); slices.ContainsFunc(asked, func(q testnet.Question) bool {
		return !strings.HasSuffix(q.Name, "e.example") && !strings.HasSuffix(q.Name, "n.example")
	}) {
		t.Errorf("was asked %v", asked)
	}
	_, err := Dial(t.Context(), "example.com", DialOptions{MaxAttempts: -1, ConnectTimeout: -1, Timeout: -1, Source: Source{Helo: "-"}, Plan: PlanOptions{DANE: "maybe"}})
	for _, want := range []string{"attempts", "limit of a connection", "time limit is", "name to give", "maybe"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

// TestVerifyDANE holds a certificate against what was found of the host.
func TestVerifyDANE(t *testing.T) {
	parity.Row(t, "MX-54", "MX-59", "MX-74")
	cert := certificate(t)
	right, err := dane.Of(cert, dane.UsageDANEEE, dane.SelectorSPKI, dane.MatchSHA256)
	if err != nil {
		t.Fatal(err)
	}
	wrong := right
	wrong.Data = strings.Repeat("x", len(right.Data))
	unusable := resolver.TLSA{Usage: 1, Selector: 1, MatchingType: 1, Data: right.Data}
	for _, tt := range []struct {
		records []resolver.TLSA
		ok      bool
	}{{[]resolver.TLSA{right}, true}, {[]resolver.TLSA{wrong, right}, true}, {[]resolver.TLSA{wrong}, false}, {[]resolver.TLSA{unusable}, true}, {nil, true}} {
		r := new(roads)
		o := DialOptions{Dial: r.dial, Plan: PlanOptions{MX: mx.Options{DNS: testnet.NewDNS("relay.example A 192.0.2.1"), Guard: document(t)}}}
		o.Need.Given = []mx.Given{{Host: "relay.example", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, TLSA: tt.records}}
		c, err := Dial(t.Context(), "example.com", o)
		if err != nil {
			t.Fatal(err)
		}
		c.Conn.Close()
		err = c.VerifyDANE([]*x509.Certificate{cert})
		if (err == nil) != tt.ok {
			t.Errorf("%v: got %v", tt.records, err)
		}
		if err == nil {
			continue
		}
		e, ok := errors.AsType[*mx.Error](err)
		if v, _ := errors.AsType[*dane.VerifyError](err); !ok || v == nil || e.Category != mx.DANE || !e.Temporary() || e.Reply.Enh != (smtp.Enhanced{4, 7, 5}) {
			t.Errorf("got %v", err)
		}
	}
}

// certificate is one that nobody vouches for.
func certificate(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(-time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
