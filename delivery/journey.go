package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/mail/smtp"
)

// journey.go: an attempt to deliver to hosts elsewhere. It goes over hosts and addresses until each
// recipient has an answer.
//
// What a host says to a recipient is final for this attempt, good or bad. What comes before that, a
// connection that cannot be made, a greeting or a sender that is refused, TLS that is not as it must
// be, sends the journey on to the next address; and when there is none left, it is a temporary
// failure, also where hosts said 5yz: they spoke of us or of themselves, and not of the mail (RFC
// 5321, Section 4.2.1). The exception is a domain all of whose hosts say that they take no mail
// at all (RFC 7504).
//
// Once content was on its way, nothing is sent to another host: the answer may have been lost after
// the message was taken.

// journey is an attempt on its way.
type journey struct {
	a       *attempt
	o       *outbound
	own     mx.Target // of the destination
	special bool      // it goes another way than the destination's others
	altered bool      // or is to be sent in another way
	way     way
	source  Source
	plan    *Plan
	turn    Turn
	site    string
	left    []int   // places in lease.Recipients of those without an answer
	errs    []error // what stood in the way, in order; *mx.Error as a rule
	dialled int
	until   time.Time // when the search for a host ends
	reached bool      // somebody answered for the message
}

// errEnough ends a journey before its hosts are used up.
var errEnough = errors.New("delivery: enough was tried")

// errNoRoom is that another site than the destination's has no room for the message.
var errNoRoom = errors.New("delivery: the site has no room")

// journey delivers to hosts elsewhere, as try does.
func (a *attempt) journey(ctx context.Context) error {
	o := a.e.out
	ctx, cancel := context.WithTimeoutCause(ctx, o.opts.AttemptTime, errTooLong)
	defer cancel()
	j := &journey{a: a, o: o}
	for i := range a.replies {
		j.left = append(j.left, i)
	}
	var err error
	if j.own, err = targetOf(a.lease.Destination); err != nil {
		return err
	}
	if err := j.choose(ctx); err != nil {
		return err
	}
	if err := j.plot(ctx); err != nil {
		return err
	}
	giveBack, err := j.enter()
	if err != nil {
		return err
	}
	defer giveBack()
	if err := j.ask(ctx); err != nil {
		return err
	}
	return j.travel(ctx)
}

// hookTime is how long Hooks may take.
const hookTime = 10 * time.Second

// choose finds the way: what the message needs, and what Route says.
func (j *journey) choose(ctx context.Context) error {
	o, a := j.o, j.a
	var chosen Way
	if h := o.opts.Hooks; h != nil {
		ctx, cancel := context.WithTimeout(ctx, hookTime)
		defer cancel()
		var err error
		if chosen, err = h.Route(ctx, a.outgoing()); err != nil {
			return hookError("route", err)
		}
	}
	var relay *Relay
	if chosen.Relay != "" {
		r, err := ParseRelay(chosen.Relay)
		if err != nil {
			return fmt.Errorf("delivery: route: %v", err) // not the sender's fault: no reply for good
		}
		relay, j.special = &r, true
	}
	var err error
	j.altered = chosen.TLS != "" || chosen.Source != ""
	if j.source, err = o.source(chosen.Source, a.m.ID); err != nil {
		return fmt.Errorf("delivery: route: %w", err)
	}
	j.way = o.way(j.own, relay)
	n := &j.way.need
	// RFC 8689, Section 4.2.1: what asks for it is mail that has a sender. A report goes on where
	// nobody promises it, or nobody would hear of what became of the mail.
	n.RequireTLS = a.m.Sender.RequireTLS && !a.m.Sender.Path.IsNull()
	n.TLSOptional = a.m.Origin.TLSOptional
	n.TLS = stricter(n.TLS, chosen.TLS, o.opts.WeakerTLS)
	return nil
}

// stricter is what is asked of TLS when ours asks for one thing and a hook for another.
func stricter(ours, hook TLSMode, weaker bool) TLSMode {
	if hook == "" {
		return ours
	}
	rank := map[TLSMode]int{TLSOff: -2, TLSOpportunistic: -1, "": 0, TLSRequired: 1, TLSVerify: 2}
	switch {
	case rank[hook] > rank[ours], weaker:
		return hook
	}
	return ours
}

