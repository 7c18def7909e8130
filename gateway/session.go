package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// session.go: one connection, stage by stage: policy first, then the far side.

// session implements smtp.Session.
type session struct {
	l       *listener
	conn    *smtp.Conn
	rules   *ruleSet
	run     *policy.Run
	facts   policy.Session
	log     *slog.Logger
	start   time.Time
	counted bool // in the listener's limits
	unix    bool
	relays  bool // may send to any routed domain

	seq  uint64
	tx   *transaction // nil outside of a transaction
	done counts
}

// counts is what a session did, for its log line.
type counts struct{ accepted, refused int }

// Connect implements smtp.Handler.
func (l *listener) Connect(ctx context.Context, conn *smtp.Conn) (smtp.Session, error) {
	rules := l.gw.acquire()
	if rules == nil {
		return nil, smtp.Refuse(421, smtp.Enhanced{4, 3, 2}, "shutting down, try again later")
	}
	s := &session{l: l, conn: conn, rules: rules, log: l.gw.opts.Log, start: l.gw.opts.Now()}
	s.facts = policy.Session{ID: conn.ID(), Number: l.gw.number.Add(1), Listener: l.Name,
		Remote: addrPort(conn.RemoteAddr()), Local: addrPort(conn.LocalAddr())}
	s.unix = conn.RemoteAddr().Network() == "unix"
	s.relays = l.Relay && l.trusts(s.facts.Remote.Addr(), s.unix)
	s.run = rules.Chains[l.Chain].Open(&s.facts, s.observe)
	l.gw.Stats.Sessions.Add(1)
	err := s.count()
	if err == nil {
		err = s.decide(ctx, policy.StageConnect)
	}
	if err != nil {
		s.Close(err)
		return nil, err
	}
	return s, nil
}

// addrPort is the zero value for what is not TCP.
func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

func (l *listener) trusts(a netip.Addr, unix bool) bool {
	if unix {
		return l.TrustUnix
	}
	for _, p := range l.Trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// count holds the connection against the listener's limits.
func (s *session) count() error {
	l := s.l
	s.counted = true
	if n := l.conns.Add(1); l.Connections > 0 && n > int64(l.Connections) {
		return smtp.Refuse(421, smtp.Enhanced{4, 3, 2}, "too many connections, try again later")
	}
	if s.unix {
		return nil
	}
	if n := l.gw.addIP(ipKey{l, s.facts.Remote.Addr()}, 1); l.ConnectionsPerIP > 0 && n > l.ConnectionsPerIP {
		return smtp.Refuse(421, smtp.Enhanced{4, 7, 0}, "too many connections from your address, try again later")
	}
	return nil
}

func (s *session) uncount() {
	if !s.counted {
		return
	}
	s.counted = false
	if n := s.l.conns.Add(-1); n < 0 {
		panic("gateway: more connections closed than opened")
	}
	if !s.unix {
		s.l.gw.addIP(ipKey{s.l, s.facts.Remote.Addr()}, -1)
	}
}

func (g *Gateway) addIP(k ipKey, d int) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.perIP[k] + d
	if n == 0 {
		delete(g.perIP, k)
	} else {
		g.perIP[k] = n
	}
	return n
}

// observe writes the log line of a filter's answer.
func (s *session) observe(step policy.Step) {
	if f := s.l.gw.opts.Observe; f != nil {
		f(&s.facts, step)
	}
	switch {
	case step.Err != nil:
		s.log.Error("filter failed", "conn", s.facts.ID, "stage", step.Stage.String(), "filter", step.Filter,
			"verdict", step.Verdict.Action.String(), "dur", step.Duration, "err", step.Err)
	case step.Verdict.Action != policy.Continue && step.Verdict.Action != policy.Skip:
		attrs := []any{"conn", s.facts.ID, "stage", step.Stage.String(), "filter", step.Filter,
			"verdict", step.Verdict.Action.String(), "remote", s.facts.Remote.String()}
		if r := step.Verdict.Reply; r != nil {
			attrs = append(attrs, "code", r.Code, "enh", r.Enh.String())
		}
		if s.tx != nil {
			attrs = append(attrs, "from", s.tx.Sender.Path.String())
		}
		s.log.Info("verdict", attrs...)
	}
}

