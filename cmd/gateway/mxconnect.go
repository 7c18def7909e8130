package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/delivery/dane"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/mail/smtp"
)

// mxconnect.go: what hosts show when they are connected to. A dialogue is begun as for a
// message, and ends where MAIL would come.

// mxConnection is one connection, or the try to have one.
type mxConnection struct {
	Address string `json:"address"`
	// Connected tells that there was a connection, whatever was said on it.
	Connected bool     `json:"connected"`
	From      string   `json:"from,omitempty"`
	Helo      string   `json:"helo,omitempty"` // what we called ourselves
	Seconds   float64  `json:"seconds"`        // until the host was ready, or had failed
	Dialogue  []mxLine `json:"dialogue,omitempty"`
	// TLS is the version, empty in clear text.
	TLS    string          `json:"tls,omitempty"`
	Cipher string          `json:"cipher,omitempty"`
	Chain  []mxCertificate `json:"certificates,omitempty"`
	// Shown is what the connection is worth, in the words of a demand.
	Shown string `json:"shown,omitempty"`
	Match string `json:"match,omitempty"` // the TLSA record that the certificate matches, and where
	Doubt string `json:"doubt,omitempty"` // why it is less than it could be, where that is allowed
	// Error is why no mail would go over it; nil if it would.
	Error *mxError `json:"error,omitempty"`
}

// mxLine is a line of a dialogue. Side is C for us and S for the host.
type mxLine struct {
	Side string `json:"side"`
	Line string `json:"line"`
}