// plot makes the plan.
func (j *journey) plot(ctx context.Context) error {
	usual := j.usual()
	if t, ok := j.o.trouble(j.a.lease.Destination); ok && usual && !j.a.last {
		j.report(t.events)
		return t.err // a scout was there a moment ago
	}
	plan, err := j.planned(ctx, usual)
	if errors.Is(err, errElsewhere) {
		return err
	}
	if err != nil {
		if usual && ctx.Err() == nil {
			j.o.remember(j.a.lease.Destination, plan, err)
		}
		if plan != nil {
			j.report(plan.Events)
		}
		return err
	}
	j.plan = plan
	return nil
}

// planTime is how long a worker waits for a plan that others may wait for without one.
const planTime = 2 * time.Second

// planned waits for the plan. One that takes long, since the last has run out, is for scouts.
func (j *journey) planned(ctx context.Context, usual bool) (*Plan, error) {
	if !usual {
		return j.way.plan(ctx)
	}
	if plan := j.way.kept(); plan != nil {
		return plan, nil
	}
	short, cancel := context.WithTimeout(ctx, planTime)
	defer cancel()
	plan, err := j.way.plan(short)
	if err == nil || short.Err() == nil || ctx.Err() != nil {
		return plan, err
	}
	if j.a.e.displace(j.a.lease.Destination) {
		return nil, errElsewhere
	}
	return j.way.plan(ctx)
}

// enter takes a place at the site of the plan. That is the worker's own as a rule.
func (j *journey) enter() (giveBack func(), err error) {
	e := j.a.e
	j.site = j.plan.Site
	if e.worksAt(j.a.lease.Destination, j.site) {
		return func() {}, nil
	}
	if !j.special {
		if e.displace(j.a.lease.Destination) {
			return nil, errElsewhere
		}
		return func() {}, nil
	}
	giveBack, ok := e.borrow(j.site)
	if !ok {
		return nil, errNoRoom
	}
	return giveBack, nil
}

// ask tells Deliver of the plan.
func (j *journey) ask(ctx context.Context) error {
	h := j.o.opts.Hooks
	if h == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, hookTime)
	defer cancel()
	hops := make([]Hop, len(j.plan.Hosts))
	for i := range hops {
		p := &j.plan.Hosts[i]
		hops[i] = Hop{Host: p.Name, Preference: p.Preference, Addrs: p.Addrs, Demand: string(p.Demand), Err: p.Refused}
	}
	var err error
	if j.turn, err = h.Deliver(ctx, j.a.outgoing(), hops); err != nil {
		return hookError("deliver", err)
	}
	return nil
}

// hookError is the error of a hook as that of the attempt. A reply that is no refusal must not be
// taken for that of a host that has the message.
func hookError(stage string, err error) error {
	if r, ok := errors.AsType[*smtp.Reply](err); ok && !r.Temporary() && !r.Permanent() {
		return fmt.Errorf("delivery: %s: the error of a hook is no refusal: %v", stage, err)
	}
	return fmt.Errorf("delivery: %s: %w", stage, err)
}

// travel goes over the hosts, and once more if it was a policy that stood in the way and there is
// another one by now.
func (j *journey) travel(ctx context.Context) error {
	j.until = time.Now().Add(j.o.opts.ReachTime)
	err := j.round(ctx)
	if len(j.left) > 0 && (err == nil || errors.Is(err, errEnough)) && j.renew(ctx) {
		err = j.round(ctx)
	}
	j.judge(err)
	switch {
	case len(j.left) == 0:
		return nil
	case err != nil && !errors.Is(err, errEnough):
		return err
	}
	sum := j.sum()
	if j.barred() {
		j.o.remember(j.a.lease.Destination, nil, sum)
	}
	return sum
}

// barred tells whether the next message will be told the same: hosts are there, and will have none
// of us, or we of them. It need not connect to find that out.
func (j *journey) barred() bool {
	if j.reached || !j.usual() || j.turn.To.IsValid() || j.a.last || j.a.e.proven(j.a.lease.Destination) {
		return false
	}
	if len(j.o.opts.Sources) > 1 && slices.ContainsFunc(j.errs, refusedUs) {
		return false // it may have been the source that they will not have
	}
	return slices.ContainsFunc(j.errs, func(err error) bool { return !unreached(err) })
}