// decide asks the chain and returns what the client is to be told; nil means go on.
func (s *session) decide(ctx context.Context, stage policy.Stage) error {
	var tx *policy.Transaction
	if s.tx != nil {
		tx = &s.tx.Transaction
	}
	return s.heed(s.run.Decide(ctx, stage, tx).Verdict, stage)
}

// heed makes a verdict count.
func (s *session) heed(v policy.Verdict, stage policy.Stage) error {
	switch v.Action {
	case policy.Reject, policy.Tempfail:
		return v.Reply
	case policy.Disconnect:
		r := *v.Reply
		r.Hangup = true
		return &r
	case policy.Discard:
		s.tx.discard(stage)
	case policy.Quarantine:
		s.tx.held = true
	}
	return nil
}

// Secure implements smtp.Session.
func (s *session) Secure(ctx context.Context, st tls.ConnectionState) error {
	s.facts.Helo = ""
	s.facts.TLS = &policy.TLS{Version: st.Version, Cipher: st.CipherSuite, ServerName: st.ServerName, ALPN: st.NegotiatedProtocol}
	if len(st.PeerCertificates) > 0 {
		s.facts.TLS.Peer = st.PeerCertificates[0].Subject.String()
	}
	return s.decide(ctx, policy.StageSecure)
}

// Helo implements smtp.Session.
func (s *session) Helo(ctx context.Context, name string) error {
	s.facts.Helo = name
	return s.decide(ctx, policy.StageHelo)
}

// Mail implements smtp.Session.
func (s *session) Mail(ctx context.Context, from smtp.Sender) error {
	s.seq++
	s.tx = &transaction{s: s, start: s.l.gw.opts.Now()}
	s.tx.Seq, s.tx.Sender = s.seq, from
	if err := s.decide(ctx, policy.StageMail); err != nil {
		s.endTransaction()
		return err
	}
	return nil
}

// Rcpt implements smtp.Session.
func (s *session) Rcpt(ctx context.Context, to smtp.Recipient) error {
	tx := s.tx
	tx.Rcpts = append(tx.Rcpts, policy.Recipient{Recipient: to})
	tx.dropCandidate = false
	if err := s.decide(ctx, policy.StageRcpt); err != nil {
		tx.removeCandidate()
		return err
	}
	if tx.dropCandidate {
		tx.removeCandidate()
		return nil
	}
	if err := tx.offerCandidate(ctx); err != nil {
		tx.removeCandidate()
		return err
	}
	return nil
}

// errHeld is the answer for held mail as long as there is no store to hold it in.
var errHeld = smtp.Refuse(451, smtp.Enhanced{4, 3, 0}, "message cannot be held for inspection now, try again later")

// Data implements smtp.Session.
func (s *session) Data(ctx context.Context) error {
	if err := s.decide(ctx, policy.StageData); err != nil {
		return err
	}
	if s.tx.held {
		return errHeld
	}
	return nil
}

// Message implements smtp.Session.
func (s *session) Message(ctx context.Context, body *smtp.DataReader) (*smtp.Reply, error) {
	defer s.endTransaction()
	reply, err := s.tx.message(ctx, body)
	if err != nil {
		s.done.refused++
		s.l.gw.Stats.Refused.Add(1)
		return nil, err
	}
	s.done.accepted++
	return reply, nil
}

// Reset implements smtp.Session.
func (s *session) Reset(ctx context.Context) {
	if s.tx == nil {
		return
	}
	s.run.Decide(ctx, policy.StageReset, &s.tx.Transaction)
	s.endTransaction()
}

func (s *session) endTransaction() {
	if s.tx != nil {
		s.tx.back.abort()
		s.tx = nil
	}
	s.run.EndTransaction()
}

// Close implements smtp.Session.
func (s *session) Close(err error) {
	s.endTransaction()
	s.run.Close(context.Background())
	s.uncount()
	s.rules.release()
	attrs := []any{"conn", s.facts.ID, "listener", s.l.Name, "remote", s.facts.Remote.String(), "helo", s.facts.Helo,
		"accepted", s.done.accepted, "refused", s.done.refused, "dur", s.l.gw.opts.Now().Sub(s.start)}
	if s.facts.TLS != nil {
		attrs = append(attrs, "tls", tls.VersionName(s.facts.TLS.Version))
	}
	if r, ok := errors.AsType[*smtp.Reply](err); ok {
		attrs = append(attrs, "code", r.Code)
	}
	if err != nil {
		attrs = append(attrs, "err", err)
	}
	s.log.Info("session ended", attrs...)
}
