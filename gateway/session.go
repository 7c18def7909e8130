package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// session.go: one connection, stage by stage: policy first, then the far side.

// session implements smtp.Session.
type session struct {
	l        *listener
	conn     *smtp.Conn
	rules    *ruleSet
	run      *policy.Run
	facts    policy.Session
	log      *slog.Logger
	start    time.Time
	counted  bool   // among the sessions
	ip       *ipKey // it is counted by; nil if it is not
	unix     bool
	trusted  bool // by its address
	proxying bool // it speaks for others, and has not said XCLIENT
	loggedIn bool
	offered  []string   // mechanisms, at the last EHLO
	proxy    *proxyInfo // nil if there is none, or if it said nothing

	tx   *transaction // nil outside of a transaction
	back *handover    // of tx; here so that one timer serves all transactions. Nil before the first
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
	s.facts = policy.Session{ID: conn.ID(), Host: l.gw.opts.Hostname, Number: l.gw.number.Add(1), Listener: l.Name,
		Remote: addrPort(conn.RemoteAddr()), Local: addrPort(conn.LocalAddr())}
	s.identify()
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
	if !s.hasLogins() {
		return struct{ smtp.Session }{s}, nil // which is no smtp.AuthSession
	}
	return s, nil
}

// errFault is why a session ends that its own code ended.
var errFault = errors.New("gateway: session panicked")

// identify finds out whose connection it is and what that grants.
func (s *session) identify() {
	s.unix = s.conn.RemoteAddr().Network() == "unix"
	s.trusted = s.l.Trusted.holds(s.conn.RemoteAddr())
	if a, ok := s.conn.NetConn().(*announced); ok {
		s.proxy = &a.info
	}
	if s.proxy.endedTLS() {
		s.conn.Secured()
		s.facts.TLS = s.proxy.tlsFacts()
	}
	if st, ok := s.conn.TLS(); ok {
		s.facts.TLS = tlsFacts(st)
	}
	x, ok := s.conn.XClient()
	if !ok {
		s.proxying = s.l.XClient.holds(s.conn.Peer()) || s.l.XForward.holds(s.conn.Peer())
		return
	}
	// What a proxy may do is not what those may whom it speaks for.
	s.trusted = s.l.XClientRelay && s.trusted && x.Addr.IsValid()
	s.facts.User = x.Login
	s.facts.RDNS = x.Name
	if x.Addr.IsValid() {
		s.unix = false
	}
}

// relays tells whether the client may send to any domain that has a route.
func (s *session) relays() bool {
	return s.l.Relay && (s.trusted || s.isUser())
}

// isUser tells whether the client has logged in, here or, where that counts, at a proxy.
func (s *session) isUser() bool {
	x, _ := s.conn.XClient()
	return s.loggedIn || s.l.XClientRelay && x.Login != ""
}

// limited tells whether the connection is held to what strangers are: to rates, and to wait
// for the greeting. A proxy speaks for many, and is not judged by what they do.
func (s *session) limited() bool { return !s.trusted && !s.proxying }

// open asks whether the client may connect.
func (s *session) open(ctx context.Context) error {
	if err := s.count(); err != nil {
		return err
	}
	s.lookUpName(ctx)
	if s.limited() {
		s.conn.GreetDelay(greetDelay(s.l.GreetDelay, s.l.gw.record, s.facts.Remote.Addr()))
	}
	return s.decide(ctx, policy.StageConnect)
}

// lookUpName finds the client's name, if nobody has said it. The loopback addresses are this
// machine's own and have no owner to ask.
func (s *session) lookUpName(ctx context.Context) {
	find, a := s.l.gw.opts.LookUpName, s.facts.Remote.Addr()
	if find == nil || s.l.ReverseDNS < 0 || s.facts.RDNS != "" || !a.IsValid() || a.IsLoopback() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.l.ReverseDNS)
	defer cancel()
	s.facts.RDNS = find(ctx, a)
}

// addrPort is the zero value for what is not TCP.
func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// errRate is the answer to those who come too often.
var errRate = smtp.Refuse(421, smtp.Enhanced{4, 7, 0}, "too many connections from your network, try again later")

// count holds the connection against the limits.
func (s *session) count() error {
	l, addr := s.l, s.payer()
	s.counted = true
	if !l.gw.load.enter() {
		return smtp.Refuse(421, smtp.Enhanced{4, 3, 2}, "too much to do, try again later")
	}
	if !addr.IsValid() || !s.limited() {
		return nil
	}
	if ok, _ := l.connectionRate.take(addr, 1); !ok {
		l.gw.Stats.Limited.Add(1)
		return errRate
	}
	s.ip = &ipKey{l, site(addr)}
	if n := l.gw.addIP(*s.ip, 1); l.ConnectionsPerIP > 0 && n > l.ConnectionsPerIP {
		return smtp.Refuse(421, smtp.Enhanced{4, 7, 0}, "too many connections from your address, try again later")
	}
	return nil
}