type mxCertificate struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Names     []string  `json:"names,omitempty"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	// TLSA is the record that would name its key: of usage 3 for the host's own, of 2 for others.
	TLSA string `json:"tlsa"`
}

// visit connects to the hosts of a report, and makes its verdict of what they show.
func (o *outbound) visit(ctx context.Context, r *mxReport, guarded, all bool) {
	securer := delivery.NewSecurer(delivery.SecureOptions{Authorities: o.authorities, Sessions: -1})
	first := ""
	for i := range r.plan.Hosts {
		h := &r.plan.Hosts[i]
		if h.Refused != nil {
			continue
		}
		for _, a := range h.Addrs {
			c := o.visitOne(ctx, securer, h, a, guarded)
			r.Hosts[i].Attempts = append(r.Hosts[i].Attempts, c)
			if c.Error == nil && first == "" {
				first = cmp.Or(h.Name, r.Target)
			}
			if c.Error == nil && !all {
				break
			}
		}
	}
	if first != "" {
		r.Verdict.Text = "mail goes to " + first
		return
	}
	r.Verdict = mxVerdict{Outcome: outcomeWaits, Text: "mail waits: no host could be used"}
	for i := range r.Hosts {
		for _, c := range r.Hosts[i].Attempts {
			if r.Verdict.Error == nil || !r.Verdict.Error.Temporary && c.Error.Temporary {
				r.Verdict.Error = c.Error
			}
		}
	}
	if e := r.Verdict.Error; e != nil && !e.Temporary {
		r.Verdict.Outcome, r.Verdict.Text = outcomeReturns, "mail is returned to its sender: no host could be used"
	}
}

// visitTime is how long one address may take, so that one that hangs leaves time for the others.
const visitTime = 45 * time.Second

// visitOne connects to an address of a host.
func (o *outbound) visitOne(ctx context.Context, s *delivery.Securer, h *delivery.PlannedHost, a netip.Addr, guarded bool) mxConnection {
	ctx, cancel := context.WithTimeout(ctx, visitTime)
	defer cancel()
	to := netip.AddrPortFrom(a, h.Port)
	local, helo := delivery.Source{}.For(a)
	if len(o.sources) > 0 {
		local, helo = o.sources[0].For(a)
	}
	c := mxConnection{Address: to.String(), Helo: cmp.Or(helo, string(o.cfg.Hostname))}
	var talk dialogue
	begun := time.Now()
	dial := func(ctx context.Context) (net.Conn, error) {
		nc, err := o.dialHost(ctx, to, local, guarded)
		if err != nil {
			return nil, &mx.Error{Category: mx.Network, Reply: smtp.Refuse(451, smtp.Enhanced{4, 4, 1}, "no connection to the host"), Host: h.Name, Addr: a, Err: err}
		}
		c.Connected = true
		if local, ok := nc.LocalAddr().(*net.TCPAddr); ok {
			c.From = local.AddrPort().Addr().Unmap().String()
		}
		return nc, nil
	}
	got, err := s.Connect(ctx, dial, h, delivery.Approach{Addr: a, Examine: true,
		Client: smtp.ClientOptions{LocalName: c.Helo, Log: slog.New(&talk)}})
	c.Seconds = time.Since(begun).Seconds()
	c.Error = errorOf(err)
	for i, cert := range got.Chain {
		c.Chain = append(c.Chain, certificateOf(cert, i))
	}
	if got.Doubt != nil {
		c.Doubt = got.Doubt.Error()
	}
	if got.Client != nil {
		c.ready(&got)
		talk.end()
		_ = got.Client.Quit(ctx) // that is all; what it says to it does not matter
	}
	c.Dialogue = talk.lines
	return c
}

// ready tells what a connection is that mail would go over.
func (c *mxConnection) ready(got *delivery.Secured) {
	c.Shown = string(got.Shown)
	if state, ok := got.Client.TLS(); ok {
		c.TLS, c.Cipher = got.TLS(), tls.CipherSuiteName(state.CipherSuite)
	}
	if got.Shown != delivery.DemandDANE && got.Shown != delivery.DemandBoth {
		return
	}
	m := got.Proof.Match
	c.Match = dane.Format(m.Record)
	switch {
	case m.Depth == 0:
		c.Match += " is the host's own"
	case m.Depth < 0:
		c.Match += " is the trust anchor, with the name " + m.Name
	default:
		c.Match += fmt.Sprintf(" is certificate %d, with the name %s", m.Depth, m.Name)
	}
}

// dialHost makes a connection as a delivery would.
func (o *outbound) dialHost(ctx context.Context, to netip.AddrPort, from netip.Addr, guarded bool) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, o.cfg.Delivery.ConnectTimeout)
	defer cancel()
	if guarded {
		if err := o.guarded.Check(to.Addr()); err != nil {
			return nil, err
		}
	}
	if o.proxy != nil {
		return o.proxy.Dial(ctx, "tcp", to.String())
	}
	var d net.Dialer
	if guarded {
		d.Control = o.guarded.Control
	}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	return d.DialContext(ctx, "tcp", to.String())
}

func certificateOf(c *x509.Certificate, depth int) mxCertificate {
	usage := dane.UsageDANEEE
	if depth > 0 {
		usage = dane.UsageDANETA
	}
	m := mxCertificate{Subject: c.Subject.String(), Issuer: c.Issuer.String(), Names: c.DNSNames, NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC()}
	if r, err := dane.Of(c, usage, dane.SelectorSPKI, dane.MatchSHA256); err == nil {
		m.TLSA = dane.Format(r)
	}
	return m
}

// dialogue keeps what both sides said, as the log of a smtp.Client has it.
type dialogue struct {
	mu    sync.Mutex // guards what follows
	lines []mxLine
	over  bool
}

// maxDialogue is how many lines are kept; a host that says more says it in vain.
const maxDialogue = 200

// end keeps no more lines.
func (d *dialogue) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
}

// Enabled implements slog.Handler.
func (d *dialogue) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (d *dialogue) Handle(_ context.Context, r slog.Record) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over || len(d.lines) >= maxDialogue {
		return nil
	}
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "line" {
			d.lines = append(d.lines, mxLine{r.Message, a.Value.String()})
		}
		return true
	})
	return nil
}

// WithAttrs implements slog.Handler.
func (d *dialogue) WithAttrs([]slog.Attr) slog.Handler { return d }

// WithGroup implements slog.Handler.
func (d *dialogue) WithGroup(string) slog.Handler { return d }