// usual tells whether the message goes the way of its destination's others, and needs nothing that
// they do not.
func (j *journey) usual() bool {
	n := j.way.need
	return !j.special && !j.altered && !n.RequireTLS && !n.TLSOptional
}

// reach returns the time in which a host must be found. Most messages have a connection already and
// need none.
func (j *journey) reach(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithDeadline(ctx, j.until)
}

// round goes over the hosts of a plan.
func (j *journey) round(ctx context.Context) error {
	j.errs = nil
	j.report(j.plan.Events)
	for i := range j.plan.Hosts {
		if h := &j.plan.Hosts[i]; h.Refused != nil {
			j.errs = append(j.errs, h.Refused)
			j.report(h.Events)
		}
	}
	return j.visitAll(ctx)
}

// renewTime is how old a plan is at least whose policy is asked for anew.
const renewTime = time.Minute

// renew asks for the MTA-STS policy anew, if there is one that is enforced, and tells whether it is
// another by now. RFC 8461, Section 5.1: a message must not fail for a policy that is gone.
func (j *journey) renew(ctx context.Context) bool {
	r, ok := j.way.planner.(interface {
		Renew(context.Context, mx.Target, Need) (*Plan, error)
	})
	enforced := slices.ContainsFunc(j.plan.Hosts, func(h PlannedHost) bool { return h.Enforced })
	if !ok || !enforced || j.a.e.now().Sub(j.plan.Made) < renewTime && !j.a.last {
		return false
	}
	ctx, cancel := j.reach(ctx)
	defer cancel()
	plan, err := r.Renew(ctx, j.way.target, j.way.need)
	if err != nil || policyID(plan) == policyID(j.plan) {
		return false
	}
	j.plan = plan
	return true
}

// policyID names the policies that a plan was made with: that of the domain, or those of the smart
// hosts in its place. It is empty without any.
func policyID(p *Plan) string {
	if p.STS.Policy != nil {
		return p.STS.Policy.ID
	}
	var ids []string
	for i := range p.Hosts {
		if sts := p.Hosts[i].STS; sts != nil {
			ids = append(ids, p.Hosts[i].Name+" "+sts.ID)
		}
	}
	slices.Sort(ids)
	return strings.Join(ids, ", ")
}

// visitAll visits hosts until nobody is left. A nil error, and errEnough, are that all were tried
// that may be.
func (j *journey) visitAll(ctx context.Context) error {
	hosts, tries := j.order()
	for start := 0; start < len(tries); {
		end := start + 1
		for end < len(tries) && hosts[tries[end].Host].Preference == hosts[tries[start].Host].Preference {
			end++
		}
		// Among equals a host that we have a connection to comes first.
		for _, visit := range []func(ctx context.Context, h *PlannedHost, to netip.AddrPort) error{j.revisit, j.visit} {
			for _, t := range tries[start:end] {
				h := &hosts[t.Host]
				if err := visit(ctx, h, netip.AddrPortFrom(t.Addr, j.port(h))); err != nil || len(j.left) == 0 {
					return err
				}
			}
		}
		start = end
	}
	return nil
}

// order returns the hosts, and the addresses to try in order: those of the plan, or what Deliver wants.
func (j *journey) order() ([]PlannedHost, []mx.Try) {
	hosts := j.plan.Hosts
	bare := make([]mx.Host, len(hosts))
	for i := range hosts {
		if bare[i] = hosts[i].Host; hosts[i].Refused != nil {
			bare[i].Err = hosts[i].Refused
		}
	}
	tries := underEachName(hosts, mx.Order(bare, j.o.opts.PreferIPv6, nil))
	if len(tries) > 0 && j.turn.To.IsValid() {
		tries = []mx.Try{{Host: tries[0].Host, Addr: j.turn.To.Addr()}}
	}
	return hosts, tries
}

// underEachName adds the addresses that a host shares with one before it, if a certificate is asked
// of it: a server that has none for the first name may have one for the second. Among equals they
// come last.
func underEachName(hosts []PlannedHost, tries []mx.Try) []mx.Try {
	for i := range hosts {
		h := &hosts[i]
		if h.Refused != nil || !h.Demand.Authenticated() {
			continue
		}
		for _, addr := range h.Addrs {
			if t := (mx.Try{Host: i, Addr: addr}); !slices.Contains(tries, t) {
				end := len(tries)
				if later := slices.IndexFunc(tries, func(t mx.Try) bool { return hosts[t.Host].Preference > h.Preference }); later >= 0 {
					end = later
				}
				tries = slices.Insert(tries, end, t)
			}
		}
	}
	return tries
}