// payer is the address that the limits hold a client to. Clients that a proxy does not name
// share one that nobody has (RFC 919, Section 7), or they could do what no other may. It is the
// zero value, which has no limits, for a peer on a local socket.
func (s *session) payer() netip.Addr {
	if a := s.facts.Remote.Addr(); a.IsValid() || s.unix {
		return a
	}
	return netip.AddrFrom4([4]byte{255, 255, 255, 255})
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
		s.l.gw.load.leave()
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
		s.logJudged(step)
	}
	switch {
	case step.Err != nil && !errors.Is(step.Err, policy.ErrBroken): // of which the log has one line
		s.logFailure(step)
	case step.Verdict.Action != policy.Continue && step.Verdict.Action != policy.Skip && step.Verdict.Action != policy.Accept:
		s.logVerdict(step)
	}
}

func (s *session) logVerdict(step policy.Step) {
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs, slog.String("conn", s.facts.ID), slog.String("stage", step.Stage.String()), slog.String("filter", step.Filter),
		slog.String("verdict", step.Verdict.Action.String()), slog.String("remote", s.remote()))
	if s.tx != nil {
		attrs = append(attrs, slog.String("mail", s.tx.id), slog.String("from", s.tx.Sender.Path.String()))
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
	switch {
	case s.unix:
		return "unix"
	case !s.facts.Remote.IsValid():
		return "unknown"
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
		s.tx.held, s.tx.reason = true, v.Reason
	}
	return nil
}

// Secure implements smtp.Session.
func (s *session) Secure(ctx context.Context, st tls.ConnectionState) error {
	s.facts.Helo, s.facts.User, s.loggedIn = "", "", false
	s.facts.TLS = tlsFacts(st)
	return s.decide(ctx, policy.StageSecure)
}

func tlsFacts(st tls.ConnectionState) *policy.TLS {
	t := &policy.TLS{Version: st.Version, Cipher: st.CipherSuite, ServerName: st.ServerName, ALPN: st.NegotiatedProtocol}
	if len(st.PeerCertificates) > 0 {
		leaf := st.PeerCertificates[0]
		t.Peer, t.Verified, t.Fingerprint = leaf.Subject.String(), len(st.VerifiedChains) > 0, fingerprint(leaf)
	}
	return t
}

// fingerprint is the SHA-256 of a certificate, as policy.TLS has it.
func fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// Helo implements smtp.Session.
func (s *session) Helo(ctx context.Context, name string) error {
	before := s.facts.Helo
	s.facts.Helo = name
	if err := s.decide(ctx, policy.StageHelo); err != nil {
		s.facts.Helo = before // RFC 5321, Section 4.1.4: a refused EHLO changes nothing
		return err
	}
	s.conn.Offer(s.rules.offers(s.l.gw.opts.Relay, s.l.Relay, s.isUser()))
	return nil
}

// What those hear who send too much.
var (
	errMessageRate = smtp.Refuse(451, smtp.Enhanced{4, 7, 1}, "too many messages from your network, try again later")
	errUserRate    = smtp.Refuse(451, smtp.Enhanced{4, 7, 1}, "too many messages of this user, try again later")
	// errRecipientRate is 450 and no 452: of those a client would send the rest at once, in
	// another transaction (RFC 5321, Section 4.5.3.1.10).
	errRecipientRate = smtp.Refuse(450, smtp.Enhanced{4, 7, 1}, "too many recipients in a short time, try again later")
)

// countMessage holds a message against the rates.
func (s *session) countMessage() error {
	if !s.limited() {
		return nil
	}
	ok, err := true, errMessageRate
	if s.isUser() {
		ok, err = s.l.userMessages.takeName(s.facts.User), errUserRate
	} else {
		ok, _ = s.l.messageRate.take(s.payer(), 1)
	}
	if ok {
		return nil
	}
	s.l.gw.Stats.Limited.Add(1)
	return err
}

// countRecipient holds a recipient against the rate of recipients.
func (s *session) countRecipient() error {
	if !s.limited() {
		return nil
	}
	ok := true
	if s.isUser() {
		ok = s.l.userRecipients.takeName(s.facts.User)
	} else {
		ok, _ = s.l.recipientRate.take(s.payer(), 1)
	}
	if ok {
		return nil
	}
	s.l.gw.Stats.Limited.Add(1)
	return errRecipientRate
}

