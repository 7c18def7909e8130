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
	counted bool   // among the listener's connections
	ip      *ipKey // it is counted by; nil if it is not
	unix    bool
	relays  bool // may send to any routed domain

	seq  uint64
	tx   *transaction // nil outside of a transaction
	back handover     // of tx; here so that one timer serves all transactions
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
	s := &session{l: l, conn: conn, rules: rules, log: l.gw.opts.Log, start: time.Now()}
	s.facts = policy.Session{ID: conn.ID(), Number: l.gw.number.Add(1), Listener: l.Name,
		Remote: addrPort(conn.RemoteAddr()), Local: addrPort(conn.LocalAddr())}
	s.unix = conn.RemoteAddr().Network() == "unix"
	s.relays = l.Relay && l.trusts(s.facts.Remote.Addr(), s.unix)
	s.run = rules.Chains[l.Chain].Open(&s.facts, s.observe)
	l.gw.Stats.Sessions.Add(1)
	end := errFault
	defer func() {
		if end != nil { // refused, or a panic, of which the server tells the client
			s.Close(end)
		}
	}()
	err := s.open(ctx)
	if end = err; err != nil {
		return nil, err
	}
	return s, nil
}

// errFault is why a session ends that its own code ended.
var errFault = errors.New("gateway: session panicked")

// open asks whether the client may connect.
func (s *session) open(ctx context.Context) error {
	if err := s.count(); err != nil {
		return err
	}
	return s.decide(ctx, policy.StageConnect)
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
	a = a.WithZone("") // a Prefix contains no address with a zone
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
	s.ip = &ipKey{l, site(s.facts.Remote.Addr())}
	if n := l.gw.addIP(*s.ip, 1); l.ConnectionsPerIP > 0 && n > l.ConnectionsPerIP {
		return smtp.Refuse(421, smtp.Enhanced{4, 7, 0}, "too many connections from your address, try again later")
	}
	return nil
}

// site is what an address is counted by, see Listener.ConnectionsPerIP.
func site(a netip.Addr) netip.Addr {
	if !a.Is6() {
		return a
	}
	p, _ := a.Prefix(64) // fails for more than 128 bits
	return p.Addr()
}

// uncount takes back what count has counted, and no more.
func (s *session) uncount() {
	if s.ip != nil {
		s.l.gw.addIP(*s.ip, -1)
		s.ip = nil
	}
	if s.counted {
		s.counted = false
		s.l.conns.Add(-1)
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

// observe notes what a filter said.
func (s *session) observe(step policy.Step) {
	if f := s.l.gw.opts.Observe; f != nil {
		f(&s.facts, step)
	}
	if s.tx != nil {
		s.tx.note(step)
	}
	switch {
	case step.Err != nil:
		s.log.Error("filter failed", "conn", s.facts.ID, "stage", step.Stage.String(), "filter", step.Filter,
			"verdict", step.Verdict.Action.String(), "dur", step.Duration, "err", step.Err)
	case step.Verdict.Action != policy.Continue && step.Verdict.Action != policy.Skip && step.Verdict.Action != policy.Accept:
		s.logVerdict(step)
	}
}

func (s *session) logVerdict(step policy.Step) {
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs, slog.String("conn", s.facts.ID), slog.String("stage", step.Stage.String()), slog.String("filter", step.Filter),
		slog.String("verdict", step.Verdict.Action.String()), slog.String("remote", s.remote()))
	if s.tx != nil {
		attrs = append(attrs, slog.String("msg", s.tx.id()), slog.String("from", s.tx.Sender.Path.String()))
	}
	if r := step.Verdict.Reply; r != nil {
		attrs = append(attrs, slog.Int("code", r.Code), slog.String("enh", r.Enh.String()))
	}
	if step.Verdict.Reason != "" {
		attrs = append(attrs, slog.String("reason", step.Verdict.Reason))
	}
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "verdict", attrs...)
}

// remote is the client's address for the log.
func (s *session) remote() string {
	if s.unix {
		return "unix"
	}
	return s.facts.Remote.String()
}

// decide asks the chain and returns what the client is to be told; nil means go on. A
// stage of the session stands outside the transaction, even if one is open: EHLO may come
// at any time.
func (s *session) decide(ctx context.Context, stage policy.Stage) error {
	var tx *policy.Transaction
	if s.tx != nil && stage >= policy.StageMail {
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
	before := s.facts.Helo
	s.facts.Helo = name
	if err := s.decide(ctx, policy.StageHelo); err != nil {
		s.facts.Helo = before // RFC 5321, Section 4.1.4: a refused EHLO changes nothing
		return err
	}
	return nil
}

// Mail implements smtp.Session.
func (s *session) Mail(ctx context.Context, from smtp.Sender) error {
	s.seq++
	s.back.reset()
	s.tx = &transaction{s: s, back: &s.back, start: time.Now()}
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
	err := s.decide(ctx, policy.StageRcpt)
	if err == nil && !tx.dropCandidate {
		if err = tx.offerCandidate(ctx); err == nil {
			tx.promised = append(tx.promised, to.Path)
			return nil
		}
	}
	tx.removeCandidate()
	if err == nil {
		tx.discarded = true
		tx.promised = append(tx.promised, to.Path)
	}
	return err
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
func (s *session) Message(ctx context.Context, body *smtp.DataReader) ([]*smtp.Reply, error) {
	defer s.endTransaction()
	replies, err := s.tx.message(ctx, body)
	switch {
	case err == nil:
		s.done.accepted++
	case !s.tx.broken:
		s.done.refused++
		s.l.gw.Stats.Refused.Add(1)
	}
	return replies, err
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
		s.back.abort()
		s.tx = nil
	}
	s.run.EndTransaction()
}

// closeTime is how long filters may take to look at the end of a session, all together.
const closeTime = 5 * time.Second

// Close implements smtp.Session.
func (s *session) Close(err error) {
	defer s.rules.release()
	defer s.uncount()
	defer s.logEnd(err)
	s.endTransaction()
	ctx, cancel := context.Background(), context.CancelFunc(func() {})
	if s.rules.Chains[s.l.Chain].Stages().Has(policy.StageClose) {
		ctx, cancel = context.WithTimeout(ctx, closeTime) // the connection's own may be over
	}
	defer cancel()
	s.run.Close(ctx)
}

func (s *session) logEnd(err error) {
	if !s.log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs, slog.String("conn", s.facts.ID), slog.String("listener", s.l.Name), slog.String("remote", s.remote()),
		slog.String("helo", s.facts.Helo), slog.Int("accepted", s.done.accepted), slog.Int("refused", s.done.refused),
		slog.Duration("dur", time.Since(s.start)))
	if s.facts.TLS != nil {
		attrs = append(attrs, slog.String("tls", tls.VersionName(s.facts.TLS.Version)))
	}
	if r, ok := errors.AsType[*smtp.Reply](err); ok {
		attrs = append(attrs, slog.Int("code", r.Code))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "session ended", attrs...)
}