func (j *journey) port(h *PlannedHost) uint16 {
	if p := j.turn.To.Port(); p != 0 {
		return p
	}
	return h.Port
}

// key is what a connection to a host is made for.
func (j *journey) key(h *PlannedHost, to netip.AddrPort) linkKey {
	from, helo := j.source.For(to.Addr())
	setDefault(&helo, j.o.opts.LocalName)
	return linkKey{host: h.Name, to: to, from: from, helo: helo}
}

// revisit uses a connection that there is already.
func (j *journey) revisit(ctx context.Context, h *PlannedHost, to netip.AddrPort) error {
	check := j.o.securer.opt.check()
	if l := j.o.links.get(j.key(h, to), func(l *link) bool { return l.secured.Meets(h, check) }); l != nil {
		return j.talk(ctx, l)
	}
	return nil
}

// visit makes a connection and uses it.
func (j *journey) visit(ctx context.Context, h *PlannedHost, to netip.AddrPort) error {
	reach, cancel := j.reach(ctx)
	defer cancel()
	now := j.a.e.now()
	k := j.key(h, to)
	v, until, err := j.o.hosts.ask(hostKey{to, k.from}, now)
	if v == nil {
		j.errs = append(j.errs, fmt.Errorf("%w (and is not tried before %s)", err, until.UTC().Format(time.RFC3339)))
		return nil
	}
	if j.dialled++; j.dialled > j.o.opts.MaxAddrs {
		v.leave()
		return errEnough
	}
	l, err := j.meet(reach, h, k)
	if err == nil {
		v.reached()
		for {
			before := len(j.left)
			if err := j.talk(ctx, l); err != nil || len(j.left) == 0 {
				return err
			}
			if len(j.left) == before || l.mailMax == 0 {
				return nil
			}
			// It takes few messages on a connection, and the rest on the next (RFC 9422).
			if l, err = j.meet(reach, h, k); err != nil {
				j.errs = append(j.errs, err)
				return nil
			}
		}
	}
	switch {
	case reach.Err() != nil, ourFault(err):
		// Our time was over, or the engine ends, or we cannot connect to anybody: the address is
		// not to blame.
		v.leave()
		j.errs = append(j.errs, err)
		return errEnough
	case noWayThere(err):
		// It took no time, and says nothing of the address: it is not counted as one that was tried.
		v.leave()
		j.dialled--
	case unreached(err), refusedUs(err) && !j.a.e.proven(j.a.lease.Destination):
		v.failed(err, j.a.e.now())
	default:
		v.reached()
	}
	j.errs = append(j.errs, err)
	return nil
}

// unreached tells whether err means that nobody was there who speaks SMTP.
func unreached(err error) bool {
	e, ok := errors.AsType[*mx.Error](err)
	return ok && e.Category == mx.Network
}

// ourFault tells whether a connection could not be made for want of something on our side.
func ourFault(err error) bool {
	if p, ok := errors.AsType[*ProxyError](err); ok && !p.Answered {
		return true
	}
	return isAny(err, syscall.EMFILE, syscall.ENFILE)
}

// noWayThere tells whether there is no way from here to an address, though there may be one to
// others: the source has no address of that family on this machine, or the machine has no route.
func noWayThere(err error) bool {
	return isAny(err, syscall.EADDRNOTAVAIL, syscall.ENETUNREACH, syscall.EAFNOSUPPORT, syscall.ENETDOWN, syscall.EACCES, syscall.EPERM)
}

func isAny(err error, those ...error) bool {
	return slices.ContainsFunc(those, func(e error) bool { return errors.Is(err, e) })
}

// refusedUs tells whether err is a refusal of the connection by the host.
func refusedUs(err error) bool {
	e, ok := errors.AsType[*mx.Error](err)
	return ok && e.Category == mx.SMTP
}