// Mail implements smtp.Session.
func (s *session) Mail(ctx context.Context, from smtp.Sender) error {
	if err := s.countMessage(); err != nil {
		return err
	}
	if err := s.maySend(from.Path); err != nil {
		return err
	}
	s.tx = s.begin(from)
	if err := s.decide(ctx, policy.StageMail); err != nil {
		s.endTransaction()
		return err
	}
	return nil
}

// Rcpt implements smtp.Session.
func (s *session) Rcpt(ctx context.Context, to smtp.Recipient) error {
	tx := s.tx
	if err := tx.together(to.Path); err != nil {
		return err
	}
	if err := s.countRecipient(); err != nil {
		return err
	}
	tx.Rcpts = append(tx.Rcpts, policy.Recipient{Recipient: to})
	tx.dropCandidate = false
	err := s.decide(ctx, policy.StageRcpt)
	if err == nil && !tx.dropCandidate {
		if err = tx.offerCandidate(ctx); err == nil {
			tx.promise(promise{path: to.Path})
			return nil
		}
	}
	tx.removeCandidate()
	if err == nil {
		tx.discarded = true
		tx.promise(promise{to.Path, true})
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
	if s.tx.held && s.l.gw.keeper == nil {
		return errHeld
	}
	return nil
}

// Message implements smtp.Session.
func (s *session) Message(ctx context.Context, body *smtp.DataReader) ([]*smtp.Reply, error) {
	defer s.endTransaction()
	replies, err := s.tx.message(ctx, body)
	switch {
	case err == nil && taken(replies):
		s.done.accepted++
		if s.tx.delivered { // what was thrown away speaks for nobody
			s.l.gw.record.good(s.facts.Remote.Addr())
		}
	case !s.tx.broken:
		s.done.refused++
		s.l.gw.Stats.Refused.Add(1)
	}
	return replies, err
}

// taken tells whether anybody has the message. No replies at all mean all of them.
func taken(replies []*smtp.Reply) bool {
	return len(replies) == 0 || slices.ContainsFunc(replies, func(r *smtp.Reply) bool { return r.Code/100 == 2 })
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
	if errors.Is(err, smtp.ErrAbuse) && s.limited() {
		s.l.gw.record.bad(s.facts.Remote.Addr())
	}
	if errors.Is(err, smtp.ErrEarlyTalker) {
		s.l.gw.Stats.EarlyTalkers.Add(1)
	}
	s.endTransaction()
	ctx, cancel := context.Background(), context.CancelFunc(func() {})
	if s.rules.Chains[s.l.Chain].Stages().Has(policy.StageClose) {
		ctx, cancel = context.WithTimeout(ctx, closeTime) // the connection's own may be over
	}
	defer cancel()
	s.run.Close(ctx)
}

// gone tells whether a client left before it said anything, as checks of a load balancer do,
// some of them several times a second.
func (s *session) gone(err error) bool {
	left := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	return left && s.facts.Helo == "" && s.facts.TLS == nil && s.conn.LastRefusal() == nil
}

func (s *session) logEnd(err error) {
	level := slog.LevelInfo
	if s.gone(err) {
		level = slog.LevelDebug
	}
	if !s.log.Enabled(context.Background(), level) {
		return
	}
	attrs := make([]slog.Attr, 0, 16)
	attrs = append(attrs, slog.String("conn", s.facts.ID), slog.String("listener", s.l.Name), slog.String("remote", s.remote()),
		slog.String("rdns", s.facts.RDNS), slog.String("helo", s.facts.Helo), slog.Int("accepted", s.done.accepted), slog.Int("refused", s.done.refused),
		slog.Duration("dur", time.Since(s.start)))
	if s.facts.User != "" {
		attrs = append(attrs, slog.String("user", s.facts.User))
	}
	if p := s.proxy; p != nil && p.proxy.IsValid() {
		attrs = append(attrs, slog.String("proxy", p.proxy.String()))
	}
	if p := s.proxy; p != nil && p.uniqueID != "" {
		attrs = append(attrs, slog.String("proxy_id", p.uniqueID))
	}
	if s.facts.TLS != nil {
		attrs = append(attrs, slog.String("tls", tls.VersionName(s.facts.TLS.Version)))
	}
	if r, ok := errors.AsType[*smtp.Reply](err); ok {
		attrs = append(attrs, slog.Int("code", r.Code))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	s.log.LogAttrs(context.Background(), level, "session ended", attrs...)
}
