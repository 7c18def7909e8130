package delivery

import (
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/peers"
)

// TestTLS: what each mode makes of each kind of backend. The second transaction finds
// what was learnt by the first.
func TestTLS(t *testing.T) {
	ca := peers.NewCA(t)
	served := func(c peers.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c.TLS}} }
	good := served(ca.Issue(t, "127.0.0.1"))
	named := served(ca.Issue(t, "backend.test"))
	stranger := served(peers.NewCA(t).Issue(t, "127.0.0.1"))
	old := &tls.Config{Certificates: good.Certificates, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	const clear, secure, down = "clear", "TLS", "down"
	for _, c := range []struct {
		name                                 string
		fake                                 func() *fake
		off, opportunistic, required, verify string
	}{
		{"no STARTTLS", func() *fake { return &fake{} }, clear, clear, down, down},
		{"good certificate", func() *fake { return &fake{tls: good} }, clear, secure, secure, secure},
		{"unknown authority", func() *fake { return &fake{tls: stranger} }, clear, secure, secure, down},
		{"other name", func() *fake { return &fake{tls: named} }, clear, secure, secure, down},
		{"STARTTLS refused", func() *fake { return &fake{tls: good, answer: on("STARTTLS", "454 4.7.0 not now")} }, clear, clear, down, down},
		{"closed at STARTTLS", func() *fake { return &fake{tls: good, answer: on("STARTTLS", "drop")} }, clear, clear, down, down},
		{"handshake fails", func() *fake { return &fake{tls: &tls.Config{}} }, clear, clear, down, down},
		{"below TLS 1.2", func() *fake { return &fake{tls: old} }, clear, clear, down, down},
		{"text slipped in before the handshake", func() *fake { return &fake{tls: good, answer: on("STARTTLS", "220 go\n250 evil")} }, clear, clear, down, down},
		{"implicit", func() *fake { return &fake{tls: good, implicit: true} }, "", secure, secure, secure},
		{"implicit, unknown authority", func() *fake { return &fake{tls: stranger, implicit: true} }, "", secure, secure, down},
		{"implicit, handshake fails", func() *fake { return &fake{tls: &tls.Config{}, implicit: true} }, "", down, down, down}, // no clear text where TLS was asked for by the address
	} {
		for mode, want := range map[TLSMode]string{TLSOff: c.off, TLSOpportunistic: c.opportunistic, TLSRequired: c.required, TLSVerify: c.verify} {
			if want == "" {
				continue
			}
			f := c.fake()
			o := one(f.listen(t))
			o.TLS, o.CAs = mode, ca.Pool()
			tr := open(t, o)
			for _, time := range []string{"first", "second"} {
				got := security(t, tr)
				check(t, strings.Join([]string{c.name, string(mode), time}, ", "), got, want)
				f.hangUp()
			}
			if want == clear && mode != TLSOff {
				check(t, c.name+": up", stats(t, tr).Endpoints[0].Up, true)
			}
		}
	}
}

// security does a transaction and tells how safe its connection was.
func security(t *testing.T, tr *Transport) string {
	t.Helper()
	tx, err := tr.Begin(t.Context(), "b", from(t))
	if err != nil {
		return "down"
	}
	defer tx.Abort()
	if err := tx.Rcpt(t.Context(), rcpt(t, "a@example.org")); err != nil {
		t.Errorf("RCPT: %v", err)
	}
	state, ok := tx.(*transaction).c.client.TLS()
	if !ok {
		return "clear"
	}
	if state.Version < tls.VersionTLS12 {
		return "old TLS"
	}
	return "TLS"
}

// The name to verify can be given, for sockets it must be.
func TestTLSServerName(t *testing.T) {
	ca := peers.NewCA(t)
	certificate := ca.Issue(t, "backend.test")
	f := &fake{tls: &tls.Config{Certificates: []tls.Certificate{certificate.TLS}}, lmtp: true}
	for _, e := range []Endpoint{f.listen(t), f.serve(t, listen(t, "unix", socket(t)))} {
		for name, want := range map[string]string{"backend.test": "TLS", "other.test": "down"} {
			o := one(e)
			o.TLS, o.CAs, o.ServerName = TLSVerify, ca.Pool(), name
			check(t, e.Network+" "+name, security(t, open(t, o)), want)
		}
		o := one(e)
		o.TLS = TLSOpportunistic
		want := "TLS"
		if e.Network == "unix" {
			want = "clear" // nobody can listen to a socket
		}
		check(t, e.Network+" opportunistic", security(t, open(t, o)), want)
	}
}

// A handshake that failed is remembered, and tried again later.
func TestTLSFailureIsRemembered(t *testing.T) {
	f := &fake{tls: &tls.Config{}}
	bubble(t, f, nil, one(hostA), func(t *testing.T, tr *Transport, _ *network) {
		for i, c := range []struct {
			after    time.Duration
			starttls int
		}{{0, 1}, {time.Minute, 1}, {clearPause - time.Minute - 1, 1}, {1, 2}, {time.Minute, 2}} {
			time.Sleep(c.after)
			if i > 0 {
				f.hangUp()
			}
			check(t, "outcome", send(t, tr), "250 taken")
			check(t, "STARTTLS", f.heard("STARTTLS"), c.starttls)
		}
	})
}

// The connections of TLS are reused like others, and their end is noticed.
func TestTLSPool(t *testing.T) {
	ca := peers.NewCA(t)
	certificate := ca.Issue(t, "127.0.0.1")
	for _, implicit := range []bool{false, true} {
		f := &fake{tls: &tls.Config{Certificates: []tls.Certificate{certificate.TLS}}, implicit: implicit}
		o := one(f.listen(t))
		o.TLS, o.CAs = TLSVerify, ca.Pool()
		tr := open(t, o)
		for range 3 {
			check(t, "outcome", send(t, tr), "250 taken")
		}
		f.hangUp()
		check(t, "outcome", send(t, tr), "250 taken")
		check(t, "pool", figures(stats(t, tr)), "open 1 idle 1 busy 0 dialled 2 reused 3 lost 0")
		found, err := tr.Probe(t.Context(), "b")
		if err != nil || found.Endpoints[0].TLS != tls.VersionTLS13 {
			t.Errorf("probe: %+v, %v, want TLS 1.3", found, err)
		}
	}
}