// meet makes a connection that is ready for MAIL.
func (j *journey) meet(ctx context.Context, h *PlannedHost, k linkKey) (*link, error) {
	o := j.o
	o.links.begin(j.site, o.e.opts.DestinationWorkers)
	l, err := j.introduce(ctx, h, k)
	if err != nil {
		o.links.mu.Lock()
		o.links.end(j.site)
		o.links.mu.Unlock()
		return nil, err
	}
	return l, nil
}

// introduce connects, and makes the host show what it must.
func (j *journey) introduce(ctx context.Context, h *PlannedHost, k linkKey) (*link, error) {
	var nc net.Conn // the last that was made
	dial := func(ctx context.Context) (net.Conn, error) {
		// The operator's word on a relay counts more than the guard's, that of a hook does not.
		c, err := j.o.connect(ctx, k.to, k.from, !j.way.relayed || j.turn.To.IsValid())
		if err == nil {
			nc = c
			return c, nil
		}
		return nil, connectError(j.own, h, &Attempt{Addr: k.to, Local: k.from}, err)
	}
	log := j.a.e.opts.Log.With("mail", string(j.a.m.ID), "mx", h.Name, "remote", k.to.String())
	s, err := j.o.securer.Connect(ctx, dial, h, Approach{Addr: k.to.Addr(), Local: k.from,
		Client: smtp.ClientOptions{LocalName: k.helo, Timeouts: j.o.opts.Timeouts, Log: log}})
	j.report(s.Events)
	if err != nil {
		return nil, err
	}
	l := &link{key: k, site: j.site, secured: s}
	l.ready = ready{client: s.Client, nc: nc, peek: newPeeker(nc), offers: offersOf(s.Client, false, h.RequireTLS)}
	l.rcptMax, l.mailMax = limitsOf(s.Client)
	return l, nil
}

// limitsOf reads the limits of a server (RFC 9422).
func limitsOf(c *smtp.Client) (rcpts, mails int) {
	words, _ := c.Extension("LIMITS")
	for w := range strings.FieldsSeq(words) {
		name, value, _ := strings.Cut(w, "=")
		n, err := strconv.ParseUint(value, 10, 20)
		switch {
		case err != nil || n == 0:
		case strings.EqualFold(name, "RCPTMAX"):
			rcpts = int(n)
		case strings.EqualFold(name, "MAILMAX"):
			mails = int(n)
		}
	}
	return rcpts, mails
}

// talk sends the message on a connection, in as many transactions as its recipients need, and ends
// the use of the connection. An error ends the journey; without one, those that are left are for the
// next address.
func (j *journey) talk(ctx context.Context, l *link) error {
	for len(j.left) > 0 {
		l.uses++
		again, err := j.send(ctx, l)
		if err != nil || !again || l.mailMax > 0 && l.uses >= l.mailMax {
			j.end(l)
			return err
		}
	}
	j.end(l)
	return nil
}

// end gives a connection back.
func (j *journey) end(l *link) {
	if l.client.Broken() {
		j.o.links.drop(l)
		return
	}
	j.o.links.put(l)
}

// send makes one transaction. It tells whether the next one may follow on the same connection.
func (j *journey) send(ctx context.Context, l *link) (again bool, err error) {
	a := j.a
	n := min(len(j.left), j.o.opts.Recipients)
	if l.rcptMax > 0 {
		n = min(n, l.rcptMax)
	}
	now := j.left[:n]
	// What the sender said of the content counts, as it did when we took the message: old programs
	// write UTF-8 into header fields without a word, and their mail is not to come back for that.
	env := smtp.Envelope{From: a.sender(), AsSaid: true}
	env.From.Size = a.m.Size
	for _, i := range now {
		env.To = append(env.To, a.m.Recipients[a.lease.Recipients[i]].Recipient)
	}
	res, err := l.client.Send(ctx, env, a.content)
	failure, _ := errors.AsType[*smtp.ClientError](err)
	if ctx.Err() != nil && failure != nil && failure.Reply == nil {
		return false, context.Cause(ctx)
	}
	if failure != nil && len(res.Accepted) == 0 && movesOn(failure) {
		return false, j.moveOn(l, failure)
	}
	// Who has the content and says nothing is no better than who is not there.
	j.reached = j.reached || failure == nil || failure.Reply != nil
	later := j.answer(l, now, env.To, &res)
	if failure != nil && failure.Kind == smtp.KindContent {
		return false, brokeOff(ctx, failure)
	}
	if later == len(now) { // the host took none, and put all off: the next would say the same
		return false, nil
	}
	return !l.client.Broken(), nil
}

// movesOn tells whether a failure is about the host or the connection, and not about the message:
// the message was not on its way yet.
func movesOn(f *smtp.ClientError) bool {
	switch f.Phase {
	case smtp.PhaseMail:
		return f.Reply == nil && f.Kind != smtp.KindContent || f.Reply != nil && (f.Reply.Temporary() || f.Kind == smtp.KindUnfit && f.Reply.Enh == errNoRequireTLS.Enh)
	case smtp.PhaseRcpt, smtp.PhaseData:
		return f.Kind != smtp.KindUnfit && f.Kind != smtp.KindContent && (f.Reply == nil || f.Reply.Code == 421)
	}
	return false
}

// moveOn notes why the journey goes on elsewhere. A connection that had been idle and turns out to
// be closed is no reason to speak of.
func (j *journey) moveOn(l *link, f *smtp.ClientError) error {
	if f.Reply != nil {
		j.reached = j.reached || f.Reply.Code != 421 // which is about the connection
	} else if l.uses > 1 && l.client.Broken() && !f.Timeout() {
		return nil
	}
	e := &mx.Error{Category: mx.SMTP, Target: j.own, Host: l.key.host, Addr: l.key.to.Addr(), Err: f}
	if e.Reply = f.Reply; e.Reply == nil {
		e.Category, e.Reply = mx.Network, errBrokeOff
	}
	j.errs = append(j.errs, e)
	return nil
}

// answer records what a transaction brought each of its recipients, and keeps those for whom there is
// no answer yet, which it counts: those of whom the host wants to hear in another transaction.
func (j *journey) answer(l *link, now []int, to []smtp.Recipient, res *smtp.SendResult) (later int) {
	a := j.a
	places := make(map[smtp.Path][]int, len(now))
	for n, i := range now {
		places[to[n].Path] = append(places[to[n].Path], i)
	}
	take := func(p smtp.Path) (i int, ok bool) {
		list := places[p]
		if len(list) == 0 {
			return 0, false
		}
		places[p] = list[1:]
		return list[0], true
	}
	said := l.spoken()
	for _, p := range res.Accepted {
		if i, ok := take(p); ok {
			a.replies[i], a.by[i] = notClosing(res.Response), said
		}
	}
	var rest []int
	for _, f := range res.Rejected {
		i, ok := take(f.Recipient)
		switch {
		case !ok:
		case tooMany(f) && len(res.Accepted) > 0, f.Kind == smtp.KindContent:
			rest = append(rest, i)
		default:
			a.replies[i], a.by[i] = replyOf(f), said
		}
	}
	for _, list := range places { // the client accounts for all of them
		rest = append(rest, list...)
	}
	j.left = append(rest, j.left[len(now):]...)
	return len(rest)
}

// tooMany tells whether a recipient is to come in another transaction. RFC 5321, Section
// 4.5.3.1.10; what other 452 there is has an enhanced code of its own.
func tooMany(f *smtp.ClientError) bool {
	r := f.Reply
	return f.Phase == smtp.PhaseRcpt && r != nil && r.Code == 452 && (r.Enh == smtp.Enhanced{} || r.Enh == smtp.Enhanced{4, 5, 3})
}

// replyOf is a failure as a reply.
func replyOf(f *smtp.ClientError) *smtp.Reply {
	if f.Reply != nil {
		return notClosing(f.Reply)
	}
	return errBrokeOff.Because(f)
}

// judge tells the engine how the site is.
func (j *journey) judge(err error) {
	e, d := j.a.e, j.a.lease.Destination
	if j.special || err != nil && !errors.Is(err, errEnough) {
		return
	}
	if j.reached {
		e.succeeded(d, e.now().Sub(j.a.start) < slowTime)
		return
	}
	theirs := slices.DeleteFunc(slices.Clone(j.errs), func(err error) bool { return ourFault(err) || noWayThere(err) })
	switch {
	case len(theirs) == 0 && len(j.errs) > 0: // nobody was asked
	case slices.ContainsFunc(theirs, refusedUs):
		e.crowded(d) // there is somebody, who may have too many of us
	case !slices.ContainsFunc(theirs, func(err error) bool { return !unreached(err) }):
		e.failed(d)
	}
}

// sum is what is said of recipients for whom no host was found.
func (j *journey) sum() error {
	if len(j.errs) == 0 {
		if err := j.plan.Err(); err != nil {
			return err
		}
		return &mx.Error{Category: mx.Network, Target: j.own, Reply: errUnreached}
	}
	chosen, closed := j.errs[0], true
	for _, err := range j.errs {
		closed = closed && final(err)
		if final(chosen) && !final(err) {
			chosen = err
		}
	}
	if e, ok := errors.AsType[*mx.Error](chosen); ok && e.Category == mx.SMTP && e.Reply != nil {
		for _, i := range j.left {
			j.a.by[i] = &spoken{host: cmp.Or(e.Host, smtp.AddrDomain(e.Addr).String()), addr: e.Addr}
		}
	}
	r := smtp.ReplyOf(chosen)
	if r.Permanent() && !closed {
		r = smtp.Refuse(451, smtp.Enhanced{4, r.Enh[1], r.Enh[2]}, r.Text)
	}
	return r.Because(j.told())
}

// told is all that stood in the way, in few words, for the log and for who looks at the queue.
func (j *journey) told() error {
	var list []string
	for _, err := range j.errs {
		e, ok := errors.AsType[*mx.Error](err)
		if !ok {
			list = append(list, err.Error())
			continue
		}
		words := cmp.Or(e.Host, "the domain")
		if e.Addr.IsValid() {
			words += " [" + e.Addr.String() + "]"
		}
		if e.Err == nil || e.Category == mx.SMTP && e.Reply != nil {
			words += ": " + smtp.ReplyOf(e).Line() // what the host said, or all there is
		} else {
			words += ": " + e.Err.Error()
		}
		if e != err { // there is more around it
			_, more, _ := strings.Cut(err.Error(), e.Error())
			words += more
		}
		list = append(list, words)
	}
	return errors.New(strings.Join(list, "; "))
}

// final tells whether a refusal that came before any recipient was named is for good. What the plan
// says is, and so is that a host takes no mail at all (RFC 7504), or does not promise what the
// sender asked for (RFC 8689, Section 4.2.1); whatever else a host says is about us.
func final(err error) bool {
	r, ok := errors.AsType[*smtp.Reply](err)
	if !ok || !r.Permanent() {
		return false
	}
	e, ok := errors.AsType[*mx.Error](err)
	return !ok || e.Category != mx.SMTP || r.Code == 521 || r.Code == 556 || r.Enh == errNoRequireTLS.Enh
}

// errTooLong ends an attempt that takes too long.
var errTooLong = smtp.Refuse(451, smtp.Enhanced{4, 4, 7}, "the next hop took too long")

// errUnreached is that no host could be connected to.
var errUnreached = smtp.Refuse(451, smtp.Enhanced{4, 4, 1}, "no host of the domain could be reached")

// report tells the Recorder.
func (j *journey) report(events []tlsrpt.Event) {
	if rec := j.o.opts.Recorder; rec != nil {
		for _, ev := range events {
			ev.Time = j.a.e.now()
			rec.Record(ev)
		}
	}
}

// spoken is who had the last word to a recipient.
type spoken struct {
	host         string
	addr         netip.Addr
	tls, verdict string
	dsn          bool // it reports for us
	backend      bool // host is the name of a backend
}

// spoken says who is at the other end.
func (l *link) spoken() *spoken {
	s := &spoken{host: l.key.host, addr: l.key.to.Addr(), tls: l.secured.TLS(), dsn: l.offers.Extensions.DSN}
	if l.secured.Shown.Authenticated() {
		s.verdict = string(l.secured.Shown)
	}
	if s.host == "" {
		s.host = smtp.AddrDomain(s.addr).String()
	}
	return s
}

// outgoing is the attempt as Hooks see it.
func (a *attempt) outgoing() Outgoing {
	o := Outgoing{Message: a.m, Recipients: a.lease.Recipients, Target: strings.TrimPrefix(string(a.lease.Destination), mxPrefix)}
	for _, at := range a.lease.Recipients {
		o.Try = max(o.Try, a.m.Recipients[at].Tries+1)
	}
	return o
}
